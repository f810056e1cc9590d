"""Parts that Streamlit has not: an image pasted from the clipboard, a frame drawn on a picture, a grid of results.

The scripts are those in the folder `parts`; what visitors give goes to them as data, and is never made markup.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from .texts import t

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_LEAST = 0.03
"""A frame of a smaller share of the width or height is a click that slipped."""
_TILE_WIDTH = 150
"""Pixels of the window that a tile of the grid takes at least: two beside each other on a telephone."""


@cache
def part(name: str, *, isolate_styles: bool = True) -> Any:
    """The part whose script, style and markup are the files of this name; called, it is mounted."""
    files = {suffix: Path(__file__).with_name("parts") / f"{name}.{suffix}" for suffix in ("html", "css", "js")}
    given = {suffix: file.read_text("utf-8") for suffix, file in files.items() if file.exists()}
    return st.components.v2.component(f"pixmatcher_{name}", **given, isolate_styles=isolate_styles)


@dataclass(frozen=True)
class Tile:
    """What the grid shows of an item. The texts are of strangers, on one line each."""

    id: int
    name: str
    label: str
    score: float | None
    picture: bytes | None
    """A square JPEG."""


def show_tiles(tiles: Sequence[Tile], on_similar: Callable[[int], object], of: str | None) -> int | None:
    """Show tiles in a grid that fits the window; the id of the one that the visitor has just opened, if one was.

    `on_similar` is called with the id of one that others like it are wanted of. When `of` is not what it was, the page
    is shown from its top: else it would stay where the button was that was clicked. One part for all: as parts of
    Streamlit, hundreds of them, they would take a browser most of a second to draw.
    """
    ids = {tile.id for tile in tiles}

    def similar() -> None:
        if (chosen := st.session_state["results"].similar) in ids:
            on_similar(chosen)

    data = {
        "tiles": [
            asdict(tile) | {"picture": tile.picture and base64.b64encode(tile.picture).decode()} for tile in tiles
        ],
        "words": {
            "open": {"icon": "open_in_full", "text": t("open"), "help": t("picture")},
            "similar": {"icon": "image_search", "text": t("similar"), "help": t("more_like_this")},
            "out_of_reach": t("out_of_reach"),
        },
        "least": _TILE_WIDTH,
        "of": of,
    }
    opened = part("grid")(key="results", data=data, on_open_change=lambda: None, on_similar_change=similar).open
    return opened if opened in ids else None


def pasted_image(limit: int) -> bytes | None:
    """The image that the visitor has just pasted, of whatever kind; empty where it was of more than `limit` bytes."""
    given = part("paste")(key="paste", data={"limit": limit}, on_image_change=lambda: None).image
    if not isinstance(given, dict):
        return None
    try:
        return base64.b64decode(given["data"], validate=True) if "data" in given else b""
    except (binascii.Error, TypeError, ValueError):
        return None


def show_frame(jpeg: bytes, box: Box, words: dict[str, str], key: str, on_drawn: Callable[[Box], object]) -> None:
    """Show a picture with the frame `box` on it; `on_drawn` is called with each frame that the visitor draws.

    By mouse, by touch, or by keys; the `words` are the alternative text of the `picture`, the name of the `frame`, and
    what the `keys` do.
    """

    def drawn() -> None:
        if (given := valid_box(st.session_state[key].box)) is not None:
            on_drawn(given)

    data = {
        "picture": base64.b64encode(jpeg).decode(),
        "box": list(box),
        "words": words,
        "least": _LEAST,
        "digest": hashlib.sha256(jpeg + repr(words).encode()).hexdigest(),
    }
    part("crop")(key=key, data=data, on_box_change=drawn)


def valid_box(given: object) -> Box | None:
    """A frame as a browser sent it, None if it is none."""
    if not isinstance(given, (list, tuple)) or len(given) != 4:
        return None
    if not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in given):
        return None
    left, top, right, bottom = (float(side) for side in given)
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1  # false for what is not a number too
    return (left, top, right, bottom) if inside and min(right - left, bottom - top) >= _LEAST / 2 else None
