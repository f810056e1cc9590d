"""The picture of a map: by matplotlib as .png, .svg and the like, by Plotly as a page that works without a network."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .._cores import usable_cores
from .._files import check_writable, save_file
from .._plots import PLOT_FORMATS, check_plot_path, save_figure, shortened
from .._progress import Progress, ProgressCallback
from ..errors import PixMatcherError, QueryError
from ..searching import item_picture
from .projection import Projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..collection import Collection, Item

COLORS = ("label", "cluster")
MOST_THUMBNAILS = 3_000
"""Pictures in a page: some 3 KB each."""

_NAMED_COLORS = (
    *("#4269d0", "#efb118", "#e4572e", "#3ca951", "#a463f2", "#ff8ab7", "#38b2c8", "#9c6b4e", "#7a8b00", "#1b3a8a"),
    *("#97bbf5", "#b3261e", "#8fd694", "#5b21a6", "#f5a97f", "#0f6e63", "#d16ba5", "#8a5a00", "#6cc5b0", "#4b5563"),
)
_OTHERS, _NONE = "#b6bbc2", "#dfe2e6"
_INK, _FAINT, _PAPER = "#202124", "#5f6368", "#ffffff"
_METHOD_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
_SIDE = 112
"""Pixels of a picture in a page."""
_MOST_SVG = 5_000
"""Points that a browser draws quickly one by one; more are drawn by WebGL."""


@dataclass(frozen=True)
class Group:
    """Items of one colour: what the legend calls them, and their positions (N,) int64 in the map."""

    name: str
    color: str
    members: npt.NDArray[np.int64]
    kind: Literal["label", "cluster", "others", "none"] = "label"
    number: int = 0
    """Which cluster it is, from 1; of the kind "others", how many labels are in it."""

    @property
    def named(self) -> bool:
        """Whether it is one label or one cluster, and not what is left of them."""
        return self.kind in ("label", "cluster")


def color_groups(
    projection: Projection, color: str | None = None, names: Mapping[str, str] | None = None
) -> list[Group]:
    """The items of a map by what gives them their colour, the largest first, what is left of them last.

    By "label", the 20 most frequent have colours of their own, of equals not those that are neighbours by name; by
    "cluster"; by None, labels if there are some. `names` are what labels are called.
    """
    if color == "cluster" or (color is None and not any(label is not None for label in projection.labels)):
        clusters = range(int(projection.clusters.max(initial=-1)) + 1)
        members = [np.flatnonzero(projection.clusters == cluster) for cluster in clusters]
        return [
            Group(f"cluster {cluster + 1}", _NAMED_COLORS[cluster % len(_NAMED_COLORS)], found, "cluster", cluster + 1)
            for cluster, found in enumerate(members)
            if len(found)
        ]
    counts = Counter(label for label in projection.labels if label is not None)
    ranked = sorted(counts, key=lambda label: (-counts[label], zlib.crc32(label.encode()), label))
    position_of = {label: position for position, label in enumerate(ranked)}
    codes = np.array([-1 if label is None else position_of[label] for label in projection.labels])
    first = ranked[: len(_NAMED_COLORS)]
    groups = [
        Group((names or {}).get(label, label), shade, np.flatnonzero(codes == code))
        for code, (label, shade) in enumerate(zip(first, _NAMED_COLORS, strict=False))
    ]
    others = len(ranked) - len(first)
    if others:
        what = f"{others:,} other labels" if others > 1 else "1 other label"
        groups.append(Group(what, _OTHERS, np.flatnonzero(codes >= len(first)), "others", others))
    if (codes < 0).any():
        groups.append(Group("no label", _NONE, np.flatnonzero(codes < 0), "none"))
    return groups


def check_map_path(path: Path, color: str | None = None) -> None:
    """Find out, before the work is done, whether a map could be drawn, in these colours, and saved there.

    Raises `PixMatcherError` if not.
    """
    if color not in (None, *COLORS):
        raise QueryError(f"There is no color {color!r}: choose one of {', '.join(COLORS)}.")
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
    collection: Collection,
    path: Path,
    *,
    color: str | None = None,
    query: tuple[str, tuple[float, float]] | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Draw a map and save it: .png, .jpg, .svg and .pdf by matplotlib, .html as one page that needs no network.

    `color` is as of `color_groups`; `query` is what to call a query, and where it lies. The page shows the picture and
    the name of what the pointer is at, the picture for 3,000 items at most. `progress` is called with the pictures done
    and to do.

    Raises `PixMatcherError` if matplotlib or Plotly is missing, or the file cannot be written.
    """
    check_map_path(path, color)
    groups = color_groups(projection, color, collection.label_names())
    if path.suffix.lower() != ".html":
        save_figure(draw_map(projection, groups, title=map_title(projection, collection), query=query), path)
        return
    page = _page(projection, collection, groups, query, progress)
    save_file(path, lambda file: file.write(page.encode()))


def map_title(projection: Projection, collection: Collection) -> tuple[str, str]:
    """What a map is of, and how it was made, in two lines of text."""
    folder = collection.path.parent if collection.path.name == ".pixmatcher" else collection.path
    count = len(projection.ids)
    images = f"{count:,} image" + ("s" if count != 1 else "")
    if count < projection.items:
        images = f"{count:,} of {projection.items:,} images"
    made = f"{_METHOD_NAMES[projection.method]} of the space {projection.space}, {projection.computed[:10]}"
    return f"{images} of {folder.name or folder}", made + stale_text(projection, before="; since then ")


def stale_text(projection: Projection, *, before: str = "") -> str:
    """What happened to the collection since the map was computed, in words; "" if nothing did."""
    parts = [
        f"{count:,} {what}"
        for count, what in (
            (projection.added, "added"),
            (projection.removed, "removed"),
            (projection.changed, "changed"),
        )
        if count
    ]
    return before + ", ".join(parts) if parts else ""


def draw_map(
    projection: Projection,
    groups: Sequence[Group],
    *,
    title: tuple[str, str],
    query: tuple[str, tuple[float, float]] | None = None,
) -> Figure:
    """The map as a figure of matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 8), layout="constrained", facecolor=_PAPER)
    axes = figure.subplots()
    count = len(projection.ids)
    size = float(np.clip(24_000 / max(count, 1), 4, 60))
    # What is left is drawn first, so that it covers nothing.
    for group in sorted(groups, key=lambda group: group.named):
        axes.scatter(
            projection.points[group.members, 0],
            projection.points[group.members, 1],
            s=size,
            c=group.color,
            alpha=0.8 if group.named else 0.55,
            linewidths=0.4 if size > 15 else 0,
            edgecolors=_PAPER,
            rasterized=count > _MOST_SVG,
        )
    if query is not None:
        name, place = query
        axes.plot(*place, color=_INK, marker="*", markersize=18, markeredgecolor=_PAPER, zorder=5)
        axes.annotate(
            _plain(shortened(name)),
            place,
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            fontsize=11,
            color=_INK,
            zorder=6,
            bbox={"boxstyle": "round,pad=0.3", "fc": _PAPER, "ec": "none", "alpha": 0.8},
        )
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#e8eaed")
    axes.set_title(_plain(_printable(title[0])), loc="left", fontsize=14, color=_INK, pad=26)
    axes.text(0, 1.015, _plain(_printable(title[1])), transform=axes.transAxes, fontsize=10, color=_FAINT)
    handles = [
        Line2D([], [], color=group.color, marker="o", linestyle="", label=_plain(_legend_name(group)))
        for group in groups
    ]
    if query is not None:
        handles.append(Line2D([], [], color=_INK, marker="*", markersize=11, linestyle="", label="query"))
    figure.legend(
        handles=handles,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        labelcolor=_INK,
        handletextpad=0.3,
    )
    return figure


def map_figure(
    projection: Projection,
    groups: Sequence[Group],
    *,
    queries: Sequence[tuple[str, tuple[float, float]]] = (),
) -> Any:
    """The map as a figure of Plotly, a trace a group; the custom data of each point is its position in the map.

    `queries` are what to call each, and where it lies; they make one trace more, without custom data.
    """
    import plotly.graph_objects as go

    count = len(projection.ids)
    scatter = go.Scatter if count <= _MOST_SVG else go.Scattergl
    size = float(np.clip(200 / max(count, 1) ** 0.5, 4, 11))
    figure = go.Figure()
    for rank, group in sorted(enumerate(groups), key=lambda pair: pair[1].named):
        figure.add_trace(
            scatter(
                x=projection.points[group.members, 0],
                y=projection.points[group.members, 1],
                customdata=group.members,
                mode="markers",
                name=_markup_free(_legend_name(group)),
                legendrank=rank + 1,
                hoverinfo="none",
                marker={
                    "color": group.color,
                    "size": size,
                    "opacity": 0.85 if group.named else 0.55,
                    "line": {"width": 0.5 if size > 6 else 0, "color": _PAPER},
                },
            )
        )
    if queries:
        figure.add_trace(
            scatter(
                x=[x for _, (x, _) in queries],
                y=[y for _, (_, y) in queries],
                mode="markers",
                name="query",
                legendrank=len(groups) + 1,
                hoverinfo="skip",
                marker={"symbol": "star", "size": 18, "color": _INK, "line": {"width": 1.5, "color": _PAPER}},
            )
        )
    for name, (x, y) in queries:
        figure.add_annotation(
            x=x,
            y=y,
            yshift=22,
            text=_markup_free(shortened(name)),
            showarrow=False,
            bgcolor="rgba(255, 255, 255, 0.85)",
            font={"size": 14, "color": _INK},
        )
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x", "scaleratio": 1},
        margin={"l": 8, "r": 8, "t": 36, "b": 8},  # the buttons are at the top
        paper_bgcolor=_PAPER,
        plot_bgcolor=_PAPER,
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        legend={"itemsizing": "constant", "tracegroupgap": 2},
        showlegend=True,
        dragmode="pan",
        hovermode="closest",
    )
    return figure


def _page(
    projection: Projection,
    collection: Collection,
    groups: Sequence[Group],
    query: tuple[str, tuple[float, float]] | None,
    progress: ProgressCallback | None,
) -> str:
    from plotly.offline import get_plotlyjs

    items = collection.items_by_id(projection.ids.tolist())
    names = collection.label_names()
    found = [items.get(item_id) for item_id in projection.ids.tolist()]
    home = os.path.join(collection.path.parent, "")
    pictures = _pictures(found, collection, progress)
    figure = json.loads(map_figure(projection, groups, queries=[query] if query else []).to_json())
    shown = {
        "data": figure["data"],
        "layout": figure["layout"],
        "names": [_printable(os.path.basename(item.uri)) if item else "" for item in found],
        # Of a page that is passed on, nobody need know where the collection lies.
        "places": [_printable(item.uri.removeprefix(home)) if item else "" for item in found],
        "labels": [_printable(names.get(item.label, item.label)) if item and item.label else "" for item in found],
        "pictures": pictures,
    }
    title, made = (html.escape(_printable(text)) for text in map_title(projection, collection))
    # In a script only this character could end it, or begin a comment.
    told = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    texts = {"title": title, "made": made, "plotly": get_plotlyjs(), "map": told}
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: texts[mark[1]], page)


def _pictures(items: Sequence[Item | None], collection: Collection, progress: ProgressCallback | None) -> list[str]:
    """A small JPEG of each item as the URL of its data, "" for those without, and for most where there are many."""
    step = max(1, -(-len(items) // MOST_THUMBNAILS))
    chosen = [item if position % step == 0 else None for position, item in enumerate(items)]
    todo = sum(item is not None for item in chosen)
    done = 0
    pictures = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        try:
            for item, url in zip(chosen, pool.map(lambda item: _data_url(item, collection), chosen), strict=True):
                pictures.append(url)
                done += item is not None
                if progress is not None and item is not None:
                    progress(Progress("Making small pictures", done, todo, "images"))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pictures


def _data_url(item: Item | None, collection: Collection) -> str:
    picture = item and item_picture(item, collection, _SIDE)
    if not picture:
        return ""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _legend_name(group: Group) -> str:
    return f"{shortened(group.name)}  ({len(group.members):,})"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _markup_free(text: str) -> str:
    """Text in which Plotly sees none of its tags."""
    return html.escape(text, quote=False)
