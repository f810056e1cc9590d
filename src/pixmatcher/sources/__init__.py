"""Sources: where images come from.

May import `images` and `net`.
"""

from ..records import Entry
from .protocol import HoldsEmbeddings, Source, Unusable
from .registry import KINDS, SourceKind, open_source

__all__ = ["KINDS", "Entry", "HoldsEmbeddings", "Source", "SourceKind", "Unusable", "open_source"]
