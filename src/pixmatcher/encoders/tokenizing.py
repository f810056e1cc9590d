"""Texts as the ids that a text network takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .card import TextRecipe

Tokenize = Callable[[str], "tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]"]
"""Turns a text into ids (context_length,) and a mask (context_length,) that is 1 for what is text."""


def open_tokenizer(path: Path, recipe: TextRecipe) -> Tokenize:
    """Open a file of the `tokenizers` library and use it as the recipe says."""
    raise NotImplementedError
