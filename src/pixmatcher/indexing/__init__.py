"""Indexing: list the images of sources, decode and encode the new ones, and store them in a collection.

The stages are modules: `_target` (the collection that is written), `_compare`, `reading`, `_encode`, `_store`,
`_report`; `_pipeline` runs them.

May import `images`, `net`, `encoders`, `sources` and `collection`.
"""

from ._pipeline import AnySource, index
from ._report import IndexReport

__all__ = ["AnySource", "IndexReport", "index"]
