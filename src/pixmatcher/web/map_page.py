"""The map of a collection in two dimensions: see what lies together, and search from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import streamlit as st

from ..collection import Collection
from ..map_plot import color_groups, map_figure
from ..projection import METHODS, Projection, load_projection, place_query, project
from ..query import Query, embed_query
from . import state
from .charts import short_text
from .controls import choose_collection
from .jobs import Tell, follow, job_of, show_error, start
from .looking_for import looked_for
from .results import file_name, show_grid
from .texts import t

_METHOD_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
_COLORS = ("label", "cluster")
_MOST_SHOWN = 48
_HEIGHT = 560


def show() -> None:
    collection = choose_collection()
    methods = [method for method in METHODS if method != "umap" or find_spec("umap") is not None]
    labelled = bool(collection.catalog.statistics()["label"])
    with st.sidebar:
        method = st.selectbox(
            t("map_method"), methods, format_func=_METHOD_NAMES.__getitem__, key="map_method", persist_state="session"
        )
        chosen_color = None
        if labelled:
            chosen_color = st.selectbox(
                t("map_color"),
                _COLORS,
                format_func=lambda name: t(f"map_color_{name}"),
                key="map_color",
                persist_state="session",
            )
    method, color = method or METHODS[0], chosen_color or "cluster"
    st.title(t("map_start"), anchor=False)
    if not len(collection):
        st.info(t("empty"), icon=":material/info:")
        return
    key = ("map", collection.path, method)
    job = job_of(key)
    if job is not None and job.running:
        follow(job, t("map_drawing"), "steps_of")
        return
    if job is not None and job.error is not None:
        show_error(job.error)
    projection = load_projection(collection, method)
    if projection is None and job is not None and isinstance(job.result, Projection):
        projection = job.result  # of a collection that may not be written
    if projection is None:
        st.caption(t("map_start_text", count=len(collection)))
        st.button(
            t("map_draw"), type="primary", icon=":material/scatter_plot:", on_click=_draw, args=(collection, method)
        )
        return
    _show_map(collection, projection, color)


def _draw(collection: Collection, method: str) -> None:
    path = collection.path

    def work(tell: Tell) -> Projection:
        with Collection.open(path) as own:  # t-SNE takes minutes, and the others want to search
            return project(own, method, refresh=True, progress=tell)

    start(("map", path, method), "", work)


def _show_map(collection: Collection, projection: Projection, color: str) -> None:
    if projection.stale:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning(t("map_stale", count=projection.stale), icon=":material/update:")
            st.button(t("map_again"), on_click=_draw, args=(collection, projection.method), key="map_again")
    st.caption(t("map_hint"))
    figure = _figure(collection, projection, color)
    event = st.plotly_chart(
        figure,
        width="stretch",
        height=_HEIGHT,
        key=f"map {projection.method} {projection.computed} {color}",
        on_select="rerun",
        selection_mode=("points", "box", "lasso"),
        config={"displaylogo": False, "scrollZoom": True},
    )
    when = projection.computed[:16].replace("T", " ")
    st.caption(t("map_shown", count=len(projection.ids), items=projection.items, when=when))
    chosen = chosen_positions(event, len(projection.ids))
    if chosen:
        st.header(t("map_selected", count=len(chosen)), anchor=False)
        items = state.items_of(collection, [int(projection.ids[place]) for place in chosen[:_MOST_SHOWN]])
        show_grid(collection, [(item, None) for item in items])


def chosen_positions(event: Any, count: int) -> list[int]:
    """The positions on the map of the points that the visitor chose, each once; what a browser sends is checked."""
    found: dict[int, None] = {}
    for point in event.selection.points if event is not None else ():
        data = point.get("customdata")
        place = data[0] if isinstance(data, Sequence) and data else data
        if isinstance(place, int) and 0 <= place < count:
            found[place] = None
    return list(found)


def _figure(collection: Collection, projection: Projection, color: str) -> Any:
    names = collection.catalog.label_names()
    groups = color_groups(projection, color, names)
    if color == "cluster":
        groups = [replace(group, name=t("map_by_cluster", number=n)) for n, group in enumerate(groups, start=1)]
    figure = map_figure(projection, groups, query=_place_of_query(collection, projection))
    hovers = _hovers(
        str(collection.path), state.generation(collection), projection.computed, _of=(collection, projection)
    )
    for trace in figure.data:
        if trace.customdata is not None:
            trace.update(
                text=[hovers[int(place)] for place in trace.customdata],
                hoverinfo="text",
                hovertemplate="%{text}<extra></extra>",
            )
            trace.update(selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 0.25}})
        else:
            trace.update(name=t("map_query"), textfont={"color": None}, marker={"color": "#f43f5e"})
    # The theme of the visitor gives these.
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": None, "family": None},
        modebar={"bgcolor": clear, "remove": ["toImage", "zoom", "autoScale"]},
        dragmode="lasso",
    )
    return figure


@st.cache_resource(show_spinner=False, max_entries=16)
def _hovers(path: str, generation: int, computed: str, _of: tuple[Collection, Projection]) -> list[str]:
    """What is shown of each item of a map at the pointer: its file name and label."""
    collection, projection = _of
    names = collection.catalog.label_names()
    items = {item.id: item for item in state.items_of(collection, projection.ids.tolist())}
    texts = []
    for item_id in projection.ids.tolist():
        item = items.get(item_id)
        shown = [] if item is None else [file_name(item), names.get(item.label or "", item.label)]
        texts.append("<br>".join(short_text(text) for text in shown if text))
    return texts


def _place_of_query(collection: Collection, projection: Projection) -> tuple[str, tuple[float, float]] | None:
    """Where the image lies that the visitor searches for, if there is one."""
    what = looked_for(collection)
    if what is None:
        return None
    if what.item_id is not None and what.unchanged:
        (vector,) = collection.embeddings([what.item_id], projection.space)
    else:
        _, vector = embed_query(Query(image=what.image()), collection.encoders, space=projection.space)
    return t("map_query"), place_query(projection, collection, vector)
