"""Indexing: list the images of sources, decode and encode the new ones, and store them in a collection.

The stages are modules: `_target` (the collection that is written), `_compare`, `reading`, `_encode`, `_store`,
`_report`; `_stages` connects those between reading and storing. `_workers` has the threads that encode, `_ray` the
processes of a Ray cluster that do it instead. `_pipeline` runs the stages for `index`, `_upgrade` for `upgrade`,
`_shard_run` for one shard of a source; `_merge` joins shards in a collection. `_shards` says which images belong to a
shard, `_shard_files` has the formats of its files, and `_shard_places` keeps them. `_folders` has what is remembered of
folder sources from one run to the next.

May import `images`, `net`, `encoders`, `sources` and `collection`.
"""

from ._folders import add_counts, list_passed_over
from ._merge import MergeReport, merge_shards
from ._pipeline import AnySource, index
from ._report import IndexReport
from ._shard_run import ShardReport, index_shard
from ._shards import Shard, numbers_text
from ._target import IndexesSources
from ._upgrade import UpgradeReport, upgrade

__all__ = [
    "AnySource",
    "IndexReport",
    "IndexesSources",
    "MergeReport",
    "Shard",
    "ShardReport",
    "UpgradeReport",
    "add_counts",
    "index",
    "index_shard",
    "list_passed_over",
    "merge_shards",
    "numbers_text",
    "upgrade",
]
