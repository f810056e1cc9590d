"""What stands beside a search: which collection, space, how many results, from which score, of which labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ..collection import Collection
from ..searching import MAX_TEXT_CHARACTERS
from ..vector_index import EXACT
from . import places, state
from .texts import LANGUAGES, language, plain, t

_NUMBERS = (8, 12, 24, 48, 96)
_WANTED = "wanted_collection"
_MOST_LABELS = 2000
"""Labels that can be chosen from: the most frequent ones."""


@dataclass(frozen=True)
class Choice:
    """What the visitor chose beside the query."""

    space: str | None
    k: int
    min_score: float | None
    labels: tuple[str, ...] | None
    exact: bool


def choose_collection() -> Collection:
    """The collection that the visitor looks at. Raises `CollectionError` if it is not there any more."""
    paths = state.shelf().paths
    names = places.display_names(paths)
    if (wanted := st.session_state.pop(_WANTED, None)) in paths:
        st.session_state["collection"] = wanted
    chosen = None
    if len(paths) > 1:
        chosen = st.sidebar.selectbox(
            t("collection"),
            paths,
            format_func=lambda path: plain(names[path]),
            key="collection",
            persist_state="session",
        )
    else:
        with st.sidebar.container(gap=None):
            st.caption(t("collection"))
            st.text(plain(names[paths[0]]))
    return state.open_collection(chosen or paths[0])


def look_at(collection: Path) -> None:
    """Choose this collection for the visitor when the page is drawn again."""
    st.session_state[_WANTED] = collection


def choose_language() -> None:
    """The switch of languages, below all else beside the page."""
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


def choose(collection: Collection, *, text: bool) -> Choice:
    """The controls of a search by text, or by image; where its usual encoder cannot be used, that is told."""
    spaces = [space.name for space in collection.spaces.values() if space.text or not text]
    encoder_of = {space.name: record.name for record in collection.encoders for space in record.spaces}
    space: str | None = None
    with st.sidebar:
        if len(spaces) > 1:
            space = st.selectbox(
                t("encoder"),
                ["", *spaces],
                format_func=lambda name: plain(f"{encoder_of[name]}: {name}") if name else t("any_space"),
                key="text_space" if text else "image_space",
                persist_state="session",
            )
        k = st.select_slider(t("number"), _NUMBERS, value=24, key="number", persist_state="session")
        least = st.slider(
            t("min_score"), 0.0, 1.0, 0.0, 0.05, key="min_score", help=t("score_help"), persist_state="session"
        )
        labels = _choose_labels(collection)
        exact = False
        if any(collection.indexes.kind(name) != EXACT for name in spaces):
            exact = st.toggle(t("exact"), key="exact", help=t("exact_help"), persist_state="session")
    if not space and (instead := state.passed_over(repr(collection.encoders), text, collection)) is not None:
        space, why = instead
        st.caption(t("encoder_passed_over", used=why.used, wanted=why.preferred, detail=str(why.error)))
    return Choice(space or None, k, least or None, labels, exact)


def ask_text(label: str, *, label_shown: bool = True) -> str:
    """The text that the visitor looks for. Each page that asks for one shows what was asked on the others."""
    asked = st.text_input(
        label,
        placeholder=t("text_placeholder"),
        key="asked",
        max_chars=MAX_TEXT_CHARACTERS,
        icon=":material/search:",
        type="search",
        label_visibility="visible" if label_shown else "collapsed",
        persist_state="session",
    )
    return (asked or "").strip()


def _choose_labels(collection: Collection) -> tuple[str, ...] | None:
    known = state.labels(collection)[:_MOST_LABELS]
    if not known:
        return None
    names = {label: label for label in known} | collection.label_names()
    chosen = st.multiselect(
        t("label"),
        sorted(known, key=lambda label: names[label].casefold()),
        format_func=lambda label: plain(names[label]),
        placeholder=t("all_labels"),
        key=f"labels {collection.path}",
        persist_state="session",
    )
    return tuple(chosen) or None
