"""The controls in the side bar, and the text input."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from ..collection import Collection, Filter
from ..searching import MAX_TEXT_CHARACTERS, SearchOptions
from ..vector_index import EXACT
from ._open_collections import collection_list, labels, open_collection, replaced_encoder
from ._texts import LANGUAGES, as_plain_text, language, t
from .collection_list import display_names

_NUMBERS = (8, 12, 24, 48, 96)
_NEXT_COLLECTION = "next_collection"
_MAX_LABELS = 2000
"""Number of labels to choose from: the most frequent ones."""


def choose_collection() -> Collection:
    """Show the choice of collections, and return the chosen one, open.

    Raises `CollectionError` if it does not exist any more.
    """
    paths = collection_list().paths
    names = display_names(paths)
    if (requested := st.session_state.pop(_NEXT_COLLECTION, None)) in paths:
        st.session_state["collection"] = requested
    chosen = None
    if len(paths) > 1:
        chosen = st.sidebar.selectbox(
            t("collection"),
            paths,
            format_func=lambda path: as_plain_text(names[path]),
            key="collection",
            persist_state="session",
        )
    else:
        with st.sidebar.container(gap=None):
            st.caption(t("collection"))
            st.text(as_plain_text(names[paths[0]]))
    return open_collection(chosen or paths[0])


def select_collection(path: Path) -> None:
    """Select this collection for the visitor at the next run of the page."""
    st.session_state[_NEXT_COLLECTION] = path


def choose_language() -> None:
    """Show the language switch, as the last element of the side bar."""
    chosen = language()
    st.sidebar.segmented_control(
        t("language"),
        list(LANGUAGES),
        format_func=lambda code: LANGUAGES[code],
        default=None if "language" in st.session_state else chosen,
        key="language",
        required=True,
        persist_state="session",
        label_visibility="collapsed",
    )


def choose_options(collection: Collection, *, text: bool) -> SearchOptions:
    """Show the controls of a search by text or by image, and a note if the default encoder cannot be used.

    Return the options that the visitor chose.
    """
    spaces = [space.name for space in collection.spaces.values() if space.text or not text]
    encoder_of = {space.name: record.name for record in collection.encoders for space in record.spaces}
    space: str | None = None
    with st.sidebar:
        if len(spaces) > 1:
            space = st.selectbox(
                t("encoder"),
                ["", *spaces],
                format_func=lambda name: as_plain_text(f"{encoder_of[name]}: {name}") if name else t("any_space"),
                key="text_space" if text else "image_space",
                persist_state="session",
            )
        k = st.select_slider(t("number"), _NUMBERS, value=24, key="number", persist_state="session")
        min_score = st.slider(
            t("min_score"), 0.0, 1.0, 0.0, 0.05, key="min_score", help=t("score_help"), persist_state="session"
        )
        chosen_labels = _choose_labels(collection)
        exact = False
        if any(index.kind != EXACT for index in collection.index_descriptions().values()):
            exact = st.toggle(t("exact"), key="exact", help=t("exact_help"), persist_state="session")
    if not space and (replaced := replaced_encoder(repr(collection.encoders), text, collection)) is not None:
        space, why = replaced
        st.caption(t("encoder_replaced", used=why.used, requested=why.preferred, detail=str(why.error)))
    return SearchOptions(k, min_score or None, space or None, Filter(chosen_labels), exact)


def ask_text(label: str, *, label_shown: bool = True) -> str:
    """Show the input of the query text, and return its text. All pages share this text."""
    text = st.text_input(
        label,
        placeholder=t("text_placeholder"),
        key="query_text",
        max_chars=MAX_TEXT_CHARACTERS,
        icon=":material/search:",
        type="search",
        label_visibility="visible" if label_shown else "collapsed",
        persist_state="session",
    )
    return (text or "").strip()


def _choose_labels(collection: Collection) -> tuple[str, ...] | None:
    known = labels(collection)[:_MAX_LABELS]
    if not known:
        return None
    names = {label: label for label in known} | collection.label_names()
    chosen = st.multiselect(
        t("label"),
        sorted(known, key=lambda label: names[label].casefold()),
        format_func=lambda label: as_plain_text(names[label]),
        placeholder=t("all_labels"),
        key=f"labels {collection.path}",
        persist_state="session",
    )
    return tuple(chosen) or None
