"""Search by text."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ..collection import Collection, Filter
from ..errors import PixMatcherError
from ..searching import SearchOptions, SearchResult, search
from . import state
from .controls import Choice, ask_text, choose, choose_collection
from .results import show_result
from .texts import TEXT_EXAMPLES, as_markdown, sentence, t

_MOST_EXAMPLES = 6


def show() -> None:
    collection = choose_collection()
    if not any(space.text for space in collection.spaces.values()):
        st.info(t("no_texts"), icon=":material/info:")
        return
    choice = choose(collection, text=True)
    st.title(t("text_start"), anchor=False)
    asked = ask_text(t("text_start"), label_shown=False)
    examples = _examples(str(collection.path), state.generation(collection), _collection=collection)
    if examples:
        with st.container(horizontal=True, gap="xsmall", vertical_alignment="center"):
            st.caption(t("text_hint"), width="content")
            for number, example in enumerate(examples):
                st.button(as_markdown(example), key=f"try {number}", on_click=_ask, args=(example,))
    if not asked:
        return
    try:
        result = _answer(collection, asked, choice)
    except PixMatcherError as error:
        st.error(sentence(error), icon=":material/error:")
        return
    show_result(collection, result)


def _ask(text: str) -> None:
    st.session_state["asked"] = text


def _answer(collection: Collection, text: str, choice: Choice) -> SearchResult:
    """The hits; kept until something else is asked for."""
    asked: Any = (collection.path, state.generation(collection), text, choice)
    kept = st.session_state.get("text_answer")
    if kept is None or kept[0] != asked:
        options = SearchOptions(choice.k, choice.min_score, choice.space, Filter(choice.labels), choice.exact)
        result = search(collection, text, options)
        kept = st.session_state["text_answer"] = (asked, result)
    found: SearchResult = kept[1]
    return found


@st.cache_resource(show_spinner=False, max_entries=32)
def _examples(path: str, generation: int, _collection: Collection) -> list[str]:
    """Queries that this collection answers well."""
    if not len(_collection):
        return []
    names = _collection.label_names()
    labels = [names.get(label, label) for label in state.labels(_collection)]
    if labels:
        step = max(1, len(labels) // _MOST_EXAMPLES)
        return list(dict.fromkeys(label.partition(",")[0] for label in labels[::step]))[:_MOST_EXAMPLES]
    captions = [
        item.caption
        for item in state.items_of(_collection, _collection.sample_ids(40))
        if item.caption and len(item.caption) <= 80
    ]
    if captions:
        return captions[:_MOST_EXAMPLES]
    scored = []
    for text in TEXT_EXAMPLES:
        try:
            hits = search(_collection, text, k=1).hits
        except PixMatcherError:
            return []
        scored += [(hit.score, text) for hit in hits]
    return [text for _, text in sorted(scored, reverse=True)[:_MOST_EXAMPLES]]
