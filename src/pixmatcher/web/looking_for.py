"""What a visitor searches by image: an image that was given, or an item of the collection; turned and cropped."""

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
from .components import WHOLE, Box
from .state import MAX_PIXELS, MAX_UPLOAD_BYTES, as_jpeg, item_of, items_of

PROBLEM = "image_problem"
"""Under this name a session keeps what is wrong with the image that was given last, as Markdown."""
_KEY = "looking_for"
_SIDE = 1024
_QUALITY = 95
"""Pixels of the short side that are kept of an image, enough for any encoder, also of a part of it; and how well."""


@dataclass(frozen=True)
class LookedFor:
    """The image that is searched for: one that was given, or an item, which needs its picture only to be changed."""

    item_id: int | None = None
    home: Path | None = None
    """The collection of that item: its ids mean nothing in another one."""
    data: bytes = b""
    picture: bytes | None = None
    """A JPEG to turn and crop; with its pixels, a visitor would cost ten times as much."""
    digest: str = ""
    quarter_turns: int = 0
    """Clockwise."""
    box: Box = WHOLE
    """Of the turned picture."""

    @property
    def unchanged(self) -> bool:
        """Neither turned nor cropped: an item is searched for by its stored embedding."""
        return self.box == WHOLE and not self.quarter_turns

    def shown(self) -> Image.Image:
        """The picture as it was turned, not cropped."""
        assert self.picture is not None
        return Image.open(io.BytesIO(self.picture)).rotate(-90 * self.quarter_turns, expand=True)

    def image(self) -> bytes | Image.Image:
        """What to search for: the file as it was given, unless it was turned or cropped."""
        if self.unchanged:
            return self.data
        shown = self.shown()
        left, top, right, bottom = self.box
        return shown.crop(
            (
                int(left * shown.width),
                int(top * shown.height),
                max(int(right * shown.width), int(left * shown.width) + 1),
                max(int(bottom * shown.height), int(top * shown.height) + 1),
            )
        )

    def turned(self, by: int) -> LookedFor:
        return replace(self, quarter_turns=(self.quarter_turns + by) % 4, box=WHOLE)

    def cropped(self, box: Box) -> LookedFor:
        return replace(self, box=box)


def looked_for(collection: Collection) -> LookedFor | None:
    """What the visitor searches for in this collection. An item that it has not, or no longer, is forgotten."""
    found = st.session_state.get(_KEY)
    if not isinstance(found, LookedFor):
        return None
    if found.item_id is not None and not (found.home == collection.path and items_of(collection, [found.item_id])):
        look_for(None)
        return None
    return found


def look_for(what: LookedFor | None) -> None:
    """Search for this from now on; what was said of an image before no longer holds."""
    st.session_state[_KEY] = what
    st.session_state.pop(PROBLEM, None)


def look_for_item(collection: Collection, item_id: int, elsewhere: bool = False) -> None:
    """Search for what is like an item; with `elsewhere`, from whatever page: the page of images is opened."""
    look_for(LookedFor(item_id, collection.path))
    st.session_state["go_to_image_page"] = elsewhere


def with_picture(collection: Collection, what: LookedFor) -> LookedFor:
    """The same with its picture, which is kept for the next time; an item out of reach has none."""
    if what.item_id is None or what.picture is not None:
        return what
    picture = original_picture(item_of(collection, what.item_id), _SIDE, max_pixels=MAX_PIXELS)
    if picture is not None:
        what = st.session_state[_KEY] = replace(what, picture=as_jpeg(picture, _QUALITY))
    return what


def look_for_data(data: bytes) -> None:
    """Search for an image that was given. Raises `InvalidImageError` if it cannot be used."""
    if len(data) > MAX_UPLOAD_BYTES:
        raise InvalidImageError("too large", f"more than {MAX_UPLOAD_BYTES >> 20} MB")
    picture = open_image(data, min_side=_SIDE, max_pixels=MAX_PIXELS).image
    look_for(LookedFor(data=data, picture=as_jpeg(picture, _QUALITY), digest=hashlib.sha256(data).hexdigest()))


def look_for_file(path: Path) -> None:
    look_for_data(path.read_bytes())
