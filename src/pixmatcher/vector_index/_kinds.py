"""The choice of the kind of index: exact for small collections, trained for large ones, a scan until it is trained."""

from __future__ import annotations

import logging

import numpy as np

from .._progress import ProgressCallback
from ._protocol import VectorIndex
from ._target import IndexTarget, OperatingPoint
from .vectors import Float32, Rows, VectorFile

_logger = logging.getLogger("pixmatcher.vector_index")

EXACT = "exact"
"""An index that finds exactly the nearest rows, by codes of 8 bits for each value."""
TRAINED = "trained"
"""An index that finds most of the nearest rows, by inverted lists of codes of 4 bits."""
SCAN = "scan"
"""No index: the stored rows themselves are compared. It is exact, slow, ready at once, and never saved."""

EXACT_UP_TO = 96_000_000
"""Values (rows x dimension) that an exact index compares in less than 10 ms on 2 cores, see
docs/explanations/performance.md. A collection with more values gets a trained index."""


def index_kind(row_count: int, dimension: int, current: str | None = None) -> str:
    """Return the kind of index for a number of rows.

    An index that is trained already (`current`) stays trained down to half of the limit, so that a collection near the
    limit does not change its index again and again.
    """
    limit = EXACT_UP_TO / 2 if current == TRAINED else EXACT_UP_TO
    return TRAINED if row_count * dimension > limit else EXACT


def new_index(vectors: VectorFile, rows: Rows) -> VectorIndex:
    """Return an index of `rows` (N,) int64 that is ready at once: exact, or a scan if there are many rows."""
    if index_kind(len(rows), vectors.dimension) == TRAINED:
        return new_scan_index(vectors, rows)
    from ._exact import ExactIndex

    index = ExactIndex(vectors)
    index.update(rows)
    return index


def new_scan_index(vectors: VectorFile, rows: Rows) -> VectorIndex:
    """Return an index that compares the stored `rows` (N,) int64 themselves: exact, slow, and ready at once."""
    from ._scan import ScanIndex

    index = ScanIndex(vectors)
    index.update(rows)
    return index


def update_takes_long(index: VectorIndex, row_count: int, vectors: VectorFile) -> bool:
    """Return whether it takes seconds to add the missing rows to an index that must have `row_count` rows."""
    return (row_count - len(index.rows)) * vectors.dimension > EXACT_UP_TO


def rebuild_if_needed(
    index: VectorIndex,
    vectors: VectorFile,
    target: IndexTarget,
    *,
    text: bool,
    progress: ProgressCallback | None = None,
) -> VectorIndex:
    """Return `index`, or a new index of the same rows if another kind, more training or a new target asks for it.

    `text` says whether the space supports text queries, which need a wider search. Training takes up to minutes.
    """
    rows = np.sort(index.rows)
    if index_kind(len(rows), vectors.dimension, index.name) == EXACT:
        if index.name == EXACT:
            return index
        _logger.info("Replace the %s index by an exact one: %d rows are few enough", index.name, len(rows))
        return new_index(vectors, rows)
    from .trained import TrainedIndex

    if not isinstance(index, TrainedIndex):
        reason = f"{len(rows)} rows are too many for the {index.name} index"
    elif index.needs_retraining:
        reason = f"it was trained for {index.calibration.trained_on} rows and has {len(rows)}"
    elif not index.code_length_fits(target):
        reason = "its codes do not fit the memory of the target"
    else:
        if not index.needs_calibration and index.calibration.target_recall == target.recall:
            return index
        index.calibrate(target, text=text, progress=progress)
        if (index.recall or 0) >= target.recall or index.calibration.trained_on >= 0.9 * len(rows):
            return index
        reason = f"its recall is {index.recall}, below the target of {target.recall}"
    _logger.info("Train a new index: %s", reason)
    return TrainedIndex.train(vectors, rows, target, text=text, progress=progress)


def calibrate_index(
    index: VectorIndex,
    target: IndexTarget,
    *,
    text: bool = False,
    queries: Float32 | None = None,
    progress: ProgressCallback | None = None,
) -> list[OperatingPoint]:
    """Choose the operating point of a trained index for a target; return all points that were measured.

    `queries` (Q, D) float32 are measured in addition to those derived from the rows. An exact index has no points.
    """
    from .trained import TrainedIndex

    if not isinstance(index, TrainedIndex):
        return []
    return index.calibrate(target, text=text, queries=queries, full_curve=True, progress=progress)
