"""The pictures of items, for the faces to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._urls import is_url
from ..errors import InvalidImageError
from ..images import DEFAULT_MAX_PIXELS, open_image
from ._answering import AnswersQueries

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
    if isinstance(collection, AnswersQueries):
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
    """Return the file of an item, or None if it is not on this machine or is not an image that can be read.

    The check keeps a face from sending any other file: the path of an item comes from the collection.
    """
    from ..sources.archives import open_path

    if is_url(item.uri):
        return None
    try:
        with open_path(item.uri) as file:
            data = file.read()
        open_image(data, min_side=64, max_pixels=max_pixels)
    except InvalidImageError:
        return None
    return data
