"""The page Text search."""

from __future__ import annotations

import logging

import streamlit as st

from ...collection import Collection
from ...errors import PixMatcherError
from ...searching import SearchOptions, SearchResult, example_texts, search
from .._controls import ask_text, choose_collection, choose_options
from .._results import show_result
from .._texts import as_markdown, error_text, t

_log = logging.getLogger("pixmatcher.web")


def show() -> None:
    """Draw the page."""
    collection = choose_collection()
    if not any(space.text for space in collection.spaces.values()):
        st.info(t("no_texts"), icon=":material/info:")
        return
    options = choose_options(collection, text=True)
    st.title(t("text_start"), anchor=False)
    text = ask_text(t("text_start"), label_shown=False)
    examples = _examples(str(collection.path), collection.generation, _collection=collection)
    if examples:
        with st.container(horizontal=True, gap="xsmall", vertical_alignment="center"):
            st.caption(t("text_hint"), width="content")
            for number, example in enumerate(examples):
                st.button(as_markdown(example), key=f"try {number}", on_click=_set_text, args=(example,))
    if not text:
        return
    try:
        result = _search_once(collection, text, options)
    except PixMatcherError as error:
        st.error(error_text(error), icon=":material/error:")
        return
    show_result(collection, result)


def _set_text(text: str) -> None:
    st.session_state["query_text"] = text


def _search_once(collection: Collection, text: str, options: SearchOptions) -> SearchResult:
    """Return the result of the search, from the session if nothing has changed."""
    key = (collection.path, collection.generation, text, options)
    kept = st.session_state.get("text_result")
    if kept is None or kept[0] != key:
        result = search(collection, text, options)
        _log.debug("searched by text in %s: %.1f ms", collection.path, result.took_ms)
        kept = st.session_state["text_result"] = (key, result)
    found: SearchResult = kept[1]
    return found


@st.cache_resource(show_spinner=False, max_entries=32)
def _examples(path: str, generation: int, _collection: Collection) -> list[str]:
    """Return example texts of the collection. Path and generation are the cache key."""
    return example_texts(_collection)
