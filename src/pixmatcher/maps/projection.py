"""The projection of a collection to two dimensions, computed once and stored in the folder of the collection.

`_layout` names the methods and their papers.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial

import numpy as np
import numpy.typing as npt

from .._progress import Progress, ProgressCallback
from ..collection import Collection, ReadableStore, query_vector
from ..collection.stored_maps import StoredMap, map_path, read_map, save_map
from ..errors import CollectionError, QueryError
from ..searching import image_space
from ._layout import Float32, compute_clusters, compute_layout, require_scikit_learn

METHODS = ("tsne", "umap", "pca")
MOST_ITEMS = 20_000
"""The default limit of items on a map. t-SNE takes minutes for that many."""
_NEIGHBOURS = 8
_log = logging.getLogger("pixmatcher.maps")


@dataclass(frozen=True)
class Projection:
    """The positions of the items of a collection in two dimensions.

    `ids` (N,) int64 are ascending, `points` are (N, 2) float32, `clusters` are (N,) int32, 0 is the largest cluster.
    Items that are no longer in the collection are left out; `labels` are the current ones, or None. `items` is the size
    of the collection when the map was `computed`, a date in ISO 8601; `added`, `removed` and `changed` count the
    changes since then. `kept` says whether the map is stored in the folder of the collection. `axes` (3, D) float32 are
    the two axes and the mean of a map by PCA, otherwise they are (3, 0). After the
    collection was upgraded, an older map stays, without axes, and all of its items count as changed.
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
    collection: ReadableStore,
    method: str = "tsne",
    *,
    space: str | None = None,
    most: int = MOST_ITEMS,
    refresh: bool = False,
    progress: ProgressCallback | None = None,
) -> Projection:
    """Return the map of a collection: the stored one, stale or not; a new one if none is stored, or with `refresh`.

    The default space is the one that image queries use. If there are more than `most` items, a pseudo-random
    sample is placed; when the collection grows, most of the sample stays the same. A new map is stored if the
    collection can be written. An exception of `progress` ends the work, and nothing is stored.

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
    started = time.monotonic()
    points, axes, reduced = compute_layout(vectors, method, partial(_report_steps, progress))
    _log.info("%d items placed by %s in %.1f s", len(ids), method, time.monotonic() - started)
    stored = StoredMap(state, now, ids, points, compute_clusters(reduced), axes)
    stored_now = False
    if isinstance(collection, Collection):  # another store has no folder for maps
        with contextlib.suppress(OSError, CollectionError):
            save_map(map_path(collection.path, chosen, method, most), stored)
            stored_now = True
    found = _current_map(collection, stored, method, chosen, kept=stored_now)
    if found is None:
        raise CollectionError(f"All images of the map were removed from {collection.path} in the meantime: try again.")
    return found


def _report_steps(progress: ProgressCallback | None, done: int, total: int) -> None:
    if progress is not None:
        progress(Progress("Computing the map", done, total, "steps"))


def load_projection(
    collection: ReadableStore, method: str = "tsne", *, space: str | None = None, most: int = MOST_ITEMS
) -> Projection | None:
    """Return the stored map of a collection, stale or not; None if it is missing or damaged.

    Raises `QueryError` for an unknown method or space.
    """
    if method not in METHODS:
        raise QueryError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    if most < 1:
        raise QueryError(f"The number of images on a map must be 1 or more, not {most}.")
    chosen = image_space(collection.encoders, space)
    if not isinstance(collection, Collection):
        return None
    stored = None
    with contextlib.suppress(OSError):
        stored = read_map(map_path(collection.path, chosen.name, method, most))
    if stored is None:
        return None
    if stored.state.generation < collection.encoded_since:
        stored = replace(stored, axes=np.empty((3, 0), np.float32))  # they are those of the former embeddings
    elif stored.axes.shape[1] != (chosen.dimension if method == "pca" else 0):
        return None
    return _current_map(collection, stored, method, chosen.name, kept=True)


def place_query(projection: Projection, collection: ReadableStore, vector: npt.ArrayLike) -> tuple[float, float]:
    """Return the position on the map of a vector (dimension,) of the map's space.

    On a map by PCA the vector is projected as the items were. t-SNE and UMAP have no such projection: the position is
    the mean of the positions of the 8 nearest items, weighted by the square of the difference of their score and that
    of the ninth.

    Raises `CollectionError` if the vector does not fit the space, or the collection has no item of the map any more.
    """
    query = query_vector(vector, collection.spaces[projection.space])
    if projection.axes.size:
        x, y = projection.axes[:2] @ (query - projection.axes[2])
        return float(x), float(y)
    with collection.snapshot():
        known = collection.labels_by_id(projection.ids.tolist())
        exists = np.array([item_id in known for item_id in projection.ids.tolist()], bool)
        if not exists.any():
            raise CollectionError(
                f"All images of the map were removed from {collection.path} in the meantime: draw it again."
            )
        scores = collection.embeddings(projection.ids[exists], projection.space) @ query
    nearest = np.argsort(-scores, kind="stable")[: _NEIGHBOURS + 1]
    ahead = (scores[nearest] - scores[nearest[-1]]).astype(np.float64)[:_NEIGHBOURS]
    weights = np.square(ahead / ahead[0]) if ahead[0] > 0 else np.ones(len(ahead))
    x, y = weights @ projection.points[exists][nearest[:_NEIGHBOURS]] / weights.sum()
    return float(x), float(y)


def sample(ids: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Return the `most` ids with the lowest hashes of ascending ids (N,), ascending; most stay when ids are added."""
    if len(ids) <= most:
        return ids
    # The last step of SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    with np.errstate(over="ignore"):
        hashed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed ^= hashed >> np.uint64(31)
    return np.sort(ids[np.argsort(hashed, kind="stable")[:most]])


def _current_map(
    collection: ReadableStore, stored: StoredMap, method: str, space: str, *, kept: bool
) -> Projection | None:
    """Return a stored map for the current items; None if none is left, or if the map is of a later state."""
    with collection.snapshot() as generation:
        if stored.state.generation > generation:  # the map belongs to a catalog that was lost
            return None
        changes = collection.changes_since(stored.state)
        labels = collection.labels_by_id(stored.ids.tolist())
    exists = np.array([item_id in labels for item_id in stored.ids.tolist()], bool)
    if not exists.any():
        return None
    ids = stored.ids[exists]
    return Projection(
        method,
        space,
        ids,
        stored.points[exists],
        stored.clusters[exists],
        [labels[item_id] for item_id in ids.tolist()],
        stored.state.items,
        stored.computed,
        *changes,
        kept,
        stored.axes,
    )
