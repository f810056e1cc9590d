"""True scores of stored rows, and the selection of the best: the last step of a search in every kind of index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import faiss
import numpy as np

from .._cores import usable_cores
from . import _kernels
from .vectors import Float16, Float32, Rows, VectorFile

_Part = TypeVar("_Part")
_Found = TypeVar("_Found")

_SORT_ALL_UP_TO = 128
"""So few scores are sorted faster than the best of them are selected first."""


def scale_near_one(query: Float32) -> tuple[Float32, int]:
    """Return a query (D,) scaled by a power of two to values near 1, and the exponent that undoes it.

    The scaling loses no digit, and keeps every step of a search inside the range of float32.
    """
    query = np.ascontiguousarray(query, dtype=np.float32)
    exponent = math.frexp(float(np.abs(query).max()))[1]
    return np.ldexp(query, -exponent), exponent


def true_scores(vectors: VectorFile, query: Float32, rows: Rows) -> Float32:
    """Return the inner products (N,) float32 of the stored `rows` (N,) with `query` (D,)."""
    if not len(rows) or not _kernels.available():
        return inner_products(vectors.read(rows), query)
    return _kernels.row_scores(*vectors.view(rows), query)


def inner_products(values: Float16, query: Float32) -> Float32:
    """Return the inner products (N,) float32 of `values` (N, D) with `query` (D,)."""
    # float64, so that equal rows have equal scores wherever they are stored.
    scores = values.astype(np.float64) @ query.astype(np.float64)
    return scores.astype(np.float32)


def top_k(scores: Float32, rows: Rows, k: int) -> tuple[Float32, Rows]:
    """Return the `k` highest of the scores (N,) and their rows, best first; equal scores in ascending order of rows."""
    if len(scores) > max(4 * k, _SORT_ALL_UP_TO):
        kept = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        scores, rows = scores[kept], rows[kept]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def scan_parts(scan: Callable[[_Part], _Found], parts: Sequence[_Part]) -> list[_Found]:
    """Return `scan(part)` for each part of the rows; several parts are scanned at once, each on one core."""
    if len(parts) > 1:
        return list(_scan_pool().map(scan, parts))
    with one_thread():
        return [scan(part) for part in parts]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS use only this thread during the block: one query is answered before other threads would be awake."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


@cache
def _scan_pool() -> ThreadPoolExecutor:
    """Return the threads that scan parts of the rows, one for each core."""
    # FAISS divides queries among threads of its own. A single query cannot use them, and would wait for them.
    return ThreadPoolExecutor(usable_cores(), "pixmatcher-scan", faiss.omp_set_num_threads, (1,))
