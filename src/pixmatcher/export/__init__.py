"""Exports: the embeddings and items of a collection as files for other tools, and contact sheets of search results.

Each export is written in blocks from one state of the collection, into new files that then replace the old ones.

May import every package of the library.
"""

from ._arrays import export_arrays
from ._parquet import export_parquet

__all__ = ["export_arrays", "export_parquet"]
