"""The FAISS index of one space: derived from the vector file, stamped, and rebuilt whenever it does not fit."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Protocol

from .files import Writer, read_error, replacing_both, temporary_path
from .vectors import Float32, RowMask, Rows, VectorFile

EXACT = "exact"
"""The name of the only kind of index there is today."""

_PAUSES = (0.01, 0.1, 0.5)
"""Seconds. A file and its stamp are replaced one right after the other; who looks between the two looks again."""


class VectorIndex(Protocol):
    """What a collection asks of an index, exact or trained. Rows are those of the vector file.

    `new_index` and `load_index` make one; nothing else knows of its class.
    """

    @property
    def name(self) -> str:
        """What kind of index it is; its stamp says so too."""

    @property
    def rows(self) -> Rows:
        """The rows it holds (N,) int64, in no particular order."""

    @property
    def mapped(self) -> bool:
        """Whether it lies in its file, so that it costs no memory of its own but cannot be updated."""

    def update(self, rows: Rows) -> None:
        """Hold exactly the given rows: take out what is not among them, add what is missing."""

    def search(self, query: Float32, k: int, among: RowMask | None = None) -> tuple[Float32, Rows]:
        """The k rows of the highest inner product with query (D,), best first; fewer if there are fewer.

        With `among` (rows,) bool, only the rows that are true there.
        """

    def save(self, file: Writer) -> None:
        """Write the index to an open file."""


@dataclass(frozen=True)
class Stamp:
    """What an index file was built from, and what it looked like when it was written."""

    generation: int
    dimension: int
    bytes: int
    modified_ns: int
    sha256: str
    index: str = EXACT


def new_index(vectors: VectorFile) -> VectorIndex:
    """An index of no rows for the rows of a vector file."""
    from .exact import ExactIndex

    return ExactIndex(vectors)


def save_index(index: VectorIndex, path: Path, generation: int, dimension: int) -> None:
    """Write index and stamp, both or none of them. Raises `OSError` as the disk does.

    One saver at a time: call it under the lock for that.
    """
    path.parent.mkdir(exist_ok=True)
    with replacing_both(path, _stamp_path(path)) as (file, stamp_file):
        writer = _HashingWriter(file)
        index.save(writer)
        file.flush()
        os.fsync(file.fileno())
        status = os.fstat(file.fileno())
        sha256 = writer.digest.hexdigest()
        stamp = Stamp(generation, dimension, status.st_size, status.st_mtime_ns, sha256, index.name)
        stamp_file.write(json.dumps(asdict(stamp)).encode())


def load_index(path: Path, generation: int, vectors: VectorFile) -> tuple[VectorIndex | None, bool]:
    """The index in `path` and whether it is of this generation; None if missing, damaged or of a later one.

    An index of an earlier generation is loaded so that it can be updated.
    """
    from .exact import ExactIndex

    with contextlib.suppress(OSError, RuntimeError, ValueError, MemoryError), _opened(path) as (file, stamp):
        # A later one is of a catalog that was lost, and its rows may hold other images now.
        if stamp and stamp.dimension == vectors.dimension and stamp.generation <= generation and stamp.index == EXACT:
            current = stamp.generation == generation
            return ExactIndex.load(file, vectors, mapped=current), current
    return None, False


def intact_stamp(path: Path) -> Stamp | None:
    """The stamp of the index file `path`, or None if the file is not what it says, or one of them is missing."""
    with contextlib.suppress(OSError), _opened(path) as (_, stamp):
        return stamp
    return None


def check_index(path: Path) -> bool:
    """Read the index file `path` and tell whether it is what its stamp says, or neither is there yet.

    Raises `CollectionError` if it cannot be read.
    """
    try:
        with _opened(path, thorough=True) as (_, stamp):
            return stamp is not None
    except FileNotFoundError:
        return not os.path.lexists(_stamp_path(path))
    except (IsADirectoryError, NotADirectoryError):
        return False
    except OSError as error:
        raise read_error(path, error) from error


def index_files(path: Path) -> list[Path]:
    """Where an index file, its stamp, and what is left of saving them may lie."""
    files = [path, _stamp_path(path)]
    return files + [temporary_path(file) for file in files]


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of the index file `path`, or None if there is none that makes sense."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        stamp = Stamp(**json.loads(_stamp_path(path).read_bytes()))
        *numbers, sha256, index = astuple(stamp)
        if all(type(value) is int for value in numbers) and isinstance(sha256, str) and isinstance(index, str):
            return stamp
    return None


@contextlib.contextmanager
def _opened(path: Path, *, thorough: bool = False) -> Iterator[tuple[IO[bytes], Stamp | None]]:
    """The index file `path`, open, and its stamp, or None if the file is not what that says.

    The file is opened first, so that what is checked is what is read, whoever replaces it meanwhile. Its bytes are
    only compared if its date differs, or if `thorough`. Raises `OSError` if there is no file that can be read.
    """
    for pause in (*_PAUSES, None):
        with path.open("rb") as file:
            saving = os.path.lexists(temporary_path(_stamp_path(path)))
            stamp = read_stamp(path)
            if stamp is not None and not _is_stamped(file, stamp, thorough):
                stamp = None
            replaced = not os.path.samestat(os.fstat(file.fileno()), path.stat())
            if stamp is not None or pause is None or not (saving or replaced):
                file.seek(0)
                yield file, stamp
                return
        time.sleep(pause)


def _is_stamped(file: IO[bytes], stamp: Stamp, thorough: bool) -> bool:
    status = os.fstat(file.fileno())
    if status.st_size != stamp.bytes:
        return False
    if status.st_mtime_ns == stamp.modified_ns and not thorough:
        return True
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest() == stamp.sha256


class _HashingWriter:
    """Passes what an index writes on to a file, and hashes it on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _stamp_path(path: Path) -> Path:
    return path.with_suffix(".json")
