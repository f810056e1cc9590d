"""The scores of queries against items, block after block, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..collection import ReadableStore
from ..records import Space
from ._metrics import Ints

Float32 = npt.NDArray[np.float32]

_SCORE_BYTES = 128 << 20
"""Bytes of the scores that are in memory at the same time: of a block of queries against all rows."""
_ROWS_AT_ONCE = 16384


def score_blocks(
    collection: ReadableStore, space: Space, ids: Ints, vectors: Float32, *, extra_numbers: int = 0
) -> Iterator[tuple[int, Float32]]:
    """Yield the scores (B, N) float32 of query vectors (Q, D) against the items `ids` (N,), in blocks of queries.

    Each block comes with the number of its first query, and is overwritten by the next. `extra_numbers` says how many
    numbers of 8 bytes the caller keeps for each query beside its scores, which makes the blocks smaller.
    """
    size = max(1, _SCORE_BYTES // (4 * max(1, len(ids)) + 8 * extra_numbers))
    scores = np.empty((min(size, len(vectors)), len(ids)), np.float32)
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size]
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            columns = slice(first, first + _ROWS_AT_ONCE)
            scores[: len(block), columns] = block @ collection.embeddings(ids[columns].tolist(), space.name).T
        yield start, scores[: len(block)]


def ranks_of(collection: ReadableStore, space: Space, ids: Ints, vectors: Float32, columns: Ints) -> Ints:
    """Return the rank (Q,), from 1, that each query (Q, D) gives to the item at its column (Q,) of `ids` (N,).

    Equal scores are ranked by id.
    """
    ranks = np.empty(len(vectors), np.int64)
    for start, scores in score_blocks(collection, space, ids, vectors):
        for row, column in enumerate(columns[start : start + len(scores)].tolist()):
            own = scores[row, column]
            before = np.count_nonzero(scores[row] > own) + np.count_nonzero(scores[row, :column] == own)
            ranks[start + row] = 1 + before
    return ranks
