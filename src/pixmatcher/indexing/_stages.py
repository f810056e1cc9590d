"""The stages between the pending entries of a source and what is stored: worker threads encode, one thread stores.

`index` and `upgrade` use them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from .._progress import Progress, ProgressCallback
from ..collection import PendingWork
from ..encoders import Encoder
from ..sources import Entry, HoldsEmbeddings, Source
from ._encode import BatchEncoder, BatchResult, EncodeOptions, KeepsThumbnails
from ._report import IndexReport
from ._store import HasSpaces, ResultStore
from .reading import WorkItem, as_completed, work_batches

_log = logging.getLogger("pixmatcher.indexing")


class Place(KeepsThumbnails, HasSpaces, Protocol):
    """What the stages need of the collection that they write to."""


@dataclass(frozen=True)
class Workers:
    """The threads of a run, and how many they are."""

    executor: ThreadPoolExecutor
    count: int


class Counter:
    """Counts the images that are done, and reports the progress of a stage."""

    def __init__(self, total: int, progress: ProgressCallback | None, stage: str) -> None:
        self._done, self._total, self._progress, self._stage = 0, total, progress, stage
        self.add(0)

    def grow(self, count: int) -> None:
        """Count more images to be done."""
        self._total += count

    def add(self, count: int) -> None:
        """Count more images as done."""
        self._done += count
        if self._progress:
            self._progress(Progress(self._stage, self._done, self._total, "images"))


class Stages:
    """Encodes and stores the pending entries of sources.

    Each worker thread decodes a batch and encodes it itself, so that every core is busy whatever the images cost, and
    memory is bounded by the batches that are being processed. Only the thread of the caller writes.
    """

    def __init__(
        self, place: Place, work: PendingWork, encoders: Sequence[Encoder], options: EncodeOptions, workers: Workers
    ) -> None:
        self._place = place
        self._work = work
        self._options = options
        self._workers = workers
        self.encoder = BatchEncoder(place, work, encoders, options)

    def run(self, source: Source, report: IndexReport, counter: Counter) -> None:
        """Encode and store the pending entries of one source."""
        started = time.monotonic()
        store = ResultStore(self._place, self._work, source, report, self._encode_again)
        batches = self._batches(source, self._work.pending(source.spec))
        work = partial(self.encoder.process, source)
        executor, most_running = self._workers.executor, 2 * self._workers.count
        try:
            with (
                closing(batches),
                closing(as_completed(executor, work, batches, most_running)) as results,
            ):
                for result in results:
                    store.add(result)
                    counter.add(len(result))
                    store.flush_if_due()
        finally:
            # Also when the user interrupts the run: what is encoded is kept.
            store.flush()
        _log.info("%s indexed in %.2f s", source.spec, time.monotonic() - started)

    def _batches(self, source: Source, entries: Iterable[Entry]) -> Generator[list[WorkItem], None, None]:
        """Yield entries in batches of work items."""
        size = source.batch_size if isinstance(source, HoldsEmbeddings) else self.encoder.batch_size
        return work_batches(source, entries, size, allow_private=self._options.allow_private)

    def _encode_again(self, source: Source, entries: Iterable[Entry]) -> list[BatchResult]:
        """Encode entries in this thread, also those whose content the collection had when they were read."""
        return [self.encoder.process(source, batch, encode_known=True) for batch in self._batches(source, entries)]
