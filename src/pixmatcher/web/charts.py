"""Bars, and what the charts share."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

from .texts import plain

_LONGEST = 32

CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""What every chart is told: to send nothing anywhere, and to fetch nothing."""
BARS_CONFIG = {**CONFIG, "displayModeBar": False}


def short_text(text: str) -> str:
    """A text of strangers for Plotly, which takes some markup for its own: it is shown as it is, cut where long."""
    shown = plain(text)
    return escape(shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…", quote=False)


def show_bars(title: str, names: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> None:
    """Bars with their names beside them, under a heading."""
    import plotly.graph_objects as go

    st.header(title, anchor=False)
    places = list(range(len(names)))  # two may have the same name
    # Streamlit's own grey is too pale to be read on white.
    font = {"color": st.get_option(f"theme.{st.context.theme.type or 'light'}.textColor")}
    bars = go.Bar(x=values, y=places, orientation="h", text=texts, outsidetextfont=font, hoverinfo="skip")
    figure = go.Figure(bars.update(textposition="auto"))
    figure.update_layout(
        height=33 * len(names) + 10,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        xaxis={"visible": False, "fixedrange": True},
        yaxis={
            "autorange": "reversed",
            "fixedrange": True,
            "tickvals": places,
            "ticktext": [short_text(name) for name in names],
            "tickfont": font,
        },
        bargap=0.35,
    )
    told = plain("; ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True)))
    st.plotly_chart(figure, width="stretch", config=BARS_CONFIG, key=f"bars {title}", alt=f"{title}. {told}")
