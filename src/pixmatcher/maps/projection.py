"""The map: a collection in two dimensions, computed once and kept in its folder.

- `tsne`: van der Maaten and Hinton, "Visualizing data using t-SNE" (2008), by the Barnes-Hut trees of scikit-learn. It
  begins from the first two principal components, which keeps far groups in their places: Kobak and Berens, "The art of
  using t-SNE for single-cell transcriptomics" (2019).
- `umap`: McInnes, Healy and Melville, "UMAP: uniform manifold approximation and projection" (2018), by umap-learn.
- `pca`: the first two principal components.

Both others see the first 50 principal components of the embeddings. The clusters are those of k-means in these 50
dimensions, not on the map, so that they are the same by every method.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .._progress import Progress, ProgressCallback
from ..collection import Collection, query_vector
from ..collection.stored_maps import StoredMap, map_path, read_map, save_map
from ..errors import CollectionError, PixMatcherError, QueryError
from ..searching import image_space

METHODS = ("tsne", "umap", "pca")
MOST_ITEMS = 20_000
"""Items on a map, unless told otherwise. It takes t-SNE minutes to place so many."""
MOST_CLUSTERS = 10
"""As many as there are colours that are easily told apart."""

_COMPONENTS = 50
_FEWEST = 6
"""Items that t-SNE and UMAP need to have something to arrange; fewer lie where PCA puts them."""
_TSNE_STEPS = 1000
_NEIGHBOURS = 8
_MANY = 500

Float32 = npt.NDArray[np.float32]
_StepCallback = Callable[[int, int], None]
"""Called with the number of steps that are done and of all steps."""


@dataclass(frozen=True)
class Projection:
    """Where items of a collection lie in two dimensions.

    `ids` (N,) int64 ascend, `points` are (N, 2) float32, `clusters` (N,) int32 count from 0, the largest. Items that
    are no longer in the collection are left out; `labels` are those of today, or None. `items` is how many the
    collection had when the map was `computed`, a date in ISO 8601; `added`, `removed` and `changed` count what happened
    to it since. `kept` tells whether the map is in the collection's folder. `axes` (3, D) float32 are the two axes and
    the mean of a map by PCA, else they are (3, 0).
    """

    method: str
    space: str
    ids: npt.NDArray[np.int64]
    points: Float32
    clusters: npt.NDArray[np.int32]
    labels: list[str | None]
    items: int
    computed: str
    added: int
    removed: int
    changed: int
    kept: bool
    axes: Float32

    @property
    def stale(self) -> int:
        """How many items were added, removed or changed since the map was computed."""
        return self.added + self.removed + self.changed


def project(
    collection: Collection,
    method: str = "tsne",
    *,
    space: str | None = None,
    most: int = MOST_ITEMS,
    refresh: bool = False,
    progress: ProgressCallback | None = None,
) -> Projection:
    """The map of a collection: the one that is kept, stale or not, or else, or to `refresh` it, a new one.

    The space is the one that answers images, unless one is named. Of more than `most` items so many are chosen, without
    regard to what they show, and as far as may be the same again when the collection has grown. The map is kept if the
    collection may be written.

    Raises `QueryError` for an unknown method or space, `CollectionError` if there are no items or they cannot be read,
    `PixMatcherError` if scikit-learn or umap-learn is missing.
    """
    if not refresh and (kept := load_projection(collection, method, space=space, most=most)) is not None:
        return kept
    chosen = image_space(collection.encoders, space).name
    require_scikit_learn()
    with collection.snapshot():
        everything = collection.ids()
        if not len(everything):
            raise CollectionError(f"{collection.path} has no images to map: run `pixmatcher index` first.")
        ids = sample(everything, most)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        state = collection.state()
        vectors = collection.embeddings(ids, chosen)
    points, axes, reduced = _coordinates(vectors, method, partial(_report_steps, progress))
    stored = StoredMap(state, now, ids, points, _clusters(reduced), axes)
    kept_now = False
    with contextlib.suppress(OSError, CollectionError):
        save_map(map_path(collection.path, chosen, method, most), stored)
        kept_now = True
    found = _of_today(collection, stored, method, chosen, kept=kept_now)
    if found is None:
        raise CollectionError(f"All images of the map were removed from {collection.path} meanwhile: try again.")
    return found


def _report_steps(progress: ProgressCallback | None, done: int, total: int) -> None:
    if progress is not None:
        progress(Progress("Computing the map", done, total, "steps"))


def load_projection(
    collection: Collection, method: str = "tsne", *, space: str | None = None, most: int = MOST_ITEMS
) -> Projection | None:
    """The map that is kept in the collection, stale or not, or None where it is missing or damaged.

    Raises `QueryError` for an unknown method or space.
    """
    if method not in METHODS:
        raise QueryError(f"There is no method {method!r}: choose one of {', '.join(METHODS)}.")
    if most < 1:
        raise QueryError(f"The number of images on a map must be 1 or more, not {most}.")
    chosen = image_space(collection.encoders, space)
    stored = None
    with contextlib.suppress(OSError):
        stored = read_map(map_path(collection.path, chosen.name, method, most))
    if stored is None or stored.axes.shape[1] != (chosen.dimension if method == "pca" else 0):
        return None
    return _of_today(collection, stored, method, chosen.name, kept=True)


def place_query(projection: Projection, collection: Collection, vector: npt.ArrayLike) -> tuple[float, float]:
    """Where a vector (dimension,) of the map's space lies on the map.

    By PCA it is projected as the items were. By t-SNE and UMAP, which know no such projection, it is the mean of the
    places of the 8 nearest items of the map, weighted by the square of how much nearer each is than the ninth.

    Raises `CollectionError` if the vector does not fit the space, or no item of the map is left.
    """
    query = query_vector(vector, collection.spaces[projection.space])
    if projection.axes.size:
        x, y = projection.axes[:2] @ (query - projection.axes[2])
        return float(x), float(y)
    with collection.snapshot():
        known = collection.labels_by_id(projection.ids.tolist())
        there = np.array([item_id in known for item_id in projection.ids.tolist()], bool)
        if not there.any():
            raise CollectionError(
                f"All images of the map were removed from {collection.path} meanwhile: draw it again."
            )
        scores = collection.embeddings(projection.ids[there], projection.space) @ query
    nearest = np.argsort(-scores, kind="stable")[: _NEIGHBOURS + 1]
    ahead = (scores[nearest] - scores[nearest[-1]]).astype(np.float64)[:_NEIGHBOURS]
    weights = np.square(ahead / ahead[0]) if ahead[0] > 0 else np.ones(len(ahead))
    x, y = weights @ projection.points[there][nearest[:_NEIGHBOURS]] / weights.sum()
    return float(x), float(y)


def require_scikit_learn() -> None:
    """Raise `PixMatcherError` if scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise PixMatcherError("A map needs scikit-learn: install it with `pip install 'pixmatcher[app]'`.") from None


def sample(ids: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Of ascending ids (N,) the `most` of the lowest hash, ascending; of more ids later, as many as may be stay."""
    if len(ids) <= most:
        return ids
    # The last step of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    with np.errstate(over="ignore"):
        hashed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed ^= hashed >> np.uint64(31)
    return np.sort(ids[np.argsort(hashed, kind="stable")[:most]])


def _of_today(collection: Collection, stored: StoredMap, method: str, space: str, *, kept: bool) -> Projection | None:
    """What a map shows of the collection as it is; None if that is nothing, or if it is of a later state."""
    with collection.snapshot() as generation:
        if stored.state.generation > generation:  # of a catalog that was lost
            return None
        changes = collection.changes_since(stored.state)
        labels = collection.labels_by_id(stored.ids.tolist())
    there = np.array([item_id in labels for item_id in stored.ids.tolist()], bool)
    if not there.any():
        return None
    ids = stored.ids[there]
    return Projection(
        method,
        space,
        ids,
        stored.points[there],
        stored.clusters[there],
        [labels[item_id] for item_id in ids.tolist()],
        stored.state.items,
        stored.computed,
        *changes,
        kept,
        stored.axes,
    )


def _coordinates(vectors: Float32, method: str, progress: _StepCallback) -> tuple[Float32, Float32, Float32]:
    """The points (N, 2), the axes as of `Projection`, and the first principal components (N, 50 or fewer)."""
    from sklearn.decomposition import PCA

    count, dimension = vectors.shape
    components = min(_COMPONENTS, count, dimension)
    if method == "umap" and count >= _FEWEST:
        _import_umap()
    progress(0, 1)
    if count == 1:  # one alone varies in nothing
        reduced, directions, mean = np.zeros((1, 1), np.float32), np.zeros((1, dimension), np.float32), vectors[0]
    else:
        with np.errstate(invalid="ignore", divide="ignore"):  # the shares of a variance of zero
            pca = PCA(components, random_state=0).fit(vectors)
        directions, mean = pca.components_.astype(np.float32), pca.mean_.astype(np.float32)
        reduced = (vectors - mean) @ directions.T
    plane = np.zeros((2, dimension), np.float32)
    plane[: len(directions)] = directions[:2]
    flat = (vectors - mean) @ plane.T
    no_axes = np.zeros((3, 0), np.float32)
    if method == "pca":
        progress(1, 1)
        return flat, np.concatenate([plane, mean[None]]), reduced
    if count < _FEWEST:
        progress(1, 1)
        return flat, no_axes, reduced
    place = _by_tsne if method == "tsne" else _by_umap
    points = np.ascontiguousarray(place(reduced, _start(flat), progress), np.float32)
    if not np.isfinite(points).all():
        raise PixMatcherError(f"These embeddings cannot be placed by {method}: choose pca.")
    return points, no_axes, reduced


def _start(flat: Float32) -> Float32:
    """Points (N, 2) to begin from: of a spread of 1 along the first axis, and no two in one place."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=flat.shape)
    return np.asarray(flat / (flat[:, 0].std() or 1.0) + noise, np.float32)


def _by_tsne(reduced: Float32, start: Float32, progress: _StepCallback) -> Any:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    tsne = TSNE(
        perplexity=min(30.0, (len(reduced) - 1) / 3),
        learning_rate="auto",
        # The spread is that of scikit-learn's own init="pca".
        init=start * np.float32(1e-4),
        max_iter=_TSNE_STEPS,
        random_state=0,
    )
    # Between threads with little to do, each of the steps waits.
    threads = 1 if len(reduced) < _MANY else None
    tsne._N_ITER_CHECK = _ToldSteps(tsne._N_ITER_CHECK, lambda step: progress(step, _TSNE_STEPS))
    with threadpool_limits(threads, "openmp"):
        points = tsne.fit_transform(reduced)
    progress(_TSNE_STEPS, _TSNE_STEPS)
    return points


class _ToldSteps(int):
    """After how many steps t-SNE looks whether it is done; tells of every step, for which there is no other way.

    scikit-learn computes `step % this` in each, and calls back nobody. Should it come to do otherwise, nothing is told.
    """

    def __new__(cls, value: int, tell: Callable[[int], None]) -> _ToldSteps:
        steps = super().__new__(cls, value)
        steps.tell = tell
        return steps

    tell: Callable[[int], None]

    def __rmod__(self, step: int) -> int:
        self.tell(step)
        return step % int(self)


def _import_umap() -> Any:
    try:
        # It says that TensorFlow is missing, which nothing here needs.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import umap
    except ImportError:
        raise PixMatcherError(
            "The method umap needs umap-learn: install it with `pip install 'pixmatcher[umap]'`, or choose tsne."
        ) from None
    return umap


def _by_umap(reduced: Float32, start: Float32, progress: _StepCallback) -> Any:
    steps = 500 if len(reduced) <= 10_000 else 200
    placing = _import_umap().UMAP(
        n_neighbors=min(15, len(reduced) - 1),
        init=start,
        n_epochs=steps,
        random_state=0,
        n_jobs=1,  # more would not come out the same
        tqdm_kwds={"disable": False, "file": _ToldBar(progress, steps), "bar_format": "{n}", "mininterval": 0},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = placing.fit_transform(reduced)
    progress(steps, steps)
    return points


class _ToldBar:
    """A file to which a progress bar of tqdm writes the steps that are done, and who tells of them."""

    def __init__(self, progress: _StepCallback, steps: int) -> None:
        self._progress = progress
        self._steps = steps

    def write(self, text: str) -> None:
        if text.strip().isdigit():
            self._progress(int(text), self._steps)

    def flush(self) -> None:
        pass


def _clusters(reduced: Float32) -> npt.NDArray[np.int32]:
    """The cluster of each of the points (N, D), by k-means, as (N,) int32; 0 is the largest."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(MOST_CLUSTERS, max(1, round(math.sqrt(len(reduced) / 2))))
    with warnings.catch_warnings():
        # There may be fewer different points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=4, random_state=0).fit_predict(reduced)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    numbers: npt.NDArray[np.int32] = np.argsort(order, kind="stable").astype(np.int32)[found]
    return numbers
