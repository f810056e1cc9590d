"""Which texts `lite` can read."""

from __future__ import annotations

import re
import unicodedata

_EMOJI = re.compile("[^\\s]\ufe0f\u20e3?|\u20e3")
"""Characters shown as emoji, some of which are also letters or digits, such as the key of a 1."""


def has_latin(text: str) -> bool:
    """Return whether a text has a letter of the Latin script, with or without accents, or a digit of 0 to 9.

    Without them `lite` knows no word of the text, and all such texts would have the same hits. Letters in other forms,
    such as those of full width, count; digits in other forms, other scripts, emoji and symbols such as a trade mark do
    not.
    """
    return any(map(_is_latin, _EMOJI.sub("", text)))


def _is_latin(character: str) -> bool:
    if not character.isalpha():
        return character in "0123456789"  # the network knows no digits in other forms
    return any(
        (plain.isascii() and plain.isalpha()) or unicodedata.name(plain, "").startswith("LATIN ")
        for plain in unicodedata.normalize("NFKD", character)
    )
