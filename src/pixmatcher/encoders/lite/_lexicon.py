"""The words of a text that name classes, and groups of classes, of the image network."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..onnx.networks import Floats
from ..texts.tokenizer import MAX_CHARACTERS

CLASSES = 1000
GROUPS = 144
"""Number of sets of classes with a common name, such as the dogs."""

MOST_CLASSES, SHARE_UNITS = 5, 127
"""A word stands for up to `MOST_CLASSES` classes and groups, with shares in units of 1 / `SHARE_UNITS`."""
LONGEST_NAME = 4
"""Number of words of the longest name that is looked up."""
MAX_WORDS = 256
"""Number of words of a text that are looked up."""


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case and without accents, hyphens kept and a possessive 's removed."""
    plain = re.sub(r"[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text)).replace("\u2019", "'").lower()
    return [re.sub(r"'s?$", "", word) for word in re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*'?", plain)]


def word_key(name: str) -> int:
    """Return the key of a name (words separated by one space) in the table of names."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def singulars(name: str) -> Iterator[str]:
    """Yield `name`, and the words of which it may be the regular plural."""
    yield name
    for plural, singular in (("ies", "y"), ("es", ""), ("s", ""), ("men", "man")):
        if name.endswith(plural) and not name.endswith("ss"):
            yield name[: -len(plural)] + singular


class Lexicon:
    """Nouns of WordNet and the classes that each stands for, from the arrays of `lexicon.npz`."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.word_keys = arrays["word_keys"]  # (names,) sorted
        self.word_rows = arrays["word_rows"]  # (names,): the row of each in the two below
        self.word_nouns = arrays["word_nouns"]  # (names,): whether it is mostly a noun
        self.row_members, self.row_shares = arrays["row_members"], arrays["row_shares"]  # (rows, MOST_CLASSES)

    def class_shares(self, text: str) -> Floats:
        """Return the weight of each class and group (1144,) in the words of `text`; a word adds 1 at most."""
        shares = np.zeros(CLASSES + GROUPS, np.float32)
        found = self._names_in(words(text[:MAX_CHARACTERS])[:MAX_WORDS])
        # A word that is mostly not a noun ("watch", "duck") counts only if the text has no noun.
        for place in [place for place in found if self.word_nouns[place]] or found:
            row = self.word_rows[place]
            np.add.at(shares, self.row_members[row], self.row_shares[row] / np.float32(SHARE_UNITS))
        return shares

    def _names_in(self, text: Sequence[str]) -> list[int]:
        """Return the positions in `word_keys` of the names in a text, from left to right; the longest name wins."""
        tried = [
            (start, length, word_key(name))
            for start in range(len(text))
            for length in range(min(LONGEST_NAME, len(text) - start), 0, -1)
            for written in [" ".join(text[start : start + length])]
            for name in (*singulars(written), *(singulars(written.replace("-", " ")) if "-" in written else ()))
        ]
        if not tried:
            return []
        keys = np.array([key for _, _, key in tried], np.int64)
        places = np.minimum(np.searchsorted(self.word_keys, keys), len(self.word_keys) - 1)
        found, after = [], 0
        for at in np.flatnonzero(self.word_keys[places] == keys):
            start, length, _ = tried[at]
            if start >= after:
                found.append(int(places[at]))
                after = start + length
        return found
