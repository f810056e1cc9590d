"""Arrays in .npy files, read through memory maps.

The files come from anywhere: nothing is unpickled, and a header is trusted only as far as the file is long. Format:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidImageError, SourceError
from ..images import open_regular_file

_NPY: Any = np.lib.format
"""The format of .npy files; older versions of NumPy have no types for it."""
_MAX_DIMENSION = 1 << 16
_HEADER_BYTES = 1 << 16
_ROWS_A_MAP = 32
_UNPICKLE_EMBEDDINGS = "numpy.save(PATH, numpy.stack(list(numpy.load(PATH, allow_pickle=True))).astype(numpy.float32))"
"""Converts an array (N,) of arrays (D,), and an array (N, D) of numbers as Python objects."""


@dataclass(frozen=True)
class NpyArray:
    """An array in a .npy file whose header fits the file."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    state: tuple[int, int, int]
    """The inode, size and time of the file when its header was read."""

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return a copy of rows of the array; the file is mapped only during this call.

        Raises `SourceError` if the file has changed since it was opened.
        """
        if not self.shape[0]:
            return np.empty(self.shape, self.dtype)
        if not isinstance(rows, slice) and len(rows) > _ROWS_A_MAP:
            # The system also loads the pages around each row, so few rows that are far apart are read at once.
            return np.concatenate(
                [self.read(some) for some in np.split(rows, range(_ROWS_A_MAP, len(rows), _ROWS_A_MAP))]
            )
        try:
            if _state(os.stat(self.path)) == self.state:
                try:
                    mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
                except OSError:
                    # Some FUSE and network disks map a file only if writes of others need not be seen.
                    mapped = np.memmap(self.path, self.dtype, "c", self.offset, self.shape)
                return np.array(mapped[rows], order="C", subok=False)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path} cannot be read ({error}): run the same command again.") from error
        raise SourceError(f"{self.path} has changed while it was read: run the same command again.")


def _state(status: os.stat_result) -> tuple[int, int, int]:
    """Return inode, size and time of a file."""
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def open_npy(path: str, unpickle: str) -> NpyArray:
    """Return the array of a .npy file after reading its header. Raises `SourceError` if it cannot be mapped.

    `unpickle` is the code that converts an array of Python objects, for the message about such a file.
    """
    again = "save it again with numpy.save"
    try:
        with open_regular_file(path) as file:
            state = _state(os.stat(path))
            # A header may claim any length; no more is read than a valid one has.
            head = io.BytesIO(file.read(_HEADER_BYTES))
    except (OSError, InvalidImageError) as error:
        raise SourceError(f"{path} cannot be read ({error}): name a file that numpy.save wrote.") from error
    try:
        version = _NPY.read_magic(head)
        # Version 3 is for names of fields only.
        read = {(1, 0): _NPY.read_array_header_1_0, (2, 0): _NPY.read_array_header_2_0}[version]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran_order, dtype = read(head)
    except Exception as error:  # the header is evaluated as Python's literals, and may fail in many ways
        raise SourceError(f"{path} is not a .npy file that can be read: {again}.") from error
    if dtype.hasobject:
        what = f"{path} holds pickled objects, which can run code when they are read"
        if not shape:
            raise SourceError(f"{what}, and no array: save the array that is in the object with numpy.save.")
        raise SourceError(f"{what}: if you trust it, convert it with {unpickle}, and name the new file.")
    if dtype.names is not None or dtype.subdtype is not None:
        raise SourceError(f"{path} holds records with fields: save a plain array with numpy.save.")
    if fortran_order and len(shape) > 1:
        raise SourceError(f"{path} is in Fortran order: {again} after numpy.ascontiguousarray.")
    # NumPy accepts True as a number here, and fails later.
    if any(type(length) is not int or length < 0 for length in shape):
        raise SourceError(f"{path} is damaged, it claims the shape {shape}: {again}.")
    needed = head.tell() + dtype.itemsize * math.prod(shape)
    if needed > state[1]:
        raise SourceError(f"{path} is cut short, it has {state[1]:,} of {needed:,} bytes: copy or download it again.")
    return NpyArray(path, dtype, shape, head.tell(), state)


def open_embeddings(path: str) -> NpyArray:
    """Return the array of a file of embeddings (N, D). Raises `SourceError` if the file does not hold embeddings."""
    array = open_npy(path, _UNPICKLE_EMBEDDINGS)
    if len(array.shape) != 2 or not 1 <= array.shape[1] <= _MAX_DIMENSION:
        raise SourceError(f"{path} has the shape {array.shape}: embeddings have one row an image, (N, D).")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8) or not array.dtype.isnative:
        raise SourceError(
            f"{path} holds values of the type {array.dtype.str}: save it again as numpy.float32, float16 or float64."
        )
    return array


def unusable_rows(block: npt.NDArray[Any], *, own: bool) -> Iterator[tuple[int, str]]:
    """Yield the position and the reason for each row of (N, D) that cannot be an embedding.

    With `own` the rows must fit float16, and zeros are allowed, as in a collection.
    """
    greatest = np.abs(block).max(axis=1)  # of a row with NaN it is NaN
    limit = np.finfo(np.float16).max if own else np.finfo(block.dtype).max
    with np.errstate(invalid="ignore"):
        doubtful = ~(greatest <= limit) if own else ~((greatest <= limit) & (greatest > 0))
    for position in np.flatnonzero(doubtful).tolist():
        value = greatest[position]
        if not np.isfinite(value):
            yield position, "NaN or infinite values"
        else:
            yield position, "only zeros" if value == 0 else "values too large"


def unit_length(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return rows (N, D), each finite and not zero, divided by their length, as float32."""
    rows = rows.astype(np.promote_types(rows.dtype, np.float32), copy=False)
    # Divide by the greatest value first, so that no square exceeds the range of float32.
    scaled: npt.NDArray[np.float32] = (rows / np.abs(rows).max(axis=1, keepdims=True)).astype(np.float32)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled
