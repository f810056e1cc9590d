"""The layout of a map: positions in two dimensions by PCA, t-SNE or UMAP, and clusters by k-means.

- `tsne`: van der Maaten and Hinton, "Visualizing data using t-SNE" (2008), by the Barnes-Hut trees of scikit-learn. It
  starts from the first two principal components, which keeps distant groups in place: Kobak and Berens, "The art of
  using t-SNE for single-cell transcriptomics" (2019).
- `umap`: McInnes, Healy and Melville, "UMAP: uniform manifold approximation and projection" (2018), by umap-learn.
- `pca`: the first two principal components.

t-SNE and UMAP work on the first 50 principal components of the embeddings. The clusters are those of k-means in these
50 dimensions, not on the map, so that they are the same for every method.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PixMatcherError

MOST_CLUSTERS = 10
"""As many as there are colours that are easy to distinguish."""

_COMPONENTS = 50
_FEWEST = 6
"""Items that t-SNE and UMAP need; fewer items are placed by PCA."""
_TSNE_STEPS = 1000
_MANY = 500
"""Items from which t-SNE runs in several threads."""

Float32 = npt.NDArray[np.float32]
StepCallback = Callable[[int, int], None]
"""Called with the number of steps that are done and of all steps."""


def require_scikit_learn() -> None:
    """Raise `PixMatcherError` if scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise PixMatcherError("A map needs scikit-learn: install it with `pip install 'pixmatcher[app]'`.") from None


def compute_layout(vectors: Float32, method: str, progress: StepCallback) -> tuple[Float32, Float32, Float32]:
    """Compute the points (N, 2), the axes as in `Projection`, and the principal components (N, 50 or fewer).

    Raises `PixMatcherError` if umap-learn is missing, or the points are not finite.
    """
    from sklearn.decomposition import PCA

    count, dimension = vectors.shape
    components = min(_COMPONENTS, count, dimension)
    if method == "umap" and count >= _FEWEST:
        _import_umap()
    progress(0, 1)
    if count == 1:  # a single item has no variance
        reduced, directions, mean = np.zeros((1, 1), np.float32), np.zeros((1, dimension), np.float32), vectors[0]
    else:
        with np.errstate(invalid="ignore", divide="ignore"):  # the ratios of a variance of zero
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
        raise PixMatcherError(f"The method {method} cannot place these embeddings: choose pca.")
    return points, no_axes, reduced


def _start(flat: Float32) -> Float32:
    """Return the points (N, 2) to start from: standard deviation 1 along the first axis, no two at one position."""
    noise = np.random.default_rng(0).normal(scale=0.01, size=flat.shape)
    return np.asarray(flat / (flat[:, 0].std() or 1.0) + noise, np.float32)


def _by_tsne(reduced: Float32, start: Float32, progress: StepCallback) -> Any:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    tsne = TSNE(
        perplexity=min(30.0, (len(reduced) - 1) / 3),
        learning_rate="auto",
        # The same spread as with init="pca" of scikit-learn.
        init=start * np.float32(1e-4),
        max_iter=_TSNE_STEPS,
        random_state=0,
    )
    # With few items, the threads wait for each other in each step.
    threads = 1 if len(reduced) < _MANY else None
    tsne._N_ITER_CHECK = _StepReporter(tsne._N_ITER_CHECK, lambda step: progress(step, _TSNE_STEPS))
    with threadpool_limits(threads, "openmp"):
        points = tsne.fit_transform(reduced)
    progress(_TSNE_STEPS, _TSNE_STEPS)
    return points


class _StepReporter(int):
    """The number of steps between the checks of t-SNE, which reports each step.

    scikit-learn has no callback, but computes `step % this` in each step. If it stops doing so, no step is reported.
    """

    def __new__(cls, value: int, report: Callable[[int], None]) -> _StepReporter:
        steps = super().__new__(cls, value)
        steps.report = report
        return steps

    report: Callable[[int], None]

    def __rmod__(self, step: int) -> int:
        self.report(step)
        return step % int(self)


def _import_umap() -> Any:
    try:
        # It warns that TensorFlow is missing, which is not needed here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import umap
    except ImportError:
        raise PixMatcherError(
            "The method umap needs umap-learn: install it with `pip install 'pixmatcher[umap]'`, or choose tsne."
        ) from None
    return umap


def _by_umap(reduced: Float32, start: Float32, progress: StepCallback) -> Any:
    steps = 500 if len(reduced) <= 10_000 else 200
    placing = _import_umap().UMAP(
        n_neighbors=min(15, len(reduced) - 1),
        init=start,
        n_epochs=steps,
        random_state=0,
        n_jobs=1,  # with more threads the result is not reproducible
        tqdm_kwds={"disable": False, "file": _StepFile(progress, steps), "bar_format": "{n}", "mininterval": 0},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points = placing.fit_transform(reduced)
    progress(steps, steps)
    return points


class _StepFile:
    """A file to which a progress bar of tqdm writes the number of steps, and which reports it."""

    def __init__(self, progress: StepCallback, steps: int) -> None:
        self._progress = progress
        self._steps = steps

    def write(self, text: str) -> None:
        if text.strip().isdigit():
            self._progress(int(text), self._steps)

    def flush(self) -> None:
        pass


def compute_clusters(reduced: Float32) -> npt.NDArray[np.int32]:
    """Return the cluster of each point (N, D) by k-means, as (N,) int32; 0 is the largest cluster."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(MOST_CLUSTERS, max(1, round(math.sqrt(len(reduced) / 2))))
    with warnings.catch_warnings():
        # There may be fewer distinct points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(count, n_init=4, random_state=0).fit_predict(reduced)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    numbers: npt.NDArray[np.int32] = np.argsort(order, kind="stable").astype(np.int32)[found]
    return numbers
