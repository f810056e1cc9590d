"""Tuning a space: how well and how fast its index answers, and what its scores mean."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._plots import check_plot_path, save_figure
from .._progress import ProgressCallback
from ..collection import Collection, TunedStore
from ..encoders import Runtime
from .calibration import SpaceCalibration, calibrate, draw_reliability, text_vectors

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

    from ..vector_index import IndexTarget, OperatingPoint
    from ..vector_index.trained import TrainedIndex

_logger = logging.getLogger("pixmatcher.evaluation")

_TIMED_QUERIES = 50
_TIMED_EXACT_QUERIES = 5
_MAX_TEXTS = 200
_MIN_TEXTS = 20
_MEASURED_K = 10


@dataclass(frozen=True)
class TunedPoint:
    """An operating point: lists visited, candidates compared exactly, recall@10, median milliseconds for a query.

    `texts` says whether it was measured with texts. The lists are those of a query on average.
    """

    lists: int
    candidates: int
    recall: float
    ms: float
    chosen: bool = False
    texts: bool = False


@dataclass(frozen=True)
class Tuning:
    """The measurements of the index of a space.

    `index` is its kind, `rows` how many it has, `recall` the recall@10 of the chosen point; `ms` and `exact_ms` are
    median milliseconds for a query with the index and with an exact search. `texts` is how many of the queries were
    texts (names of labels, and captions). `curve` has the operating points of a trained index. `calibrations` are those
    of the scores for each kind of query for which the collection has enough labels or captions.
    """

    space: str
    index: str
    rows: int
    recall: float
    ms: float
    exact_ms: float
    texts: int = 0
    curve: list[TunedPoint] = field(default_factory=list)
    calibrations: list[SpaceCalibration] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the form that every face prints."""
        return asdict(self)


def tune(
    collection: Collection | TunedStore,
    space: str,
    target: IndexTarget | None = None,
    *,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> Tuning:
    """Measure the index of a space against exact searches, set the recall and memory it should have, calibrate scores.

    A store that is no folder decides about memory itself: only the recall of the target counts there.

    The target also holds when the index is rebuilt; without one, the previous target stays. A small collection has an
    exact index, of which only the time is measured. The calibrations are stored in the collection, see
    `calibration.calibrate`. Raises `CollectionError` if the space does not exist or no index
    can meet the target, `CollectionLockedError` if another process writes.
    """
    if isinstance(collection, Collection):
        tuning = _tune_index(collection, space, target, runtime, progress)
    else:
        tuning = _tune_store(collection, space, target, runtime)
    return replace(tuning, calibrations=calibrate(collection, space, runtime=runtime, progress=progress))


def _tune_index(
    collection: Collection,
    space: str,
    target: IndexTarget | None,
    runtime: Runtime | None,
    progress: ProgressCallback | None,
) -> Tuning:
    texts = _text_queries(collection, space, runtime) if collection.spaces[space].text else None
    index, points = collection.indexes.tune(space, target, queries=texts, progress=progress)
    from ..vector_index.trained import TrainedIndex

    ids = collection.sample_ids(_TIMED_QUERIES)
    queries = list(collection.embeddings(ids, space)) or [np.ones(collection.spaces[space].dimension, np.float32)]
    if not isinstance(index, TrainedIndex):
        ms = _median_ms(lambda query: index.search(query, _MEASURED_K), queries)
        return Tuning(space, index.name, len(index.rows), 1.0, ms, ms)
    curve = _timed_curve(index, points, queries)
    exact_ms = _median_ms(
        lambda query: collection.search(query, space=space, k=_MEASURED_K, exact=True), queries[:_TIMED_EXACT_QUERIES]
    )
    ms = _median_ms(lambda query: index.search(query, _MEASURED_K), queries)
    text_count = 0 if texts is None else len(texts)
    _logger.info("Tuned the space %s: recall@%d %s, %.2f ms for a query", space, _MEASURED_K, index.recall, ms)
    return Tuning(space, index.name, len(index.rows), index.recall or 0.0, ms, exact_ms, text_count, curve)


def _tune_store(store: TunedStore, space: str, target: IndexTarget | None, runtime: Runtime | None) -> Tuning:
    texts = _text_queries(store, space, runtime) if store.spaces[space].text else None
    found = store.tune_index(space, None if target is None else target.recall, queries=texts)
    curve = [TunedPoint(p.lists, 0, round(p.recall, 4), round(p.ms, 3), p.chosen) for p in found.points]
    text_count = 0 if texts is None or not curve else len(texts)
    return Tuning(space, found.kind, found.rows, found.recall, found.ms, found.exact_ms, text_count, curve)


def _timed_curve(
    index: TrainedIndex, points: Sequence[OperatingPoint], queries: list[npt.NDArray[np.float32]]
) -> list[TunedPoint]:
    """Return the chosen operating points, and those that find more than all cheaper points, with their times."""
    curve: list[TunedPoint] = []
    for chosen in (index.calibration.images, index.calibration.texts):
        if chosen is None:
            continue
        least = 0.0
        for point in sorted((point for point in points if point.texts == chosen.texts), key=lambda point: point.cost):
            recall, most = round(point.recall or 0, 4), 2 if point.cost > chosen.cost else round(chosen.recall or 0, 4)
            # The recall must rise with the cost. The chosen point may have a lower recall that is more certain.
            if point != chosen and not least < recall < most:
                continue
            least = recall
            ms = round(_median_ms(partial(index.search_at, point=point), queries), 3)
            curve.append(TunedPoint(point.lists, point.candidates, recall, ms, point == chosen, point.texts))
    return curve


def save_plot(tunings: list[Tuning], path: Path) -> bool:
    """Save a plot of recall and time for each trained space, and one of the reliability of the probabilities.

    What was not measured is left out. If nothing was, no file is saved, and the result is False. Raises
    `PixMatcherError` if the plot cannot be saved.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    trained = [tuning for tuning in tunings if tuning.curve]
    measured = {
        f"{each.space}, {each.kind} queries": each.reliability for tuning in tunings for each in tuning.calibrations
    }
    if not trained and not measured:
        return False
    count = bool(trained) + bool(measured)
    figure = Figure(figsize=(7 * count, 4.5), layout="constrained")
    parts = [*figure.subplots(1, count, squeeze=False)[0]]
    if trained:
        _draw_recall(parts.pop(0), trained)
    if measured:
        draw_reliability(parts.pop(0), measured)
    save_figure(figure, path)
    return True


def _draw_recall(axes: Axes, tunings: list[Tuning]) -> None:
    for tuning, texts in itertools.product(tunings, (False, True)):
        points = sorted((point for point in tuning.curve if point.texts == texts), key=lambda point: point.ms)
        if not points:
            continue
        label = f"{tuning.space}, {'texts' if texts else 'images'}"
        axes.plot([p.ms for p in points], [p.recall for p in points], "o-", label=label, markersize=4)
        for point in points:
            if point.chosen:
                axes.plot(point.ms, point.recall, "k*", markersize=12)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds for a query, one thread")
    axes.set_ylabel("recall@10")
    axes.grid(alpha=0.3)
    axes.legend()


def _median_ms(search: Callable[[npt.NDArray[np.float32]], object], queries: list[npt.NDArray[np.float32]]) -> float:
    """Return the median time of a search in milliseconds."""
    seconds = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - started)
    return round(float(np.median(seconds)) * 1000, 3)


def _text_queries(
    collection: Collection | TunedStore, space: str, runtime: Runtime | None
) -> npt.NDArray[np.float32] | None:
    """Return the embeddings (Q, D) of names of labels and captions; None if there are few, or no encoder for them."""
    names = collection.label_names()
    labels = [names.get(label, label) for label in collection.label_counts()]
    captions = [item.caption for item in collection.items_by_id(collection.sample_ids(_MAX_TEXTS)).values()]
    step = max(1, len(labels) // _MAX_TEXTS)
    texts = [*labels[::step][:_MAX_TEXTS], *(caption for caption in captions if caption)]
    texts = list(dict.fromkeys(texts))[:_MAX_TEXTS]
    if len(texts) < _MIN_TEXTS:
        return None
    vectors = text_vectors(texts, collection, space, runtime)
    return np.stack([*vectors.values()]) if vectors else None
