"""Measuring a trained index: queries are derived from its rows, and its results are compared with an exact search.

The result is a curve of operating points. A point is a number of lists and of candidates, the recall they give, and
what a query costs with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .._progress import Progress, ProgressCallback
from ._gpu import on_gpu_or_cpu
from ._lists import InvertedLists, project, read_projected
from ._scoring import inner_products, true_scores
from ._target import OperatingPoint
from .vectors import Float32, RowMask, Rows, VectorFile

Positions = npt.NDArray[np.int64]

_QUERY_COUNT = 600
_QUERY_KINDS = 3
_CANDIDATE_COUNTS = (32, 40, 50, 70, 100, 200, 400, 800)
_MIN_GAIN = 0.01
"""Stop adding candidates when a doubling finds fewer than so many more of the nearest rows for each query."""
_TEXT_MISSES = 0.4
"""Part of the misses that is allowed with text queries. In the semantic space of `lite`, with 20,000 images, label
names find 0.95 of their nearest rows when queries derived from rows find 0.975."""
CODE_COST = 1 / 192
_CANDIDATE_COST = 150
"""Costs of reading one code of a value and of comparing one candidate, in the same arbitrary unit."""

NO_ROW = -2
"""Fills up arrays of rows; not -1, with which FAISS fills up its results."""
_EQUALLY_NEAR = 20
"""Rows after the nearest that are examined for equal scores, such as those of copies of an image."""
_MAX_UNMERGED_BLOCKS = 8


@dataclass(frozen=True)
class MeasuringQueries:
    """Queries to measure an index with.

    `vectors` (Q, D) float32; `own_rows` (Q,) is the row from which each was derived, which does not count as found,
    or -1; `groups` are the positions of the queries of each kind. The kind with the lowest recall counts.
    """

    vectors: Float32
    own_rows: Rows
    groups: Sequence[Positions]


@dataclass(frozen=True)
class NearestRows:
    """The true `k` nearest rows of queries, and the rows with the same score as the last of them.

    `rows` (Q, n) int64 is filled up with `NO_ROW`. `kth_scores` (Q,) are the scores of the k-th rows. `incomplete` (Q,)
    bool is true where more rows have this score than were examined.
    """

    k: int
    rows: Rows
    kth_scores: Float32
    incomplete: RowMask


def measuring_queries(vectors: VectorFile, rows: Rows, given: Float32 | None = None) -> MeasuringQueries:
    """Return queries derived from `rows` (N,), followed by `given` (Q, D) ones."""
    sampled, own_rows = sample_queries(vectors, rows, min(_QUERY_COUNT, len(rows)))
    if given is None:
        given = np.empty((0, vectors.dimension), np.float32)
    both = np.concatenate([sampled, given]).astype(np.float32)
    own_rows = np.concatenate([own_rows, np.full(len(given), -1)])
    groups = [*np.array_split(np.arange(len(sampled)), _QUERY_KINDS), np.arange(len(sampled), len(both))]
    return MeasuringQueries(both, own_rows, [group for group in groups if len(group)])


def sample_queries(vectors: VectorFile, rows: Rows, count: int) -> tuple[Float32, Rows]:
    """Return queries (count, D) similar to those of users, and the row (count,) from which each was derived.

    One third are rows with noise, one third are sums of three rows, and one third are rows. The sums stand for images
    that are not in the collection: these are further from its rows than the rows are from one another.
    """
    random = np.random.default_rng(1)
    own_rows = random.choice(rows, count, replace=len(rows) < count)
    third = count // _QUERY_KINDS
    others = random.choice(rows, (2, third))
    needed, places = np.unique(np.concatenate([own_rows, *others]), return_inverse=True)
    values = read_projected(vectors, needed)[places]
    queries = values[:count]
    noise = random.standard_normal((third, vectors.dimension), dtype=np.float32)
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    queries[:third] += 0.5 * lengths[:third] * noise / np.sqrt(np.float32(vectors.dimension))
    queries[third : 2 * third] += values[count : count + third] + values[count + third :]
    return queries, own_rows


def exact_nearest(
    vectors: VectorFile, rows: Rows, queries: Float32, own_rows: Rows, k: int, progress: ProgressCallback | None = None
) -> NearestRows:
    """Return the true `k` nearest of `rows` (N,) to each query (Q, D), without its own row (Q,)."""
    found: list[tuple[Float32, Rows]] = []
    done, depth = 0, k + 1 + _EQUALLY_NEAR
    for block, stored in vectors.stream(rows):
        count = min(depth, len(block))
        scores, places = on_gpu_or_cpu(partial(_highest_products, queries, stored.astype(np.float32), count))
        found.append((scores, block[places]))
        if len(found) > _MAX_UNMERGED_BLOCKS:
            found = [_merged(found, depth)]
        done += len(block)
        if progress:
            progress(Progress("Measuring the index", done, len(rows), "rows"))
    _, candidates = _merged(found, depth)
    examined = np.unique(candidates)
    stored = vectors.read_unmapped(examined)
    nearest = NearestRows(
        k,
        np.full(candidates.shape, NO_ROW),
        np.full(len(queries), -np.inf, np.float32),
        np.ones(len(queries), np.bool_),
    )
    for number, query in enumerate(queries):
        kept = candidates[number][candidates[number] != own_rows[number]]
        scores = inner_products(stored[np.searchsorted(examined, kept)], query)
        if len(kept) > k:
            nearest.kth_scores[number] = np.partition(scores, -k)[-k]
            all_equal = scores.min() >= nearest.kth_scores[number]
            nearest.incomplete[number] = all_equal and len(candidates[number]) < len(rows)
        near = kept[scores >= nearest.kth_scores[number]]
        nearest.rows[number, : len(near)] = near
    return nearest


def _highest_products(queries: Float32, values: Float32, count: int, gpu: Any) -> tuple[Float32, Rows]:
    """Return the `count` highest inner products of each query (Q, D) with `values` (N, D), and the numbers of these."""
    metric = faiss.METRIC_INNER_PRODUCT
    if gpu is None:
        found: tuple[Float32, Rows] = faiss.knn(queries, values, count, metric)
        return found
    return faiss.knn_gpu(gpu, queries, values, count, metric=metric)


def _merged(found: Sequence[tuple[Float32, Rows]], depth: int) -> tuple[Float32, Rows]:
    """Return the `depth` best scores and rows of each query (Q, depth) from those of several blocks."""
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    rows = np.concatenate([rows for _, rows in found], axis=1)
    order = np.argsort(-scores, axis=1)[:, :depth]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def measure_points(
    lists: InvertedLists, vectors: VectorFile, queries: MeasuringQueries, truth: NearestRows, stop_at: float = 1
) -> list[OperatingPoint]:
    """Return the recall and cost of each number of lists and candidates, fewer lists first.

    The recall is that of the group of queries with the lowest one. The curve ends at the number of lists after the
    first that surely reaches the recall `stop_at`.
    """
    projected = project(queries.vectors, lists.axes)
    depth = min(_CANDIDATE_COUNTS[-1], lists.row_count)
    points: list[OperatingPoint] = []
    visited, is_last = 1, False
    while True:
        found = lists.candidates_of_many(projected, depth, visited)
        points += _points_of(found, visited, lists, vectors, queries, truth)
        if is_last or visited >= lists.count or points[-1].recall > 0.999:
            return points
        is_last = max(point.lower_bound for point in points) >= stop_at
        visited = min(visited * 2 if visited < 16 else visited * 5 // 4, lists.count)


def _points_of(
    found: Rows,
    visited: int,
    lists: InvertedLists,
    vectors: VectorFile,
    queries: MeasuringQueries,
    truth: NearestRows,
) -> list[OperatingPoint]:
    """Return the points of one number of lists, given the candidates `found` (Q, depth) with it, best first."""
    points: list[OperatingPoint] = []
    list_cost = lists.row_count * visited / lists.count * lists.coded_values * CODE_COST
    hits, counted = np.zeros(len(queries.vectors)), 0
    for candidates in _CANDIDATE_COUNTS:
        more = count_hits(vectors, queries.vectors, found[:, counted:candidates], queries.own_rows, truth)
        enough = counted > 0 and more.mean() < _MIN_GAIN * math.log2(candidates / counted)
        hits += more
        counted = candidates
        recalls = (hits / truth.k).clip(max=1)
        worst = min((recalls[group] for group in queries.groups), key=lambda each: float(each.mean()))
        standard_error = float(worst.std()) / math.sqrt(len(worst))
        cost = list_cost + candidates * _CANDIDATE_COST
        points.append(OperatingPoint(visited, candidates, float(worst.mean()), standard_error, cost))
        if candidates >= found.shape[1] or enough:
            break
    return points


def count_hits(
    vectors: VectorFile, queries: Float32, found: Rows, own_rows: Rows, truth: NearestRows
) -> npt.NDArray[np.int64]:
    """Return how many of the rows `found` (Q, n) for each query are among its nearest; its own row does not count."""
    hits: npt.NDArray[np.int64] = (found[:, :, None] == truth.rows[:, None, :]).any(axis=2).sum(axis=1)
    for number in np.flatnonzero(truth.incomplete):
        kept = found[number][(found[number] >= 0) & (found[number] != own_rows[number])]
        hits[number] = (true_scores(vectors, queries[number], kept) >= truth.kth_scores[number]).sum()
    return hits


def text_goal(recall: float) -> float:
    """Return the recall that queries derived from rows must reach so that text queries reach `recall`.

    Texts are further from all images than images are from one another, so they miss more.
    """
    return 1 - (1 - recall) * _TEXT_MISSES


def choose_point(points: Sequence[OperatingPoint], goal: float) -> OperatingPoint:
    """Return the cheapest point that surely reaches the recall `goal`, or else the point with the highest recall."""
    sure = [point for point in points if point.lower_bound >= goal]
    if sure:
        return min(sure, key=lambda point: point.cost)
    return max(points, key=lambda point: (point.recall, -point.cost))
