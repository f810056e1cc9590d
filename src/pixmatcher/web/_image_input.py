"""The ways to give a query image: paste, upload, camera, URL, example photos, images of the collection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx

from ..collection import Collection, Item
from ..datasets.examples import demo_paths
from ..errors import PixMatcherError, SourceError
from ..net.fetch import fetch
from ._components import read_pasted_image
from ._open_collections import items_of
from ._pictures import MAX_UPLOAD_BYTES, as_jpeg, tiles
from ._query_image import PROBLEM, set_query_data, set_query_file, set_query_image, set_query_item
from ._results import file_name
from ._texts import as_markdown, as_plain_text, error_text, t

_WAYS = ("upload", "camera", "url", "examples")
_INPUT_NUMBER, _CAMERA_OFF = "input_number", "camera_off"
_EXAMPLES = ("cat.jpg", "coffee.jpg", "horse.jpg", "flower.jpg", "rocket.jpg", "temple.jpg")


def take_pasted_image() -> None:
    """Make an image that the visitor has just pasted the query image."""
    pasted = read_pasted_image(MAX_UPLOAD_BYTES)
    if pasted is not None:
        _try(set_query_data, pasted or b"\0" * (MAX_UPLOAD_BYTES + 1))  # empty: too large


def turn_camera_on() -> None:
    """Show the camera again if it was switched off after a photo."""
    st.session_state.pop(_CAMERA_OFF, None)


def show_image_input(collection: Collection) -> str:
    """Show the choice of ways and the chosen one. Return its name."""
    way: str = st.pills(
        t("ways"),
        _WAYS,
        default=_WAYS[0],
        format_func=t,
        key="way",
        required=True,
        label_visibility="collapsed",
        wrap=True,
        persist_state="session",
    )
    if way == "upload":
        _show_upload()
    elif way == "camera":
        _show_camera()
    elif way == "url":
        _show_url_form()
    else:
        show_examples(collection)
    problem = st.session_state.get(PROBLEM)
    if problem is not None:
        st.error(problem, icon=":material/error:")
    return way


def _try(action: Callable[..., object], *arguments: Any) -> None:
    """Call an action that sets the query image. If it fails, keep the message for the page and clear the image."""
    try:
        action(*arguments)
    except PixMatcherError as error:
        set_query_image(None)
        st.session_state[PROBLEM] = error_text(error)


def _show_upload() -> None:
    key = f"upload {st.session_state.setdefault(_INPUT_NUMBER, 0)}"
    st.file_uploader(t("drop"), max_upload_size=MAX_UPLOAD_BYTES >> 20, key=key, on_change=_take_file, args=(key,))


def _show_camera() -> None:
    key = f"photo {st.session_state.setdefault(_INPUT_NUMBER, 0)}"
    if st.session_state.get(_CAMERA_OFF):
        st.button(t("camera_again"), icon=":material/photo_camera:", on_click=turn_camera_on)
    else:
        st.camera_input(t("camera"), key=key, on_change=_take_file, args=(key, True), label_visibility="collapsed")


def _take_file(key: str, from_camera: bool = False) -> None:
    """Make the file of an upload or of the camera the query image."""
    context, file = get_script_run_ctx(), st.session_state[key]
    if file is None:
        return
    _try(set_query_data, file.getvalue())
    st.session_state[_CAMERA_OFF] = from_camera
    if context and isinstance(context.uploaded_file_mgr, MemoryUploadedFileManager):
        # Streamlit would keep the file until the visitor leaves.
        context.uploaded_file_mgr.remove_file(session_id=context.session_id, file_id=file.file_id)
    # When a file replaces another, Streamlit first reports no file, and the next run of the page loses the new file.
    # Therefore each file gets an input of its own.
    st.session_state[_INPUT_NUMBER] += 1


def _show_url_form() -> None:
    with st.form("url_form", border=False):
        url = st.text_input(t("url_label"), placeholder=t("url_placeholder"), max_chars=4000)
        submitted = st.form_submit_button(t("load_url"), icon=":material/link:")
    if submitted and url:
        _try(lambda: set_query_data(fetch(url.strip(), max_bytes=MAX_UPLOAD_BYTES)))
        st.rerun()


def show_examples(collection: Collection) -> None:
    """Show example photos and some images of the collection, each with a button that searches for it."""
    try:
        photos = demo_paths()[0]
    except SourceError:
        photos = None
    found = [photos / name for name in _EXAMPLES if (photos / name).is_file()] if photos else []
    st.caption(t("example_photos"))
    grid = st.grid(columns=6, min_column_width=100, gap="xsmall", key="examples")
    for path in found:
        with grid.cell(), st.container(gap="xxsmall"):
            st.image(_photo_tile(str(path)), width="stretch", alt=path.stem)
            st.button(
                as_markdown(path.stem),
                key=f"example {path.name}",
                on_click=_try,
                args=(set_query_file, path),
                width="stretch",
                type="tertiary",
            )
    items = _sample_items(str(collection.path), collection.generation, _collection=collection)
    if not items:
        return
    st.caption(t("example_from_collection"))
    grid = st.grid(columns=6, min_column_width=100, gap="xsmall", key="own examples")
    for item, tile in zip(items, tiles(collection, items), strict=True):
        if tile is None:
            continue
        with grid.cell(), st.container(gap="xxsmall"):
            st.image(tile, width="stretch", alt=as_plain_text(file_name(item)))
            st.button(
                t("search"),
                key=f"example {item.id}",
                on_click=set_query_item,
                args=(collection, item.id),
                width="stretch",
                type="tertiary",
            )


@st.cache_resource(show_spinner=False, max_entries=32)
def _photo_tile(path: str) -> bytes:
    """Return a small square JPEG of an example photo."""
    from PIL import ImageOps

    from ..images import open_image

    return as_jpeg(ImageOps.fit(open_image(path, min_side=160).image, (160, 160)))


@st.cache_resource(show_spinner=False, max_entries=32)
def _sample_items(path: str, generation: int, _collection: Collection) -> list[Item]:
    """Return six items of the collection, evenly sampled."""
    return items_of(_collection, _collection.sample_ids(6))
