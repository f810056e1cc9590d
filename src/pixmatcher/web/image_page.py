"""Search by image: give one, turn it, draw a frame on it, and see what is like it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ..collection import Collection, Filter
from ..datasets.examples import demo_paths
from ..errors import PixMatcherError, SourceError
from ..net.fetch import fetch
from ..searching import (
    Category,
    Query,
    SearchOptions,
    SearchResult,
    embed_query,
    nearest_categories,
    search_similar,
)
from . import state
from .components import WHOLE, pasted_image, show_frame
from .controls import Choice, choose, choose_collection
from .looking_for import (
    PROBLEM,
    LookedFor,
    look_for,
    look_for_data,
    look_for_file,
    look_for_item,
    looked_for,
    with_picture,
)
from .results import file_name, show_result
from .texts import as_markdown, plain, sentence, t

_WAYS = ("upload", "camera", "url", "examples")
_TAKEN, _PHOTOGRAPHED = "taken_files", "photographed"
_EXAMPLES = ("cat.jpg", "coffee.jpg", "horse.jpg", "flower.jpg", "rocket.jpg", "temple.jpg")


def show() -> None:
    collection = choose_collection()
    choice = choose(collection, text=False)
    pasted = pasted_image(state.MAX_UPLOAD_BYTES)
    if pasted is not None:
        _try(look_for_data, pasted or b"\0" * (state.MAX_UPLOAD_BYTES + 1))
    what = looked_for(collection)
    st.title(t("image_start"), anchor=False)
    if what is None:
        st.session_state.pop(_PHOTOGRAPHED, None)
        st.caption(t("image_start_text"))
        _show_ways(collection)
        if st.session_state["way"] != "examples":
            _examples(collection)
        return
    left, right = st.columns([1, 2.3], gap="medium")
    with left:
        _show_ways(collection)
    categories: list[Category] = []
    with right:
        try:
            result, categories = _answer(collection, what, choice)
            show_result(collection, result, of=what.digest or str(what.item_id))
        except PixMatcherError as error:
            st.error(sentence(error), icon=":material/error:")
    # After the results, as the picture of an item must be read from its file.
    with left:
        _show_query(collection, with_picture(collection, what))
        if categories:
            _show_categories(categories)


# The ways to give an image


def _show_ways(collection: Collection) -> None:
    way = st.pills(
        t("source"),
        _WAYS,
        default=_WAYS[0],
        format_func=t,
        key="way",
        required=True,
        label_visibility="collapsed",
        wrap=True,
        persist_state="session",
    )
    {"upload": _upload, "camera": _camera, "url": _url}.get(way, lambda: _examples(collection))()
    problem = st.session_state.get(PROBLEM)
    if problem is not None:
        st.error(problem, icon=":material/error:")


def _try(action: Callable[..., object], *arguments: Any) -> None:
    """Do what was asked for; if that cannot be, the page says why."""
    try:
        action(*arguments)
    except PixMatcherError as error:
        look_for(None)
        st.session_state[PROBLEM] = sentence(error)


def _upload() -> None:
    key = f"uploaded {st.session_state.setdefault(_TAKEN, 0)}"
    st.file_uploader(t("drop"), max_upload_size=state.MAX_UPLOAD_BYTES >> 20, key=key, on_change=_take, args=(key,))


def _camera() -> None:
    key = f"photographed {st.session_state.setdefault(_TAKEN, 0)}"
    if st.session_state.get(_PHOTOGRAPHED):
        st.button(
            t("camera_again"), icon=":material/photo_camera:", on_click=lambda: st.session_state.pop(_PHOTOGRAPHED)
        )
    else:
        st.camera_input(t("camera"), key=key, on_change=_take, args=(key, True), label_visibility="collapsed")


def _take(key: str, photographed: bool = False) -> None:
    """Search for a file that was given."""
    context, file = get_script_run_ctx(), st.session_state[key]
    if file is None:
        return
    _try(look_for_data, file.getvalue())
    # A camera that nobody needs is turned off.
    st.session_state[_PHOTOGRAPHED] = photographed
    if context and isinstance(context.uploaded_file_mgr, MemoryUploadedFileManager):
        # Streamlit would keep it until the visitor leaves.
        context.uploaded_file_mgr.remove_file(session_id=context.session_id, file_id=file.file_id)
    # An uploader that replaces its file first says that it has none, and the page that follows loses the new one. So
    # each file has an uploader of its own.
    st.session_state[_TAKEN] += 1


def _url() -> None:
    with st.form("url_form", border=False):
        url = st.text_input(t("url_label"), placeholder=t("url_placeholder"), max_chars=4000)
        asked = st.form_submit_button(t("fetch"), icon=":material/link:")
    if asked and url:
        _try(lambda: look_for_data(fetch(url.strip(), max_bytes=state.MAX_UPLOAD_BYTES)))
        st.rerun()


def _examples(collection: Collection) -> None:
    try:
        photos = demo_paths()[0]
    except SourceError:
        photos = None
    found = [photos / name for name in _EXAMPLES if (photos / name).is_file()] if photos else []
    st.caption(t("example_photos"))
    grid = st.grid(columns=6, min_column_width=100, gap="xsmall", key="examples")
    for path in found:
        with grid.cell(), st.container(gap="xxsmall"):
            st.image(_small(str(path)), width="stretch", alt=path.stem)
            st.button(
                as_markdown(path.stem),
                key=f"example {path.name}",
                on_click=_try,
                args=(look_for_file, path),
                width="stretch",
                type="tertiary",
            )
    items = _some_items(str(collection.path), state.generation(collection), _collection=collection)
    if items:
        st.caption(t("example_from_collection"))
        grid = st.grid(columns=6, min_column_width=100, gap="xsmall", key="own examples")
        for item, tile in zip(items, state.tiles(collection, items), strict=True):
            if tile is None:
                continue
            with grid.cell(), st.container(gap="xxsmall"):
                st.image(tile, width="stretch", alt=plain(file_name(item)))
                st.button(
                    t("search"),
                    key=f"example {item.id}",
                    on_click=look_for_item,
                    args=(collection, item.id),
                    width="stretch",
                    type="tertiary",
                )


@st.cache_resource(show_spinner=False, max_entries=32)
def _small(path: str) -> bytes:
    from PIL import ImageOps

    from ..images import open_image

    return state.as_jpeg(ImageOps.fit(open_image(path, min_side=160).image, (160, 160)))


@st.cache_resource(show_spinner=False, max_entries=32)
def _some_items(path: str, generation: int, _collection: Collection) -> list[Any]:
    """Six items, evenly chosen."""
    return state.items_of(_collection, _collection.sample_ids(6))


# The query


def _show_query(collection: Collection, what: LookedFor) -> None:
    if what.picture is not None:
        preview = what.shown()
        preview.thumbnail((900, 900))
        words = {"picture": t("query_picture"), "frame": t("crop_frame"), "keys": t("crop_keys")}
        show_frame(
            state.as_jpeg(preview), what.box, words, key="crop", on_drawn=lambda box: look_for(what.cropped(box))
        )
        st.caption(t("crop_hint"))
    if what.item_id is not None:
        item = state.item_of(collection, what.item_id)
        if what.picture is None:
            (tile,) = state.tiles(collection, [item])
            if tile is not None:
                st.image(tile, width="stretch", alt=t("query_picture"))
        st.text(plain(file_name(item)), wrap=False)
    with st.container(horizontal=True, gap="xsmall"):
        if what.picture is not None:
            for name, turn, icon in (
                ("rotate_left", -1, ":material/rotate_left:"),
                ("rotate_right", 1, ":material/rotate_right:"),
            ):
                st.button(
                    t(name),
                    key=name,
                    icon=icon,
                    on_click=lambda turn=turn: look_for(what.turned(turn)),
                    type="tertiary",
                )
            if what.box != WHOLE:
                st.button(
                    t("whole_picture"),
                    key="whole",
                    icon=":material/fullscreen:",
                    on_click=lambda: look_for(what.cropped(WHOLE)),
                    type="tertiary",
                )
        st.button(t("clear"), key="clear", icon=":material/close:", on_click=look_for, args=(None,), type="tertiary")


# The answer


def _answer(collection: Collection, what: LookedFor, choice: Choice) -> tuple[SearchResult, list[Category]]:
    """The hits and the likeliest labels; kept until something else is asked for."""
    asked = (
        collection.path,
        state.generation(collection),
        (what.item_id, what.digest, what.quarter_turns, what.box),
        choice,
    )
    kept = st.session_state.get("image_answer")
    if kept is None or kept[0] != asked:
        kept = st.session_state["image_answer"] = (asked, *_search(collection, what, choice))
    return kept[1], kept[2]


def _search(collection: Collection, what: LookedFor, choice: Choice) -> tuple[SearchResult, list[Category]]:
    started = time.perf_counter()
    options = SearchOptions(choice.k, choice.min_score, choice.space, Filter(choice.labels), choice.exact)
    if what.item_id is not None and what.unchanged:
        result = search_similar(collection, what.item_id, options)
        (vector,) = collection.embeddings([what.item_id], result.space)
    else:
        embedded = embed_query(Query(image=what.image()), collection.encoders, space=choice.space)
        vector = embedded.vector
        hits = collection.search(
            vector,
            space=embedded.space,
            k=choice.k,
            min_score=choice.min_score,
            where=options.filter,
            exact=choice.exact,
        )
        result = SearchResult(t("query_picture"), embedded.space, (time.perf_counter() - started) * 1000, hits)
    return result, nearest_categories(collection, vector, result.space) if state.labels(collection) else []


def _show_categories(categories: list[Category]) -> None:
    # Plotly would take a browser half a second the first time.
    st.header(t("categories"), anchor=False)
    for category in categories:
        name = as_markdown(category.name.partition(",")[0])
        st.progress(min(1.0, max(0.0, category.score)), text=f"{name} · {category.score:.0%}")
