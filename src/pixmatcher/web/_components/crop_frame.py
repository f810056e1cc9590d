"""An image with a frame on it, which selects the part to search for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import streamlit as st

from ._files import component

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, as fractions of its width and height."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_MIN_SIDE = 0.03
"""Smallest width and height of a drawn frame. A smaller one is an accidental movement during a click."""


def show_crop_frame(jpeg: bytes, box: Box, words: dict[str, str], key: str, on_draw: Callable[[Box], object]) -> None:
    """Show an image with the frame `box` on it, and call `on_draw` with each frame that the visitor draws.

    The frame is drawn by mouse, touch or keyboard. `words` holds the alternative text (`image`), the accessible name of
    the frame (`frame`) and the help on the keyboard (`keys`).
    """

    def on_box_change() -> None:
        """Pass the frame that the visitor has drawn to `on_draw`."""
        if (drawn := valid_box(st.session_state[key].box)) is not None:
            on_draw(drawn)

    data = {
        "image": base64.b64encode(jpeg).decode(),
        "box": list(box),
        "words": words,
        "minSide": _MIN_SIDE,
        "digest": hashlib.sha256(jpeg + repr(words).encode()).hexdigest(),
    }
    component("crop_frame")(key=key, data=data, on_box_change=on_box_change)


def valid_box(value: object) -> Box | None:
    """Return the frame that a browser sent, or None if the value is not a valid frame."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    if not all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in value):
        return None
    left, top, right, bottom = (float(side) for side in value)
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1  # also false for NaN
    return (left, top, right, bottom) if inside and min(right - left, bottom - top) >= _MIN_SIDE / 2 else None
