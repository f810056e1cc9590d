"""Interactive maps by Plotly: a figure, and a page that works without a network."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._cores import usable_cores
from .._plots import shortened
from .._progress import Progress, ProgressCallback
from ..searching import item_picture
from .groups import INK, MOST_SINGLE_POINTS, PAPER, Group, legend_name, printable_text
from .projection import Projection
from .titles import map_title

if TYPE_CHECKING:
    from ..collection import Item, ReadableStore

MOST_THUMBNAILS = 3_000
"""Pictures in a page, of about 3 KB each."""
_SIDE = 112
"""Width and height of a picture in a page, in pixels."""


def map_figure(
    projection: Projection,
    groups: Sequence[Group],
    *,
    queries: Sequence[tuple[str, tuple[float, float]]] = (),
) -> Any:
    """Return the map as a Plotly figure, one trace for each group; the custom data of a point is its index on the map.

    `queries` are the name and the position of each query; they are one more trace, without custom data.
    """
    import plotly.graph_objects as go

    count = len(projection.ids)
    scatter = go.Scatter if count <= MOST_SINGLE_POINTS else go.Scattergl
    size = float(np.clip(200 / max(count, 1) ** 0.5, 4, 11))
    figure = go.Figure()
    for rank, group in sorted(enumerate(groups), key=lambda pair: pair[1].named):
        figure.add_trace(
            scatter(
                x=projection.points[group.members, 0],
                y=projection.points[group.members, 1],
                customdata=group.members,
                mode="markers",
                name=_markup_free(legend_name(group)),
                legendrank=rank + 1,
                hoverinfo="none",
                marker={
                    "color": group.color,
                    "size": size,
                    "opacity": 0.85 if group.named else 0.55,
                    "line": {"width": 0.5 if size > 6 else 0, "color": PAPER},
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
                marker={"symbol": "star", "size": 18, "color": INK, "line": {"width": 1.5, "color": PAPER}},
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
            font={"size": 14, "color": INK},
        )
    hidden = {"visible": False, "showgrid": False, "zeroline": False}
    figure.update_layout(
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x", "scaleratio": 1},
        margin={"l": 8, "r": 8, "t": 36, "b": 8},  # the buttons are at the top
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"itemsizing": "constant", "tracegroupgap": 2},
        showlegend=True,
        dragmode="pan",
        hovermode="closest",
    )
    return figure


def render_page(
    projection: Projection,
    collection: ReadableStore,
    groups: Sequence[Group],
    query: tuple[str, tuple[float, float]] | None,
    progress: ProgressCallback | None,
) -> str:
    """Return the HTML page of a map, which works without a network."""
    from plotly.offline import get_plotlyjs

    items = collection.items_by_id(projection.ids.tolist())
    names = collection.label_names()
    found = [items.get(item_id) for item_id in projection.ids.tolist()]
    parent = os.path.join(collection.path.parent, "")
    pictures = _pictures(found, collection, progress)
    figure = json.loads(map_figure(projection, groups, queries=[query] if query else []).to_json())
    shown = {
        "data": figure["data"],
        "layout": figure["layout"],
        "names": [printable_text(os.path.basename(item.uri)) if item else "" for item in found],
        # Somebody who receives the page does not need the path of the collection.
        "places": [printable_text(item.uri.removeprefix(parent)) if item else "" for item in found],
        "labels": [printable_text(names.get(item.label, item.label)) if item and item.label else "" for item in found],
        "pictures": pictures,
    }
    title, made = (html.escape(printable_text(text)) for text in map_title(projection, collection))
    # This is the only character that could end the script or begin a comment.
    data = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    texts = {"title": title, "made": made, "plotly": get_plotlyjs(), "map": data}
    page = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: texts[mark[1]], page)


def _pictures(items: Sequence[Item | None], collection: ReadableStore, progress: ProgressCallback | None) -> list[str]:
    """Return a small JPEG of each item as a data URL; "" without an image and, of many items, for most of them."""
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


def _data_url(item: Item | None, collection: ReadableStore) -> str:
    picture = item and item_picture(item, collection, _SIDE)
    if not picture:
        return ""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


def _markup_free(text: str) -> str:
    """Return a text without tags of Plotly."""
    return html.escape(text, quote=False)
