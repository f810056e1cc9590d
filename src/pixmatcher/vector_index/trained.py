"""Trained search: rows are in lists of similar rows, and a query visits only the nearest lists.

The rows of a list are codes of 4 bits for two values (Jégou et al., "Product quantization for nearest neighbor search",
2011; André et al., "Quicker ADC", 2019), relative to the centre of the list. The best rows by their codes are the
candidates; their stored float16 values decide about the result, so the scores are the true ones. How many lists a query
visits and how many candidates it compares is measured: see `_measuring`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from typing import IO, Any, Final

import faiss
import numpy as np

from .._files import Writer
from .._progress import Progress, ProgressCallback
from ._lists import AllowedRows, InvertedLists, lowest_within, project
from ._measuring import (
    CODE_COST,
    MeasuringQueries,
    choose_point,
    exact_nearest,
    measure_points,
    nearness,
    sample_queries,
)
from ._scan import scan
from ._scoring import scale_near_one
from ._target import MEASURED_K, Calibration, IndexTarget, OperatingPoint, coded_values
from ._training import train_lists
from .vectors import Float32, RowMask, Rows, VectorFile

_logger = logging.getLogger("pixmatcher.vector_index")

_MIN_CANDIDATES_OF_ALLOWED = 200
"""Candidates when only some rows are allowed: these may be far from the query, where codes are less exact."""
_MAX_GROWTH = 2
"""Train again when the number of rows is this many times the number of trained rows, or less than a quarter of it."""
_MAX_CHANGED_SHARE = 0.1
"""Measure the operating point again when this share of the rows was added or removed."""
_EXACT_COST = 25
"""Cost of comparing one value of a row exactly, as a multiple of reading one code."""
_MAX_CALIBRATION_BYTES = 4096
_FAR_IMAGES = 0.2
"""Queries that are further from all centres than all but this share of the images count as texts."""
_Found = tuple[Float32, Rows]


class TrainedIndex:
    """The rows of a vector file in inverted lists of 4-bit codes. A search finds most of the nearest rows."""

    name: Final = "trained"
    mapped: Final = False

    def __init__(self, vectors: VectorFile, lists: InvertedLists, calibration: Calibration) -> None:
        """Combine the parts of an index; use `train` or `load`."""
        self.lists = lists
        self.calibration = calibration
        self._vectors = vectors
        self._allowed: AllowedRows | None = None

    @classmethod
    def train(
        cls,
        vectors: VectorFile,
        rows: Rows,
        target: IndexTarget,
        *,
        text: bool = False,
        progress: ProgressCallback | None = None,
    ) -> TrainedIndex:
        """Return a new index of `rows` (N,), ascending, that is calibrated for a target; `text` as in `calibrate`."""
        started = time.monotonic()
        width = coded_values(vectors.dimension, len(rows), target)
        _logger.info("Training of an index begins: %d rows, codes of %d values", len(rows), width)
        if progress:
            progress(Progress("Training the index", 0, len(rows), "rows"))
        lists = train_lists(vectors, rows, width)
        _logger.debug("Trained %d lists in %.1f s", lists.count, time.monotonic() - started)
        lists.add(vectors, rows, progress)
        index = cls(vectors, lists, Calibration(len(rows)))
        index.calibrate(target, text=text, progress=progress)
        seconds = time.monotonic() - started
        _logger.info("Training finished: %d rows, %d lists, %.1f s", len(rows), lists.count, seconds)
        return index

    @property
    def recall(self) -> float | None:
        """The recall@10 that was measured at the operating point."""
        return self.calibration.recall

    @property
    def rows(self) -> Rows:
        """The rows in the index (N,) int64, in no particular order."""
        return self.lists.rows

    @property
    def needs_retraining(self) -> bool:
        """Whether the number of rows is no longer near the number the index was trained for."""
        trained_on = self.calibration.trained_on
        return not trained_on / (2 * _MAX_GROWTH) <= self.lists.row_count <= trained_on * _MAX_GROWTH

    @property
    def needs_calibration(self) -> bool:
        """Whether so many rows have changed that the measured operating point may no longer be right."""
        return self.calibration.changed > _MAX_CHANGED_SHARE * self.lists.row_count

    def code_length_fits(self, target: IndexTarget) -> bool:
        """Return whether the codes are as long as the memory of the target allows."""
        wide = coded_values(self._vectors.dimension, self.calibration.trained_on, target)
        return self.lists.coded_values == wide

    def update(self, rows: Rows) -> None:
        """Make the index hold exactly `rows` (N,) int64: remove all others and add the missing ones."""
        present = self.rows
        surplus = np.setdiff1d(present, rows, assume_unique=True)
        missing = np.setdiff1d(rows, present, assume_unique=True)
        self.lists.remove(surplus)
        self.lists.add(self._vectors, missing)
        self._allowed = None
        self.calibration = self.calibration.after(len(surplus) + len(missing))

    def search(self, query: Float32, k: int, allowed_rows: RowMask | None = None) -> tuple[Float32, Rows]:
        """Return the scores and numbers of the `k` rows with the highest inner product with `query` (D,), best first.

        Fewer are returned if there are fewer. `allowed_rows` (R,) bool limits the search to the rows that are true; do
        not change it afterwards.
        """
        allowed = None if allowed_rows is None else self._prepare_allowed_rows(allowed_rows)
        k = min(k, self.lists.row_count if allowed is None else len(allowed.rows))
        if k < 1:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        scaled, exponent = scale_near_one(query)
        projected = project(scaled[None], self.lists.axes)
        found: _Found | None = None
        if projected.any():  # else all codes are equally near
            near = self.lists.centre_scores(projected)
            point = self._point_for(scaled, near)
            if allowed is None:
                found = self._search_all(scaled, projected, near, k, point)
            else:
                found = self._search_allowed(scaled, projected, near, k, point, allowed)
        if found is None:
            return scan(self._vectors, np.sort(self.rows) if allowed is None else allowed.rows, query, k)
        return np.ldexp(found[0], exponent), found[1]

    def search_at(self, query: Float32, point: OperatingPoint) -> tuple[Float32, Rows]:
        """Return the 10 nearest rows, or fewer, as a search with another operating point finds them."""
        scaled, exponent = scale_near_one(query)
        projected = project(scaled[None], self.lists.axes)
        near = self.lists.centre_scores(projected)
        scores, rows = self.lists.search(
            *(self._vectors, scaled, projected, near, MEASURED_K),
            lowest=_lowest(point, near),
            candidates=point.candidates,
        )
        return np.ldexp(scores, exponent), rows

    def _point_for(self, query: Float32, near: Float32) -> OperatingPoint:
        """Return the operating point for a query (D,), given the scores (L,) of the centres."""
        texts = self.calibration.texts
        if texts and float(near.max()) < self.calibration.texts_below * math.sqrt(float(query @ query)):
            return texts
        return self.calibration.images

    def _search_all(
        self, query: Float32, projected: Float32, near: Float32, k: int, point: OperatingPoint
    ) -> _Found | None:
        """Return most of the `k` nearest rows with their scores; None if all rows must be compared."""
        count, lowest = _scale_candidates(point.candidates, k), _lowest(point, near)
        if k > MEASURED_K:
            lowest = _lowest_of(near, math.ceil(np.count_nonzero(near >= lowest) * (k / MEASURED_K) ** 0.5))
        while count < self.lists.row_count:
            found = self.lists.search(self._vectors, query, projected, near, k, lowest=lowest, candidates=count)
            if len(found[1]) == k:
                return found
            visited = int(np.count_nonzero(near >= lowest))
            if not 0 < visited < self.lists.count:
                return None
            lowest = _lowest_of(near, 4 * visited)
        return None

    def _search_allowed(
        self, query: Float32, projected: Float32, near: Float32, k: int, point: OperatingPoint, allowed: AllowedRows
    ) -> _Found | None:
        """Return most of the `k` nearest allowed rows; None if comparing all allowed rows costs less.

        The allowed rows may be in any list, far from the query: the number of lists is doubled until nothing new is
        found among the `k` nearest.
        """
        lists = self.lists
        count = _scale_candidates(max(point.candidates, _MIN_CANDIDATES_OF_ALLOWED), k)
        scan_cost = len(allowed.rows) * self._vectors.dimension * CODE_COST * _EXACT_COST
        # The fewer rows are allowed, the further away are the nearest of them.
        share = point.lists / lists.count * max(1.0, k / MEASURED_K) ** 0.5
        share = min(1.0, share * (lists.row_count / len(allowed.rows)) ** 0.5)
        list_cost = share * lists.row_count * lists.coded_values * CODE_COST
        if count >= len(allowed.rows) or scan_cost <= 2 * list_cost:
            return None
        order = np.argsort(-near, kind="stable")
        allowed_so_far, rows_so_far = np.cumsum(allowed.in_lists[order]), np.cumsum(lists.sizes[order])
        before: set[int] | None = None
        while True:
            visited = min(int(np.searchsorted(allowed_so_far, share * len(allowed.rows))) + 1, len(order))
            if scan_cost <= rows_so_far[visited - 1] * lists.coded_values * CODE_COST:
                return None
            found = lists.search(
                *(self._vectors, query, projected, near, k),
                lowest=float(near[order[visited - 1]]),
                candidates=count,
                allowed=allowed,
            )
            nearest = {*found[1].tolist()}
            if len(nearest) == k and (nearest == before or visited == len(order)):
                return found
            if visited == len(order):
                return None
            before, share = nearest, 2 * share

    def _prepare_allowed_rows(self, mask: RowMask) -> AllowedRows:
        """Return what the search needs for a mask of allowed rows; it is cached for the last mask."""
        if self._allowed is None or self._allowed.mask is not mask:
            list_of_row = self.lists.list_of_row()
            size = min(len(mask), len(list_of_row))
            rows = np.flatnonzero(mask[:size] & (list_of_row[:size] >= 0))
            in_lists = np.bincount(list_of_row[rows], minlength=self.lists.count)
            bits = np.packbits(mask, bitorder="little")
            # For FAISS, rows beyond the end of the mask are not allowed.
            selector: Any = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg, arg-type]
            self._allowed = AllowedRows(mask, rows, in_lists, selector, bits)
        return self._allowed

    def calibrate(
        self,
        target: IndexTarget,
        *,
        text: bool = False,
        queries: Float32 | None = None,
        full_curve: bool = False,
        progress: ProgressCallback | None = None,
    ) -> list[OperatingPoint]:
        """Choose the cheapest operating points that reach the recall of the target; return all points measured.

        `text` says that texts will be searched: these have a point of their own, measured with `queries` (Q, D), or
        without any with queries that are as far from the rows as texts. If no point reaches the recall, the one with
        the highest recall is chosen. With `full_curve`, points beyond the target are measured too.
        """
        started = time.monotonic()
        rows = np.sort(self.rows)
        kinds = [sample_queries(self._vectors, rows)]
        if queries is not None and len(queries):
            kinds.append(MeasuringQueries(queries.astype(np.float32), np.full(len(queries), -1), True))
        elif text:
            kinds.append(sample_queries(self._vectors, rows, texts=True))
        everything = np.concatenate([each.vectors for each in kinds])
        own_rows = np.concatenate([each.own_rows for each in kinds])
        truth = exact_nearest(self._vectors, rows, everything, own_rows, min(MEASURED_K, len(rows) - 1), progress)
        points: list[OperatingPoint] = []
        chosen: list[OperatingPoint] = []
        first = 0
        for kind in kinds:
            of_kind = truth[first : first + len(kind.vectors)]
            first += len(kind.vectors)
            goal = kind.goal(target.recall)
            measured = measure_points(self.lists, self._vectors, kind, of_kind, 1 if full_curve else goal)
            chosen.append(choose_point(measured, goal))
            points += measured
        images, texts, below = chosen[0], None, -1.0
        if len(chosen) > 1:
            limit = _text_limit(*(nearness(self.lists, kind.vectors) for kind in kinds))
            if limit is None:
                images = max(chosen, key=lambda point: point.cost)
            else:
                texts, below = chosen[1], limit
        self.calibration = Calibration(self.calibration.trained_on, 0, images, texts, below, target.recall)
        for point in chosen:
            _logger.info(
                "Measured recall@%d %.4f of %s (target %g): %d lists on average, %d candidates, %d points in %.1f s",
                *(MEASURED_K, point.recall, "texts" if point.texts else "images", target.recall),
                *(point.lists, point.candidates, len(points), time.monotonic() - started),
            )
        return points

    def save(self, file: Writer) -> None:
        """Write the index to an open file: the lists, the calibration as JSON, and the length of that JSON."""
        self.lists.save(file)
        calibration = json.dumps(self.calibration.as_json()).encode()
        file.write(calibration)
        file.write(len(calibration).to_bytes(8, "little"))

    @classmethod
    def load(cls, file: IO[bytes], vectors: VectorFile) -> TrainedIndex:
        """Read what `save` wrote to a file that is open.

        Raises `RuntimeError` if FAISS cannot read it; `ValueError`, `TypeError`, `KeyError` or `OSError` if it is
        another kind of index, or damaged.
        """
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(8), "little")
        end = file.seek(0, os.SEEK_END) - 8 - length
        if not end > 0 or length > _MAX_CALIBRATION_BYTES:
            raise ValueError("The file has another kind of index.")
        file.seek(end)
        calibration = Calibration.from_json(json.loads(file.read(length)))
        return cls(vectors, InvertedLists.load(file, end, vectors.dimension), calibration)


def _text_limit(images: Float32, texts: Float32) -> float | None:
    """Return the nearness below which a query counts as a text, given those of images and of texts.

    None if the two cannot be separated: then all queries use the point that costs more.
    """
    if np.quantile(texts, 1 - _FAR_IMAGES) > np.median(images):
        return None
    return float(np.quantile(images, _FAR_IMAGES))


def _lowest(point: OperatingPoint, near: Float32) -> float:
    """Return the lowest of the scores (L,) of the centres of the lists that are visited at an operating point."""
    return _lowest_of(near, point.lists) if point.reach is None else lowest_within(near, point.reach)


def _lowest_of(near: Float32, count: int) -> float:
    """Return the lowest of the `count` highest of some scores (L,)."""
    return float(np.partition(near, -count)[-count]) if count < len(near) else -math.inf


def _scale_candidates(candidates: int, k: int) -> int:
    """Return the number of candidates for the `k` nearest rows, given the number for the `MEASURED_K` nearest."""
    return candidates if k <= MEASURED_K else candidates + 3 * (k - MEASURED_K)
