"""How well and how fast the index of a space answers, and choosing how it should."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._progress import ProgressCallback
from ..collection import Collection
from ..encoders import Runtime
from ..errors import PixMatcherError, QueryError
from ..searching import Query, embed_query

if TYPE_CHECKING:
    import numpy.typing as npt

    from ..vector_index import IndexTarget

_TIMED = 50
_TEXTS = 200
PLOT_ENDINGS = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class TunedPoint:
    """An operating point: lists looked at, candidates compared exactly, recall@10, milliseconds a query (median)."""

    lists: int
    candidates: int
    recall: float
    ms: float
    chosen: bool = False


@dataclass(frozen=True)
class Tuning:
    """What was measured of a space's index: its kind, rows, the recall chosen, times in milliseconds, and the curve.

    `texts` is how many of the queries were texts: names of labels, and captions.
    """

    space: str
    index: str
    rows: int
    recall: float
    ms: float
    exact_ms: float
    texts: int = 0
    curve: list[TunedPoint] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def tune(
    collection: Collection,
    space: str,
    target: IndexTarget | None = None,
    *,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> Tuning:
    """Measure the index of a space against exact searches, and set the recall and memory it should have.

    The target also holds when the index is rebuilt; without one, the previous target stays. A small collection has an
    exact index, of which only the time is measured. Raises `CollectionError` if the space is unknown or no index can
    meet the target, `CollectionLockedError` if another process writes.
    """
    texts = _text_queries(collection, space, runtime) if collection.spaces[space].text else None
    index, points = collection.indexes.tune(space, target, queries=texts, progress=progress)
    from ..vector_index.trained import TrainedIndex

    ids = collection.sample_ids(_TIMED)
    queries = list(collection.embeddings(ids, space)) or [np.ones(collection.spaces[space].dimension, np.float32)]
    if not isinstance(index, TrainedIndex):
        ms = _median_ms(lambda query: index.search(query, 10), queries)
        return Tuning(space, index.name, len(index.rows), 1.0, ms, ms)
    at = (index.calibration.lists, index.calibration.candidates)
    chosen = next(point for point in points if (point.lists, point.candidates) == at)
    curve: list[TunedPoint] = []
    for point in sorted(points, key=lambda point: point.cost):
        is_chosen = point is chosen
        # What finds no more than what costs less is left out. The chosen one may find less, and for more certain.
        least, most = curve[-1].recall if curve else 0, 2 if point.cost > chosen.cost else chosen.recall
        if not is_chosen and not least < round(point.recall, 4) < round(most, 4):
            continue
        ms = _median_ms(lambda query, p=point: index.search_at(query, p.lists, p.candidates), queries)
        curve.append(TunedPoint(point.lists, point.candidates, round(point.recall, 4), round(ms, 3), is_chosen))
    exact_ms = _median_ms(lambda query: collection.search(query, space=space, k=10, exact=True), queries[:5])
    now = _median_ms(lambda query: index.search(query, 10), queries)
    told = 0 if texts is None else len(texts)
    return Tuning(space, index.name, len(index.rows), index.recall or 0.0, now, exact_ms, told, curve)


def save_plot(tunings: list[Tuning], path: Path) -> None:
    """Save recall over time of each trained space. Raises `QueryError` if that cannot be done."""
    check_plot_path(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for tuning in tunings:
        points = sorted(tuning.curve, key=lambda point: point.ms)
        axes.plot([p.ms for p in points], [p.recall for p in points], "o-", label=tuning.space, markersize=4)
        for point in points:
            if point.chosen:
                axes.plot(point.ms, point.recall, "k*", markersize=12)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a query, one thread")
    axes.set_ylabel("recall@10")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except OSError as error:
        raise QueryError(f"{path} cannot be written ({error.strerror}): name another file.") from error


def check_plot_path(path: Path) -> None:
    """Raise `QueryError` if no plot can be saved there."""
    if path.suffix.lower() not in PLOT_ENDINGS:
        raise QueryError(f"{path} is no name of a plot: let it end in {', '.join(PLOT_ENDINGS)}.")
    if not os.path.isdir(path.absolute().parent):
        raise QueryError(f"There is no folder {path.absolute().parent}: make it first.")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise QueryError("A plot needs matplotlib: install it with `pip install 'pixmatcher[plots]'`.") from None


def _median_ms(search: Any, queries: list[npt.NDArray[np.float32]]) -> float:
    seconds = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - started)
    return round(float(np.median(seconds)) * 1000, 3)


def _text_queries(collection: Collection, space: str, runtime: Runtime | None) -> npt.NDArray[np.float32] | None:
    """What labels are called and captions, as vectors (Q, D); None where there are few, or the encoder is not there."""
    names = collection.label_names()
    labels = [names.get(label, label) for label in collection.label_counts()]
    captions = [item.caption for item in collection.items_by_id(collection.sample_ids(_TEXTS)).values()]
    step = max(1, len(labels) // _TEXTS)
    texts = list(dict.fromkeys([*labels[::step][:_TEXTS], *(caption for caption in captions if caption)]))[:_TEXTS]
    if len(texts) < 20:
        return None
    try:
        vectors = [embed_query(Query(text), collection.encoders, space=space, runtime=runtime).vector for text in texts]
    except PixMatcherError:
        return None
    return np.stack(vectors)
