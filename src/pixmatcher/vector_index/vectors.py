"""Embeddings on disk: one append-only file for each space, with rows of little-endian float16 values.

The rows of a collection are numbered, and no number is used twice. A file that `pixmatcher upgrade` made holds the rows
from a first number on.
"""

from __future__ import annotations

import itertools
import mmap
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._files import map_file, read_error, remove, sync_file, sync_folder
from ..errors import CollectionError

Float32 = npt.NDArray[np.float32]
Float16 = npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]
RowMask = npt.NDArray[np.bool_]

_STORED = np.dtype("<f2")
_BLOCK_VALUES = 1 << 22


class VectorFile:
    """The rows of one space. The catalog of the collection stores how many of them are valid."""

    def __init__(self, path: Path, dimension: int, first_row: int = 0) -> None:
        """`first_row` is the number of the row with which the file begins."""
        self.path = path
        self.dimension = dimension
        self.first_row = first_row
        self.row_bytes = dimension * _STORED.itemsize
        self._kept: tuple[tuple[int, int], Float16, mmap.mmap | bytes] | None = None

    def close(self) -> None:
        """Release the file; it is opened again when needed."""
        self._kept = None

    def end_row(self) -> int:
        """Return the number of the row after the last complete one in the file, valid or not.

        That is the first row if there is no file. Raises `CollectionError` if the file cannot be examined.
        """
        return self.first_row + self._size_in_rows(self._status())

    def _size_in_rows(self, status: os.stat_result | None) -> int:
        return status.st_size // self.row_bytes if status is not None and stat.S_ISREG(status.st_mode) else 0

    def _status(self) -> os.stat_result | None:
        """Return the status of the file, or None if it does not exist."""
        try:
            return os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise read_error(self.path, error) from error

    def write(self, first_row: int, rows: Float16) -> None:
        """Write rows (N, dimension) at `first_row` and wait until they are on disk.

        Rows after `first_row` were never committed and are overwritten. Raises `OSError` if the disk fails, after the
        file is cut to `first_row` again.
        """
        begin = offset = self._offset(first_row)
        if not offset:
            self._create()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            data = np.ascontiguousarray(rows).data.cast("B")
            try:
                os.ftruncate(descriptor, offset)
                while data:
                    written = os.pwrite(descriptor, data, offset)
                    offset, data = offset + written, data[written:]
                sync_file(descriptor)
            except OSError:
                os.ftruncate(descriptor, begin)
                raise
        finally:
            os.close(descriptor)

    def read(self, rows: Rows | Sequence[int]) -> Float16:
        """Return the given rows as (N, dimension) float16. Raises `CollectionError` if they cannot be read."""
        numbers = np.asarray(rows, dtype=np.int64)
        if not len(numbers):
            return np.empty((0, self.dimension), dtype=_STORED)
        values, positions = self.view(numbers)
        return values[positions]

    def view(self, rows: Rows) -> tuple[Float16, Rows]:
        """Return a view of the file (R, dimension) and where in it the given rows (N,), at least one, are.

        Raises `CollectionError` if they cannot be read.
        """
        return self._mapped(int(rows.max()) + 1, int(rows.min())), rows - self.first_row

    def blocks(self, rows: Rows, size: int | None = None) -> Iterable[tuple[Rows, Float16]]:
        """Yield the given rows in blocks of `size`: row numbers (N,) and values (N, dimension). This bounds memory.

        Without a size, a block has at most 4 million values.
        """
        size = size or max(1, _BLOCK_VALUES // self.dimension)
        for start in range(0, len(rows), size):
            block = rows[start : start + size]
            first, last = int(block[0]), int(block[-1])
            if last - first + 1 == len(block) and (np.diff(block) == 1).all():
                yield block, self._mapped(last + 1, first)[first - self.first_row : last + 1 - self.first_row]
            else:
                yield block, self.read(block)

    def stream(self, rows: Rows, size: int | None = None) -> Iterator[tuple[Rows, Float16]]:
        """Yield the same as `blocks`, and give the memory back after each block: to read many rows once."""
        for block, stored in self.blocks(rows, size):
            yield block, stored
            kept = self._kept
            if kept is not None and isinstance(kept[2], mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                kept[2].madvise(mmap.MADV_DONTNEED)

    def read_unmapped(self, rows: Rows) -> Float16:
        """Return the given rows, ascending, as (N, dimension) float16, read without the memory map.

        The map would also load the rows around each of them into the memory of this process, up to the complete file.
        Raises `CollectionError` if they cannot be read.
        """
        values = np.empty((len(rows), self.dimension), _STORED)
        if not len(rows):
            return values
        if rows[0] < self.first_row:
            raise self._too_short()
        runs = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        try:
            with self.path.open("rb", buffering=0) as file:
                for start, stop in itertools.pairwise(runs):
                    file.seek(self._offset(int(rows[start])))
                    if file.readinto(values[start:stop]) != (stop - start) * self.row_bytes:  # type: ignore[arg-type]
                        raise self._too_short()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise self._too_short() from None
        except OSError as error:
            raise read_error(self.path, error) from error
        return values

    def extend_with_zeros(self, end_row: int) -> None:
        """Make the file hold all rows before `end_row`, to repair one that was cut; replace what is not a file."""
        if not self.path.parent.is_dir():
            remove(self.path.parent)
        if not self.path.is_file():
            remove(self.path)
        self._create()
        with self.path.open("ab") as file:
            if file.tell() < self._offset(end_row):
                file.truncate(self._offset(end_row))
                sync_file(file.fileno())

    def _create(self) -> None:
        """Create the file and its folder if they do not exist."""
        self.path.parent.mkdir(exist_ok=True)
        if not self.path.exists():
            self.path.touch()
            sync_folder(self.path.parent)

    def _offset(self, row: int) -> int:
        """Return the position of a row in the file, in bytes."""
        return (row - self.first_row) * self.row_bytes

    def _too_short(self) -> CollectionError:
        return CollectionError(
            f"{self.path} is shorter than the catalog says",
            "run `pixmatcher verify --repair` on the collection, then `pixmatcher index` to encode the lost images "
            "again.",
        )

    def _mapped(self, end_row: int, lowest: int) -> Float16:
        """Return at least the rows before `end_row` as a view of the file, which stays mapped for the next call.

        Raises `CollectionError` if they cannot be read, or if the file begins after the row `lowest`.
        """
        status, kept = self._status(), self._kept
        row_count, present = end_row - self.first_row, self._size_in_rows(status)
        if status is None or present < row_count or lowest < self.first_row:
            raise self._too_short()
        file_id = (status.st_dev, status.st_ino)
        # Reading beyond the end of the file would crash, so a map that is longer than the file is replaced.
        if kept is not None and kept[0] == file_id and row_count <= len(kept[1]) <= present:
            return kept[1]
        try:
            with self.path.open("rb") as file:
                mapped = map_file(file, present * self.row_bytes)
        except OSError as error:
            raise read_error(self.path, error) from error
        except ValueError:
            raise self._too_short() from None
        rows = np.frombuffer(mapped, dtype=_STORED).reshape(present, self.dimension)
        self._kept = (file_id, rows, mapped)
        return rows


def to_stored(vectors: npt.ArrayLike, dimension: int) -> Float16:
    """Return vectors (N, dimension) as they are stored, in float16.

    Raises `CollectionError` if the shape is wrong or a value is not finite in float16.
    """
    with np.errstate(over="ignore"):
        stored = np.asarray(vectors, dtype=np.float32).astype(_STORED)
    if stored.ndim != 2 or stored.shape[1] != dimension:
        raise CollectionError(f"Embeddings must have the shape (N, {dimension}), not {stored.shape}.")
    if not np.isfinite(stored).all():
        raise CollectionError("Embeddings must be finite numbers that fit float16: NaN, infinite or too large found.")
    return stored


def row_checksums(spaces: Sequence[Float16]) -> list[int]:
    """Return the CRC-32 of each item, over its rows (N, D) in all `spaces`, in the order of these."""
    sums = [0] * len(spaces[0])
    for rows in spaces:
        for position, row in enumerate(np.ascontiguousarray(rows)):
            sums[position] = zlib.crc32(row.data, sums[position])
    return sums
