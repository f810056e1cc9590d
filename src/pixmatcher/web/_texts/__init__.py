"""All texts of the app in English and French, and the functions that prepare texts for display.

`english` and `french` hold the texts of the app itself; `library_phrases` translates fixed phrases of the library.
"""

from __future__ import annotations

import re

import streamlit as st

from ..._text import printable
from ...errors import FetchError, InvalidImageError, PixMatcherError, UnreadableTextError
from .english import ENGLISH
from .french import FRENCH
from .library_phrases import ERROR_TEXTS, FRENCH_PHRASES

LANGUAGES = {"en": "English", "fr": "Français"}
TEXTS = {"en": ENGLISH, "fr": FRENCH}

_EMOJI_OR_FORMULA = re.compile(r"(:(?=[^\s:]+:)|\$)")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def language() -> str:
    """Return the language code that the visitor chose, else that of the browser, else `en`."""
    chosen = st.session_state.get("language")
    return chosen if chosen in LANGUAGES else _browser_language()


def _browser_language() -> str:
    code = (st.context.locale or "").partition("-")[0].lower()
    return code if code in LANGUAGES else "en"


def t(key: str, **values: object) -> str:
    """Return the text of this key in the visitor's language, as Markdown. Strings among the values are escaped."""
    return _fill_in(
        key, **{name: as_markdown(value) if isinstance(value, str) else value for name, value in values.items()}
    )


def _fill_in(key: str, **values: object) -> str:
    return TEXTS[language()][key].format(**values)


def as_plain_text(text: str) -> str:
    """Prepare an untrusted text (a file name, a label) for elements without markup, such as `st.text`: one line."""
    return printable(text)


def as_markdown(text: str) -> str:
    """Escape an untrusted text for elements that show Markdown: each character is shown as it is."""
    # Streamlit replaces :emoji: and $formulas$ after it removes the backslashes. A word joiner prevents that.
    return _PUNCTUATION.sub(r"\\\1", _EMOJI_OR_FORMULA.sub("\\1\N{WORD JOINER}", printable(text)))


def translate_phrase(text: str) -> str:
    """Return a fixed phrase of the library, such as the reason of a failure, in the visitor's language."""
    if language() != "fr":
        return text
    known, comma, rest = text.partition(", ")  # as in "ready, int8"
    return FRENCH_PHRASES.get(known, known) + comma + rest


def error_text(error: PixMatcherError) -> str:
    """Return the message for the visitor about an error, as Markdown."""
    if isinstance(error, InvalidImageError):
        return _fill_in("bad_image", detail=_reason_and_detail(error))
    if isinstance(error, FetchError):
        if language() != "en":
            return _fill_in("bad_url", detail=_reason_and_detail(error))
        # Visitors of the app cannot use this option of the command line.
        return t("bad_url", detail=str(error).replace(" Allow it with --allow-private-hosts.", ""))
    if isinstance(error, UnreadableTextError):
        return t("unreadable_english" if error.language == "English" else "unreadable", encoder=error.encoder)
    return t(next(key for kind, key in ERROR_TEXTS if isinstance(error, kind)), detail=str(error))


def _reason_and_detail(error: InvalidImageError | FetchError) -> str:
    """Return the reason and the detail of an error, as Markdown."""
    detail = error.detail.replace("; --allow-private-hosts allows it", "")
    reason = translate_phrase(error.reason)
    return t("reason_and_detail", reason=reason, detail=detail) if detail else as_markdown(reason)
