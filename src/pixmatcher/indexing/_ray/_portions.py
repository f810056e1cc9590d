"""Portions: the entries that a worker process gets in one call, and how they are divided again after a failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain, islice

from ...sources import Entry

MOST_ENTRIES = 1024
_SECONDS = 1.0
"""How long a worker process is to work on a portion: a call costs milliseconds, and a process that dies a portion."""


@dataclass(eq=False)
class Portion:
    """Entries of one source that are encoded in one call."""

    entries: list[Entry]
    known: Collection[str] | None = None
    """Which of their contents the collection has; None if it was not asked."""
    deaths: int = 0
    """How many worker processes have died while they worked on it."""

    def entry_by_uri(self) -> dict[str, Entry]:
        """Return the entries by their uris."""
        return {entry.uri: entry for entry in self.entries}


class Portions:
    """The entries of a source that no worker process has yet, and the portions that must be given out again."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = iter(entries)
        self._ahead: deque[Entry] = deque()
        self._again: deque[Portion] = deque()

    def give_again(self, portions: Iterable[Portion]) -> None:
        """Take back portions; they are given out before all others."""
        self._again.extend(portions)

    def __bool__(self) -> bool:
        """Return whether there is anything to give out."""
        if self._again or self._ahead:
            return True
        for entry in self._entries:
            self._entries = chain([entry], self._entries)
            return True
        return False

    def take(self, size: int, workers: int) -> Portion:
        """Return a portion that was given back, or the next `size` entries; there must be something.

        Near the end portions are smaller, so that all of the `workers` processes end at about the same time.
        """
        if self._again:
            return self._again.popleft()
        wanted = 2 * workers * size
        self._ahead.extend(islice(self._entries, max(0, wanted - len(self._ahead))))
        size = min(size, max(1, -(-len(self._ahead) // (2 * workers))))
        return Portion([self._ahead.popleft() for _ in range(min(size, len(self._ahead)))])


def divided(portion: Portion) -> list[Portion]:
    """Return a portion of each entry, to find the one that ends worker processes."""
    return [Portion([entry], portion.known) for entry in portion.entries]


def next_size(entries: int, seconds: float, batch_size: int) -> int:
    """Return how many entries the next portion of a worker process is to have, in whole batches.

    `entries` and `seconds` are those of its last portion.
    """
    wanted = int(min(entries * _SECONDS / max(seconds, 1e-3), 4 * entries, MOST_ENTRIES))
    return max(1, wanted // batch_size) * batch_size
