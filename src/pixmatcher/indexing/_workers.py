"""Workers: what reads, decodes and encodes the entries of a source, several batches at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Protocol

from ..collection import PendingWork
from ..encoders import Encoder, must_choose_device
from ..sources import Entry, HoldsEmbeddings, Source
from ._encode import BatchEncoder, BatchResult, EncodeOptions, KeepsThumbnails, begin_to_load
from .reading import WorkItem, as_completed, work_batches


class Workers(Protocol):
    """The workers of a run: threads of this process, or processes of a Ray cluster."""

    def prepare(self, count: int | None) -> None:
        """Begin to load what encoding needs: for `count` images, None if their number is not known yet.

        Calls after the first that loads something do nothing.
        """

    def encode(self, source: Source, entries: Iterable[Entry]) -> Generator[BatchResult, None, None]:
        """Yield the results of the entries of a source, in any order; an empty one while nothing is ready."""

    def encode_known(self, source: Source, entries: Iterable[Entry]) -> list[BatchResult]:
        """Encode entries also if the collection had their content when they were read."""


class ThreadWorkers:
    """Worker threads. Each decodes a batch and encodes it itself.

    So every core is busy whatever the images cost, and memory is bounded by the batches that are being processed.
    """

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        count: int,
        place: KeepsThumbnails,
        work: PendingWork,
        encoders: Sequence[Encoder],
        options: EncodeOptions,
    ) -> None:
        """Use `count` threads of an executor."""
        self._executor = executor
        self._count = count
        self._encoders = encoders
        self._options = options
        self._encoder = BatchEncoder(place, work, encoders, options)
        self._prepared = False

    def prepare(self, count: int | None) -> None:
        """Begin to load the encoders in a worker thread; if they have a device to choose, when the number is known."""
        # A second thread would wait for the first one to load them, instead of decoding.
        if self._prepared or (count is None and any(map(must_choose_device, self._encoders))):
            return
        self._prepared = True
        begin_to_load(self._executor, self._encoders, count or 0)

    def encode(self, source: Source, entries: Iterable[Entry]) -> Generator[BatchResult, None, None]:
        """Yield the results of the entries of a source, batch by batch."""
        work = partial(self._encoder.process, source)
        with (
            closing(self._batches(source, entries)) as batches,
            closing(as_completed(self._executor, work, batches, 2 * self._count)) as results,
        ):
            yield from results

    def encode_known(self, source: Source, entries: Iterable[Entry]) -> list[BatchResult]:
        """Encode entries in the thread of the caller."""
        return [self._encoder.process(source, batch, encode_known=True) for batch in self._batches(source, entries)]

    def _batches(self, source: Source, entries: Iterable[Entry]) -> Generator[list[WorkItem], None, None]:
        """Yield entries in batches of work items."""
        size = source.batch_size if isinstance(source, HoldsEmbeddings) else self._encoder.batch_size
        return work_batches(source, entries, size, allow_private=self._options.allow_private)
