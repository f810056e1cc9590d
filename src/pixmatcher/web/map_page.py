"""The map of a collection in two dimensions: see what lies together, and search from there."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import streamlit as st

from ..collection import Collection
from ..errors import PixMatcherError
from ..maps.plot import Group, color_groups, map_figure
from ..maps.projection import METHODS, Projection, load_projection, place_query, project
from ..searching import Query, SearchResult, embed_query, image_space
from . import state
from .charts import CONFIG
from .controls import ask_text, choose_collection
from .jobs import Tell, follow, job_of, show_error, start
from .looking_for import looked_for
from .pointer import follow_pointer, opened_place
from .results import file_name, open_item, show_grid, show_result
from .texts import plain, sentence, t

_METHOD_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
_COLORS = ("label", "cluster")
_MOST_SHOWN = 48
_NEAREST = 24
_HEIGHT = 640
_LEGEND_HEIGHT = 130
"""Pixels of the legend below the map at most; what is longer scrolls."""
_CHART = "map_chart"
_BUTTON, _ACTIVE_BUTTON = "#8a9693", "#14a394"
_LEFT_OVER = {"others": "#7d8a87", "none": "#a39a8c"}
"""Colours that can be seen in a light and in a dark theme, and stand back in both."""


def show() -> None:
    collection = choose_collection()
    method, space, color = _choose(collection)
    st.title(t("map_start"), anchor=False)
    if not len(collection):
        st.info(t("empty"), icon=":material/info:")
        return
    job = job_of(_job_key(collection, method, space))
    if job is not None and job.running:
        follow(job, t("map_drawing"), "steps_of")
        return
    if job is not None and job.error is not None:
        show_error(job.error)
    projection = load_projection(collection, method, space=space)
    if projection is None and job is not None and isinstance(job.result, Projection):
        projection = job.result  # of a collection that may not be written
    if projection is None:
        st.caption(t("map_start_text", count=len(collection)))
        st.button(
            t("map_draw"),
            icon=":material/scatter_plot:",
            on_click=_draw,
            args=(collection, method, space),
        )
        return
    _show_map(collection, projection, color)


def _choose(collection: Collection) -> tuple[str, str, str]:
    """The method, the space and what gives the colour, as the visitor chose them."""
    methods = [method for method in METHODS if method != "umap" or find_spec("umap") is not None]
    encoder_of = {space.name: record.name for record in collection.encoders for space in record.spaces}
    spaces = list(collection.spaces)
    usual = image_space(collection.encoders).name
    chosen_space = chosen_color = None
    with st.sidebar:
        method = st.selectbox(
            t("map_method"), methods, format_func=_METHOD_NAMES.__getitem__, key="map_method", persist_state="session"
        )
        if len(spaces) > 1:
            chosen_space = st.selectbox(
                t("space"),
                spaces,
                index=spaces.index(usual),
                format_func=lambda name: plain(f"{encoder_of[name]}: {name}"),
                key=_space_key(collection),
                persist_state="session",
            )
        if state.labels(collection):
            chosen_color = st.selectbox(
                t("map_color"),
                _COLORS,
                format_func=lambda name: t(f"map_color_{name}"),
                key="map_color",
                persist_state="session",
            )
    return method or METHODS[0], chosen_space or usual, chosen_color or "cluster"


def _space_key(collection: Collection) -> str:
    return f"map_space {collection.path}"


def _choose_space(collection: Collection, space: str) -> None:
    st.session_state[_space_key(collection)] = space


def _job_key(collection: Collection, method: str, space: str) -> tuple[object, ...]:
    return ("map", collection.path, method, space)


def _draw(collection: Collection, method: str, space: str) -> None:
    path = collection.path

    def work(tell: Tell) -> Projection:
        with Collection.open(path) as own:  # t-SNE takes minutes, and the others want to search
            return project(own, method, space=space, refresh=True, progress=tell)

    start(_job_key(collection, method, space), "", work)


def _show_map(collection: Collection, projection: Projection, color: str) -> None:
    if projection.stale:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning(t("map_stale", count=projection.stale), icon=":material/update:")
            st.button(
                t("map_again"),
                on_click=_draw,
                args=(collection, projection.method, projection.space),
                key="map_again",
            )
    text = _ask_text(collection, projection)
    queries = _queries(collection, projection, text)
    count = len(projection.ids)
    st.caption(t("map_hint"))
    with st.container(key=_CHART):
        event = st.plotly_chart(
            _figure(collection, projection, color, queries),
            width="stretch",
            height=_HEIGHT,
            key=f"map {projection.space} {projection.method} {projection.computed} {color} {_cleared()}",
            on_select="rerun",
            selection_mode=("points", "box", "lasso"),
            config={**CONFIG, "scrollZoom": True, "displayModeBar": True, "editSelection": False},
        )
    when = projection.computed[:16].replace("T", " ")
    st.caption(t("map_shown", count=count, items=projection.items, when=when))
    chosen = chosen_positions(event, count)
    if chosen:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.header(t("map_selected", count=len(chosen)), anchor=False, width="content")
            st.button(t("clear"), key="map_clear", icon=":material/close:", type="tertiary", on_click=_clear)
        items = state.items_of(collection, [int(projection.ids[place]) for place in chosen[:_MOST_SHOWN]])
        show_grid(collection, [(item, None) for item in items])
    elif queries:
        _show_nearest(collection, projection, *queries[0])
    if (place := opened_place()) is not None and place < count:
        open_item(collection, int(projection.ids[place]))
    drawn = (collection.path, state.generation(collection), projection.space, projection.method, projection.computed)
    follow_pointer(
        _CHART,
        hashlib.sha256(repr(drawn).encode()).hexdigest(),
        count,
        lambda place: _describe(collection, int(projection.ids[place])),
    )


def _cleared() -> int:
    """How many times the visitor took back what was chosen: the chart is then another one, with nothing chosen."""
    times: int = st.session_state.get("map_cleared", 0)
    return times


def _clear() -> None:
    st.session_state["map_cleared"] = _cleared() + 1


def chosen_positions(event: Any, count: int) -> list[int]:
    """The positions on the map of the points that the visitor chose, each once; what a browser sends is checked."""
    found: dict[int, None] = {}
    for point in event.selection.points if event is not None else ():
        data = point.get("customdata")
        place = data[0] if isinstance(data, Sequence) and data else data
        if isinstance(place, int) and 0 <= place < count:
            found[place] = None
    return list(found)


def _describe(collection: Collection, item_id: int) -> dict[str, Any] | None:
    """What is shown of an item at the pointer."""
    try:
        item = state.item_of(collection, item_id)
        (picture,) = state.tiles(collection, [item])
        names = collection.label_names()
    except PixMatcherError:
        return None
    return {
        "name": plain(file_name(item)),
        "label": plain(names.get(item.label or "", item.label or "")),
        "picture": picture and base64.b64encode(picture).decode(),
    }


# What the visitor searches for, on the map


def _ask_text(collection: Collection, projection: Projection) -> str:
    """The text to place on the map."""
    if collection.spaces[projection.space].text:
        return ask_text(t("map_text"))
    of_texts = [space.name for space in collection.spaces.values() if space.text]
    if of_texts:
        st.button(
            t("map_text_space", space=of_texts[0]),
            icon=":material/text_fields:",
            type="tertiary",
            on_click=_choose_space,
            args=(collection, of_texts[0]),
        )
    return ""


def _queries(
    collection: Collection, projection: Projection, text: str
) -> list[tuple[str, npt.NDArray[np.float32], tuple[float, float]]]:
    """The text and the image that the visitor searches for: what to call each, its vector and where it lies."""
    vectors = []
    try:
        if text:
            vectors.append((text, embed_query(Query(text), collection.encoders, space=projection.space).vector))
        if (what := looked_for(collection)) is not None:
            if what.item_id is not None and what.unchanged:
                (vector,) = collection.embeddings([what.item_id], projection.space)
            else:
                vector = embed_query(Query(image=what.image()), collection.encoders, space=projection.space).vector
            vectors.append((t("map_query"), vector))
        return [(name, vector, place_query(projection, collection, vector)) for name, vector in vectors]
    except PixMatcherError as error:
        st.error(sentence(error), icon=":material/error:")
        return []


def _show_nearest(
    collection: Collection,
    projection: Projection,
    name: str,
    vector: npt.NDArray[np.float32],
    place: tuple[float, float],
) -> None:
    started = time.perf_counter()
    hits = collection.search(vector, space=projection.space, k=_NEAREST)
    st.header(t("map_nearest", name=name), anchor=False)
    show_result(collection, SearchResult(name, projection.space, (time.perf_counter() - started) * 1000, hits))


# The picture


def _figure(
    collection: Collection,
    projection: Projection,
    color: str,
    queries: Sequence[tuple[str, npt.NDArray[np.float32], tuple[float, float]]],
) -> Any:
    groups = [
        replace(group, name=_group_name(group), color=_LEFT_OVER.get(group.kind, group.color))
        for group in color_groups(projection, color, collection.label_names())
    ]
    figure = map_figure(projection, groups, queries=[(plain(name), place) for name, _, place in queries])
    for trace in figure.data:
        if trace.customdata is not None:
            trace.update(selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 0.25}})
            if trace.marker.color in _LEFT_OVER.values():
                trace.update(marker={"opacity": 0.4})
        else:
            trace.update(name=t("map_queries"), marker={"color": "#f43f5e"})
    # The theme of the visitor gives these.
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        font={"color": None, "family": None},
        modebar={
            "bgcolor": clear,
            "color": _BUTTON,
            "activecolor": _ACTIVE_BUTTON,
            "remove": ["toImage", "zoom", "autoScale"],
        },
        dragmode="lasso",
        legend={"orientation": "h", "y": 0, "yanchor": "top", "x": 0, "maxheight": _LEGEND_HEIGHT},
    )
    return figure


def _group_name(group: Group) -> str:
    """What to call a group in the visitor's language."""
    if group.kind == "cluster":
        return t("map_by_cluster", number=group.number)
    if group.kind == "others":
        return t("map_other_labels", count=group.number) if group.number > 1 else t("map_other_label")
    return t("map_no_label") if group.kind == "none" else plain(group.name.partition(",")[0])
