"""Verification of a collection, and repair: damage is found by checksums, and removed or rebuilt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._files import write_error
from ..errors import CollectionError
from ..records import CATALOG_NAME, THUMBNAILS_NAME
from ..vector_index.vectors import Rows, VectorFile, row_checksums
from ._catalog import Catalog
from ._indexes import SpaceIndexes
from ._names import start_again
from ._thumbnails import Thumbnails
from .items import Problem
from .stored_maps import damaged_maps, remove_damaged_maps

logger = logging.getLogger("pixmatcher.collection")
_BLOCK = 16384


@dataclass(frozen=True)
class Parts:
    """The parts of a collection that can be damaged."""

    folder: Path
    catalog: Catalog
    vectors: Mapping[str, VectorFile]
    thumbnails: Thumbnails
    indexes: SpaceIndexes


def find_problems(parts: Parts) -> list[Problem]:
    """Read all files of a collection and return what is damaged in them."""
    if errors := parts.catalog.integrity_errors():
        return [Problem("catalog", f"{CATALOG_NAME} is damaged: {errors[0]}", _capitalized(start_again(parts.folder)))]
    with parts.catalog.reading():
        return [
            *_vector_problems(parts),
            *_thumbnail_problems(parts.thumbnails),
            *_index_problems(parts),
            *_map_problems(parts.folder),
        ]


def _vector_problems(parts: Parts) -> Iterator[Problem]:
    try:
        damaged = len(_damaged_rows(parts.vectors, *parts.catalog.checksums()))
    except CollectionError as error:
        yield _unreadable("vectors", error)
        return
    if damaged:
        yield Problem(
            "vectors",
            f"the embeddings of {damaged} of {parts.catalog.item_count()} images are damaged",
            "Run `pixmatcher verify --repair`, then `pixmatcher index` to encode these images again.",
        )


def _thumbnail_problems(thumbnails: Thumbnails) -> Iterator[Problem]:
    if not thumbnails.is_intact():
        yield Problem(
            "thumbnails",
            f"{THUMBNAILS_NAME} is damaged",
            "Run `pixmatcher verify --repair`, which deletes it: only pictures of remote images are lost.",
        )


def _index_problems(parts: Parts) -> Iterator[Problem]:
    from ..vector_index import index_is_intact

    for space in parts.vectors:
        # An index that is older than the catalog, or not built yet, is not damaged: it is updated when it is used.
        try:
            intact = index_is_intact(parts.indexes.path(space))
        except CollectionError as error:
            yield _unreadable("index", error)
            continue
        if not intact:
            yield Problem(
                "index",
                f"the index of the space {space} is damaged",
                "Nothing is lost: run `pixmatcher verify --repair`, or search, and it is rebuilt.",
            )


def _map_problems(folder: Path) -> Iterator[Problem]:
    try:
        for path in damaged_maps(folder):
            yield Problem(
                "map",
                f"{path.relative_to(folder)} is damaged",
                "Nothing is lost: run `pixmatcher verify --repair`, which deletes it, and draw the map again.",
            )
    except CollectionError as error:
        yield _unreadable("map", error)


def _unreadable(part: str, error: CollectionError) -> Problem:
    """Return the problem of a file that exists and cannot be read."""
    return Problem(part, error.problem, _capitalized(error.remedy))


def _capitalized(text: str) -> str:
    """Return a text with an upper-case first letter."""
    return text[:1].upper() + text[1:]


def require_intact_catalog(parts: Parts) -> None:
    """Raise `CollectionError` if the catalog is damaged."""
    if errors := parts.catalog.integrity_errors():
        raise CollectionError(f"{CATALOG_NAME} is damaged ({errors[0]})", start_again(parts.folder))


def repair_parts(parts: Parts) -> int:
    """Remove the items whose embeddings are damaged, and rebuild or delete damaged derived files.

    Return how many items were removed. Call it with the writer lock. Raises `CollectionError` if a file cannot be
    written.
    """
    damaged = _damaged_rows(parts.vectors, *parts.catalog.checksums())
    try:
        for file in parts.vectors.values():
            file.extend_with_zeros(parts.catalog.row_count())
    except OSError as error:
        raise write_error(parts.folder, error) from error
    if len(damaged):
        with parts.catalog.writing():
            parts.catalog.remove_rows(damaged.tolist())
        logger.info("Repair of %s: %d items removed, because their embeddings are damaged", parts.folder, len(damaged))
    parts.indexes.clear()
    if not parts.thumbnails.is_intact():
        try:
            parts.thumbnails.clear()
            logger.info("Repair of %s: the damaged thumbnails are deleted", parts.folder)
        except OSError as error:
            raise write_error(parts.folder, error) from error
    with parts.indexes.saving(wait=True):
        try:
            parts.indexes.remove_files()
            remove_damaged_maps(parts.folder)
        except OSError as error:
            raise write_error(parts.folder, error) from error
        parts.indexes.save()
    return len(damaged)


def _damaged_rows(vectors: Mapping[str, VectorFile], rows: Rows, expected: npt.NDArray[np.int64]) -> Rows:
    """Return those of the rows (N,) whose embeddings do not have the expected checksums (N,)."""
    files = [*vectors.values()]
    readable = rows < min(file.end_row() for file in files)
    damaged = [rows[~readable]]
    rows, expected = rows[readable], expected[readable]
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        found = np.array(row_checksums([file.read(block) for file in files]), dtype=np.int64)
        damaged.append(block[found != expected[start : start + _BLOCK]])
    return np.concatenate(damaged)
