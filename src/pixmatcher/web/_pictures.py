"""Images of items for display: small square tiles, large images, original files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from .._cores import usable_cores
from ..collection import Collection, Item
from ..searching import item_picture

if TYPE_CHECKING:
    from PIL import Image

MAX_UPLOAD_BYTES = 25 << 20
MAX_PIXELS = 200_000_000
_TILE_SIDE = 320
"""Largest side of a tile in the grid, in pixels."""
_FULL_SIDE = 1600
"""Longest side of an opened image, in pixels."""


def tiles(collection: Collection, items: Sequence[Item]) -> list[bytes | None]:
    """Return a small square JPEG of each item, or None where its image cannot be read."""
    with ThreadPoolExecutor(usable_cores()) as executor:
        return list(executor.map(lambda item: _tile_or_none(collection, item), items))


def full_picture(collection: Collection, item: Item) -> Image.Image | None:
    """Return the image of an item in the size of a screen, or None if it cannot be read."""
    return item_picture(item, collection, _FULL_SIDE, max_pixels=MAX_PIXELS)


def as_jpeg(picture: Image.Image, quality: int = 85) -> bytes:
    """Encode an image as JPEG."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=quality)
    return encoded.getvalue()


@dataclass(frozen=True)
class _TileKey:
    """The cache key of a tile. Two keys are equal if the images of their items are the same."""

    collection: Collection = field(compare=False)
    item: Item = field(compare=False)
    key: tuple[str, str, str] = ("", "", "")

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.item.uri, self.item.content_hash, self.item.version))


def _tile_or_none(collection: Collection, item: Item) -> bytes | None:
    """Return a square JPEG of an item for the grid; None if its image cannot be read."""
    try:
        return _tile_of(_TileKey(collection, item))
    except _NotReadableError:  # not cached: the image may be readable later
        return None


class _NotReadableError(Exception):
    pass


@lru_cache(maxsize=1000)  # about 15 kB each
def _tile_of(key: _TileKey) -> bytes:
    """Return a square JPEG of an item for the grid."""
    from PIL import ImageOps

    picture = item_picture(key.item, key.collection, 2 * _TILE_SIDE, max_pixels=MAX_PIXELS)
    if picture is None:
        raise _NotReadableError
    side = min(_TILE_SIDE, *picture.size)  # the browser enlarges small images
    return as_jpeg(ImageOps.fit(picture, (side, side)))
