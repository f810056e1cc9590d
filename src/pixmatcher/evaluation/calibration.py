"""Calibration: from the scores of a space to the probability that a hit is what was asked for.

A query asks for the items of a label: by the name of the label, or by an image of it. Where labels are missing, it asks
by a caption for the images that have it. A probability is calibrated if, among the hits that get it, that share is
right. Only the first hits of a query count, those that people see; so the probability of a hit depends on the queries
that were used, and means most for queries of the same sort.

The form is that of Platt [1], the measures are the expected calibration error [2] and the Brier score [3].

Sources: [1] J. Platt: Probabilistic outputs for support vector machines and comparisons to regularized likelihood
methods, 1999. [2] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On calibration of modern neural networks, 2017. [3]
G. W. Brier: Verification of forecasts expressed in terms of probability, 1950.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._progress import Progress, ProgressCallback
from ..collection import CalibratedStore, Hit, Item
from ..encoders import Runtime
from ..errors import PixMatcherError, QueryError
from ..records import WEAK_BELOW, Calibration, QueryKind
from ..searching import Query, embed_query
from ..searching.options import DEFAULT_RESULTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating[Any]]

BINS = 10
MIN_QUERIES = 20
"""The fewest queries with which a space is calibrated."""
_FOLDS = 5
_MAX_TEXTS = 200
_MAX_IMAGES = 500
_SAMPLED_ITEMS = 10_000
"""Items among which query images and captions are chosen."""
_COPIES = 12
"""Hits that are found beyond the first ones, since the copies of a query image are left out."""
_MOST_WEAK = 0.05
"""The greatest share of queries with a right best hit that are weak."""
_LEAST_SKILL = 0.05
_LEAST_SPREAD = 1e-9
"""Scores that differ by less, as a share of the largest, differ by the rounding of a computation only."""
_RIDGE = 1e-3
_NEWTON_STEPS = 50


def fit_calibration(scores: Floats, right: Bools, weights: Floats | None = None) -> Calibration:
    """Return the calibration of the highest likelihood for scores (N,) of hits that are right or not (N,).

    As Platt does [1], the fit aims at probabilities a little away from 0 and 1. `weights` (N,) say how much each hit
    counts. The probability never falls with the score. Raises `ValueError` if there is no right or no wrong hit.
    """
    scores = np.asarray(scores, np.float64)
    right = np.asarray(right, np.bool_)
    if right.all() or not right.any():
        raise ValueError("A calibration needs hits that are right and hits that are wrong.")
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    weights = weights * (len(scores) / weights.sum())
    positive, negative = weights[right].sum(), weights[~right].sum()
    targets = np.where(right, (positive + 1) / (positive + 2), 1 / (negative + 2))
    spread = scores.std()
    if spread <= _LEAST_SPREAD * np.abs(scores).max():
        spread = 1.0
    columns = np.column_stack([(scores - scores.mean()) / spread, np.ones(len(scores))])
    fitted = _newton(columns, targets, weights, np.array([0.0, np.log((positive + 1) / (negative + 1))]))
    if fitted[0] < 0:  # scores that say nothing, or less
        fitted = np.array([0.0, _logit(float(np.average(targets, weights=weights)))])
    slope = float(fitted[0] / spread)
    return Calibration(slope, float(fitted[1] - slope * scores.mean()))


def _newton(columns: Floats, targets: Floats, weights: Floats, start: Floats) -> Floats:
    """Return the coefficients (2,) of the logistic regression of targets (N,) on columns (N, 2), by Newton's method.

    A step that does not lower the loss is halved, so that it ends also for scores that separate right from wrong.
    """
    ridge = np.array([_RIDGE, 0.0])

    def loss(coefficients: Floats) -> float:
        logits = columns @ coefficients
        return float((weights * (np.logaddexp(0, logits) - targets * logits)).sum() + ridge @ coefficients**2 / 2)

    current, best = start, loss(start)
    for _ in range(_NEWTON_STEPS):
        probabilities = 0.5 * (1 + np.tanh(columns @ current / 2))
        gradient = columns.T @ (weights * (probabilities - targets)) + ridge * current
        curvature = (columns * (weights * probabilities * (1 - probabilities))[:, None]).T @ columns
        step = np.linalg.solve(curvature + np.diag(ridge + 1e-9), gradient)
        while (value := loss(current - step)) > best and np.abs(step).max() > 1e-9:
            step = step / 2
        if value > best or np.abs(step).max() <= 1e-9:
            break
        current, best = current - step, value
    return current


def _logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


# ---- Measuring ----


@dataclass(frozen=True)
class Bin:
    """The hits whose probability is in one tenth: their share of all, mean probability, and share that is right."""

    share: float
    probability: float
    right: float


@dataclass(frozen=True)
class Reliability:
    """How well probabilities agree with what is right.

    `error` is the expected calibration error: the mean distance, over the hits, between the probability and the share
    that is right. `brier` is the mean squared distance between the probability and 1 for a right hit, 0 for a wrong
    one; `brier_of_mean` is that of a probability that is the same for all hits. `hits` is their number, `right` the
    share of them that is right.
    """

    hits: int
    right: float
    error: float
    brier: float
    brier_of_mean: float
    bins: tuple[Bin, ...]

    @property
    def skill(self) -> float:
        """How much of the Brier score the scores explain: 1 for true forecasts, 0 if they are worth nothing."""
        return 1 - self.brier / self.brier_of_mean if self.brier_of_mean else 0.0


def reliability(probabilities: Floats, right: Bools, weights: Floats | None = None) -> Reliability:
    """Measure probabilities (N,) of hits that are right or not (N,), with weights (N,); there must be a hit."""
    probabilities = np.asarray(probabilities, np.float64)
    outcomes = np.asarray(right, np.float64)
    shares = np.ones(len(outcomes)) if weights is None else np.asarray(weights, np.float64)
    shares = shares / shares.sum()
    number = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    bins = []
    for members in (number == each for each in range(BINS)):
        if share := float(shares[members].sum()):
            means = (float(shares[members] @ values[members]) / share for values in (probabilities, outcomes))
            bins.append(Bin(share, *means))
    mean = float(shares @ outcomes)
    return Reliability(
        hits=len(outcomes),
        right=mean,
        error=sum(each.share * abs(each.probability - each.right) for each in bins),
        brier=float(shares @ (probabilities - outcomes) ** 2),
        brier_of_mean=mean * (1 - mean),
        bins=tuple(bins),
    )


@dataclass(frozen=True)
class JudgedHits:
    """The first hits of queries: the score (N,) of each, whether it is right (N,), and the number of its query (N,).

    `groups` has a text for each query; queries of the same group ask for the same thing.
    """

    scores: Floats
    right: Bools
    queries: npt.NDArray[np.int64]
    groups: tuple[str, ...]

    @classmethod
    def of(cls, queries: Iterable[tuple[str, Sequence[float], Sequence[bool]]]) -> JudgedHits:
        """Return the hits of queries, each with its group, the scores of its hits, and whether they are right."""
        used = [query for query in queries if len(query[1])]
        return cls(
            np.array([score for _, scores, _ in used for score in scores], np.float64),
            np.array([each for _, _, right in used for each in right], np.bool_),
            np.repeat(np.arange(len(used)), [len(scores) for _, scores, _ in used]),
            tuple(group for group, _, _ in used),
        )

    @property
    def weights(self) -> Floats:
        """The weight (N,) of each hit: every query counts the same."""
        weights: Floats = 1 / np.bincount(self.queries, minlength=len(self.groups))[self.queries]
        return weights

    @property
    def usable(self) -> bool:
        """Whether the hits are enough for a calibration."""
        return len(self.groups) >= MIN_QUERIES and bool(self.right.any()) and not self.right.all()

    def folds(self, count: int = _FOLDS) -> npt.NDArray[np.int64]:
        """Return the fold (N,) of each hit; all queries of a group are in the same fold, wherever it is computed."""
        names = sorted(set(self.groups), key=lambda group: (zlib.crc32(group.encode()), group))
        fold_of = {name: position % count for position, name in enumerate(names)}
        return np.array([fold_of[group] for group in self.groups], np.int64)[self.queries]


def fit_hits(hits: JudgedHits) -> Calibration:
    """Return the calibration for the first hits of queries, best first for each query. Raises as `fit_calibration`.

    Among the queries whose best hit is right, at most 1 in 20 are weak: if need be, `weak_below` is lower than usual.
    """
    fitted = fit_calibration(hits.scores, hits.right, hits.weights)
    best = np.flatnonzero(np.diff(hits.queries, prepend=-1))
    found = fitted.probability(hits.scores[best[hits.right[best]]])
    return replace(
        fitted, weak_below=min(WEAK_BELOW, float(np.quantile(found, _MOST_WEAK, method="lower")) if len(found) else 0.0)
    )


def cross_validate(hits: JudgedHits, count: int = _FOLDS) -> Reliability | None:
    """Measure the probabilities of each fold of the groups with the calibration that the other folds give.

    None if the right or the wrong hits are in one fold only.
    """
    folds = hits.folds(count)
    probabilities = np.empty(len(folds))
    for fold in np.unique(folds):
        of_fold = folds == fold
        others = ~of_fold
        if not hits.right[others].any() or hits.right[others].all():
            return None
        fitted = fit_calibration(hits.scores[others], hits.right[others], hits.weights[others])
        probabilities[of_fold] = fitted.probability(hits.scores[of_fold])
    return reliability(probabilities, hits.right, hits.weights)


# ---- A collection ----


@dataclass(frozen=True)
class SpaceCalibration:
    """The calibration of a space for one kind of query, from `queries` queries, and how reliable it is.

    The reliability is measured by cross-validation: queries for the same thing are never used for both.
    """

    space: str
    kind: QueryKind
    queries: int
    calibration: Calibration
    reliability: Reliability

    def as_json(self) -> dict[str, Any]:
        """Return the form that every face prints."""
        return asdict(self)


def calibrate(
    collection: CalibratedStore,
    space: str,
    *,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> list[SpaceCalibration]:
    """Calibrate a space of a collection on its own labels and captions, and store the calibrations in it.

    Texts are names of labels, or captions if there are few labels; images are items of the collection with a label. A
    kind with fewer than 20 queries, or only right or only wrong hits, is left out, and so are texts if no encoder can
    embed them. A kind whose scores say next to nothing about right and wrong (its cross-validated Brier score is less
    than 5 % better than without scores) is left out too, and a former calibration of it is removed. Raises
    `CollectionError` if the space does not exist, `CollectionLockedError` if another process writes.
    """
    judged: dict[QueryKind, JudgedHits] = {}
    with collection.snapshot():
        if collection.spaces[space].text:
            judged["text"] = _text_hits(collection, space, runtime, progress)
        judged["image"] = _image_hits(collection, space, progress)
    found: dict[QueryKind, SpaceCalibration | None] = {}
    for kind, hits in judged.items():
        if hits.usable and (measured := cross_validate(hits)) is not None:
            good = measured.skill >= _LEAST_SKILL
            found[kind] = SpaceCalibration(space, kind, len(hits.groups), fit_hits(hits), measured) if good else None
    if found:
        collection.set_calibrations(space, {kind: each.calibration if each else None for kind, each in found.items()})
    return [each for each in found.values() if each]


def _text_hits(
    collection: CalibratedStore, space: str, runtime: Runtime | None, progress: ProgressCallback | None
) -> JudgedHits:
    """Return the hits of the names of labels, or of captions if there are few labels."""
    names = collection.label_names()
    by_name: dict[str, set[str]] = {}
    for label in collection.label_counts():
        if name := names.get(label, "").partition(",")[0].strip() or label:
            by_name.setdefault(name, set()).add(label)
    if len(by_name) >= MIN_QUERIES:
        right_of = {name: _label_among(by_name[name]) for name in _spread(sorted(by_name), _MAX_TEXTS)}
    else:
        right_of = _captions(collection)
    if len(right_of) < MIN_QUERIES:
        return JudgedHits.of(())
    judged = []
    vectors = text_vectors(right_of, collection, space, runtime)
    for done, (text, vector) in enumerate(vectors.items(), start=1):
        judged.append(_judged(text, collection.search(vector, space=space, k=DEFAULT_RESULTS), right_of[text]))
        if progress:
            progress(Progress("Calibrating", done, len(vectors), "queries"))
    return JudgedHits.of(judged)


def text_vectors(
    texts: Iterable[str], collection: CalibratedStore, space: str, runtime: Runtime | None
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vector (dimension,) of each text that can be a query; {} if the encoder of the space cannot be used.

    A text that is blank, too long, or that the encoder cannot read, is left out.
    """
    vectors = {}
    for text in texts:
        try:
            vectors[text] = embed_query(Query(text), collection.encoders, space=space, runtime=runtime).vector
        except QueryError:
            continue
        except PixMatcherError:
            return {}
    return vectors


def _captions(collection: CalibratedStore) -> dict[str, Callable[[Item], bool | None]]:
    """Return up to 200 captions, each with the function that says whether an item is right for it."""
    contents: dict[str, set[str]] = {}
    for item in collection.items_by_id(_some_ids(collection)).values():
        if item.caption:
            contents.setdefault(item.caption, set()).add(item.content_hash)
    chosen = _spread(list(contents), _MAX_TEXTS)
    return {caption: _caption_or_content(caption, contents[caption]) for caption in chosen}


def _image_hits(collection: CalibratedStore, space: str, progress: ProgressCallback | None) -> JudgedHits:
    """Return the hits of items that have a label which another item has too; copies of the query are left out."""
    counts = collection.label_counts()
    labels = collection.labels_by_id(_some_ids(collection))
    usable = [item_id for item_id, label in labels.items() if label and counts.get(label, 0) > 1]
    if len(usable) < MIN_QUERIES:
        return JudgedHits.of(())
    queries = list(collection.items_by_id(_spread(usable, _MAX_IMAGES)).values())
    vectors = collection.embeddings([item.id for item in queries], space)
    judged = []
    for done, (item, vector) in enumerate(zip(queries, vectors, strict=True), start=1):
        found = collection.search(vector, space=space, k=DEFAULT_RESULTS + _COPIES)
        others = [hit for hit in found if hit.item.id != item.id and hit.item.content_hash != item.content_hash]
        judged.append(_judged(item.label or "", others[:DEFAULT_RESULTS], _label_among({item.label or ""})))
        if progress:
            progress(Progress("Calibrating", done, len(queries), "queries"))
    return JudgedHits.of(judged)


def _some_ids(collection: CalibratedStore) -> list[int]:
    """Return the ids of many items, evenly spaced."""
    ids = collection.ids()
    if len(ids) > _SAMPLED_ITEMS:
        ids = ids[np.linspace(0, len(ids) - 1, _SAMPLED_ITEMS).astype(np.int64)]
    return [int(item_id) for item_id in ids]


def _label_among(labels: set[str]) -> Callable[[Item], bool | None]:
    """Return the function that says whether an item has one of these labels; None for an item without a label."""
    return lambda item: item.label in labels if item.label else None


def _caption_or_content(caption: str, contents: set[str]) -> Callable[[Item], bool | None]:
    return lambda item: item.caption == caption or item.content_hash in contents


def _judged(
    group: str, hits: Sequence[Hit], is_right: Callable[[Item], bool | None]
) -> tuple[str, list[float], list[bool]]:
    """Return the scores of hits and whether they are right, without those of which this is not known."""
    known = [(hit.score, right) for hit in hits if (right := is_right(hit.item)) is not None]
    return group, [score for score, _ in known], [right for _, right in known]


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the values, evenly spaced."""
    return [values[position * len(values) // most] for position in range(most)] if len(values) > most else [*values]


# ---- Plots ----


def draw_reliability(axes: Axes, measured: Mapping[str, Reliability]) -> None:
    """Draw the share that is right against the probability, a line for each name; points are larger for more hits."""
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    for name, each in measured.items():
        places, right = [bin.probability for bin in each.bins], [bin.right for bin in each.bins]
        (line,) = axes.plot(places, right, label=name.replace("$", r"\$"), linewidth=1)
        axes.scatter(places, right, s=[10 + 150 * bin.share for bin in each.bins], color=line.get_color())
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("probability")
    axes.set_ylabel("share of these hits that is right")
    axes.grid(alpha=0.3)
    if measured:
        axes.legend()
