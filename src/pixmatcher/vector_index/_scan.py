"""Exact search without an index: the stored rows themselves are compared, block after block.

FAISS compares in float32, and the true scores, summed in float64, decide among what comes out highest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Final

import faiss
import numpy as np

from .._cores import usable_cores
from .vectors import Float16, Float32, RowMask, Rows, VectorFile

_BLOCK = 8192
_CANDIDATES = 256
_SORTED_AT_ONCE = 128
"""So few scores are sorted sooner than the best of them are set apart."""


class ScanIndex:
    """The rows of a vector file with nothing beside them: exact, slow, and ready at once. It is never saved."""

    name: Final = "scan"
    mapped: Final = False
    recall: Final = None

    def __init__(self, vectors: VectorFile) -> None:
        self._vectors = vectors
        self.rows: Rows = np.empty(0, np.int64)

    def update(self, rows: Rows) -> None:
        """Hold exactly the given rows."""
        self.rows = np.sort(rows)

    def search(self, query: Float32, k: int, allowed_rows: RowMask | None = None) -> tuple[Float32, Rows]:
        """The k rows of the highest inner product with query (D,), best first; fewer if there are fewer.

        With `allowed_rows` (rows,) bool, only the rows that are true there.
        """
        return scan(self._vectors, self.rows if allowed_rows is None else self.rows[allowed_rows[self.rows]], query, k)


def scan(vectors: VectorFile, rows: Rows, query: Float32, k: int) -> tuple[Float32, Rows]:
    """The k of the given rows of the highest inner product with query (D,), best first; equals in their order.

    `rows` (N,) int64 are ascending. Fewer than k come back if there are fewer.
    """
    k = min(k, len(rows))
    if k < 1:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    scaled, exponent = near_one(query)
    wanted = max(4 * k, _CANDIDATES)
    while wanted < len(rows) // 2:
        coarse, found, greatest = _compare(vectors, rows, scaled, wanted)
        # What a sum in float32 may be off by (Higham, "Accuracy and Stability of Numerical Algorithms", 3.1), twice.
        reach = 2 * vectors.dimension * 2.0**-24 * float(np.abs(scaled).sum()) * greatest
        scores = true_scores(vectors, scaled, found)
        if coarse.min() + reach < np.partition(scores, -k)[-k]:
            scores, found = best(scores, found, k)
            return np.ldexp(scores, exponent), found
        wanted *= 4
    blocks = np.array_split(rows, len(rows) // _BLOCK + 1)
    scores, found = best(np.concatenate([true_scores(vectors, scaled, block) for block in blocks]), rows, k)
    return np.ldexp(scores, exponent), found


def near_one(query: Float32) -> tuple[Float32, int]:
    """The query brought near 1 by a power of two, which costs no digit, and its exponent.

    So no step of a search may leave the range of float32.
    """
    query = np.ascontiguousarray(query, dtype=np.float32)
    exponent = math.frexp(float(np.abs(query).max()))[1]
    return np.ldexp(query, -exponent), exponent


def true_scores(vectors: VectorFile, query: Float32, rows: Rows) -> Float32:
    """The inner products of stored rows with a query, (N,)."""
    return inner_products(vectors.read(rows), query)


def inner_products(values: Float16, query: Float32) -> Float32:
    """The inner products of rows (N, D) with a query (D,)."""
    # Summed in float64, so that equal rows have equal scores wherever they stand.
    scores = values.astype(np.float64) @ query.astype(np.float64)
    return scores.astype(np.float32)


def best(scores: Float32, rows: Rows, k: int) -> tuple[Float32, Rows]:
    """The k highest scores with their rows, best first; equals in the order of their rows."""
    if len(scores) > max(4 * k, _SORTED_AT_ONCE):
        kept = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
        scores, rows = scores[kept], rows[kept]
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


@cache
def scan_pool() -> ThreadPoolExecutor:
    """Threads for parts of a scan, one a core."""
    # FAISS spreads queries over threads of its own. One query has no use for them, and would wait for them.
    return ThreadPoolExecutor(usable_cores(), "pixmatcher-scan", faiss.omp_set_num_threads, (1,))


def _compare(vectors: VectorFile, rows: Rows, query: Float32, wanted: int) -> tuple[Float32, Rows, float]:
    """The `wanted` rows that score highest in float32, their scores, and the greatest value of all the rows."""
    bounds = np.linspace(0, len(rows), min(usable_cores(), len(rows) // _BLOCK + 1) + 1).astype(int).tolist()
    parts = [rows[start:stop] for start, stop in itertools.pairwise(bounds)]

    def compare(part: Rows) -> Iterator[tuple[Float32, Rows, int]]:
        codes: Any = faiss.IndexScalarQuantizer(
            vectors.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        codes.is_trained = True
        for block, stored in vectors.blocks(part, _BLOCK):
            codes.reset()
            codes.add_sa_codes(stored.view(np.uint8))
            scores, places = codes.search(query[None], min(wanted, len(block)))
            # Without their signs, numbers in float16 are in the order of their bits.
            yield scores[0], block[places[0]], int((stored.view(np.uint16) & 0x7FFF).max())

    found = [each for done in scan_pool().map(lambda part: list(compare(part)), parts) for each in done]
    scores, chosen = np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])
    kept = np.argpartition(scores, -wanted)[-wanted:]
    greatest = np.array(max(each[2] for each in found), np.uint16).view(np.float16)
    return scores[kept], chosen[kept], float(greatest)
