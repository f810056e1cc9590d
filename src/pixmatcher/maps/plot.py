"""Draw a map and save it: as a picture by matplotlib, or as a page by Plotly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._files import check_writable, save_file
from .._plots import PLOT_FORMATS, check_plot_path, save_figure, shortened
from .._progress import ProgressCallback
from ..errors import PixMatcherError, QueryError
from .groups import FAINT, INK, MOST_SINGLE_POINTS, PAPER, Group, color_groups, legend_name, printable_text
from .interactive import render_page
from .projection import Projection
from .titles import map_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..collection import ReadableStore

COLORS = ("label", "cluster")


def check_map_path(path: Path, color: str | None = None) -> None:
    """Check before the work whether a map can be drawn in these colours and saved at a path.

    Raises `PixMatcherError` if not.
    """
    if color not in (None, *COLORS):
        raise QueryError(f"Unknown color {color!r}: choose one of {', '.join(COLORS)}.")
    suffix = path.suffix.lower()
    if suffix not in (*PLOT_FORMATS, ".html"):
        raise PixMatcherError(f"{path} must end in {', '.join(PLOT_FORMATS)} or .html.")
    if suffix != ".html":
        check_plot_path(path)
        return
    check_writable(path)
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError:
        raise PixMatcherError("The page needs Plotly: install it with `pip install 'pixmatcher[app]'`.") from None


def save_map_plot(
    projection: Projection,
    collection: ReadableStore,
    path: Path,
    *,
    color: str | None = None,
    query: tuple[str, tuple[float, float]] | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Draw a map and save it: .png, .jpg, .svg and .pdf by matplotlib, .html as one page that needs no network.

    `color` is as in `color_groups`; `query` is the name of a query and its position. The page shows the picture and the
    name of the item at the pointer, the picture for at most 3,000 items. `progress` is called with the number of
    pictures of the page that are done.

    Raises `PixMatcherError` if matplotlib or Plotly is missing, or the file cannot be written.
    """
    check_map_path(path, color)
    groups = color_groups(projection, color, collection.label_names())
    if path.suffix.lower() != ".html":
        save_figure(draw_map(projection, groups, title=map_title(projection, collection), query=query), path)
        return
    page = render_page(projection, collection, groups, query, progress)
    save_file(path, lambda file: file.write(page.encode()))


def draw_map(
    projection: Projection,
    groups: Sequence[Group],
    *,
    title: tuple[str, str],
    query: tuple[str, tuple[float, float]] | None = None,
) -> Figure:
    """Return the map as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 8), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    count = len(projection.ids)
    size = float(np.clip(24_000 / max(count, 1), 4, 60))
    # The remaining items are drawn first, so that they cover nothing.
    for group in sorted(groups, key=lambda group: group.named):
        axes.scatter(
            projection.points[group.members, 0],
            projection.points[group.members, 1],
            s=size,
            c=group.color,
            alpha=0.8 if group.named else 0.55,
            linewidths=0.4 if size > 15 else 0,
            edgecolors=PAPER,
            rasterized=count > MOST_SINGLE_POINTS,
        )
    if query is not None:
        name, place = query
        axes.plot(*place, color=INK, marker="*", markersize=18, markeredgecolor=PAPER, zorder=5)
        axes.annotate(
            _plain(shortened(name)),
            place,
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            fontsize=11,
            color=INK,
            zorder=6,
            bbox={"boxstyle": "round,pad=0.3", "fc": PAPER, "ec": "none", "alpha": 0.8},
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#e8eaed")
    axes.set_title(_plain(printable_text(title[0])), loc="left", fontsize=14, color=INK, pad=26)
    axes.text(0, 1.015, _plain(printable_text(title[1])), transform=axes.transAxes, fontsize=10, color=FAINT)
    handles = [
        Line2D([], [], color=group.color, marker="o", linestyle="", label=_plain(legend_name(group)))
        for group in groups
    ]
    if query is not None:
        handles.append(Line2D([], [], color=INK, marker="*", markersize=11, linestyle="", label="query"))
    figure.legend(
        handles=handles,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handletextpad=0.3,
    )
    return figure


def _plain(text: str) -> str:
    """Return a text without formulas of matplotlib."""
    return text.replace("$", r"\$")
