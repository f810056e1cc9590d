"""Reading: the images of a source, in batches, each as the bytes to decode."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, TypeVar

from .._files import sha256_of
from ..errors import FetchError, InvalidImageError
from ..sources import Entry, Source

_T = TypeVar("_T")
_R = TypeVar("_R")

_READ_AT_ONCE = 64 << 20
"""Files up to this many bytes are read once, into memory; longer ones twice, to be hashed and to be decoded."""


@dataclass(frozen=True)
class Turn:
    """An entry whose turn it is, its number among all, and what was fetched if it is remote."""

    number: int
    entry: Entry
    fetched: bytes | FetchError | None = None


@dataclass(frozen=True)
class ReadImage:
    """What to decode: the bytes of a file, or itself where it is long; its length, and the hash of its content."""

    data: bytes | IO[bytes]
    bytes: int
    content_hash: str


def take_turns(
    source: Source, entries: Iterable[Entry], batch_size: int, *, allow_private: bool = False
) -> Generator[list[Turn], None, None]:
    """Yield the entries of a source in batches; those of a remote source as they are fetched, in any order.

    A batch may hold fewer than `batch_size`, even none, where fetching takes its time.
    """
    if not source.remote:
        yield from in_batches((Turn(number, entry) for number, entry in enumerate(entries)), batch_size)
        return
    from ..net.fetch_many import fetch_all

    requests = (((number, entry), entry.urls) for number, entry in enumerate(entries))
    with closing(fetch_all(requests, batch_size=batch_size, allow_private=allow_private)) as fetched:
        for batch in fetched:
            yield [Turn(number, entry, answer) for (number, entry), answer in batch]


@contextmanager
def read_entry(source: Source, turn: Turn) -> Iterator[ReadImage]:
    """Read an image. Raises `InvalidImageError` or `FetchError` if that cannot be done."""
    if isinstance(turn.fetched, FetchError):
        raise turn.fetched
    if turn.fetched is not None:
        yield _hashed(io.BytesIO(turn.fetched), turn.entry.rotation)
        return
    with source.open(turn.entry.uri) as file:
        yield _hashed(file, turn.entry.rotation)


def _hashed(file: IO[bytes], rotation: int) -> ReadImage:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    data: bytes | IO[bytes] = file.read() if size <= _READ_AT_ONCE else file
    # The same file turned is another image.
    return ReadImage(data, size, _sha256(data) + (f"+{rotation}" if rotation else ""))


def _sha256(data: bytes | IO[bytes]) -> str:
    """Return the SHA-256, in hexadecimal, of bytes or of a file, which is left at its beginning."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    digest = sha256_of(data)
    data.seek(0)
    return digest


def reason_of(error: Exception) -> tuple[str, str]:
    """Why an image cannot be used: a short fixed phrase to count by, and what says more."""
    if isinstance(error, (InvalidImageError, FetchError)):
        return error.reason, error.detail
    return "unexpected error", f"{type(error).__name__}: {error}"


def in_batches(entries: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of `size` entries; the last may be shorter."""
    iterator = iter(entries)
    while batch := list(islice(iterator, size)):
        yield batch


def as_completed(
    executor: Executor, work: Callable[[_T], _R], batches: Iterator[_T], under_way: int
) -> Generator[_R, None, None]:
    """Yield what `work` makes of each batch, in the order in which they are done; at most `under_way` are begun."""
    running: set[Future[_R]] = set()
    try:
        while True:
            for batch in islice(batches, under_way - len(running)):
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
