"""The report of an indexing run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._text import as_unicode, name_as_unicode
from ..collection import Failure, Item, StoredItems

_MOST_LISTED = 100
"""Failures, incomplete images and notes that `as_json` lists; their numbers count all."""


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

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON data: all numbers, and the first hundred failures, incomplete images and notes.

        `failed` and `incomplete` are numbers of images, `seconds` is the time of the run.
        """
        return {
            "total": self.total,
            "added": self.added,
            "changed": self.changed,
            "moved": self.moved,
            "removed": self.removed,
            "unchanged": self.unchanged,
            "failed": len(self.failures),
            "remembered": self.remembered,
            "incomplete": len(self.incomplete),
            "failures": [
                {"uri": name_as_unicode(each.uri), "reason": each.reason, "detail": as_unicode(each.detail)}
                for each in self.failures[:_MOST_LISTED]
            ],
            "incomplete_uris": [name_as_unicode(item.uri) for item in self.incomplete[:_MOST_LISTED]],
            "passed_over": {kind: sum(counts.values()) for kind, counts in self.passed_over.items()},
            "notes": [as_unicode(note) for note in self.notes[:_MOST_LISTED]],
            "seconds": round(self.seconds, 3),
        }
