"""The workers of a run on a Ray cluster: portions of entries go to worker processes, and their results come back."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np

from ...collection import Failure, PendingWork
from ...encoders import Encoder, Runtime, device_of
from ...errors import ClusterError, InvalidImageError, SourceError, StorageError
from ...records import EncoderRecord
from ...sources import Entry, FetchesAhead, Source
from .._encode import BatchResult, DecoderCapabilities, EncodeOptions, KeepsThumbnails
from .._workers import ThreadWorkers
from ._cluster import connected
from ._pool import Share, WorkerPool, WorkerProcess, last_line, share_with_gpu
from ._portions import Portion, Portions, divided, next_size
from ._worker import Encoded, Hashes, Setup

_log = logging.getLogger("pixmatcher.indexing")

_MOST_DEATHS = 2
"""Worker processes that may die over a portion before its entries are tried one by one."""
_MOST_DEATHS_ALONE = 3
"""Worker processes that may die over one entry."""
_UNREADABLE = {"missing", "cannot be read", "permission denied"}
"""Reasons of failures that may be those of one node."""
_WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class _Call:
    """A call that a worker process has not answered yet."""

    process: WorkerProcess
    portion: Portion
    encodes: bool
    """Whether it encodes; otherwise it reads the contents to know their hashes."""


class RayWorkers:
    """Worker processes on a Ray cluster. Use it as a context manager, which ends them.

    What the collection has already is asked here, of `place` and `work`: nodes have no collection.
    """

    def __init__(
        self,
        on: str,
        most: int | None,
        local: ThreadWorkers,
        place: KeepsThumbnails,
        work: PendingWork,
        encoders: Sequence[Encoder],
        options: EncodeOptions,
        runtime: Runtime | None,
        *,
        asks: bool,
    ) -> None:
        """Use `most` processes, or as many as the cluster has room for.

        `asks` says whether contents may be known, so that it is worth it to hash files before they are encoded.
        """
        self._on = on
        self._most = most
        self._local = local
        self._place = place
        self._work = work
        self._encoders = encoders
        self._options = options
        self._runtime = runtime or Runtime()
        self._asks = asks
        self._exit = ExitStack()
        self._pool: WorkerPool | None = None

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    @property
    def notes(self) -> list[str]:
        """Sentences about nodes that decode with other packages than this process, for the report."""
        own = str(DecoderCapabilities(self._options.max_pixels))
        others = sorted(
            node for node, decoders in (self._pool.decoders if self._pool else {}).items() if decoders != own
        )
        return [
            f"The node {node} has other versions of the packages that decode images than this machine: install the "
            "same ones, so that all nodes give the same results."
            for node in others
        ]

    def prepare(self, count: int | None) -> None:
        """Do nothing: only after the comparison it is known whether a cluster is needed."""

    def _begin(self) -> WorkerPool:
        """Connect and begin to start the worker processes, unless that is done; return them."""
        if self._pool is not None:
            return self._pool
        import ray

        self._exit.enter_context(connected(self._on))
        share = (share_with_gpu(ray.nodes()) if self._may_use_gpu() else None) or Share(1, 0)
        records = tuple(
            EncoderRecord(encoder.name, encoder.fingerprint, tuple(encoder.spaces)) for encoder in self._encoders
        )
        # The only GPU that Ray gives a process is its first one.
        device = self._runtime.device.partition(":")[0]
        setup = Setup(records, self._runtime.backend, device, self._runtime.offline, self._options, share.cpus)
        self._pool = WorkerPool(setup, share, self._most)
        self._exit.callback(self._pool.close)
        return self._pool

    def encode(self, source: Source, entries: Iterable[Entry]) -> Generator[BatchResult, None, None]:
        """Yield the results of portions of the entries; an empty one about once a second while nothing is ready.

        Raises `ClusterError` if the cluster cannot work any more, `SourceError` if nodes cannot read the source,
        `StorageError` if an object store answers no more.
        """
        portions = Portions(entries)
        if not portions:
            return
        pool = self._begin()
        try:
            yield from self._encode(source, portions, pool)
        except ConnectionError as error:
            raise ClusterError(
                f"The connection to the Ray cluster is lost ({last_line(str(error))}): what is stored is kept, run the "
                "same command again when the cluster answers."
            ) from error

    def _encode(self, source: Source, portions: Portions, pool: WorkerPool) -> Iterator[BatchResult]:
        """Yield the results of portions as `encode` does."""
        calls: dict[Any, _Call] = {}
        # Over a network, reading an image twice takes longer than encoding one that the collection has.
        asks = self._asks and not (source.remote or isinstance(source, FetchesAhead))
        while portions or calls:
            pool.renew()
            while portions and (process := pool.next_free()) is not None:
                portion = portions.take(process.size, pool.ready_count())
                reference, call = self._send(process, source, portion, asks)
                calls[reference] = call
            answered = pool.wait([*calls], _WAIT_SECONDS)
            if not answered:
                yield BatchResult()
            for reference in answered:
                if reference in calls:  # a process that died takes its other calls along
                    yield from self._receive(source, reference, calls, portions)

    def encode_known(self, source: Source, entries: Iterable[Entry]) -> list[BatchResult]:
        """Encode the few entries whose content the collection has no longer, in this process."""
        return self._local.encode_known(source, entries)

    def _may_use_gpu(self) -> bool:
        """Return whether an encoder would use a GPU where one is: it says on which device it runs."""
        return self._runtime.device != "cpu" and any(map(device_of, self._encoders))

    def _send(self, process: WorkerProcess, source: Source, portion: Portion, asks: bool) -> tuple[Any, _Call]:
        """Give a portion to a process: first for its contents, if the collection may have some, then to encode it."""
        encodes = not asks or portion.known is not None
        if encodes:
            reference = process.actor.encode.remote(source.spec, portion.entries, portion.known or frozenset())
        else:
            reference = process.actor.hash_contents.remote(source.spec, portion.entries)
        process.calls.append(reference)
        return reference, _Call(process, portion, encodes)

    def _receive(
        self, source: Source, reference: Any, calls: dict[Any, _Call], portions: Portions
    ) -> Iterator[BatchResult]:
        """Yield the result of a call; if it has none, give portions back."""
        import ray

        call = calls[reference]
        try:
            answer: Hashes | Encoded = ray.get(reference)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayActorError):
                yield from self._note_death(call.process, calls, portions, last_line(str(error)))
            else:  # its result is lost, or the code of a package has failed
                del calls[reference]
                call.process.calls.remove(reference)
                yield from self._give_again(call.portion, portions, last_line(str(error)))
            return
        del calls[reference]
        call.process.calls.remove(reference)
        if answer.problem:
            assert call.process.ready is not None
            raise SourceError(_not_on_node(source, call.process.ready.node, answer.problem))
        if isinstance(answer, Encoded) and answer.lost:
            raise StorageError(answer.lost)
        if isinstance(answer, Hashes):
            call.portion.known = self._known(source, answer.hashes)
            portions.give_again([call.portion])
            return
        assert call.process.ready is not None
        ready = call.process.ready
        call.process.size = next_size(len(call.portion.entries), answer.seconds, ready.batch_size)
        yield self._checked(source, answer.result, call.portion, ready.node)

    def _note_death(
        self, process: WorkerProcess, calls: dict[Any, _Call], portions: Portions, reason: str
    ) -> Iterator[BatchResult]:
        """Give back the portions of a process that has died; the oldest without a result may be why it died."""
        assert self._pool is not None
        _log.warning("a worker process died: %s", reason)
        self._pool.end(process)
        suspect = True
        for reference in process.calls:
            portion = calls.pop(reference).portion
            if suspect:
                suspect = False
                yield from self._give_again(portion, portions, reason)
            else:
                portions.give_again([portion])

    def _give_again(self, portion: Portion, portions: Portions, reason: str) -> Iterator[BatchResult]:
        """Give back a portion that failed; yield a failure if it has only one entry, and that failed too often."""
        portion.deaths += 1
        alone = len(portion.entries) == 1
        if portion.deaths < (_MOST_DEATHS_ALONE if alone else _MOST_DEATHS):
            portions.give_again([portion])
        elif alone:
            detail = f"{portion.deaths} worker processes ended while they encoded it: {reason}"
            yield BatchResult(failed=[Failure(portion.entries[0].uri, "unexpected error", detail)])
        else:
            portions.give_again(divided(portion))

    def _known(self, source: Source, hashes: Sequence[str]) -> frozenset[str]:
        """Return which contents the collection has, with their thumbnails if it keeps those of the source."""
        known = self._work.known_contents([content_hash for content_hash in hashes if content_hash])
        if source.thumbnails and self._options.thumbnails:
            known = {content_hash for content_hash in known if self._place.thumbnail(content_hash) is not None}
        return frozenset(known)

    def _checked(self, source: Source, result: BatchResult, portion: Portion, node: str) -> BatchResult:
        """Return a result with float32 embeddings, without those that the collection has got meanwhile.

        Failures to read become those of the node, if the image can be read here. Raises `SourceError` if none of
        several images can be read there.
        """
        known = self._known(source, [item.content_hash for item in result.encoded])
        kept = [item.content_hash not in known for item in result.encoded]
        entries = portion.entry_by_uri()
        again = [(item, entries[item.uri]) for item in result.encoded if item.content_hash in known]
        encoded = [item for item, keep in zip(result.encoded, kept, strict=True) if keep]
        hashes = {item.content_hash for item in encoded}
        failed = [_of_node(source, failure, node) for failure in result.failed]
        if failed and len(failed) == len(portion.entries) and all(failure.of_node for failure in failed):
            raise SourceError(_not_on_node(source, node, failed[0].failure.detail))
        return BatchResult(
            encoded,
            {space: rows[np.array(kept, bool)].astype(np.float32) for space, rows in result.embeddings.items()},
            {content_hash: jpeg for content_hash, jpeg in result.thumbnails.items() if content_hash in hashes},
            result.known + again,
            [failure.failure for failure in failed],
        )


@dataclass(frozen=True)
class _CheckedFailure:
    failure: Failure
    of_node: bool
    """Whether the image can be read here, so that only the node cannot read it."""


def _of_node(source: Source, failure: Failure, node: str) -> _CheckedFailure:
    """Return a failure to read an image, checked here: the item of an image that exists must not be removed."""
    if source.remote or failure.reason not in _UNREADABLE:
        return _CheckedFailure(failure, False)
    try:
        with source.open(failure.uri):
            pass
    except InvalidImageError:
        return _CheckedFailure(failure, False)
    detail = f"{failure.detail or failure.reason}, on the node {node}"
    return _CheckedFailure(replace(failure, reason="cannot be read", detail=detail, version=""), True)


def _not_on_node(source: Source, node: str, reason: str) -> str:
    """Return the sentence for a source that a node cannot read."""
    return (
        f"The node {node} cannot read {source.spec} ({reason.rstrip('.')}): sources must be at the same path on all "
        "nodes."
    )
