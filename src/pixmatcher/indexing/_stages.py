"""The stages between the pending entries of a source and what is stored: workers encode, one thread stores.

`index` and `upgrade` use them.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing

from .._progress import Progress, ProgressCallback
from ..collection import PendingWork
from ..sources import Source
from ._report import IndexReport
from ._store import HasSpaces, ResultStore
from ._workers import Workers

_log = logging.getLogger("pixmatcher.indexing")


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
    """Encodes and stores the pending entries of sources: workers encode, and only the thread of the caller writes."""

    def __init__(self, place: HasSpaces, work: PendingWork, workers: Workers) -> None:
        self._place = place
        self._work = work
        self._workers = workers

    def run(self, source: Source, report: IndexReport, counter: Counter) -> None:
        """Encode and store the pending entries of one source."""
        started = time.monotonic()
        store = ResultStore(self._place, self._work, source, report, self._workers.encode_known)
        try:
            with closing(self._workers.encode(source, self._work.pending(source.spec))) as results:
                for result in results:
                    store.add(result)
                    counter.add(len(result))
                    store.flush_if_due()
        finally:
            # Also when the user interrupts the run: what is encoded is kept.
            store.flush()
        _log.info("%s indexed in %.2f s", source.spec, time.monotonic() - started)
