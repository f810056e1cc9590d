"""The page Text search."""

from __future__ import annotations

import logging

import streamlit as st

from ...collection import Collection
from ...errors import PixMatcherError
from ...searching import SearchOptions, SearchResult, search
from .._controls import ask_text, choose_collection, choose_options
from .._open_collections import items_of, labels
from .._results import show_result
from .._texts import as_markdown, error_text, t

_log = logging.getLogger("pixmatcher.web")
_EXAMPLE_COUNT = 6
_EXAMPLES = (
    "a cat", "a dog", "a horse", "a bird", "a fish", "an insect", "flowers", "trees in a forest", "mountains",
    "a beach", "a boat on the water", "a car", "a train", "an aeroplane", "a bicycle", "a rocket", "a building",
    "a bridge", "a kitchen", "a cup of coffee", "fruit", "a pizza", "an astronaut", "people", "the night sky",
    "coins", "a clock",
)  # fmt: skip
"""Example texts for collections without labels and captions; in English, which the bundled encoder supports."""


def show() -> None:
    """Draw the page."""
    collection = choose_collection()
    if not any(space.text for space in collection.spaces.values()):
        st.info(t("no_texts"), icon=":material/info:")
        return
    options = choose_options(collection, text=True)
    st.title(t("text_start"), anchor=False)
    text = ask_text(t("text_start"), label_shown=False)
    examples = _example_texts(str(collection.path), collection.generation, _collection=collection)
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
def _example_texts(path: str, generation: int, _collection: Collection) -> list[str]:
    """Return texts that this collection has good results for."""
    if not len(_collection):
        return []
    names = _collection.label_names()
    label_texts = [names.get(label, label) for label in labels(_collection)]
    if label_texts:
        step = max(1, len(label_texts) // _EXAMPLE_COUNT)
        return list(dict.fromkeys(text.partition(",")[0] for text in label_texts[::step]))[:_EXAMPLE_COUNT]
    captions = [
        item.caption
        for item in items_of(_collection, _collection.sample_ids(40))
        if item.caption and len(item.caption) <= 80
    ]
    if captions:
        return captions[:_EXAMPLE_COUNT]
    scored = []
    for text in _EXAMPLES:
        try:
            hits = search(_collection, text, k=1).hits
        except PixMatcherError:
            return []
        scored += [(hit.score, text) for hit in hits]
    return [text for _, text in sorted(scored, reverse=True)[:_EXAMPLE_COUNT]]
