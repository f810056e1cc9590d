"""Parts that Streamlit has not: an image pasted from the clipboard, a frame drawn on a picture, a grid of results.

Their script is constant; what visitors give goes to them as data, and is never made markup.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
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

_PASTE_JS = """
export default function ({ data, setTriggerValue }) {
  const take = (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    if (file.size > data.limit) { setTriggerValue("image", { large: true }); return; }
    const reader = new FileReader();
    reader.onload = () => setTriggerValue("image", { data: reader.result.split(",")[1] });
    reader.readAsDataURL(file);
  };
  document.addEventListener("paste", take);
  return () => document.removeEventListener("paste", take);
}
"""

_CROP_HTML = '<div class="frame"><img draggable="false"><div class="box"></div></div>'
_CROP_CSS = """
.frame { position: relative; display: inline-block; overflow: hidden; cursor: crosshair; touch-action: pan-y;
         user-select: none; line-height: 0; max-width: 100%; border-radius: var(--st-base-radius); }
.frame img { max-width: 100%; max-height: 26rem; }
.box { position: absolute; display: none; border: 2px solid #fff; border-radius: 3px; pointer-events: none;
       box-shadow: 0 0 0 100rem rgba(0, 0, 0, .55); outline: 1px solid rgba(0, 0, 0, .5); }
"""
_CROP_JS = """
export default function ({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector(".frame");
  const picture = frame.querySelector("img");
  const box = frame.querySelector(".box");
  picture.src = "data:image/jpeg;base64," + data.picture;
  picture.alt = data.alt;
  const show = ([left, top, right, bottom]) => {
    const whole = left <= 0 && top <= 0 && right >= 1 && bottom >= 1;
    box.style.display = whole ? "none" : "block";
    box.style.left = 100 * left + "%";
    box.style.top = 100 * top + "%";
    box.style.width = 100 * (right - left) + "%";
    box.style.height = 100 * (bottom - top) + "%";
  };
  const place = (event) => {
    const area = picture.getBoundingClientRect();
    const share = (at, start, length) => Math.min(1, Math.max(0, (at - start) / length));
    return [share(event.clientX, area.left, area.width), share(event.clientY, area.top, area.height)];
  };
  let from = null;
  const box_to = ([x, y]) => [Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x), Math.max(from[1], y)];
  show(data.box);
  frame.onpointerdown = (event) => { from = place(event); frame.setPointerCapture(event.pointerId); };
  frame.onpointermove = (event) => { if (from) show(box_to(place(event))); };
  frame.onpointerup = (event) => {
    if (!from) return;
    const drawn = box_to(place(event));
    from = null;
    if (drawn[2] - drawn[0] < data.least || drawn[3] - drawn[1] < data.least) { show(data.box); return; }
    show(drawn);
    setTriggerValue("box", drawn);
  };
  frame.onpointercancel = () => { from = null; show(data.box); };
}
"""

_GRID_HTML = '<div class="grid" role="list"></div>'
_GRID_CSS = """
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--tile), 1fr)); gap: .75rem; }
.tile { display: flex; flex-direction: column; gap: .35rem; padding: .6rem; min-width: 0; font-size: .875rem;
        border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); }
.tile img, .none { width: 100%; aspect-ratio: 1; border-radius: calc(var(--st-base-radius) / 2); }
.tile img { cursor: zoom-in; }
.none { display: grid; place-items: center; padding: .5rem; box-sizing: border-box; text-align: center;
        background: var(--st-secondary-background-color); }
.name { overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.score { display: flex; align-items: center; gap: .5rem; font-variant-numeric: tabular-nums; }
.bar { flex: 1; height: .35rem; border-radius: 1rem; background: var(--st-secondary-background-color); }
.bar div { height: 100%; border-radius: 1rem; background: var(--st-primary-color); }
.buttons { display: flex; flex-wrap: wrap; gap: .2rem .9rem; }
button { display: flex; align-items: center; gap: .3rem; min-height: 1.75rem; font: inherit; color: inherit;
         background: none; border: 0; padding: 0; border-radius: .25rem; cursor: pointer; }
button:hover { color: var(--st-primary-color); }
button:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 2px; }
.icon { font-family: "Material Symbols Rounded"; font-size: 1.15rem; line-height: 1; }
"""
_GRID_JS = """
const part = (kind, text = "", of = "div") => {
  const made = document.createElement(of);
  made.className = kind;
  made.textContent = text;
  return made;
};
const button = ({ icon, text, help }, action, id) => {
  const made = part("", "", "button");
  const sign = part("icon", icon, "span");
  sign.ariaHidden = "true";
  made.append(sign, part("", text, "span"));
  made.title = help;
  Object.assign(made.dataset, { action, id });
  return made;
};
const tile = ({ id, name, label, score, picture }, words) => {
  const made = part("tile");
  made.role = "listitem";
  let image = part("none", words.out_of_reach);
  if (picture) {
    image = part("", "", "img");
    image.src = "data:image/jpeg;base64," + picture;
    image.alt = name;
    Object.assign(image.dataset, { action: "open", id });
  }
  made.append(image);
  if (score !== null) {
    const line = part("score", score.toFixed(2));
    const bar = part("bar");
    bar.append(part(""));
    bar.firstChild.style.width = 100 * Math.min(1, Math.max(0, score)) + "%";
    line.append(bar);
    made.append(line);
  }
  for (const text of [label, name]) {
    if (!text) continue;
    made.append(part("name", text));
    made.lastChild.title = text;
  }
  const buttons = part("buttons");
  for (const action of ["open", "similar"]) buttons.append(button(words[action], action, id));
  made.append(buttons);
  return made;
};
export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid");
  grid.onclick = ({ target }) => {
    const { action, id } = target.closest("[data-action]")?.dataset ?? {};
    if (action) setTriggerValue(action, Number(id));
  };
  const given = JSON.stringify(data);
  if (grid.given === given) return;
  grid.given = given;
  grid.style.setProperty("--tile", data.least + "px");
  grid.replaceChildren(...data.tiles.map((each) => tile(each, data.words)));
}
"""


@cache
def _grid() -> Any:
    return st.components.v2.component("pixmatcher_grid", html=_GRID_HTML, css=_GRID_CSS, js=_GRID_JS)


@dataclass(frozen=True)
class Tile:
    """What the grid shows of an item. The texts are of strangers, on one line each."""

    id: int
    name: str
    label: str
    score: float | None
    picture: bytes | None
    """A square JPEG."""


def show_tiles(tiles: Sequence[Tile], on_similar: Callable[[int], object]) -> int | None:
    """Show tiles in a grid that fits the window; the id of the one that the visitor has just opened, if one was.

    `on_similar` is called with the id of one that others like it are wanted of. One part for all: as parts of
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
    }
    opened = _grid()(key="results", data=data, on_open_change=lambda: None, on_similar_change=similar).open
    return opened if opened in ids else None


@cache
def _paste() -> Any:
    return st.components.v2.component("pixmatcher_paste", js=_PASTE_JS)


@cache
def _crop() -> Any:
    return st.components.v2.component("pixmatcher_crop", html=_CROP_HTML, css=_CROP_CSS, js=_CROP_JS)


def pasted_image(limit: int) -> bytes | None:
    """The image that the visitor has just pasted, of whatever kind; empty where it was of more than `limit` bytes."""
    given = _paste()(key="paste", data={"limit": limit}, on_image_change=lambda: None).image
    if not isinstance(given, dict):
        return None
    try:
        return base64.b64decode(given["data"], validate=True) if "data" in given else b""
    except (binascii.Error, TypeError, ValueError):
        return None


def drawn_box(jpeg: bytes, alt: str, box: Box, key: str) -> Box | None:
    """Show a picture with the frame `box` on it; the frame that the visitor has just drawn, if one was."""
    data = {"picture": base64.b64encode(jpeg).decode(), "alt": alt, "box": list(box), "least": _LEAST}
    given = _crop()(key=key, data=data, on_box_change=lambda: None).box
    return valid_box(given)


def valid_box(given: object) -> Box | None:
    """A frame as a browser sent it, None if it is none."""
    if not isinstance(given, (list, tuple)) or len(given) != 4:
        return None
    if not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in given):
        return None
    left, top, right, bottom = (float(side) for side in given)
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1  # false for what is not a number too
    return (left, top, right, bottom) if inside and min(right - left, bottom - top) >= _LEAST / 2 else None
