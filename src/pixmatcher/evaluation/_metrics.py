"""The metrics of ranked results, and their confidence intervals.

Sources: [1] C. D. Manning, P. Raghavan, H. Schütze: Introduction to Information Retrieval, 2008, section 8.4.
[2] B. Hamner: Metrics, `ml_metrics/average_precision.py` in github.com/benhamner/Metrics. [3] M. Hodosh, P. Young,
J. Hockenmaier: Framing Image Description as a Ranking Task, JAIR 47, 2013, section 5. [4] B. Efron, R. J. Tibshirani:
An Introduction to the Bootstrap, 1993, chapter 13.

`relevance` (Q, D) bool says for each query whether the item at each rank, best first, is relevant to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES = 1000
"""Resamples of the queries for one interval."""
CONFIDENCE_PERCENT = 95
_SEED = 0


def precision_at(relevance: Bools, k: int) -> Float64:
    """Return precision@k [1] of each query (Q,): the share of the first `k` ranks with a relevant item.

    A rank without an item counts as not relevant.
    """
    shares: Float64 = relevance[:, :k].sum(axis=1) / k
    return shares


def average_precision_at(relevance: Bools, k: int, relevant: npt.ArrayLike) -> Float64:
    """Return AP@k [2] of each query (Q,): the sum of precision@i at the relevant ranks i up to `k`, over min(R, k).

    `relevant` (Q,) is R, the number of items that are relevant to each query, found or not. The result is 0 if R is 0.
    """
    first = relevance[:, :k]
    precisions = first.cumsum(axis=1) / np.arange(1, first.shape[1] + 1)
    most = np.minimum(np.asarray(relevant), k)
    average: Float64 = (precisions * first).sum(axis=1) / np.maximum(most, 1)
    return average


def r_precision(relevance: Bools, relevant: npt.ArrayLike) -> Float64:
    """Return R-precision [1] of each query (Q,): the share of the first R ranks with a relevant item.

    `relevant` (Q,) is R, the number of items that are relevant to each query. The result is 0 if R is 0.
    """
    depths = np.asarray(relevant)
    # A mask, because R differs from query to query and may be almost the number of all items.
    counted = relevance & (np.arange(relevance.shape[1]) < depths[:, None])
    shares: Float64 = counted.sum(axis=1) / np.maximum(depths, 1)
    return shares


def recall_at(ranks: npt.ArrayLike, k: int) -> Float64:
    """Return recall@k [3] of each query (Q,), 0 or 1: whether its one right image is among the first `k`.

    `ranks` (Q,) are the ranks of the right images, counted from 1.
    """
    return (np.asarray(ranks) <= k).astype(np.float64)


def best_columns(scores: npt.NDArray[np.floating[Any]], depth: int) -> Ints:
    """Return the positions (min(depth, N),) of the best scores (N,), best first; equal scores in their given order.

    For scores (Q, N), return the positions of each row (Q, min(depth, N)).
    """
    if scores.ndim > 1:
        return np.stack([best_columns(row, depth) for row in scores])
    count = len(scores)
    candidates: npt.NDArray[np.intp] = np.arange(count)
    if depth < count:
        # All columns with the score of the last place are candidates, so that the first of them gets this place.
        candidates = np.flatnonzero(scores >= np.partition(scores, count - depth)[count - depth])
    columns: Ints = candidates[np.argsort(-scores[candidates], kind="stable")[:depth]]
    return columns


def mean(values: Float64) -> Float64:
    """Return the mean over the queries (M,) of values (Q, M)."""
    means: Float64 = values.mean(axis=0)
    return means


def median(values: Float64) -> Float64:
    """Return the median over the queries (M,) of values (Q, M)."""
    medians: Float64 = np.median(values, axis=0)
    return medians


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[[Float64], Float64] = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = _SEED,
) -> tuple[Float64, Float64]:
    """Return the ends (M,) and (M,) of the 95 % interval of a statistic by the percentile bootstrap [4].

    `values` (Q, M) are M metrics of each query. Queries are drawn with replacement, the same queries for all metrics.
    `statistic` computes (M,) from (Q, M). Raises `ValueError` if there is no query.
    """
    table = np.asarray(values, dtype=np.float64)
    if not len(table):
        raise ValueError("There are no values to draw from.")
    rng = np.random.default_rng(seed)
    # One resample after the other: all at once would need the memory of a thousand times the queries.
    drawn = [statistic(table[rng.integers(0, len(table), len(table))]) for _ in range(resamples)]
    low, high = np.percentile(drawn, [(100 - CONFIDENCE_PERCENT) / 2, (100 + CONFIDENCE_PERCENT) / 2], axis=0)
    return low, high
