"""Sources: where images come from. One module for each kind of source; `KINDS` lists them.

Third-party kinds implement `Source` and are passed as objects, or declared as entry points; see `registry`.

May import `images`, `net`, and `encoders` for the names of the encoders that made saved embeddings.
"""

from ..records import Entry
from .protocol import FetchesAhead, HoldsEmbeddings, Source, Unusable
from .registry import KINDS, SourceKind, check_source, open_source, source_kinds

__all__ = [
    "KINDS",
    "Entry",
    "FetchesAhead",
    "HoldsEmbeddings",
    "Source",
    "SourceKind",
    "Unusable",
    "check_source",
    "open_source",
    "source_kinds",
]
