"""The grid of results: a tile with buttons for each item, in as many columns as the window has room for."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import streamlit as st

from .._texts import t
from ._files import component

_MIN_TILE_WIDTH = 150
"""CSS pixels. A telephone shows two tiles side by side."""


@dataclass(frozen=True)
class Tile:
    """What the grid shows of an item. Name and label are untrusted texts of one line."""

    id: int
    name: str
    label: str
    score: float | None
    """The length of the bar, from 0 to 1; None for no bar."""
    score_text: str
    image: bytes | None
    """A square JPEG."""


def show_tiles(tiles: Sequence[Tile], on_similar: Callable[[int], object], query_key: str | None) -> int | None:
    """Show tiles in a grid, and return the id of the item that the visitor has just opened, if any.

    `on_similar` is called with the id of the item whose similar images the visitor wants. When `query_key` changes, the
    page scrolls to its top. Otherwise it would stay at the button that the visitor clicked. The grid is one component,
    because a browser needs most of a second to draw hundreds of Streamlit elements.
    """
    ids = {tile.id for tile in tiles}

    def on_similar_change() -> None:
        if (item_id := st.session_state["results"].similar) in ids:
            on_similar(item_id)

    data = {
        "tiles": [asdict(tile) | {"image": tile.image and base64.b64encode(tile.image).decode()} for tile in tiles],
        "words": {
            "open": {"icon": "open_in_full", "text": t("open"), "help": t("picture")},
            "similar": {"icon": "image_search", "text": t("similar"), "help": t("more_like_this")},
            "notAvailable": t("not_available"),
        },
        "minTileWidth": _MIN_TILE_WIDTH,
        "queryKey": query_key,
    }
    grid = component("result_grid")
    opened = grid(key="results", data=data, on_open_change=lambda: None, on_similar_change=on_similar_change).open
    return opened if opened in ids else None
