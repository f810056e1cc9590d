"""Read: the images of a source, in batches, each as the bytes to decode."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, TypeVar

from .._files import sha256_of
from ..errors import FetchError, InvalidImageError
from ..sources import Entry, FetchesAhead, Source

_log = logging.getLogger("pixmatcher.indexing")

_T = TypeVar("_T")
_R = TypeVar("_R")

_READ_AT_ONCE = 64 << 20
"""Files of up to this many bytes are read once, into memory; longer ones twice, to hash and to decode them."""


@dataclass(frozen=True)
class WorkItem:
    """An entry to read: its number among all entries of the run and, for a remote image, what was fetched."""

    number: int
    entry: Entry
    fetched: bytes | FetchError | None = None


@dataclass(frozen=True)
class ReadImage:
    """An image to decode: its bytes, or the open file if it is long; its length in bytes; the hash of its content."""

    data: bytes | IO[bytes]
    bytes: int
    content_hash: str


def work_batches(
    source: Source, entries: Iterable[Entry], batch_size: int, *, allow_private: bool = False
) -> Generator[list[WorkItem], None, None]:
    """Yield the entries of a source in batches. Remote images are fetched, and come in any order.

    A batch has `batch_size` items or fewer; it may be empty while images are being fetched.
    """
    if isinstance(source, FetchesAhead):
        with closing(source.fetch_ahead(enumerate(entries), batch_size)) as read:
            for each in read:
                yield [WorkItem(number, entry, answer) for (number, entry), answer in each]
        return
    if not source.remote:
        yield from in_batches((WorkItem(number, entry) for number, entry in enumerate(entries)), batch_size)
        return
    from ..net.fetch_many import fetch_all

    requests = (((number, entry), entry.urls) for number, entry in enumerate(entries))
    with closing(fetch_all(requests, batch_size=batch_size, allow_private=allow_private)) as fetched:
        for batch in fetched:
            yield [WorkItem(number, entry, answer) for (number, entry), answer in batch]


@contextmanager
def read_entry(source: Source, item: WorkItem) -> Iterator[ReadImage]:
    """Read the image of a work item. Raises `InvalidImageError` or `FetchError` if that fails."""
    if isinstance(item.fetched, FetchError):
        raise item.fetched
    if item.fetched is not None:
        yield _read_and_hash(io.BytesIO(item.fetched), item.entry.rotation)
        return
    with source.open(item.entry.uri) as file:
        yield _read_and_hash(file, item.entry.rotation)


def _read_and_hash(file: IO[bytes], rotation: int) -> ReadImage:
    """Return the content of a file and its hash; a large file stays open instead of being read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    data: bytes | IO[bytes] = file.read() if size <= _READ_AT_ONCE else file
    # The same file with another rotation is another image.
    return ReadImage(data, size, _sha256(data) + (f"+{rotation}" if rotation else ""))


def _sha256(data: bytes | IO[bytes]) -> str:
    """Return the SHA-256, in hexadecimal, of bytes or of a file, which is then at its beginning."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = sha256_of(data)
    data.seek(0)
    return digest


def failure_reason(error: Exception) -> tuple[str, str]:
    """Return why an image cannot be used: a short fixed phrase, so that reports can count by it, and the detail."""
    if isinstance(error, (InvalidImageError, FetchError)):
        return error.reason, error.detail
    _log.debug("Unexpected error", exc_info=error)
    return "unexpected error", " ".join(str(error).split()) or "-vv shows where it occurred"


def in_batches(entries: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of `size` entries; the last may be shorter."""
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch


def as_completed(
    executor: Executor, work: Callable[[_T], _R], batches: Iterator[_T], most_running: int
) -> Generator[_R, None, None]:
    """Yield the result of `work` for each batch, in the order of completion; at most `most_running` run at a time."""
    running: set[Future[_R]] = set()
    try:
        while True:
            for batch in islice(batches, most_running - len(running)):
                running.add(executor.submit(work, batch))
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        for future in running:
            future.cancel()
        wait(running)
