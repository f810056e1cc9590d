"""Convert texts to the ids that a text network takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError, QueryError

if TYPE_CHECKING:
    from ..onnx.card import TextRecipe

MAX_CHARACTERS = 20_000
"""Longer texts are cut before they are split into tokens; networks take far fewer tokens."""

Tokenize = Callable[[str], "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]"]
"""Converts a text to ids (context_length,) and a mask (context_length,) that is 1 for text and 0 for padding."""


def require_unicode(text: str) -> None:
    """Raise `QueryError` if a text is not valid Unicode, such as after decoding bytes that were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise QueryError("The text is not valid Unicode: write it in UTF-8, or set the terminal to it.") from None


def open_tokenizer(path: Path, recipe: TextRecipe) -> Tokenize:
    """Open a file of the `tokenizers` library, and return a function that uses it with the lengths of the recipe.

    Longer texts are cut, but keep their closing token. The function raises `QueryError` as `require_unicode`, and
    `EncoderError` if the tokenizer has no ids for a text. The library raises `Exception` for a wrong file.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(recipe.context_length)
    tokenizer.enable_padding(length=recipe.context_length, pad_id=recipe.pad_id)

    def tokenize(text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        require_unicode(text)
        text = shortened(text)
        if recipe.cleaning == "clip":
            from .clip import clean

            text = clean(text)
        try:
            encoding = tokenizer.encode(text)
        except Exception as error:  # the library has no error class of its own
            raise EncoderError(
                f"{path} cannot tokenize the text ({error}): export or pull the encoder again."
            ) from error
        return np.array(encoding.ids, np.int64), np.array(encoding.attention_mask, np.int64)

    return tokenize


def shortened(text: str) -> str:
    """Return the first `MAX_CHARACTERS` of a text; leading and repeated spaces of longer texts are removed first."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return re.sub(r"(\s)\1+", r"\1", text.lstrip())[:MAX_CHARACTERS]
