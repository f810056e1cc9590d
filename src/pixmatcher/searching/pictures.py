"""The picture of an item, to be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidImageError
from ..images import DEFAULT_MAX_PIXELS, open_image
from ..net.fetch import is_url
from ..sources.zipped import open_path

if TYPE_CHECKING:
    from PIL import Image

    from ..collection import Collection, Item


def item_picture(
    item: Item, collection: Collection | None, side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image.Image | None:
    """The image of an item, upright and at most `side` pixels wide and high, or what is left of it.

    Nothing is fetched: of a remote image, or one that is gone, it is the thumbnail that the collection has, if any.
    """
    picture = original_picture(item, side, max_pixels=max_pixels)
    if picture is None:
        thumbnail = collection and collection.thumbnail(item.content_hash)
        if not thumbnail:
            return None
        try:
            picture = open_image(thumbnail).image.copy()
        except InvalidImageError:
            return None
    picture.thumbnail((side, side))
    return picture


def original_picture(item: Item, side: int, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image | None:
    """The image of an item, upright and with a short side of some `side` pixels or more, where it has them.

    None where it is not on this machine, or not an image that can be read.
    """
    if is_url(item.uri):
        return None
    try:
        with open_path(item.uri) as file:
            return open_image(file, min_side=side, max_pixels=max_pixels).image.copy()
    except InvalidImageError:
        return None
