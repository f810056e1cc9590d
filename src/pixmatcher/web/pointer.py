"""What the pointer is at on the map: its picture and name beside the pointer, and a click that opens it.

Streamlit tells of points that were chosen, not of the one under the pointer, and of no click while a lasso is at hand.
So a script listens to the chart of Plotly. It asks for one item at a time, in a fragment, so that neither the page nor
the chart is drawn again, and keeps what it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from .components import part

_KEY, _SEEN, _OPENED = "pointer", "pointer_seen", "pointer_opened"


@st.fragment
def follow_pointer(within: str, drawn: str, count: int, describe: Callable[[int], dict[str, Any] | None]) -> None:
    """Show what is under the pointer on the chart of Plotly in the container of key `within`.

    The custom data of its points are positions on the map `drawn`, which has `count` of them. `describe` tells the
    `name`, `label` and `picture` (JPEG in base64, or None) of one, or None where it is gone.
    """

    def seen() -> None:
        st.session_state[_SEEN] = place_on_map(st.session_state[_KEY].at, drawn, count)

    def clicked() -> None:
        st.session_state[_OPENED] = place_on_map(st.session_state[_KEY].clicked, drawn, count)

    place = st.session_state.pop(_SEEN, None)
    told = None if place is None else describe(place)
    # The style is also for the chart, which is outside.
    part("pointer", isolate_styles=False)(
        key=_KEY,
        data={"within": f"st-key-{within}", "drawn": drawn, "seen": told and {"place": place, **told}},
        on_at_change=seen,
        on_clicked_change=clicked,
    )
    if st.session_state.get(_OPENED) is not None:
        st.rerun()


def opened_place() -> int | None:
    """The position on the map that the visitor has just clicked; it is told once."""
    place: int | None = st.session_state.pop(_OPENED, None)
    return place


def place_on_map(given: object, drawn: str, count: int) -> int | None:
    """A position on the map `drawn` as a browser sent it, None if it is none, or one of another map."""
    if not isinstance(given, dict) or given.get("drawn") != drawn:
        return None
    place = given.get("place")
    return place if type(place) is int and 0 <= place < count else None
