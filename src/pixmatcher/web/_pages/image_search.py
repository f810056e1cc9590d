"""The page Image search: give an image, rotate it, select a part of it, and see similar images."""

from __future__ import annotations

import logging
import time

import streamlit as st

from ...collection import Collection
from ...errors import PixMatcherError
from ...searching import (
    Category,
    Query,
    SearchOptions,
    SearchResult,
    embed_query,
    nearest_categories,
    search_embedded,
    search_similar,
)
from .._components import WHOLE, show_crop_frame
from .._controls import choose_collection, choose_options
from .._image_input import show_examples, show_image_input, take_pasted_image, turn_camera_on
from .._open_collections import item_of, labels
from .._pictures import as_jpeg, tiles
from .._query_image import QueryImage, query_image, rotate_query_image, set_query_image, with_picture
from .._results import file_name, show_result
from .._texts import as_markdown, as_plain_text, error_text, t

_log = logging.getLogger("pixmatcher.web")
_MAX_PREVIEW = (900, 900)
"""Largest size of the query image on the page, in pixels."""


def show() -> None:
    """Draw the page."""
    collection = choose_collection()
    options = choose_options(collection, text=False)
    take_pasted_image()
    image = query_image(collection)
    st.title(t("image_start"), anchor=False)
    if image is None:
        turn_camera_on()
        st.caption(t("image_start_text"))
        if show_image_input(collection) != "examples":
            show_examples(collection)
        return
    left, right = st.columns([1, 2.3], gap="medium")
    with left:
        show_image_input(collection)
    categories: list[Category] = []
    with right:
        try:
            result, categories = _search_once(collection, image, options)
            show_result(collection, result, query_key=image.digest or str(image.item_id))
        except PixMatcherError as error:
            st.error(error_text(error), icon=":material/error:")
    # The query image comes after the results, because the picture of an item must be read from its file.
    with left:
        _show_query_image(collection, with_picture(collection, image))
        if categories:
            _show_categories(categories)


def _show_query_image(collection: Collection, image: QueryImage) -> None:
    """Show the query image with its crop frame and buttons, or the tile of an item whose file cannot be read."""
    if image.picture is not None:
        preview = image.rotated_picture()
        preview.thumbnail(_MAX_PREVIEW)
        words = {"image": t("query_image"), "frame": t("crop_frame"), "keys": t("crop_keys")}
        show_crop_frame(
            as_jpeg(preview), image.box, words, key="crop", on_draw=lambda box: set_query_image(image.cropped(box))
        )
        st.caption(t("crop_hint"))
    if image.item_id is not None:
        item = item_of(collection, image.item_id)
        if image.picture is None:
            (tile,) = tiles(collection, [item])
            if tile is not None:
                st.image(tile, width="stretch", alt=t("query_image"))
        st.text(as_plain_text(file_name(item)), wrap=False)
    with st.container(horizontal=True, gap="xsmall"):
        if image.picture is not None:
            for key, icon, turns in (
                ("rotate_left", ":material/rotate_left:", -1),
                ("rotate_right", ":material/rotate_right:", 1),
            ):
                st.button(t(key), key=key, icon=icon, on_click=rotate_query_image, args=(turns,), type="tertiary")
            if image.box != WHOLE:
                st.button(
                    t("whole_image"),
                    key="whole_image",
                    icon=":material/fullscreen:",
                    on_click=set_query_image,
                    args=(image.cropped(WHOLE),),
                    type="tertiary",
                )
        st.button(
            t("clear"), key="clear", icon=":material/close:", on_click=set_query_image, args=(None,), type="tertiary"
        )


def _search_once(
    collection: Collection, image: QueryImage, options: SearchOptions
) -> tuple[SearchResult, list[Category]]:
    """Return the result of the search and the suggested categories, from the session if nothing has changed."""
    key = (
        collection.path,
        collection.generation,
        (image.item_id, image.digest, image.quarter_turns, image.box),
        options,
    )
    kept = st.session_state.get("image_result")
    if kept is None or kept[0] != key:
        kept = st.session_state["image_result"] = (key, *_search_by_image(collection, image, options))
    return kept[1], kept[2]


def _search_by_image(
    collection: Collection, image: QueryImage, options: SearchOptions
) -> tuple[SearchResult, list[Category]]:
    """Search by the query image, and find its categories if the collection has labels."""
    started = time.perf_counter()
    if image.item_id is not None and image.unchanged:
        result = search_similar(collection, image.item_id, options)
        (vector,) = collection.embeddings([image.item_id], result.space)
    else:
        embedded = embed_query(Query(image=image.image()), collection.encoders, space=options.space)
        vector = embedded.vector
        result = search_embedded(collection, embedded, options, name=t("query_image"), started=started)
    _log.debug("searched by image in %s: %.1f ms", collection.path, result.took_ms)
    return result, nearest_categories(collection, vector, result.space) if labels(collection) else []


def _show_categories(categories: list[Category]) -> None:
    # Progress bars, because the first Plotly chart takes a browser half a second.
    st.header(t("categories"), anchor=False)
    for category in categories:
        name = as_markdown(category.name.partition(",")[0])
        st.progress(min(1.0, max(0.0, category.score)), text=f"{name} · {category.score:.0%}")
