"""The file of an index and its stamp: saving, loading and checking them.

The stamp is a small JSON file. It says which state of the catalog (generation) the index was built from, and has the
size, date and hash of the index file, so that a stale or damaged index is noticed and rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO

from .._files import read_error, replacing_both, sha256_of, sync_file, temporary_path
from ._kinds import EXACT, TRAINED
from ._protocol import SavableIndex, VectorIndex
from .vectors import VectorFile

_logger = logging.getLogger("pixmatcher.vector_index")

_PAUSES_S = (0.01, 0.1, 0.5)
"""Seconds to wait before each new try to read an index file and its stamp, which are replaced one after the other."""


@dataclass(frozen=True)
class Stamp:
    """What an index file was built from, and its size, date (ns) and SHA-256 when it was written."""

    generation: int
    dimension: int
    bytes: int
    modified_ns: int
    sha256: str
    index: str = EXACT
    recall: float | None = None


def save_index(index: SavableIndex, path: Path, generation: int, dimension: int) -> None:
    """Write an index and its stamp, both or neither. Raises `OSError` if the disk fails.

    Only one thread or process may save at a time: hold the lock for it.
    """
    path.parent.mkdir(exist_ok=True)
    with replacing_both(path, _stamp_path(path)) as (file, stamp_file):
        writer = _HashingWriter(file)
        index.save(writer)
        file.flush()
        sync_file(file.fileno())
        status = os.fstat(file.fileno())
        sha256 = writer.digest.hexdigest()
        stamp = Stamp(generation, dimension, status.st_size, status.st_mtime_ns, sha256, index.name, index.recall)
        stamp_file.write(json.dumps(asdict(stamp)).encode())
    _logger.debug("Saved the %s index %s (generation %d)", index.name, path.name, generation)


def load_index(path: Path, generation: int, vectors: VectorFile) -> tuple[VectorIndex | None, bool]:
    """Return the index in `path`, and whether it was built from this generation of the catalog.

    An index of an earlier generation is loaded too: update it. None is returned if the file is missing, damaged, or
    of a later generation.
    """
    with (
        contextlib.suppress(OSError, RuntimeError, ValueError, TypeError, LookupError, MemoryError, RecursionError),
        _opened(path) as (file, stamp),
    ):
        # A later generation is that of a catalog that was lost: its rows may be other images now.
        if stamp and stamp.dimension == vectors.dimension and stamp.generation <= generation:
            current = stamp.generation == generation
            if stamp.index == EXACT:
                from ._exact import ExactIndex

                return ExactIndex.load(file, vectors, mapped=current), current
            if stamp.index == TRAINED:
                from .trained import TrainedIndex

                return TrainedIndex.load(file, vectors), current
    _logger.debug("No usable index in %s", path)
    return None, False


def read_stamp(path: Path) -> Stamp | None:
    """Return the stamp of the index file `path`, or None if it is missing or damaged."""
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


def read_intact_stamp(path: Path) -> Stamp | None:
    """Return the stamp of the index file `path`; None if one of the two is missing or the file does not match it."""
    with contextlib.suppress(OSError), _opened(path) as (_, stamp):
        return stamp
    return None


def index_is_intact(path: Path) -> bool:
    """Read the complete index file `path` and return whether it matches its stamp; True if neither exists.

    Raises `CollectionError` if it cannot be read.
    """
    try:
        with _opened(path, compare_hash=True) as (_, stamp):
            return stamp is not None
    except FileNotFoundError:
        return not os.path.lexists(_stamp_path(path))
    except (IsADirectoryError, NotADirectoryError):
        return False
    except OSError as error:
        raise read_error(path, error) from error


def index_files(path: Path) -> list[Path]:
    """Return the paths of an index file, its stamp, and the temporary files of saving them."""
    files = [path, _stamp_path(path)]
    return files + [temporary_path(file) for file in files]


@contextlib.contextmanager
def _opened(path: Path, *, compare_hash: bool = False) -> Iterator[tuple[IO[bytes], Stamp | None]]:
    """Open the index file `path`; yield the file and its stamp, or None if the file does not match the stamp.

    The file is opened before it is checked, so that the checked file is the one that is read, even if another process
    replaces it meanwhile. The hash is compared only if the date differs, or with `compare_hash`. Raises `OSError` if
    the file cannot be opened.
    """
    for pause in (*_PAUSES_S, None):
        with path.open("rb") as file:
            saving = os.path.lexists(temporary_path(_stamp_path(path)))
            stamp = read_stamp(path)
            if stamp is not None and not _is_file_of(file, stamp, compare_hash=compare_hash):
                stamp = None
            replaced = not os.path.samestat(os.fstat(file.fileno()), path.stat())
            if stamp is not None or pause is None or not (saving or replaced):
                file.seek(0)
                yield file, stamp
                return
        time.sleep(pause)


def _is_file_of(file: IO[bytes], stamp: Stamp, *, compare_hash: bool) -> bool:
    """Return whether a file is the one of the stamp, by size and date or, if needed, by its hash."""
    status = os.fstat(file.fileno())
    if status.st_size != stamp.bytes:
        return False
    if status.st_mtime_ns == stamp.modified_ns and not compare_hash:
        return True
    return sha256_of(file) == stamp.sha256


class _HashingWriter:
    """Write to a file and compute the SHA-256 of all that is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        return self._file.write(data)


def _stamp_path(index_path: Path) -> Path:
    return index_path.with_suffix(".json")
