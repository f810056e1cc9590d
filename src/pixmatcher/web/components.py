"""Two parts that Streamlit has not: an image pasted from the clipboard, and a frame drawn on a picture.

Their script is constant; what visitors give goes to them as data, and is never made markup.
"""

from __future__ import annotations

import base64
import binascii
from functools import cache
from typing import Any

import streamlit as st

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_LEAST = 0.03
"""A frame of a smaller share of the width or height is a click that slipped."""

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
