"""The report of an indexing run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..collection import Failure, Item, StoredItems


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
    remembered: int = 0
    """How many of the failures are of earlier runs and were not tried again, as nothing has changed."""
    incomplete: list[Item] = field(default_factory=list)
    """The images that were indexed in this run although the end of their file is missing; see `Item.missing`."""
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)
    """How many files of folder sources were passed over: kind -> extension, lower case with the dot -> number.

    The kinds are "video", "audio", "document", "archive", "image" (of a format that is not supported), "other",
    and with the extension "" "hidden" and "excluded": files and folders.
    """
    notes: list[str] = field(default_factory=list)
    """What the sources found out about themselves, such as the encoding of a list: sentences."""
    seconds: float = 0.0

    def count(self, stored: StoredItems) -> None:
        """Add the numbers of items that were stored."""
        self.added += stored.added
        self.changed += stored.changed
        self.moved += stored.moved
        self.unchanged += stored.unchanged
