"""The encoder `colours`: how much of an image has which colour."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from pixmatcher import QueryError, Recipe, Space

HUES, SATURATIONS, VALUES = 18, 3, 3
"""Bins of the histogram along each axis of HSV, as in Smith and Chang, "VisualSEEk" (1996)."""
GREYS = 4
"""Further bins for pixels with almost no saturation, whose hue means nothing."""
LEAST_SATURATION = 26
"""Of 255: pixels below are grey."""
DIMENSION = HUES * SATURATIONS * VALUES + GREYS


class ColourEncoder:
    """Embeds images by the colours of their pixels, wherever in the image these are.

    It recognises no objects: a red car and a red rose are similar. Texts may name colours, such as "blue and white".
    """

    name = "colours"
    spaces = (Space("colours", DIMENSION, text=True),)
    recipe = Recipe(size=64, resize="squash")  # the whole image, whatever its shape
    batch_size = 16

    @property
    def fingerprint(self) -> str:
        """Changes whenever the embeddings would: a collection made with another fingerprint is not searched."""
        shaping = (HUES, SATURATIONS, VALUES, GREYS, LEAST_SATURATION, self.recipe.size, self.recipe.resize)
        return hashlib.sha256(repr(shaping).encode()).hexdigest()[:16]

    def load_images(self) -> None:
        """Do nothing, since there is no model to load."""

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed pixels (N, 64, 64, 3) in RGB: vectors (N, 166) float32 of length 1."""
        return {"colours": _rows([histogram(image) for image in pixels])}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed the colours that each text names, in equal parts: vectors (N, 166) float32 of length 1.

        Raises `QueryError` if a text names no colour.
        """
        return {"colours": _rows([histogram(_named_colours(text)) for text in texts])}


def histogram(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the square roots of the shares of pixels (..., 3) in each bin: (166,) float32 of length 1.

    The inner product of two such vectors is the Bhattacharyya coefficient: 1 if all shares are equal, 0 if the images
    have no colour in common.
    """
    rows = pixels.reshape(1, -1, 3)
    hsv = np.asarray(Image.fromarray(rows).convert("HSV"), np.intp)[0]
    hue, saturation, value = hsv[:, 0], hsv[:, 1], hsv[:, 2]
    bins = (hue * HUES // 256 * SATURATIONS + saturation * SATURATIONS // 256) * VALUES + value * VALUES // 256
    bins = np.where(saturation < LEAST_SATURATION, DIMENSION - GREYS + value * GREYS // 256, bins)
    shares = np.bincount(bins, minlength=DIMENSION) / len(bins)
    roots: npt.NDArray[np.float32] = np.sqrt(shares).astype(np.float32)
    return roots


def _rows(vectors: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.array(vectors, np.float32).reshape(-1, DIMENSION)  # also of no vectors


def _named_colours(text: str) -> npt.NDArray[np.uint8]:
    """Return the colours of CSS that a text names, (colours, 3) in RGB."""
    known = ImageColor.colormap
    names = [word for word in re.findall("[a-z]+", text.lower()) if word in known]
    if not names:
        raise QueryError(f"The text {text!r} names no colour: write one or more, such as 'blue and white'.")
    return np.array([ImageColor.getrgb(name) for name in names], np.uint8)
