"""The inner loops of a search in C: scores of codes and of stored rows, and a complete search in lists of codes.

`_inner_loops.c` is compiled when the package is built. If there was no compiler, or the processor is too old,
`available` is false, and FAISS and NumPy find the same results in more time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._libraries import load_library
from .vectors import Float16, Float32, Rows

if TYPE_CHECKING:
    import ctypes

LIBRARY = Path(__file__).with_name("_inner_loops.so")
_GREATEST_CODE = 255
_GREATEST_WEIGHT = 32767
_GREATEST_SUM = 2**31 - 1


def available() -> bool:
    """Return whether the functions of this module can be called."""
    return _library() is not None


def integer_query(query: Float32) -> tuple[npt.NDArray[np.int16], float]:
    """Return a query (D,) as integers (D,), and the number by which these are multiplied to be the query, rounded.

    The product of the integers with any code fits 32 bits.
    """
    exact = query.astype(np.float64)
    magnitudes = np.abs(exact)
    greatest, total = float(magnitudes.max()), float(magnitudes.sum())
    if greatest == 0:
        return np.zeros(len(query), np.int16), 0.0
    most = _GREATEST_SUM / _GREATEST_CODE - len(query)  # each value may be rounded up
    step = max(greatest / _GREATEST_WEIGHT, total / most)
    return np.rint(exact / step).astype(np.int16), step


def best_codes(
    codes: int,
    start: int,
    stop: int,
    query: npt.NDArray[np.int16],
    count: int,
    allowed: npt.NDArray[np.uint8] | None = None,
) -> tuple[npt.NDArray[np.int32], Rows]:
    """Return the scores and positions of the `count` codes with the highest scores, in no particular order.

    `codes` is the address of all codes (N, D) uint8; those from `start` to `stop` are examined, and of these only the
    ones whose bit in `allowed` is 1, the lowest bit of a byte first. `query` is one of `integer_query`.
    """
    scores, positions = np.empty(count, np.int32), np.empty(count, np.int64)
    bits = allowed.ctypes.data if allowed is not None else None
    where = (scores.ctypes.data, positions.ctypes.data)
    _required().pixmatcher_best_codes(codes, start, stop, len(query), query.ctypes.data, bits, count, *where)
    found = positions >= 0
    return (scores, positions) if found.all() else (scores[found], positions[found])


def row_scores(values: Float16, rows: Rows, query: Float32) -> Float32:
    """Return the inner products (N,) of some `rows` (N,) of `values` (R, D) with `query` (D,).

    They are summed in float64, as `inner_products` does. The caller makes sure that there are such rows.
    """
    exact, scores = query.astype(np.float64), np.empty(len(rows), np.float32)
    rows = np.ascontiguousarray(rows)
    where = (len(rows), values.shape[1], exact.ctypes.data, scores.ctypes.data)
    _required().pixmatcher_row_scores(values.ctypes.data, rows.ctypes.data, *where)
    return scores


@dataclass(frozen=True)
class CodedLists:
    """Lists of rows around centres, as `Lists` in `_inner_loops.c`; `parts` are the arrays whose addresses it has."""

    fields: npt.NDArray[np.int64]
    parts: Sequence[npt.NDArray[Any]]


def coded_lists(
    centres: Float32, codebooks: Float32, codes: Sequence[int], rows: Sequence[int], sizes: npt.NDArray[np.int64]
) -> CodedLists:
    """Return lists for `search_lists`.

    `centres` (L, d), which are kept in float16, with an even d up to 512; `codebooks` (d / 2, 16, 2); the addresses of
    the `codes` and of the numbers of the `rows` (int64) of each list, as FAISS keeps them for `IndexIVFPQFastScan`; and
    their `sizes` (L,).
    """
    count, width = centres.shape
    addresses = [np.array(each, np.uint64) for each in (codes, rows)]
    parts = [
        centres.astype("<f2"),
        np.ascontiguousarray(codebooks.transpose(0, 2, 1)),
        *addresses,
        np.ascontiguousarray(sizes),
    ]
    return CodedLists(np.array([count, width, *(part.ctypes.data for part in parts)]), parts)


def centre_scores(lists: CodedLists, projected: Float32) -> Float32:
    """Return the inner products (L,) of the centres of all lists with `projected` (d,)."""
    scores = np.empty(lists.fields[0], np.float32)
    _required().pixmatcher_centre_scores(lists.fields.ctypes.data, projected.ctypes.data, scores.ctypes.data)
    return scores


def lowest_within(scores: Float32, reach: float) -> float:
    """Return the score at a `reach` below the highest of some scores (L,), as a multiple of the way to their mean."""
    found: float = _required().pixmatcher_lowest_within(scores.ctypes.data, len(scores), reach)
    return found


def search_lists(
    lists: CodedLists,
    projected: Float32,
    centre_scores: Float32,
    lowest: float,
    candidates: int,
    k: int,
    *,
    compared: tuple[Float16, int, Float32] | None = None,
    allowed: tuple[npt.NDArray[np.uint8], int] | None = None,
) -> tuple[Float32, Rows]:
    """Return the scores and numbers of the `k` best rows of some lists, best first; fewer if there are fewer.

    `projected` (d,) is the query along the axes of the codes. The lists whose `centre_scores` (L,) are `lowest` or
    more are scanned for the `candidates` with the best codes. `compared` has stored values (R, D), the number of the
    row that is the first of them, and the query (D,): with it, the stored values of the candidates decide, else their
    codes. `allowed` has bits, the lowest of a byte first, and their number: only rows whose bit is 1 count.

    Raises `MemoryError` if there is not enough memory.
    """
    scores, rows = np.empty(k, np.float32), np.empty(k, np.int64)
    bits, length = (allowed[0].ctypes.data, allowed[1]) if allowed else (None, 0)
    values, first_row, dimension, exact = None, 0, 0, None
    if compared:
        values, first_row, dimension = compared[0].ctypes.data, compared[1], compared[0].shape[1]
        query = compared[2].astype(np.float64)
        exact = query.ctypes.data
    found = _required().pixmatcher_search_lists(
        *(lists.fields.ctypes.data, projected.ctypes.data, centre_scores.ctypes.data, lowest),
        *(bits, length, candidates, values, first_row, dimension, exact),
        *(k, scores.ctypes.data, rows.ctypes.data),
    )
    if found < 0:
        raise MemoryError
    return (scores, rows) if found == k else (scores[:found], rows[:found])


def _required() -> Any:
    library = _library()
    assert library is not None, "ask available() first"
    return library


@cache
def _library() -> ctypes.CDLL | None:
    """Return the compiled library; None if it was not compiled or this processor cannot run it."""
    names = ("best_codes", "row_scores", "centre_scores", "search_lists", "lowest_within", "kernels_run")
    library = load_library(LIBRARY, *(f"pixmatcher_{name}" for name in names))
    if library is None:
        return None
    import ctypes

    best, rows, centres, lists, lowest, runs = (getattr(library, f"pixmatcher_{name}") for name in names)
    number, address, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    best.argtypes = [address, number, number, number, address, address, number, address, address]
    rows.argtypes = [address, address, number, number, address, address]
    centres.argtypes = [address, address, address]
    lowest.argtypes, lowest.restype = [address, number, real], real
    lists.argtypes = [address, address, address, real, address, number, number, address, number, number, address]
    lists.argtypes += [number, address, address]
    centres.restype = None
    lists.restype = number
    return library if sys.byteorder == "little" and runs() else None
