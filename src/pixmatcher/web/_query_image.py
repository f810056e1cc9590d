"""The query image of a visitor: an image that was given, or an item of the collection; rotated and cropped."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

import streamlit as st
from PIL import Image

from ..collection import Collection
from ..errors import InvalidImageError
from ..images import open_image
from ..searching import original_picture
from ._components import WHOLE, Box
from ._open_collections import item_of, items_of
from ._pictures import MAX_PIXELS, MAX_UPLOAD_BYTES, as_jpeg

PROBLEM = "query_image_problem"
"""Session key of the message about the last image that could not be used, as Markdown."""
_KEY = "query_image"
_MIN_SIDE = 1024
"""Short side of the kept copy in pixels: enough for any encoder, also for a part of the image."""
_QUALITY = 95
"""JPEG quality of the kept copy."""


@dataclass(frozen=True)
class QueryImage:
    """The image to search for: given by the visitor, or an item. An item needs its picture only for changes."""

    item_id: int | None = None
    collection: Path | None = None
    """The collection of the item. Ids are valid in one collection only."""
    data: bytes = b""
    """The file that the visitor gave."""
    picture: bytes | None = None
    """A JPEG to rotate and crop. It takes a tenth of the memory of its pixels."""
    digest: str = ""
    """SHA-256 of `data`."""
    quarter_turns: int = 0
    """Rotation in steps of 90 degrees, clockwise."""
    box: Box = WHOLE
    """The selected part of the rotated picture."""

    @property
    def unchanged(self) -> bool:
        """Whether it is neither rotated nor cropped. A search for an unchanged item uses its stored embedding."""
        return self.box == WHOLE and not self.quarter_turns

    def rotated_picture(self) -> Image.Image:
        """Return the rotated picture, not cropped."""
        assert self.picture is not None
        return Image.open(io.BytesIO(self.picture)).rotate(-90 * self.quarter_turns, expand=True)

    def image(self) -> bytes | Image.Image:
        """Return what to search for: the given file, or the picture if it is rotated or cropped."""
        if self.unchanged:
            return self.data
        rotated = self.rotated_picture()
        left, top, right, bottom = self.box
        return rotated.crop(
            (
                int(left * rotated.width),
                int(top * rotated.height),
                max(int(right * rotated.width), int(left * rotated.width) + 1),
                max(int(bottom * rotated.height), int(top * rotated.height) + 1),
            )
        )

    def rotated(self, quarter_turns: int) -> QueryImage:
        """Return the image rotated by more steps of 90 degrees, without its crop."""
        return replace(self, quarter_turns=(self.quarter_turns + quarter_turns) % 4, box=WHOLE)

    def cropped(self, box: Box) -> QueryImage:
        """Return the image with this part selected."""
        return replace(self, box=box)


def query_image(collection: Collection) -> QueryImage | None:
    """Return the visitor's query image, if it fits this collection. An item that is not in it is forgotten."""
    found = st.session_state.get(_KEY)
    if not isinstance(found, QueryImage):
        return None
    if found.item_id is not None and not (
        found.collection == collection.path and items_of(collection, [found.item_id])
    ):
        set_query_image(None)
        return None
    return found


def set_query_image(image: QueryImage | None) -> None:
    """Replace the query image, and remove the message about the last one."""
    st.session_state[_KEY] = image
    st.session_state.pop(PROBLEM, None)


def rotate_query_image(quarter_turns: int) -> None:
    """Rotate the visitor's query image by more steps of 90 degrees, without its crop, if it has a picture now.

    A second click may come before the page is drawn after the first: it must rotate what the first click has rotated.
    """
    found = st.session_state.get(_KEY)
    if isinstance(found, QueryImage) and found.picture is not None:
        set_query_image(found.rotated(quarter_turns))


def set_query_item(collection: Collection, item_id: int, open_image_page: bool = False) -> None:
    """Make an item the query image. With `open_image_page`, also open the page of the image search."""
    set_query_image(QueryImage(item_id, collection.path))
    st.session_state["open_image_page"] = open_image_page


def with_picture(collection: Collection, image: QueryImage) -> QueryImage:
    """Return the query image with its picture, and keep it. An item whose file cannot be read stays without."""
    if image.item_id is None or image.picture is not None:
        return image
    picture = original_picture(item_of(collection, image.item_id), _MIN_SIDE, max_pixels=MAX_PIXELS)
    if picture is not None:
        image = st.session_state[_KEY] = replace(image, picture=as_jpeg(picture, _QUALITY))
    return image


def set_query_data(data: bytes) -> None:
    """Make the bytes of an image file the query image. Raises `InvalidImageError` if they cannot be used."""
    if len(data) > MAX_UPLOAD_BYTES:
        raise InvalidImageError("too large", f"more than {MAX_UPLOAD_BYTES >> 20} MB")
    picture = open_image(data, min_side=_MIN_SIDE, max_pixels=MAX_PIXELS).image
    digest = hashlib.sha256(data).hexdigest()
    set_query_image(QueryImage(data=data, picture=as_jpeg(picture, _QUALITY), digest=digest))


def set_query_file(path: Path) -> None:
    """Make an image file the query image. Raises `InvalidImageError` if it cannot be used."""
    set_query_data(path.read_bytes())
