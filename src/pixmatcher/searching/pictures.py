"""The pictures of items, for the faces to show."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from hashlib import sha256
from typing import IO, TYPE_CHECKING

from .._files import file_version
from .._urls import is_url
from ..errors import InvalidImageError
from ..images import DEFAULT_MAX_PIXELS, open_image, open_unread_file
from ._answering import answers_queries

if TYPE_CHECKING:
    from PIL import Image

    from ..collection import Item, Store


def item_picture(
    item: Item, collection: Store | None, side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image.Image | None:
    """Return the image of an item, upright and at most `side` pixels wide and high, or else its thumbnail.

    Nothing is fetched: for a remote or missing image, the result is the thumbnail in the collection, or None if there
    is no thumbnail. A store that is an `AnswersQueries` gives the picture: its paths are those of another machine.
    """
    if collection is not None and answers_queries(collection):
        picture, kept = None, collection.picture(item, side)
    else:
        picture = original_picture(item, side, max_pixels=max_pixels)
        kept = collection.thumbnail(item.content_hash) if picture is None and collection is not None else None
    if picture is None:
        if not kept:
            return None
        try:
            picture = open_image(kept, max_pixels=max_pixels).image.copy()
        except InvalidImageError:
            return None
    picture.thumbnail((side, side))
    return picture


def original_picture(item: Item, side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image | None:
    """Return the image of an item, upright; if it is large, reduced to a short side of about `side` pixels or more.

    None if the image is not on this machine or cannot be read.
    """
    from ..sources.archives import open_path

    if is_url(item.uri):
        return None
    try:
        with open_path(item.uri) as file:
            return open_image(file, min_side=side, max_pixels=max_pixels).image.copy()
    except InvalidImageError:
        return None


def original_file(item: Item, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes | None:
    """Return the file of an item; None as `open_original`."""
    opened = open_original(item, max_pixels=max_pixels)
    if opened is None:
        return None
    try:
        with opened.file:
            return opened.file.read()
    except OSError:
        return None


@dataclass(frozen=True)
class OriginalFile:
    """The file of an item, open at its first byte. The caller closes `file`."""

    file: IO[bytes]
    size: int
    """Its length in bytes."""
    format: str
    """The name of its image format."""
    tag: str
    """A text of letters, digits and dashes that is another one if the bytes are."""


def open_original(item: Item, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> OriginalFile | None:
    """Open the file of an item; None if it is not on this machine or is not an image that can be read.

    The check keeps a face from sending any other file: the path of an item comes from the collection. A file that has
    not changed since it was indexed was checked then, and nothing of it is read here.
    """
    from ..sources.archives import open_path

    if is_url(item.uri):
        return None
    try:
        file = open_unread_file(item.uri)
    except InvalidImageError:
        # It may be inside an archive.
        try:
            with open_path(item.uri) as member:
                return _checked_original(item, member.read(), max_pixels)
        except (InvalidImageError, OSError):
            return None
    try:
        status = os.fstat(file.fileno())
        if file_version(status) == item.version and item.format:
            return OriginalFile(file, status.st_size, item.format, item.content_hash[:64])
        if status.st_size <= _MOST_BYTES_TO_HASH:
            with file:
                return _checked_original(item, file.read(), max_pixels)
        opened = open_image(file, min_side=64, max_pixels=max_pixels)
        file.seek(0)
        return OriginalFile(file, status.st_size, opened.format, f"{status.st_ino}-{file_version(status)}")
    except (InvalidImageError, OSError):
        file.close()
        return None


_MOST_BYTES_TO_HASH = 16 << 20
"""A changed file of more bytes is identified by its length and times."""


def _checked_original(item: Item, data: bytes, max_pixels: int) -> OriginalFile:
    """Return bytes as the file of an item. Raises `InvalidImageError` if they are not an image that can be read."""
    digest = sha256(data).hexdigest()
    image_format = item.format if digest == item.content_hash[:64] else None
    image_format = image_format or open_image(data, min_side=64, max_pixels=max_pixels).format
    return OriginalFile(io.BytesIO(data), len(data), image_format, digest)
