"""The page Collection: statistics, failures and indexing."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ...collection import MEGAPIXEL_LIMITS, Collection, ItemSummary, summarize_items
from .._charts import show_bars
from .._controls import choose_collection
from .._indexing import create_collection, has_index_jobs, index_into, show_index_jobs, valid_folder
from .._results import size_text
from .._texts import as_markdown, as_plain_text, t, translate_phrase
from ..collection_list import display_names
from ..share import shared_password

_MAX_BARS = 20
"""Number of labels and formats in the bar charts: the most frequent ones."""
_MAX_FAILURES = 1000
"""Number of failures in the table."""


def show() -> None:
    """Draw the page."""
    collection = choose_collection()
    st.title(as_markdown(display_names([collection.path])[collection.path]), anchor=False)
    st.code(as_plain_text(str(collection.path)), language=None)
    summary = _summarize(str(collection.path), collection.generation, _collection=collection)
    label_counts = collection.label_counts()
    failures = collection.failures()
    grid = st.grid(columns="auto", min_column_width=150)
    grid.metric(t("count"), f"{summary.count:,}", border=True)
    grid.metric(t("labels"), f"{len(label_counts):,}", border=True)
    grid.metric(t("failed"), f"{len(failures):,}", border=True)
    grid.metric(t("size"), size_text(summary.bytes), border=True)
    on_disk: int | None = collection.size_on_disk()  # a store on another machine may not know it
    if on_disk is not None:
        grid.metric(t("on_disk"), size_text(on_disk), border=True)
    _show_indexing(collection.path)
    left, right = st.columns(2, gap="medium")
    with left:
        _show_bars(t("formats"), dict(list(collection.format_counts().items())[:_MAX_BARS]))
        _show_bars(t("sizes"), {_size_class(lower): count for lower, count in summary.by_megapixels.items()})
    with right:
        _show_bars(t("years"), summary.by_year)
        _show_sources(collection)
    if label_counts:
        names = collection.label_names()
        top = list(label_counts.items())[:_MAX_BARS]
        _show_bars(t("labels_top"), {names.get(label, label).partition(",")[0]: count for label, count in top})
    if failures:
        st.header(t("failed"), anchor=False)
        st.caption(t("failures_text"))
        st.dataframe(
            [
                {
                    t("file"): as_plain_text(failure.uri),
                    t("reason"): as_plain_text(translate_phrase(failure.reason)),
                    t("details"): as_plain_text(failure.detail),
                }
                for failure in failures[:_MAX_FAILURES]
            ],
            hide_index=True,
        )


@st.cache_resource(show_spinner=False, max_entries=32)
def _summarize(path: str, generation: int, _collection: Collection) -> ItemSummary:
    """Count the items. Path and generation are the cache key."""
    return summarize_items(_collection.items())


def _size_class(lower: float) -> str:
    """Return the name of a size class, given its lower limit in megapixels."""
    upper = next((limit for limit in MEGAPIXEL_LIMITS if limit > lower), None)
    return f"> {lower:g} MP" if upper is None else f"{lower:g}-{upper:g} MP"


def _show_bars(title: str, counts: dict[str, int]) -> None:
    if counts:
        show_bars(title, [*counts], [*counts.values()], [f"{count:,}" for count in counts.values()])


def _show_sources(collection: Collection) -> None:
    if not (specs := collection.sources()):
        return
    st.header(t("sources"), anchor=False)
    for spec in specs:
        st.code(as_plain_text(spec), language=None)


def _show_indexing(collection: Path) -> None:
    """Show the form that indexes a folder, and the last jobs."""
    if shared_password():
        st.info(t("index_off"), icon=":material/lock:")
        return
    with st.expander(t("index_folder"), icon=":material/create_new_folder:", expanded=has_index_jobs(collection)):
        st.caption(t("index_folder_text"))
        with st.form("index_form", border=False):
            text = st.text_input(t("folder"), key="folder", max_chars=4000) or ""
            with st.container(horizontal=True):
                add = st.form_submit_button(t("index_add"), icon=":material/add_photo_alternate:")
                create = st.form_submit_button(t("index_new"), icon=":material/create_new_folder:")
                refresh = st.form_submit_button(t("index_refresh"), icon=":material/refresh:")
        folder = valid_folder(text) if add or create else None
        if folder is not None and add:
            index_into(collection, folder)
        if folder is not None and create:
            create_collection(folder)
        if refresh:
            index_into(collection, None)
        show_index_jobs(collection)
