"""The results of a search: a grid of tiles, and a dialog with all details of one image."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

from .._urls import is_url
from ..collection import Collection, Item
from ..errors import PixMatcherError
from ..searching import SearchResult, original_file, percent
from ._components import Tile, show_tiles
from ._open_collections import item_of
from ._pictures import MAX_PIXELS, as_jpeg, full_picture, tiles
from ._query_image import set_query_item
from ._texts import as_plain_text, error_text, t

_MAX_DIALOG_HEIGHT = 560
"""Largest height of an opened image, in CSS pixels."""


def show_result(collection: Collection, result: SearchResult, *, query_key: str | None = None) -> None:
    """Show the hits of a search. When `query_key` changes, the page scrolls to its top."""
    if result.unreadable is not None:
        st.warning(error_text(result.unreadable), icon=":material/translate:")
    if not result.hits:
        if result.unreadable is not None:
            return
        st.info(t("no_hits") if len(collection) else t("empty"), icon=":material/search_off:")
        return
    if result.weak:
        st.warning(t("weak"), icon=":material/help:")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(t("hits", count=len(result.hits)), width="content")
        took = f"{result.took_ms:.0f}" if result.took_ms >= 1 else f"{result.took_ms:.1f}"
        st.badge(t("took", ms=float(took) if "." in took else int(took)), icon=":material/bolt:", color="gray")
    probabilities: Sequence[float | None] = result.probabilities or [None] * len(result.hits)
    rated = [Rated(hit.item, hit.score, each) for hit, each in zip(result.hits, probabilities, strict=True)]
    show_grid(collection, rated, query_key=query_key)


@dataclass(frozen=True)
class Rated:
    """An item with its score, and the probability that it is what was asked for, where these are known."""

    item: Item
    score: float | None = None
    probability: float | None = None


def show_grid(collection: Collection, rated: Sequence[Rated], *, query_key: str | None = None) -> None:
    """Show a grid of items, with their probabilities and scores where these are known."""
    names = collection.label_names()
    grid = [
        Tile(
            each.item.id,
            as_plain_text(file_name(each.item)),
            as_plain_text(names.get(each.item.label or "", each.item.label or "")),
            each.score if each.probability is None else each.probability,
            " · ".join(value for _, value in ratings(each)),
            picture,
        )
        for each, picture in zip(rated, tiles(collection, [each.item for each in rated]), strict=True)
    ]
    opened = show_tiles(grid, lambda item_id: set_query_item(collection, item_id, True), query_key)
    if opened is not None:
        open_item(collection, opened, next(each for each in rated if each.item.id == opened))


def file_name(item: Item) -> str:
    """Return the last part of an item's path or URL."""
    return os.path.basename(item.uri.rstrip("/")) or item.uri


def open_item(
    collection: Collection,
    item_id: int,
    rated: Rated | None = None,
    *,
    on_close: Callable[[], None] | None = None,
) -> None:
    """Open a dialog with the large image of an item and all its details, and how it was rated by a search.

    A dialog that the next run of the page does not open again is closed. A page that is run again for another reason
    remembers the open item, and forgets it in `on_close`.
    """

    @st.dialog(t("picture"), width="large", on_dismiss=on_close or "ignore")
    def show_dialog() -> None:
        try:
            _show_item(collection, item_of(collection, item_id), rated, on_close)
        except PixMatcherError as error:
            st.error(error_text(error))

    show_dialog()


def _show_item(collection: Collection, item: Item, rated: Rated | None, on_close: Callable[[], None] | None) -> None:
    picture = full_picture(collection, item)
    left, right = st.columns([2, 1], gap="medium")
    with left:
        if picture is None:
            st.info(t("picture_not_available", name=file_name(item)), icon=":material/broken_image:")
        else:
            width = min(2 * picture.width, int(_MAX_DIALOG_HEIGHT * picture.width / picture.height))
            st.image(as_jpeg(picture), width=width, alt=as_plain_text(file_name(item)))
    with right:
        for name, value in [*ratings(rated), *details(collection, item)]:
            with st.container(gap=None):
                st.caption(name)
                st.text(as_plain_text(value))
    st.code(as_plain_text(item.uri), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        if st.button(t("more_like_this"), key="like opened", icon=":material/image_search:"):
            if on_close is not None:
                on_close()
            set_query_item(collection, item.id, True)
            st.rerun()
        if is_url(item.uri):
            if item.uri.startswith(("http://", "https://")):
                st.link_button(t("open_original"), item.uri, icon=":material/open_in_new:")
        elif (data := original_file(item, max_pixels=MAX_PIXELS)) is not None:
            name = as_plain_text(file_name(item))  # no other program takes a name that is not Unicode
            st.download_button(t("download"), data, name, icon=":material/download:", on_click="ignore")


def ratings(rated: Rated | None) -> list[tuple[str, str]]:
    """Return the probability and the score of an item, as pairs of a name and a value, where these are known."""
    ratings = []
    if rated is not None and rated.probability is not None:
        ratings.append((t("probability"), t("percent", number=percent(rated.probability))))
    if rated is not None and rated.score is not None:
        ratings.append((t("score"), f"{rated.score:.2f}"))
    return ratings


def details(collection: Collection, item: Item) -> list[tuple[str, str]]:
    """Return the information about an item, as pairs of a name in the visitor's language and a value."""
    known = [
        ("file", file_name(item)),
        ("label", collection.label_names().get(item.label or "", item.label)),
        ("caption", item.caption),
        ("dimensions", f"{item.width} x {item.height}" if item.width else None),
        ("bytes", None if item.bytes is None else size_text(item.bytes)),
        ("format", item.format),
        ("incomplete", _missing_text(item.missing)),
        ("taken", _date_text(item.taken)),
        ("modified", _date_text(item.modified)),
        ("added", _date_text(item.added)),
        ("licence", item.details.get("license")),
        ("author", item.details.get("author")),
    ]
    return [(t(key), value) for key, value in known if value]


def _missing_text(share: float | None) -> str | None:
    """Return how much of a picture is missing because the end of its file is."""
    return None if share is None else t("missing_share", number=math.ceil(100 * share))


def _date_text(timestamp: str | None) -> str | None:
    """Return an ISO 8601 timestamp to the minute."""
    return None if timestamp is None else timestamp[:16].replace("T", " ")


def size_text(size: int) -> str:
    """Return a number of bytes as text in the visitor's language."""
    return f"{size / 1e6:.1f} {t('megabytes')}" if size >= 1e5 else f"{size / 1e3:.1f} {t('kilobytes')}"
