"""The Plotly figure of the map, in the colours and the language of the visitor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...collection import Collection
from ...maps.groups import Group, color_groups
from ...maps.interactive import map_figure
from ...maps.projection import Projection
from .._texts import as_plain_text, t

_MAX_LEGEND_HEIGHT = 130
"""CSS pixels. A higher legend scrolls."""
_BUTTON, _ACTIVE_BUTTON = "#8a9693", "#14a394"
_OTHER_COLORS = {"others": "#7d8a87", "none": "#a39a8c"}
"""Colours of the points without a colour of their own: visible in the light and the dark theme, but not striking."""


def draw_map(
    collection: Collection,
    projection: Projection,
    color: str,
    queries: Sequence[tuple[str, tuple[float, float]]],
) -> Any:
    """Return the figure. `queries` are names and coordinates of queries on the map."""
    groups = [
        replace(group, name=_group_name(group), color=_OTHER_COLORS.get(group.kind, group.color))
        for group in color_groups(projection, color, collection.label_names())
    ]
    figure = map_figure(projection, groups, queries=queries)
    for trace in figure.data:
        if trace.customdata is not None:
            trace.update(selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 0.25}})
            if trace.marker.color in _OTHER_COLORS.values():
                trace.update(marker={"opacity": 0.4})
        else:
            trace.update(name=t("map_queries"), marker={"color": "#f43f5e"})
    # The visitor's theme provides these colours and the font.
    transparent = "rgba(0,0,0,0)"
    figure.update_layout(
        paper_bgcolor=transparent,
        plot_bgcolor=transparent,
        font={"color": None, "family": None},
        modebar={
            "bgcolor": transparent,
            "color": _BUTTON,
            "activecolor": _ACTIVE_BUTTON,
            "remove": ["toImage", "zoom", "autoScale"],
        },
        dragmode="lasso",
        legend={"orientation": "h", "y": 0, "yanchor": "top", "x": 0, "maxheight": _MAX_LEGEND_HEIGHT},
    )
    return figure


def _group_name(group: Group) -> str:
    """Return the name of a group of points in the visitor's language."""
    if group.kind == "cluster":
        return t("map_cluster", number=group.number)
    if group.kind == "others":
        return t("map_other_labels", count=group.number) if group.number > 1 else t("map_other_label")
    return t("map_no_label") if group.kind == "none" else as_plain_text(group.name.partition(",")[0])
