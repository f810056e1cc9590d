"""Parts that Streamlit has not: an image pasted from the clipboard, a frame drawn on a picture, a grid of results.

Their script is constant; what visitors give goes to them as data, and is never made markup.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
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

_CROP_HTML = """
<div class="frame" role="application" tabindex="0" aria-describedby="keys">
  <img draggable="false"><div class="shade"></div>
  <div class="box">
    <i class="left top"></i><i class="right top"></i><i class="left bottom"></i><i class="right bottom"></i>
  </div>
</div>
<div id="keys"></div>
"""
_CROP_CSS = """
.frame { position: relative; display: inline-block; max-width: 100%; line-height: 0; cursor: crosshair;
         touch-action: pan-y; user-select: none; -webkit-touch-callout: none; outline-offset: 3px;
         --left: 0%; --top: 0%; --right: 100%; --bottom: 100%; }
.frame:focus { outline: none; }
.frame:focus-visible { outline: 3px solid var(--st-primary-color); }
.frame img { max-width: 100%; max-height: 26rem; border-radius: var(--st-base-radius); }
.shade { position: absolute; inset: 0; background: rgba(0, 0, 0, .55); border-radius: var(--st-base-radius);
         clip-path: polygon(evenodd, 0 0, 100% 0, 100% 100%, 0 100%, 0 0,
           var(--left) var(--top), var(--right) var(--top), var(--right) var(--bottom), var(--left) var(--bottom),
           var(--left) var(--top)); }
.box { position: absolute; left: var(--left); top: var(--top); right: calc(100% - var(--right));
       bottom: calc(100% - var(--bottom)); }
.part .box { cursor: move; touch-action: none; outline: 2px solid #fff; box-shadow: 0 0 0 3px rgba(0, 0, 0, .5); }
i { position: absolute; width: 2.5rem; height: 2.5rem; margin: -1.25rem; touch-action: none; cursor: nwse-resize; }
i.right.top, i.left.bottom { cursor: nesw-resize; }
i.left { left: 0; } i.right { right: 0; } i.top { top: 0; } i.bottom { bottom: 0; }
i::after { content: ""; position: absolute; inset: .8rem; border-radius: 50%; background: #fff;
           box-shadow: 0 0 0 2px rgba(0, 0, 0, .5); }
#keys { display: none; padding-top: .5rem; font-size: .875rem; }
.frame:focus-visible + #keys { display: block; }
"""
_CROP_JS = """
const WHOLE = [0, 0, 1, 1], STEP = 0.02;
const ARROWS = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
const clamp = (value, least, most) => Math.min(most, Math.max(least, value));
const same = (one, other) => one.every((side, i) => Math.abs(side - other[i]) < 1e-6);
const moved = ([left, top, right, bottom], [x, y]) => {
  const [dx, dy] = [clamp(x, -left, 1 - right), clamp(y, -top, 1 - bottom)];
  return [left + dx, top + dy, right + dx, bottom + dy];
};
const between = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];

export default function ({ data, parentElement, setTriggerValue }) {
  const frame = parentElement.querySelector(".frame");
  frame.tell = setTriggerValue;
  if (frame.digest === data.digest) {
    // What comes back is what was drawn here. Perhaps another frame is being drawn by now: it stays.
    const echo = frame.told.findIndex((each) => same(each, data.box));
    if (echo >= 0 || same(frame.given, data.box)) {
      frame.told.splice(0, echo + 1);
      frame.given = data.box;
      return;
    }
  }
  [frame.digest, frame.given, frame.told] = [data.digest, data.box, []];
  const picture = frame.querySelector("img");
  picture.src = "data:image/jpeg;base64," + data.picture;
  picture.alt = data.words.picture;
  frame.setAttribute("aria-label", data.words.frame);
  parentElement.querySelector("#keys").textContent = data.words.keys;

  let asked = data.box;  // what was searched for; `box` is what is shown
  let box;
  const show = (sides) => {
    box = sides;
    ["left", "top", "right", "bottom"].forEach((side, i) => frame.style.setProperty("--" + side, 100 * box[i] + "%"));
    frame.classList.toggle("part", !same(box, WHOLE));
  };
  const ask = () => {
    if (same(box, asked)) return;
    asked = box;
    frame.told.push(box);
    frame.tell("box", box);
  };
  show(asked);

  // The mouse or a finger: `follow` makes the frame of where it is.
  let follow = null;
  const place = (event) => {
    const area = picture.getBoundingClientRect();
    const [x, y] = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
    return [clamp(x, 0, 1), clamp(y, 0, 1)];
  };
  frame.onpointerdown = (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    const [from, before, at] = [place(event), box, event.target.classList];
    if (event.target.tagName === "I") {
      const fixed = [before[at.contains("left") ? 2 : 0], before[at.contains("top") ? 3 : 1]];
      follow = (to) => between(fixed, to);
    } else if (at.contains("box") && !same(before, WHOLE)) {
      follow = (to) => moved(before, [to[0] - from[0], to[1] - from[1]]);
    } else {
      follow = (to) => between(from, to);
    }
    frame.setPointerCapture(event.pointerId);
  };
  frame.onpointermove = (event) => { if (follow) show(follow(place(event))); };
  frame.onpointerup = (event) => {
    if (!follow) return;
    const drawn = follow(place(event));
    follow = null;
    const slipped = drawn[2] - drawn[0] < data.least || drawn[3] - drawn[1] < data.least;
    show(slipped ? asked : drawn);
    ask();
  };
  frame.onpointercancel = () => { follow = null; show(asked); };

  frame.onkeydown = (event) => {
    const step = ARROWS[event.key];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (step && event.shiftKey) {
      const [right, bottom] = [box[2] + step[0], box[3] + step[1]];
      show([box[0], box[1], clamp(right, box[0] + 2 * data.least, 1), clamp(bottom, box[1] + 2 * data.least, 1)]);
    } else if (step) {
      show(moved(box, step));
    } else if (event.key === "Enter") {
      ask();
    } else if (event.key === "Escape") {
      show(WHOLE);
      ask();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  frame.onblur = () => { if (!follow) show(asked); };
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
const button = ({ icon, text, help }, action, id, name) => {
  const made = part("", "", "button");
  const sign = part("icon", icon, "span");
  sign.ariaHidden = "true";
  made.append(sign, part("", text, "span"));
  made.title = help;
  made.ariaLabel = text + ": " + name;
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
  for (const action of ["open", "similar"]) buttons.append(button(words[action], action, id, name));
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
    _crop()(key=key, data=data, on_box_change=drawn)


def valid_box(given: object) -> Box | None:
    """A frame as a browser sent it, None if it is none."""
    if not isinstance(given, (list, tuple)) or len(given) != 4:
        return None
    if not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in given):
        return None
    left, top, right, bottom = (float(side) for side in given)
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1  # false for what is not a number too
    return (left, top, right, bottom) if inside and min(right - left, bottom - top) >= _LEAST / 2 else None
