"""The results of a search: a grid of pictures that fits the window, and the dialog that opens one of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import streamlit as st

from .._urls import is_url
from ..collection import Collection, Item
from ..errors import PixMatcherError
from ..searching import SearchResult, is_weak
from . import state
from .components import Tile, show_tiles
from .looking_for import look_for_item
from .texts import plain, sentence, t

_OPENED_HEIGHT = 560
"""Pixels of the window that an opened picture is high at most."""


def show_result(collection: Collection, result: SearchResult, *, of: str | None = None) -> None:
    """The hits of a search and what is to be said of them; where `of` tells of another query, from the page's top."""
    if not result.hits:
        st.info(t("no_hits") if len(collection) else t("empty"), icon=":material/search_off:")
        return
    if is_weak(collection, result):
        st.warning(t("weak"), icon=":material/help:")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(t("hits", count=len(result.hits)), width="content")
        took = f"{result.took_ms:.0f}" if result.took_ms >= 1 else f"{result.took_ms:.1f}"
        st.badge(t("took", ms=float(took) if "." in took else int(took)), icon=":material/bolt:", color="gray")
    show_grid(collection, [(hit.item, hit.score) for hit in result.hits], of=of)


def show_grid(collection: Collection, items: Sequence[tuple[Item, float | None]], *, of: str | None = None) -> None:
    """Items with their scores, where they have one."""
    names = collection.label_names()
    pictures = state.tiles(collection, [item for item, _ in items])
    tiles = [
        Tile(item.id, plain(file_name(item)), plain(names.get(item.label or "", item.label or "")), score, picture)
        for (item, score), picture in zip(items, pictures, strict=True)
    ]
    opened = show_tiles(tiles, lambda item_id: look_for_item(collection, item_id, True), of)
    if opened is not None:
        open_item(collection, opened)


def file_name(item: Item) -> str:
    """What to call an item: the last part of its path or URL."""
    return os.path.basename(item.uri.rstrip("/")) or item.uri


def open_item(collection: Collection, item_id: int) -> None:
    """Show one image in full, with all that is known of it."""

    @st.dialog(t("picture"), width="large")
    def show() -> None:
        try:
            _show_item(collection, state.item_of(collection, item_id))
        except PixMatcherError as error:
            st.error(sentence(error))

    show()


def _show_item(collection: Collection, item: Item) -> None:
    picture = state.full_picture(collection, item)
    left, right = st.columns([2, 1], gap="medium")
    with left:
        if picture is None:
            st.info(t("no_picture", name=file_name(item)), icon=":material/broken_image:")
        else:
            width = min(2 * picture.width, int(_OPENED_HEIGHT * picture.width / picture.height))
            st.image(state.as_jpeg(picture), width=width, alt=plain(file_name(item)))
    with right:
        for name, value in facts(collection, item):
            with st.container(gap=None):
                st.caption(name)
                st.text(plain(value))
    st.code(plain(item.uri), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        if st.button(t("more_like_this"), key="like opened", icon=":material/image_search:"):
            look_for_item(collection, item.id, True)
            st.rerun()
        if is_url(item.uri):
            if item.uri.startswith(("http://", "https://")):
                st.link_button(t("open_original"), item.uri, icon=":material/open_in_new:")
        elif (data := state.original(item)) is not None:
            st.download_button(t("download"), data, file_name(item), icon=":material/download:", on_click="ignore")


def facts(collection: Collection, item: Item) -> list[tuple[str, str]]:
    """What is known of an item, each with its name in the visitor's language."""
    known = [
        ("file", file_name(item)),
        ("label", collection.label_names().get(item.label or "", item.label)),
        ("caption", item.caption),
        ("dimension", f"{item.width} x {item.height}" if item.width else None),
        ("bytes", None if item.bytes is None else size_text(item.bytes)),
        ("format", item.format),
        ("taken", _date(item.taken)),
        ("date", _date(item.modified)),
        ("added", _date(item.added)),
        ("licence", item.details.get("license")),
        ("author", item.details.get("author")),
    ]
    return [(t(key), value) for key, value in known if value]


def _date(text: str | None) -> str | None:
    """A date and time of ISO 8601 to the minute."""
    return None if text is None else text[:16].replace("T", " ")


def size_text(size: int) -> str:
    """A number of bytes in the visitor's language."""
    return f"{size / 1e6:.1f} {t('megabytes')}" if size >= 1e5 else f"{size / 1e3:.1f} {t('kilobytes')}"
