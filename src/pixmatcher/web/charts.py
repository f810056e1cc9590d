"""What the charts share."""

from __future__ import annotations

from html import escape

from .texts import plain

_LONGEST = 32

CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""What every chart is told: to send nothing anywhere, and to fetch nothing."""
BARS_CONFIG = {**CONFIG, "displayModeBar": False}


def short_text(text: str) -> str:
    """A text of strangers for Plotly, which takes some markup for its own: it is shown as it is, cut where long."""
    shown = plain(text)
    return escape(shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…", quote=False)
