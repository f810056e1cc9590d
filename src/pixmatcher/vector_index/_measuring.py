"""Measuring a trained index: queries are derived from its rows, and its results are compared with an exact search.

The result is a curve of operating points. A point is a reach and a number of candidates, the recall they give, and what
a query costs with them.
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
from ._lists import InvertedLists, lowest_within, project, read_projected
from ._scoring import inner_products, scan_parts, true_scores
from ._target import OperatingPoint
from .vectors import Float32, RowMask, Rows, VectorFile

_QUERY_COUNT = 900
"""Queries of each kind."""
_IMAGE_NOISE = 0.5
_TEXT_NOISE = 3.0
"""Length of the noise in a derived query, as a multiple of that of the row. See `sample_queries`."""
_IMAGE_MISSES = 0.85
_TEXT_MISSES = 0.7
"""Part of the misses that derived queries may have: real ones differ more from each other."""
_MEAN_ROWS = 4096
_CANDIDATE_COUNTS = (50, 70, 100, 140, 200, 400, 800)
_REACHES = (
    *(step / 50 for step in range(1, 30)),
    *(step / 25 for step in range(15, 25)),
    1.0,
    1.1,
    1.2,
    1.4,
    1.7,
    2.0,
    3.0,
    math.inf,
)
_SCANS = (0.4, 0.7, 1.0, 1.7, math.inf)
"""Reaches of the scans that are made; the points of smaller reaches follow from one scan."""
_MIN_GAIN = 0.01
"""Stop adding candidates when a doubling finds fewer than so many more of the nearest rows for each query."""
_MAX_REACH = 1e6
"""All lists are within this reach."""
_QUERIES_AT_ONCE = 50
CODE_COST = 1 / 192
_CANDIDATE_COST = 40
"""Costs of reading one code of a value and of comparing one candidate, in the same arbitrary unit."""

NO_ROW = -2
"""Fills up arrays of rows; not -1, with which FAISS fills up its results."""
_EQUALLY_NEAR = 20
"""Rows after the nearest that are examined for equal scores, such as those of copies of an image."""
_MAX_UNMERGED_BLOCKS = 8


@dataclass(frozen=True)
class MeasuringQueries:
    """Queries of one kind to measure an index with.

    `vectors` (Q, D) float32; `own_rows` (Q,) is the row from which each was derived, which does not count as found,
    or -1; `texts` says that they are texts, or stand for these.
    """

    vectors: Float32
    own_rows: Rows
    texts: bool = False

    def goal(self, recall: float) -> float:
        """Return the recall that these must reach so that the queries of users reach `recall`."""
        if (self.own_rows < 0).any():
            return recall  # they are queries of users
        return 1 - (1 - recall) * (_TEXT_MISSES if self.texts else _IMAGE_MISSES)


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

    def __getitem__(self, queries: slice) -> NearestRows:
        """Return those of some queries."""
        return NearestRows(self.k, self.rows[queries], self.kth_scores[queries], self.incomplete[queries])


def sample_queries(vectors: VectorFile, rows: Rows, *, texts: bool = False) -> MeasuringQueries:
    """Return queries that are about as far from `rows` (N,) as those of users.

    For images, a third are rows, a third rows with noise of half their length, and a third sums of what makes two rows
    differ from the mean of all rows: images unlike those of the collection. For `texts`, they are what makes a row
    differ from the mean, with noise of three times that length: texts have little in common with images but what they
    are about (Liang et al., "Mind the gap", 2022).
    """
    random = np.random.default_rng(1)
    count = min(_QUERY_COUNT, len(rows))
    third = count // 3
    own_rows = random.choice(rows, count, replace=False)
    others = random.choice(rows, third)
    read, places = np.unique(np.concatenate([own_rows, others]), return_inverse=True)
    values = read_projected(vectors, read)[places]
    queries, mean = values[:count], read_projected(vectors, rows[:: max(1, len(rows) // _MEAN_ROWS)]).mean(axis=0)
    if texts:
        noisy = queries
        noisy -= mean
    else:
        noisy = queries[:third]
        queries[third : 2 * third] += values[count:] - 2 * mean
    noise = random.standard_normal(noisy.shape, dtype=np.float32) / np.sqrt(np.float32(vectors.dimension))
    noisy += (_TEXT_NOISE if texts else _IMAGE_NOISE) * np.linalg.norm(noisy, axis=1, keepdims=True) * noise
    return MeasuringQueries(queries, own_rows, texts)


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
    """Return the recall and cost of each reach and number of candidates, smaller reaches first.

    The curve ends where a greater reach alone costs more than a point that surely reaches the recall `stop_at`.
    """
    projected = project(queries.vectors, lists.axes)
    scores = np.stack([lists.centre_scores(each[None]) for each in projected])
    highest = scores.max(axis=1, keepdims=True)
    distances = (highest - scores) / (highest - scores.mean(axis=1, keepdims=True)).clip(min=1e-30)
    points: list[OperatingPoint] = []
    before = 0.0
    for scanned in _SCANS:
        found = _candidates_within(lists, projected, scores, scanned)
        hits = find_hits(vectors, queries, found, truth)
        away = np.take_along_axis(distances, lists.list_of_row()[found].clip(min=0), axis=1)
        for reach in [each for each in _REACHES if before < each <= scanned]:
            visited = float((distances <= reach).sum(axis=1).mean())
            hits_of_reach = hits & (away <= reach)
            places = np.cumsum((away <= reach) & (found >= 0), axis=1, dtype=np.int64)
            points += _points_of(hits_of_reach, places, reach, visited, lists, queries, truth)
            sure = [point.cost for point in points if point.lower_bound >= stop_at]
            if (sure and points[-1].cost > 2 * min(sure)) or (points[-1].recall or 0) > 0.999:
                return points
        before = scanned
    return points


def _candidates_within(lists: InvertedLists, projected: Float32, scores: Float32, reach: float) -> Rows:
    """Return the candidates (Q, n) within the reach of queries (Q, d), those with the best codes first, then -1.

    `scores` (Q, L) are those of the centres.
    """
    found = np.full((len(projected), min(_CANDIDATE_COUNTS[-1], lists.row_count)), -1)

    def scan(part: range) -> None:
        for place in part:
            near = scores[place]
            lowest = -math.inf if math.isinf(reach) else lowest_within(near, reach)
            rows = lists.candidates(projected[place][None], near, lowest, found.shape[1])
            found[place, : len(rows)] = rows

    everything = range(len(projected))
    scan_parts(scan, [everything[start : start + _QUERIES_AT_ONCE] for start in everything[::_QUERIES_AT_ONCE]])
    return found


def _points_of(
    hits: RowMask,
    places: npt.NDArray[np.int64],
    reach: float,
    visited: float,
    lists: InvertedLists,
    queries: MeasuringQueries,
    truth: NearestRows,
) -> list[OperatingPoint]:
    """Return the points of one reach, in which so many lists are `visited` on average.

    `hits` (Q, n) says which of the candidates are among the nearest rows, `places` (Q, n) are their places among those
    within the reach, from 1.
    """
    points: list[OperatingPoint] = []
    list_cost = lists.row_count * visited / lists.count * lists.coded_values * CODE_COST
    before, counted = 0.0, 0
    for candidates in _CANDIDATE_COUNTS:
        recalls = ((hits & (places <= candidates)).sum(axis=1) / truth.k).clip(max=1)
        recall, error = float(recalls.mean()), float(recalls.std()) / math.sqrt(len(recalls))
        cost = list_cost + candidates * _CANDIDATE_COST
        stored_reach = min(reach, _MAX_REACH)
        points.append(
            OperatingPoint(max(1, round(visited)), candidates, recall, stored_reach, error, cost, queries.texts)
        )
        enough = counted > 0 and recall - before < _MIN_GAIN / truth.k * math.log2(candidates / counted)
        if candidates >= hits.shape[1] or enough:
            break
        before, counted = recall, candidates
    return points


def find_hits(vectors: VectorFile, queries: MeasuringQueries, found: Rows, truth: NearestRows) -> RowMask:
    """Return which of the rows `found` (Q, n) for each query are among its nearest (Q, n); its own row is not."""
    hits: RowMask = (found[:, :, None] == truth.rows[:, None, :]).any(axis=2)
    for number in np.flatnonzero(truth.incomplete):
        kept = (found[number] >= 0) & (found[number] != queries.own_rows[number])
        scores = true_scores(vectors, queries.vectors[number], found[number][kept])
        hits[number] = False
        hits[number][kept] = scores >= truth.kth_scores[number]
    return hits


def choose_point(points: Sequence[OperatingPoint], goal: float) -> OperatingPoint:
    """Return the cheapest point that surely reaches the recall `goal`, or else the point with the highest recall."""
    sure = [point for point in points if point.lower_bound >= goal]
    if sure:
        return min(sure, key=lambda point: point.cost)
    return max(points, key=lambda point: (point.recall or 0, -point.cost))


def nearness(lists: InvertedLists, queries: Float32) -> Float32:
    """Return how near queries (Q, D) are to their nearest centres (Q,): inner products by lengths of the queries."""
    projected = project(queries, lists.axes)
    highest = np.array([lists.centre_scores(each[None]).max() for each in projected], np.float32)
    found: Float32 = highest / np.linalg.norm(queries, axis=1).clip(min=1e-30)
    return found
