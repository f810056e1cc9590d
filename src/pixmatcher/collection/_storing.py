"""Storing items with their embeddings: the rows go to the vector files first, then the catalog commits the items."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy.typing as npt

from .._files import write_error
from ..errors import CollectionError
from ..records import Space
from ..vector_index.vectors import Float16, VectorFile, row_checksums, to_stored
from ._catalog import Catalog
from .items import Item


def stored_embeddings(
    embeddings: Mapping[str, npt.ArrayLike], spaces: Mapping[str, Space], count: int
) -> dict[str, Float16]:
    """Return embeddings (count, dimension) of each space as float16. Raises `CollectionError` if they do not fit."""
    if set(embeddings) != set(spaces):
        raise CollectionError(f"The embeddings must be of exactly these spaces: {', '.join(spaces)}.")
    stored = {name: to_stored(embeddings[name], space.dimension) for name, space in spaces.items()}
    if any(len(rows) != count for rows in stored.values()):
        raise CollectionError("There must be as many embeddings as items in each space.")
    return stored


def store_items(
    folder: Path,
    catalog: Catalog,
    vectors: Mapping[str, VectorFile],
    items: Sequence[Item],
    embeddings: Mapping[str, Float16],
    source: str | None,
) -> list[int]:
    """Store items with their embeddings (N, dimension) of each space; return their ids.

    A process that is killed before the catalog commits leaves rows that the next writer overwrites. Raises
    `StorageError` if the disk is full.
    """
    first_row = catalog.row_count()
    try:
        for name, file in vectors.items():
            file.write(first_row, embeddings[name])
    except OSError as error:
        raise write_error(folder, error) from error
    checksums = row_checksums([embeddings[name] for name in vectors])
    with catalog.writing():
        source_id = None if source is None else catalog.source_id(source)
        return catalog.put_items(items, first_row, checksums, source_id)


def with_content_of(item: Item, original: Item | None) -> Item:
    """Return an item with the size, format and date of another item of the same content, if its own are unknown.

    The date of the other item may come from the content, and is better then than one from the name of the item.
    """
    if original is None or item.format is not None:
        return item
    return replace(
        item,
        width=original.width,
        height=original.height,
        format=original.format,
        taken=original.taken or item.taken,
        missing=original.missing,
    )


def check_item(item: Item) -> None:
    """Raise `CollectionError` if an item could not be found again by its uri and its content hash."""
    if not item.uri:
        raise CollectionError("An item needs a uri: give the path or the URL of its image.")
    try:
        os.fsencode(item.uri)
    except UnicodeEncodeError:
        raise CollectionError(
            f"{item.uri!r} cannot be the uri of an item: give a path as os.fsdecode returns it, or a URL."
        ) from None
    if not item.content_hash.isascii():
        raise CollectionError(f"{item.content_hash!r} cannot be a content hash: give the SHA-256 in hexadecimal.")
