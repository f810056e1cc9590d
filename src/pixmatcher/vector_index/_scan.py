"""Exact search without an index: the stored rows themselves are compared, block after block.

FAISS compares all rows in float32. The true scores of the best candidates, summed in float64, decide about the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

import faiss
import numpy as np

from .._cores import usable_cores
from ._scoring import scale_near_one, scan_parts, top_k, true_scores
from .vectors import Float32, RowMask, Rows, VectorFile

_BLOCK_ROWS = 8192
_MIN_CANDIDATES = 256


class ScanIndex:
    """The rows of a vector file, compared without any codes: exact, slow, and ready at once. It is never saved."""

    name: Final = "scan"
    mapped: Final = False
    recall: Final = None

    def __init__(self, vectors: VectorFile) -> None:
        self._vectors = vectors
        self.rows: Rows = np.empty(0, np.int64)

    def update(self, rows: Rows) -> None:
        """Make the index hold exactly `rows` (N,) int64."""
        self.rows = np.sort(rows)

    def search(self, query: Float32, k: int, allowed_rows: RowMask | None = None) -> tuple[Float32, Rows]:
        """Return the scores and numbers of the `k` rows with the highest inner product with `query` (D,), best first.

        Fewer are returned if there are fewer. `allowed_rows` (R,) bool limits the search to the rows that are true.
        """
        return scan(self._vectors, self.rows if allowed_rows is None else self.rows[allowed_rows[self.rows]], query, k)


def scan(vectors: VectorFile, rows: Rows, query: Float32, k: int) -> tuple[Float32, Rows]:
    """Return the scores and numbers of the `k` of the given rows with the highest inner product with `query` (D,).

    `rows` (N,) int64 are ascending. The best comes first, equal scores in ascending order of rows. Fewer than `k` are
    returned if there are fewer.
    """
    k = min(k, len(rows))
    if k < 1:
        return np.empty(0, np.float32), np.empty(0, np.int64)
    scaled, exponent = scale_near_one(query)
    count = max(4 * k, _MIN_CANDIDATES)
    while count < len(rows) // 2:
        coarse, found, greatest = _compare(vectors, rows, scaled, count)
        # Twice the bound of the rounding error of a sum in float32 (Higham, "Accuracy and Stability of Numerical
        # Algorithms", 3.1).
        error = 2 * vectors.dimension * 2.0**-24 * float(np.abs(scaled).sum()) * greatest
        scores = true_scores(vectors, scaled, found)
        if coarse.min() + error < np.partition(scores, -k)[-k]:
            scores, found = top_k(scores, found, k)
            return np.ldexp(scores, exponent), found
        count *= 4
    blocks = np.array_split(rows, len(rows) // _BLOCK_ROWS + 1)
    scores, found = top_k(np.concatenate([true_scores(vectors, scaled, block) for block in blocks]), rows, k)
    return np.ldexp(scores, exponent), found


def _compare(vectors: VectorFile, rows: Rows, query: Float32, count: int) -> tuple[Float32, Rows, float]:
    """Return the float32 scores and numbers of the `count` best rows, and the greatest magnitude in all rows."""
    threads = min(usable_cores(), len(rows) // _BLOCK_ROWS + 1)
    bounds = np.linspace(0, len(rows), threads + 1).astype(int).tolist()
    parts = [rows[start:stop] for start, stop in itertools.pairwise(bounds)]

    def compare(part: Rows) -> Iterator[tuple[Float32, Rows, int]]:
        codes: Any = faiss.IndexScalarQuantizer(
            vectors.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        codes.is_trained = True
        for block, stored in vectors.blocks(part, _BLOCK_ROWS):
            codes.reset()
            codes.add_sa_codes(stored.view(np.uint8))
            scores, places = codes.search(query[None], min(count, len(block)))
            # Without the sign bit, float16 numbers have the same order as their bits.
            yield scores[0], block[places[0]], int((stored.view(np.uint16) & 0x7FFF).max())

    found = [each for done in scan_parts(lambda part: list(compare(part)), parts) for each in done]
    scores, numbers = np.concatenate([each[0] for each in found]), np.concatenate([each[1] for each in found])
    kept = np.argpartition(scores, -count)[-count:]
    greatest = np.array(max(each[2] for each in found), np.uint16).view(np.float16)
    return scores[kept], numbers[kept], float(greatest)
