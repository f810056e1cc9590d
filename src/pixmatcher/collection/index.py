"""The FAISS index of one space: derived from the vector file, stamped, and rebuilt whenever it does not fit."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Protocol

from .exact import ExactIndex
from .files import replacing
from .vectors import Float32, Rows, VectorFile


class VectorIndex(Protocol):
    """What a collection asks of an index, exact or trained. Rows are those of the vector file."""

    @property
    def rows(self) -> Rows:
        """The rows it holds (N,) int64, in no particular order."""

    @property
    def mapped(self) -> bool:
        """Whether it lies in its file, so that it costs no memory of its own but cannot be updated."""

    def update(self, rows: Rows) -> None:
        """Hold exactly the given rows: take out what is not among them, add what is missing."""

    def search(self, query: Float32, k: int) -> tuple[Float32, Rows]:
        """The k rows of the highest inner product with query (D,), best first; fewer if there are fewer."""

    def save(self, file: IO[bytes]) -> None:
        """Write the index to an open file."""


@dataclass(frozen=True)
class Stamp:
    """What an index file was built from, and what it looked like when it was written."""

    generation: int
    dimension: int
    bytes: int
    modified_ns: int
    sha256: str


def save_index(index: VectorIndex, path: Path, generation: int, dimension: int) -> None:
    """Write index and stamp, each at once or not at all. Raises `OSError` as the disk does."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        index.save(file)
    status = path.stat()
    stamp = Stamp(generation, dimension, status.st_size, status.st_mtime_ns, _sha256(path))
    with replacing(_stamp_path(path)) as file:
        file.write(json.dumps(asdict(stamp)).encode())


def load_index(path: Path, generation: int, vectors: VectorFile) -> tuple[ExactIndex | None, bool]:
    """The index in `path` and whether it is of this generation; None if missing, damaged or of a later one.

    An index of an earlier generation is loaded so that it can be updated.
    """
    stamp = read_stamp(path)
    # A later one is of a catalog that was lost, and its rows may hold other images now.
    if (
        stamp is None
        or stamp.dimension != vectors.dimension
        or stamp.generation > generation
        or not is_intact(path, stamp)
    ):
        return None, False
    current = stamp.generation == generation
    with contextlib.suppress(RuntimeError, ValueError, MemoryError):
        return ExactIndex.load(path, vectors, mapped=current), current
    return None, False


def read_stamp(path: Path) -> Stamp | None:
    """The stamp of the index file `path`, or None if there is none that makes sense."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        stamp = Stamp(**json.loads(_stamp_path(path).read_bytes()))
        if all(type(value) is int for value in astuple(stamp)[:-1]):
            return stamp
    return None


def is_intact(path: Path, stamp: Stamp, *, thorough: bool = False) -> bool:
    """Whether the file is the one that was stamped. Its bytes are only read if its date differs, or if `thorough`."""
    try:
        status = path.stat()
        if status.st_size != stamp.bytes:
            return False
        return (status.st_mtime_ns == stamp.modified_ns and not thorough) or _sha256(path) == stamp.sha256
    except OSError:
        return False


def _stamp_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
