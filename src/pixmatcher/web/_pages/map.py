"""The page Map: the collection in two dimensions, where similar images are near each other."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import streamlit as st

from ..._progress import ProgressCallback
from ...collection import Collection
from ...errors import PixMatcherError
from ...maps.projection import METHODS, Projection, load_projection, place_query, project
from ...records import QueryKind
from ...searching import EmbeddedQuery, Query, SearchOptions, embed_query, image_space, search_embedded
from .._background_jobs import last_job, show_error, show_progress, start_job
from .._charts import CONFIG
from .._components import show_image_at_pointer, take_clicked_position
from .._controls import ask_text, choose_collection
from .._open_collections import item_of, items_of, labels
from .._pictures import tiles
from .._query_image import query_image
from .._results import Rated, file_name, open_item, show_grid, show_result
from .._texts import as_plain_text, error_text, t
from ._map_figure import draw_map

_METHOD_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}
_COLORS = ("label", "cluster")
_MAX_SELECTED = 48
"""Number of selected images that are shown."""
_NEAREST_COUNT = 24
"""Number of images that are shown for a query."""
_HEIGHT = 640
"""Height of the chart in CSS pixels."""
_CHART = "map_chart"
_OPENED = "map_opened"
"""Key, in the session's state, of the collection and the item that are open in a dialog."""


class _PlacedQuery(NamedTuple):
    """A query on the map. `vector` is its embedding, float32 of shape (dimension,)."""

    name: str
    vector: npt.NDArray[np.float32]
    point: tuple[float, float]
    kind: QueryKind


def show() -> None:
    """Draw the page."""
    collection = choose_collection()
    method, space, color = _choose(collection)
    st.title(t("map_start"), anchor=False)
    if not len(collection):
        st.info(t("empty"), icon=":material/info:")
        return
    job = last_job(_job_key(collection, method, space))
    if job is not None and job.running:
        show_progress(job, t("map_drawing"))
        return
    if job is not None and job.error is not None:
        show_error(job.error)
    projection = load_projection(collection, method, space=space)
    if projection is None and job is not None and isinstance(job.result, Projection):
        projection = job.result  # the collection is read-only, so the map is not stored
    if projection is None:
        st.caption(t("map_start_text", count=len(collection)))
        st.button(
            t("map_draw"),
            icon=":material/scatter_plot:",
            on_click=_start_projection,
            args=(collection, method, space),
        )
        return
    _show_map(collection, projection, color)


def _choose(collection: Collection) -> tuple[str, str, str]:
    """Show the controls of the map. Return the method, the space and what the colours show."""
    methods = [method for method in METHODS if method != "umap" or find_spec("umap") is not None]
    encoder_of = {space.name: record.name for record in collection.encoders for space in record.spaces}
    spaces = list(collection.spaces)
    default_space = image_space(collection.encoders).name
    chosen_space = chosen_color = None
    with st.sidebar:
        method = st.selectbox(
            t("map_method"), methods, format_func=_METHOD_NAMES.__getitem__, key="map_method", persist_state="session"
        )
        if len(spaces) > 1:
            chosen_space = st.selectbox(
                t("space"),
                spaces,
                index=spaces.index(default_space),
                format_func=lambda name: as_plain_text(f"{encoder_of[name]}: {name}"),
                key=_space_key(collection),
                persist_state="session",
            )
        if labels(collection):
            chosen_color = st.selectbox(
                t("map_color"),
                _COLORS,
                format_func=lambda name: t(f"map_color_{name}"),
                key="map_color",
                persist_state="session",
            )
    return method or METHODS[0], chosen_space or default_space, chosen_color or "cluster"


def _space_key(collection: Collection) -> str:
    return f"map_space {collection.path}"


def _choose_space(collection: Collection, space: str) -> None:
    st.session_state[_space_key(collection)] = space


def _job_key(collection: Collection, method: str, space: str) -> tuple[object, ...]:
    return ("map", str(collection.path), method, space)


def _start_projection(collection: Collection, method: str, space: str) -> None:
    path = collection.path

    def work(progress: ProgressCallback) -> Projection:
        """Compute the map in the thread of the job."""
        # A separate connection, because t-SNE takes minutes and other visitors search at the same time.
        with Collection.open(path) as own:
            return project(own, method, space=space, refresh=True, progress=progress)

    start_job(_job_key(collection, method, space), "", work)


def _show_map(collection: Collection, projection: Projection, color: str) -> None:
    if projection.stale:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.warning(t("map_stale", count=projection.stale), icon=":material/update:")
            st.button(
                t("map_again"),
                on_click=_start_projection,
                args=(collection, projection.method, projection.space),
                key="map_again",
            )
    queries = _place_queries(collection, projection, _ask_text(collection, projection))
    count = len(projection.ids)
    st.caption(t("map_hint"))
    with st.container(key=_CHART):
        selection = st.plotly_chart(
            draw_map(collection, projection, color, [(as_plain_text(query.name), query.point) for query in queries]),
            width="stretch",
            height=_HEIGHT,
            key=f"map {projection.space} {projection.method} {projection.computed} {color} {_cleared_times()}",
            on_select="rerun",
            selection_mode=("points", "box", "lasso"),
            config={**CONFIG, "scrollZoom": True, "displayModeBar": True, "editSelection": False},
        )
    when = projection.computed[:16].replace("T", " ")
    st.caption(t("map_shown", count=count, items=projection.items, when=when))
    if positions := selected_positions(selection, count):
        _show_selected(collection, projection, positions)
    elif queries:
        _show_nearest(collection, projection, queries[0])
    # While the pan tool is active, a click also selects the point. The chart reports that in a run of its own, which
    # must not close the dialog.
    if (position := take_clicked_position()) is not None and position < count:
        st.session_state[_OPENED] = collection.path, int(projection.ids[position])
    path, item_id = st.session_state.get(_OPENED, (None, None))
    if path == collection.path:
        open_item(collection, item_id, on_close=_forget_opened)
    map_key = (collection.path, collection.generation, projection.space, projection.method, projection.computed)
    show_image_at_pointer(
        _CHART,
        hashlib.sha256(repr(map_key).encode()).hexdigest(),
        count,
        lambda position: _describe(collection, int(projection.ids[position])),
    )


def _forget_opened() -> None:
    st.session_state.pop(_OPENED, None)


def _show_selected(collection: Collection, projection: Projection, positions: Sequence[int]) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.header(t("map_selected", count=len(positions)), anchor=False, width="content")
        st.button(t("clear"), key="map_clear", icon=":material/close:", type="tertiary", on_click=_clear_selection)
    items = items_of(collection, [int(projection.ids[position]) for position in positions[:_MAX_SELECTED]])
    show_grid(collection, [Rated(item) for item in items])


def _cleared_times() -> int:
    """Return how often the visitor has cleared the selection. Each time a new chart without a selection is made."""
    times: int = st.session_state.get("map_cleared_times", 0)
    return times


def _clear_selection() -> None:
    st.session_state["map_cleared_times"] = _cleared_times() + 1


def selected_positions(selection: Any, count: int) -> list[int]:
    """Return the positions of the selected points on the map, each once. Invalid values from a browser are ignored."""
    found: dict[int, None] = {}
    for point in selection.selection.points if selection is not None else ():
        data = point.get("customdata")
        position = data[0] if isinstance(data, Sequence) and data else data
        if isinstance(position, int) and 0 <= position < count:
            found[position] = None
    return list(found)


def _describe(collection: Collection, item_id: int) -> dict[str, Any] | None:
    """Return what the pointer shows of an item, or None if the item does not exist any more."""
    try:
        item = item_of(collection, item_id)
        (tile,) = tiles(collection, [item])
        names = collection.label_names()
    except PixMatcherError:
        return None
    return {
        "name": as_plain_text(file_name(item)),
        "label": as_plain_text(names.get(item.label or "", item.label or "")),
        "image": tile and base64.b64encode(tile).decode(),
    }


# Queries on the map


def _ask_text(collection: Collection, projection: Projection) -> str:
    """Return the text to place on the map. A space without text support gets a button for a space with it instead."""
    if collection.spaces[projection.space].text:
        return ask_text(t("map_text"))
    text_spaces = [space.name for space in collection.spaces.values() if space.text]
    if text_spaces:
        st.button(
            t("map_text_space", space=text_spaces[0]),
            icon=":material/text_fields:",
            type="tertiary",
            on_click=_choose_space,
            args=(collection, text_spaces[0]),
        )
    return ""


def _place_queries(collection: Collection, projection: Projection, text: str) -> list[_PlacedQuery]:
    """Return the visitor's query text and query image with their points on the map."""
    vectors: list[tuple[str, npt.NDArray[np.float32], QueryKind]] = []
    try:
        if text:
            vectors.append((text, embed_query(Query(text), collection.encoders, space=projection.space).vector, "text"))
        if (image := query_image(collection)) is not None:
            if image.item_id is not None and image.unchanged:
                (vector,) = collection.embeddings([image.item_id], projection.space)
            else:
                vector = embed_query(Query(image=image.image()), collection.encoders, space=projection.space).vector
            vectors.append((t("map_query"), vector, "image"))
        return [
            _PlacedQuery(name, vector, place_query(projection, collection, vector), kind)
            for name, vector, kind in vectors
        ]
    except PixMatcherError as error:
        st.error(error_text(error), icon=":material/error:")
        return []


def _show_nearest(collection: Collection, projection: Projection, query: _PlacedQuery) -> None:
    embedded = EmbeddedQuery(projection.space, query.vector, "", kind=query.kind)
    result = search_embedded(collection, embedded, SearchOptions(_NEAREST_COUNT), name=query.name)
    st.header(t("map_nearest", name=query.name), anchor=False)
    show_result(collection, result)
