"""What all visitors share: open collections, loaded encoders, small pictures; loaded once, used from many threads.

`Collection` and the encoders may be used from several threads, so one of each serves everybody.
"""

from __future__ import annotations

import contextlib
import gc
import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from .._cores import usable_cores
from ..collection import CATALOG_NAME, Collection, Item
from ..errors import CollectionError, PixMatcherError
from ..images import open_image
from ..searching import EmbeddedQuery, EncoderFallback, Query, embed_query, item_picture
from .places import Shelf, collection_paths

if TYPE_CHECKING:
    from PIL import Image

MAX_UPLOAD_BYTES = 25 << 20
MAX_PIXELS = 200_000_000
_TIDY_SECONDS = 10
_ENCODERS_SECONDS = 60
"""So long an encoder that cannot be used is not tried again."""
_TILE, _FULL = 320, 1600
"""Pixels a side of a picture in the grid, at most, and of the long side of one that was opened."""


class GoneError(CollectionError):
    """A collection that was there has disappeared; `path` is its folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"The collection {path} is gone: bring its folder back, or choose another one.")
        self.path = path


@st.cache_resource(show_spinner=False)
def shelf() -> Shelf:
    """The collections that the app shows. Raises `CollectionError` if one that was named is missing."""
    return Shelf(collection_paths())


def open_collection(path: Path) -> Collection:
    """The collection in a folder, opened once for all visitors. Raises `GoneError` if it is not there any more."""
    try:
        status = (path / CATALOG_NAME).stat()
    except OSError as error:
        raise GoneError(path) from error
    # A collection that was deleted and made anew is another one.
    identity = (status.st_dev, status.st_ino)
    collection = _opened(str(path), identity)
    _warmed(str(path), identity).join()
    return collection


@st.cache_resource(show_spinner=False, max_entries=64, on_release=lambda collection: collection.close())
def _opened(path: str, identity: tuple[int, int]) -> Collection:
    return Collection.open(path)


@st.cache_resource(show_spinner=False, max_entries=64)
def _warmed(path: str, identity: tuple[int, int]) -> threading.Thread:
    """A thread that loads the encoders and the indexes, so that no search has to; the searches wait for its end."""
    collection = _opened(path, identity)

    def warm() -> None:
        # Whatever is wrong, the search that needs it will say.
        with contextlib.suppress(PixMatcherError):
            _embed_something(collection, text=False)
        with contextlib.suppress(PixMatcherError):
            _embed_something(collection, text=True)
        with contextlib.suppress(PixMatcherError):
            for space in collection.spaces.values():
                collection.search([0.0] * space.dimension, space=space.name, k=1)
        # Nobody is served while garbage is looked for: what stays need not be looked at.
        gc.collect()
        gc.freeze()

    thread = threading.Thread(target=warm, daemon=True)
    thread.start()
    return thread


@st.cache_resource(show_spinner=False)
def _last_tidied() -> list[float]:
    return [time.monotonic()]


def tidy() -> None:
    """Free what visitors who left had, now and then. After each run, as Streamlit would, all others had to wait."""
    last = _last_tidied()
    if time.monotonic() - last[0] > _TIDY_SECONDS:
        last[0] = time.monotonic()
        gc.collect()


def _embed_something(collection: Collection, *, text: bool) -> EmbeddedQuery:
    from PIL import Image

    return embed_query(Query("warm") if text else Query(image=Image.new("RGB", (64, 64))), collection.encoders)


@st.cache_resource(show_spinner=False, max_entries=128, ttl=_ENCODERS_SECONDS)
def passed_over(encoders: str, text: bool, _collection: Collection) -> tuple[str, EncoderFallback] | None:
    """The space that answers in place of the one whose encoder cannot be used, and why; None where there is no need.

    `encoders` tells those of the collection.
    """
    with contextlib.suppress(PixMatcherError):  # the search will say
        embedded = _embed_something(_collection, text=text)
        return None if embedded.fallback is None else (embedded.space, embedded.fallback)
    return None


def generation(collection: Collection) -> int:
    """A number that changes whenever the items do."""
    return collection.generation


def labels(collection: Collection) -> list[str]:
    """The labels of the items, the most frequent first."""
    return _labels(str(collection.path), generation(collection), collection)


@st.cache_resource(show_spinner=False, max_entries=64)
def _labels(path: str, generation: int, _collection: Collection) -> list[str]:
    return list(_collection.label_counts())


def item_of(collection: Collection, item_id: int) -> Item:
    """The item of an id. Raises `CollectionError` if there is none."""
    if not (found := items_of(collection, [item_id])):
        raise CollectionError("This image is not in the collection any more.")
    return found[0]


def items_of(collection: Collection, ids: Sequence[int]) -> list[Item]:
    """The items of those of the ids that are there, in this order."""
    items = collection.items_by_id(ids)
    return [items[item_id] for item_id in ids if item_id in items]


# Pictures


def tiles(collection: Collection, items: Sequence[Item]) -> list[bytes | None]:
    """A small square JPEG of each item, None where its picture is out of reach."""
    with ThreadPoolExecutor(usable_cores()) as executor:
        return list(executor.map(lambda item: _tile_or_none(collection, item), items))


def full_picture(collection: Collection, item: Item) -> Image.Image | None:
    """An item as large as a screen, None where its picture is out of reach."""
    return item_picture(item, collection, _FULL, max_pixels=MAX_PIXELS)


def original(item: Item) -> bytes | None:
    """The file of an item, if it is on this machine and an image: nothing else may leave through the app."""
    from .._urls import is_url
    from ..errors import InvalidImageError
    from ..sources.zipped import open_path

    if is_url(item.uri):
        return None
    try:
        with open_path(item.uri) as file:
            data = file.read()
        open_image(data, min_side=64, max_pixels=MAX_PIXELS)
    except InvalidImageError:
        return None
    return data


def as_jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


@dataclass(frozen=True)
class _Ref:
    """An item whose tile is wanted; two are the same if their pictures are."""

    collection: Collection = field(compare=False)
    item: Item = field(compare=False)
    key: tuple[str, str, str] = ("", "", "")

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.item.uri, self.item.content_hash, self.item.version))


def _tile_or_none(collection: Collection, item: Item) -> bytes | None:
    try:
        return _tile(_Ref(collection, item))
    except _OutOfReachError:  # which is not kept: it may come back
        return None


class _OutOfReachError(Exception):
    pass


@lru_cache(maxsize=1000)  # some 15 KB each
def _tile(ref: _Ref) -> bytes:
    from PIL import ImageOps

    picture = item_picture(ref.item, ref.collection, 2 * _TILE, max_pixels=MAX_PIXELS)
    if picture is None:
        raise _OutOfReachError
    side = min(_TILE, *picture.size)  # the browser enlarges small ones
    return as_jpeg(ImageOps.fit(picture, (side, side)))
