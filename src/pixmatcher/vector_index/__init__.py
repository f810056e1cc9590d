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
from typing import IO, TYPE_CHECKING, Protocol

import numpy as np

from .._files import Writer, read_error, replacing_both, temporary_path
from .vectors import Float32, RowMask, Rows, VectorFile

if TYPE_CHECKING:
    from .aim import Aim
    from .trained import Progress

EXACT = "exact"
TRAINED = "trained"
SCAN = "scan"
"""Kinds of index: exact codes, trained lists, and none but the stored rows, which is never saved."""

EXACT_UP_TO = 96_000_000
"""Values (rows x dimension) that an exact scan compares in less than 10 ms on 2 cores: see
docs/explanations/performance.md. A collection of more gets a trained index."""

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
    def recall(self) -> float | None:
        """The measured share of the 10 nearest rows that it finds; None where it finds all."""

    @property
    def mapped(self) -> bool:
        """Whether it lies in its file, so that it costs no memory of its own but cannot be updated."""

    def update(self, rows: Rows) -> None:
        """Hold exactly the given rows: take out what is not among them, add what is missing."""

    def search(self, query: Float32, k: int, among: RowMask | None = None) -> tuple[Float32, Rows]:
        """The k rows of the highest inner product with query (D,), best first; fewer if there are fewer.

        With `among` (rows,) bool, which may not be changed afterwards, only the rows that are true there.
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
    recall: float | None = None


def kind_for(rows: int, dimension: int, now: str | None = None) -> str:
    """The kind of index that so many rows should have; near the border, the one that there is `now`."""
    return TRAINED if rows * dimension > EXACT_UP_TO / (2 if now == TRAINED else 1) else EXACT


def new_index(vectors: VectorFile, rows: Rows) -> VectorIndex:
    """An index of these rows that is ready at once: exact, or where that would take long, none but the rows."""
    from ._exact import ExactIndex
    from ._scan import ScanIndex

    small = kind_for(len(rows), vectors.dimension) == EXACT
    index: VectorIndex = ExactIndex(vectors) if small else ScanIndex(vectors)
    index.update(rows)
    return index


def is_far(index: VectorIndex, rows: int, vectors: VectorFile) -> bool:
    """Whether it takes seconds to bring the index to so many rows."""
    return (rows - len(index.rows)) * vectors.dimension > EXACT_UP_TO


def settled_index(
    index: VectorIndex, vectors: VectorFile, aim: Aim, *, text: bool, progress: Progress | None = None
) -> VectorIndex:
    """The index, or one of the same rows that fits their number and the aim; may take minutes."""
    rows = np.sort(index.rows)
    if kind_for(len(rows), vectors.dimension, index.name) == EXACT:
        return index if index.name == EXACT else new_index(vectors, rows)
    from .trained import TrainedIndex

    if isinstance(index, TrainedIndex) and not index.outgrown and index.fits(aim):
        if index.needs_measuring or index.measured.wanted != aim.recall:
            index.measure(aim, text=text, progress=progress)
            if (index.recall or 0) >= aim.recall or index.measured.trained_on >= 0.9 * len(rows):
                return index
        else:
            return index
    return TrainedIndex.train(vectors, rows, aim, text=text, progress=progress)


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
        stamp = Stamp(generation, dimension, status.st_size, status.st_mtime_ns, sha256, index.name, index.recall)
        stamp_file.write(json.dumps(asdict(stamp)).encode())


def load_index(path: Path, generation: int, vectors: VectorFile) -> tuple[VectorIndex | None, bool]:
    """The index in `path` and whether it is of this generation; None if missing, damaged or of a later one.

    An index of an earlier generation is loaded so that it can be updated.
    """
    with (
        contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, MemoryError, RecursionError),
        _opened(path) as (file, stamp),
    ):
        # A later one is of a catalog that was lost, and its rows may hold other images now.
        if stamp and stamp.dimension == vectors.dimension and stamp.generation <= generation:
            current = stamp.generation == generation
            if stamp.index == EXACT:
                from ._exact import ExactIndex

                return ExactIndex.load(file, vectors, mapped=current), current
            if stamp.index == TRAINED:
                from .trained import TrainedIndex

                return TrainedIndex.load(file, vectors), current
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
        *numbers, sha256, index, recall = astuple(stamp)
        if (
            all(type(value) is int for value in numbers)
            and isinstance(sha256, str)
            and isinstance(index, str)
            and (recall is None or isinstance(recall, float))
        ):
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


def aim_path(path: Path) -> Path:
    """Where it is told what the index file `path` is wanted to be."""
    return path.with_suffix(".aim")


def _stamp_path(path: Path) -> Path:
    return path.with_suffix(".json")
