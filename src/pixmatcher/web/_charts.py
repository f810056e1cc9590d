"""Bar charts, and the settings that all charts share."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from ._texts import as_plain_text

_MAX_CHARACTERS = 32

CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""Settings of Plotly for every chart: no requests to other servers."""
BARS_CONFIG = {**CONFIG, "displayModeBar": False}


def short_text(text: str) -> str:
    """Shorten an untrusted text and escape it for Plotly, which interprets some HTML."""
    shown = as_plain_text(text)
    return escape(shown if len(shown) <= _MAX_CHARACTERS else shown[: _MAX_CHARACTERS - 1] + "…", quote=False)


def show_bars(title: str, names: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> None:
    """Show a heading and a horizontal bar for each value, with its name at the left and its text at the bar."""
    import plotly.graph_objects as go

    st.header(title, anchor=False)
    positions = list(range(len(names)))  # several bars may have the same name
    # The default grey of Streamlit has too little contrast on white.
    font = {"color": st.get_option(f"theme.{st.context.theme.type or 'light'}.textColor")}
    bars = go.Bar(x=values, y=positions, orientation="h", text=texts, outsidetextfont=font, hoverinfo="skip")
    figure = go.Figure(bars.update(textposition="auto"))
    figure.update_layout(
        height=33 * len(names) + 10,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        xaxis={"visible": False, "fixedrange": True},
        yaxis={
            "autorange": "reversed",
            "fixedrange": True,
            "tickvals": positions,
            "ticktext": [short_text(name) for name in names],
            "tickfont": font,
        },
        bargap=0.35,
    )
    description = as_plain_text("; ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True)))
    st.plotly_chart(figure, width="stretch", config=BARS_CONFIG, key=f"bars {title}", alt=f"{title}. {description}")
