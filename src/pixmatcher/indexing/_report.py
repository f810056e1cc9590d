"""The report of an indexing run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..collection import Failure, StoredItems


@dataclass
class IndexReport:
    """The result of a run: how many items were added, changed, moved, removed or left unchanged, and what failed."""

    collection: Path
    total: int = 0
    """The number of items in the collection after the run."""
    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)
    """All images of the sources of this run that cannot be indexed, also those that failed in earlier runs."""
    notes: list[str] = field(default_factory=list)
    """What the sources found out about themselves, such as the encoding of a list: sentences."""
    seconds: float = 0.0

    def count(self, stored: StoredItems) -> None:
        """Add the numbers of items that were stored."""
        self.added += stored.added
        self.changed += stored.changed
        self.moved += stored.moved
        self.unchanged += stored.unchanged
