"""Indexing: list the images of sources, decode and encode the new ones, and store them in a collection.

The stages are modules: `_target` (the collection that is written), `_compare`, `reading`, `_encode`, `_store`,
`_report`; `_stages` connects those between reading and storing. `_workers` has the threads that encode,
`_ray` the processes of a Ray cluster that do it instead. `_pipeline` runs the stages for `index`, `_upgrade` for
`upgrade`. `_folders` has what is remembered of folder sources from one run to the next.

May import `images`, `net`, `encoders`, `sources` and `collection`.
"""

from ._folders import add_counts, list_passed_over
from ._pipeline import AnySource, index
from ._report import IndexReport
from ._target import IndexesSources
from ._upgrade import UpgradeReport, upgrade

__all__ = [
    "AnySource",
    "IndexReport",
    "IndexesSources",
    "UpgradeReport",
    "add_counts",
    "index",
    "list_passed_over",
    "upgrade",
]
