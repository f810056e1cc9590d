"""Maps on disk: the positions of items in two dimensions. Each map is a file, and is computed again if it is damaged.

A file begins with one line of JSON: the state of the collection that the map was computed from, and the SHA-256 of the
rest. The rest are the arrays of `StoredMap` in their order, little-endian.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._files import read_error, remove, replacing
from ..records import MAPS_NAME
from ._lock import WriterLock
from .items import CollectionState

_FORMAT = 1
_HEADER_BYTES = 4096
_MOST_BYTES = 1 << 28
_ENDING = ".map"


@dataclass(frozen=True)
class StoredMap:
    """A map: ascending ids (N,) int64, points (N, 2) float32, clusters (N,) int32.

    `state` is the state of the collection that the map was `computed` from, at that date (ISO 8601).

    `axes` (3, D) float32 are the two axes and the mean of the embeddings if the points are projections on these axes,
    else (3, 0).
    """

    state: CollectionState
    computed: str
    ids: npt.NDArray[np.int64]
    points: npt.NDArray[np.float32]
    clusters: npt.NDArray[np.int32]
    axes: npt.NDArray[np.float32]


def map_path(collection: Path, space: str, method: str, most: int) -> Path:
    """Return the file of the map of a space by a method, of at most `most` items."""
    return collection / MAPS_NAME / f"{space}-{method}-{most}{_ENDING}"


def save_map(path: Path, stored: StoredMap) -> None:
    """Write a map in one step: a process that is killed meanwhile leaves the old map or none.

    Raises `OSError` if it cannot be written, `CollectionError` if the disk does not support locks.
    """
    body = b"".join(
        np.ascontiguousarray(values, kind).tobytes()
        for values, kind in (
            (stored.ids, "<i8"),
            (stored.points, "<f4"),
            (stored.clusters, "<i4"),
            (stored.axes, "<f4"),
        )
    )
    header = {
        "format": _FORMAT,
        **vars(stored.state),
        "computed": stored.computed,
        "points": len(stored.ids),
        "dimension": stored.axes.shape[1],
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    path.parent.mkdir(exist_ok=True)
    lock = WriterLock(path.parent / "lock")
    lock.acquire(wait=True)
    try:
        with replacing(path) as file:
            file.write(json.dumps(header).encode() + b"\n" + body)
    finally:
        lock.release()


def read_map(path: Path) -> StoredMap | None:
    """Return the map in a file, or None if the file is not what `save_map` wrote.

    Raises `OSError` if it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        return None
    header, _, body = path.read_bytes().partition(b"\n")
    try:
        if len(header) > _HEADER_BYTES:
            return None
        values = json.loads(header)
        if values["format"] != _FORMAT or values["sha256"] != hashlib.sha256(body).hexdigest():
            return None
        numbers = [values[name] for name in ("generation", "items", "last_id", "row_count", "points", "dimension")]
        if any(type(number) is not int or number < 0 for number in numbers):
            return None
        generation, items, last_id, row_count, count, dimension = numbers
        if len(body) != 20 * count + 12 * dimension:
            return None
        arrays, offset = [], 0
        for kind, shape in (("<i8", (count,)), ("<f4", (count, 2)), ("<i4", (count,)), ("<f4", (3, dimension))):
            size = int(np.prod(shape))
            arrays.append(np.frombuffer(body, kind, size, offset).reshape(shape))
            offset += arrays[-1].nbytes
        ids, points, clusters, axes = arrays
        if not (np.isfinite(points).all() and np.isfinite(axes).all() and (np.diff(ids) > 0).all()):
            return None
        return StoredMap(
            CollectionState(generation, items, last_id, row_count),
            str(values["computed"]),
            ids,
            points,
            clusters,
            axes,
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def map_files(collection: Path) -> list[tuple[Path, str]]:
    """Return the map files of a collection, each with the name of its space; [] if they cannot be listed."""
    folder = collection / MAPS_NAME
    return [(path, path.name.rsplit("-", 2)[0]) for path in sorted(folder.glob(f"*-*-*{_ENDING}"))]


def damaged_maps(collection: Path) -> list[Path]:
    """Return the map files of a collection that are damaged. Raises `CollectionError` if they cannot be read."""
    folder = collection / MAPS_NAME
    try:
        if not os.path.lexists(folder):
            return []
        if not folder.is_dir():
            return [folder]
        return [path for path in sorted(folder.glob(f"*{_ENDING}")) if read_map(path) is None]
    except OSError as error:
        raise read_error(folder, error) from error


def remove_damaged_maps(collection: Path) -> None:
    """Delete the damaged map files. Raises `CollectionError` if they cannot be read, `OSError` if not deleted."""
    for path in damaged_maps(collection):
        remove(path)
