"""The image and name of the map's point under the pointer, and clicks on points.

Streamlit reports selected points, but neither the point under the pointer nor clicks while the lasso tool is active.
Therefore a script listens to the Plotly chart. It asks the server for one item at a time and keeps the answers. The
requests run in a fragment, so that neither the page nor the chart is drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from ._files import component

_KEY, _POINTED_AT, _CLICKED = "pointer", "pointer_position", "pointer_clicked"


@st.fragment
def show_image_at_pointer(
    container: str, map_key: str, count: int, describe: Callable[[int], dict[str, Any] | None]
) -> None:
    """Show the item under the pointer on the Plotly chart in the container of key `container`.

    The custom data of a point is its position on the map: 0 to `count` - 1. `map_key` identifies the drawn map.
    `describe` returns the `name`, `label` and `image` (JPEG in base64, or None) of a position, or None if its item does
    not exist any more.
    """

    def on_hover_change() -> None:
        """Store the position under the pointer."""
        st.session_state[_POINTED_AT] = valid_position(st.session_state[_KEY].hover, map_key, count)

    def on_click_change() -> None:
        """Store the position that was clicked."""
        st.session_state[_CLICKED] = valid_position(st.session_state[_KEY].click, map_key, count)

    position = st.session_state.pop(_POINTED_AT, None)
    described = None if position is None else describe(position)
    # The style is not isolated, because it also applies to the chart.
    component("map_pointer", isolate_styles=False)(
        key=_KEY,
        data={
            "container": f"st-key-{container}",
            "mapKey": map_key,
            "item": described and {"position": position, **described},
        },
        on_hover_change=on_hover_change,
        on_click_change=on_click_change,
    )
    if st.session_state.get(_CLICKED) is not None:
        st.rerun()


def take_clicked_position() -> int | None:
    """Return the position that the visitor has just clicked on the map; only once for each click."""
    position: int | None = st.session_state.pop(_CLICKED, None)
    return position


def valid_position(value: object, map_key: str, count: int) -> int | None:
    """Return the map position that a browser sent, or None if it is invalid or belongs to another map."""
    if not isinstance(value, dict) or value.get("mapKey") != map_key:
        return None
    position = value.get("position")
    return position if type(position) is int and 0 <= position < count else None
