"""A worker process on a node of the cluster: it reads, decodes and encodes portions of sources."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..._version import __version__
from ...encoders import Encoder, Runtime, load_recorded
from ...errors import OutdatedCollectionError, PixMatcherError, SourceError, StorageError
from ...records import EncoderRecord
from ...sources import Entry, Source, open_source
from .._encode import BatchResult, DecoderCapabilities, EncodeOptions
from .._workers import ThreadWorkers
from ..reading import WorkItem, read_entry

if TYPE_CHECKING:
    from ...collection import PendingWork


@dataclass(frozen=True)
class Setup:
    """What a worker process needs to begin."""

    records: tuple[EncoderRecord, ...]
    backend: str
    device: str
    offline: bool
    options: EncodeOptions
    threads: int
    """The number of threads that decode and encode in the process."""


@dataclass(frozen=True)
class Ready:
    """The answer of a worker process that is to begin."""

    node: str
    """The address of its node."""
    problem: str = ""
    """Why it cannot begin: a sentence; "" if it can."""
    batch_size: int = 1
    decoders: str = ""
    """What it decodes with; see `DecoderCapabilities`."""


@dataclass(frozen=True)
class Hashes:
    """The content hashes of the entries of a portion, in their order; "" where an image cannot be read."""

    hashes: list[str]
    problem: str = ""
    """Why the source cannot be opened on this node; "" if it can."""


@dataclass(frozen=True)
class Encoded:
    """The result of a portion. Its embeddings are float16, as they are stored."""

    result: BatchResult
    seconds: float
    """How long it took."""
    problem: str = ""
    """Why the source cannot be opened on this node; "" if it can."""
    lost: str = ""
    """The sentence of a `StorageError`: the store with the images answers no more; "" if it does."""


class _Known:
    """The contents that the collection has, as far as the caller says: they are not encoded again.

    It stands for the comparison and for the thumbnails of the collection, which are not on this node.
    """

    def __init__(self) -> None:
        self.hashes: Collection[str] = frozenset()

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        return {content_hash for content_hash in content_hashes if content_hash in self.hashes}

    def thumbnail(self, content_hash: str) -> bytes | None:
        return b"" if content_hash in self.hashes else None


class RayWorker:
    """An actor of Ray. It does one call after the other, and answers with what went wrong instead of raising it."""

    def __init__(self) -> None:
        self._known = _Known()
        self._sources: dict[str, Source] = {}

    def prepare(self, version: str, setup: Setup) -> Ready:
        """Load the encoders; `version` is that of PixMatcher where the run was started."""
        import ray

        node = ray.util.get_node_ip_address()
        if version != __version__:
            return Ready(
                node,
                f"The node {node} has PixMatcher {__version__}, not {version}: install the same version on all nodes.",
            )
        runtime = Runtime(setup.backend, setup.device, setup.offline)
        try:
            encoders = load_recorded(setup.records, runtime)
            for encoder in encoders:
                encoder.load_images()
        except OutdatedCollectionError:
            names = ", ".join(record.name for record in setup.records)
            return Ready(
                node, f"The node {node} has another version of an encoder ({names}): install the same on all nodes."
            )
        except PixMatcherError as error:
            return Ready(node, f"On the node {node}: {error}")
        self._begin(setup, encoders)
        batch_size = max(encoder.batch_size for encoder in encoders)
        return Ready(node, "", batch_size, str(DecoderCapabilities(setup.options.max_pixels)))

    def hash_contents(self, spec: str, entries: Sequence[Entry]) -> Hashes:
        """Read entries, and return the hashes of their content."""
        try:
            source = self._open(spec)
        except SourceError as error:
            return Hashes([], str(error))
        return Hashes([*self._executor.map(partial(_content_hash, source), entries)])

    def encode(self, spec: str, entries: Sequence[Entry], known: Collection[str]) -> Encoded:
        """Encode entries, except those whose content hash is `known`."""
        started = time.monotonic()
        try:
            source = self._open(spec)
        except SourceError as error:
            return Encoded(BatchResult(), 0.0, str(error))
        self._known.hashes = known
        try:
            with closing(self._threads.encode(source, entries)) as results:
                joined = _join([*results])
        except StorageError as error:
            return Encoded(BatchResult(), 0.0, lost=str(error))
        return Encoded(joined, time.monotonic() - started)

    def _begin(self, setup: Setup, encoders: Sequence[Encoder]) -> None:
        self._executor = ThreadPoolExecutor(setup.threads, thread_name_prefix="pixmatcher")
        # Only what the threads ask of a comparison while they encode.
        work: PendingWork = self._known  # type: ignore[assignment]
        self._threads = ThreadWorkers(self._executor, setup.threads, self._known, work, encoders, setup.options)

    def _open(self, spec: str) -> Source:
        """Return the source of this spec, as it is on this node."""
        if spec not in self._sources:
            self._sources[spec] = open_source(spec)
        return self._sources[spec]


def _content_hash(source: Source, entry: Entry) -> str:
    try:
        with read_entry(source, WorkItem(0, entry)) as read:
            return read.content_hash
    except Exception:  # encoding it says why
        return ""


def _join(results: Sequence[BatchResult]) -> BatchResult:
    """Join results of batches; embeddings become float16, as a collection would round them."""
    joined = BatchResult()
    for result in results:
        joined.encoded += result.encoded
        joined.known += result.known
        joined.failed += result.failed
        joined.thumbnails |= result.thumbnails
    filled = [result.embeddings for result in results if result.encoded]
    with np.errstate(over="ignore"):  # what does not fit is found when it is stored
        joined.embeddings = {
            space: np.concatenate([embeddings[space] for embeddings in filled]).astype(np.float16)
            for space in (filled[0] if filled else ())
        }
    return joined
