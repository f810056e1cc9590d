"""Store: write the results of batches to the collection, in the thread of the caller."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ..collection import Item, PendingWork
from ..records import Space
from ..sources import Entry, Source
from ._encode import STATE_UNKNOWN, BatchResult
from ._report import IndexReport

if TYPE_CHECKING:
    pass

_log = logging.getLogger("pixmatcher.indexing")

_FLUSH_ITEMS = 512
_FLUSH_SECONDS = 1.0

EncodeAgain = Callable[[Source, Iterable[Entry]], list[BatchResult]]


class HasSpaces(Protocol):
    """What `ResultStore` needs of a collection."""

    @property
    def spaces(self) -> Mapping[str, Space]: ...


class ResultStore:
    """A buffer of batch results of one source, written after `_FLUSH_ITEMS` items or `_FLUSH_SECONDS` seconds."""

    def __init__(
        self,
        collection: HasSpaces,
        comparison: PendingWork,
        source: Source,
        report: IndexReport,
        encode_again: EncodeAgain,
    ) -> None:
        self._collection = collection
        self._comparison = comparison
        self._source = source
        self._report = report
        self._encode_again = encode_again
        self._buffer: list[BatchResult] = []
        self._last_flush = time.monotonic()

    def add(self, result: BatchResult) -> None:
        """Add the result of a batch."""
        self._buffer.append(result)

    def flush_if_due(self) -> None:
        """Write the buffer if it is long or old enough."""
        if sum(map(len, self._buffer)) >= _FLUSH_ITEMS or time.monotonic() - self._last_flush > _FLUSH_SECONDS:
            self.flush()
            self._last_flush = time.monotonic()

    def flush(self) -> None:
        """Write all results of the buffer. After an interruption they are still in it, and can be written again."""
        while results := self._buffer:
            started = time.monotonic()
            # Known items first: their originals may be among the items that change now.
            changed = self._store_known([pair for result in results for pair in result.known])
            self._store_encoded(results)
            failures = [failure for result in results for failure in result.failed]
            if failures:
                # The answer of a server does not prove that an image does not exist any more.
                lost = [] if self._source.remote else [f.uri for f in failures if f.reason not in STATE_UNKNOWN]
                self._report.removed += self._comparison.record_failures(self._source.spec, failures, remove=lost)
            _log.debug("%d results stored in %.3f s", sum(map(len, results)), time.monotonic() - started)
            # If the item with the same content has changed in the meantime, its embeddings cannot be copied.
            self._buffer = self._encode_again(self._source, changed)

    def _store_encoded(self, results: Sequence[BatchResult]) -> None:
        import numpy as np

        results = [result for result in results if result.encoded]
        items = [item for result in results for item in result.encoded]
        if not items:
            return
        embeddings = {
            space: np.concatenate([result.embeddings[space] for result in results]) for space in self._collection.spaces
        }
        thumbnails = {key: jpeg for result in results for key, jpeg in result.thumbnails.items()}
        self._report.incomplete += [item for item in items if item.missing is not None]
        self._report.count(self._comparison.store(self._source.spec, items, embeddings, thumbnails))

    def _store_known(self, known: Sequence[tuple[Item, Entry]]) -> list[Entry]:
        """Store items whose content the collection has: unchanged, moved, or copies.

        Return the entries whose content the collection had when they were read, but has no longer.
        """
        stored = self._comparison.store_known(self._source.spec, [item for item, _ in known])
        self._report.count(stored)
        return [entry for item, entry in known if item.uri in stored.unknown]
