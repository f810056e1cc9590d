"""Crop, resize and normalise an image as the recipe of an encoder says."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ._bilinear import resize_bilinear
from ._open import OpenedImage
from ._recipe import SPARE, Recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


_GAP = 3.0
"""With this gap, averaging blocks of pixels before an image is resized makes no visible difference."""


def fit_image(image: Image.Image | OpenedImage, recipe: Recipe) -> NDArray[np.uint8]:
    """Crop and resize an image as the recipe says.

    `image` is RGB, of any size. What `open_image` returned at a reduced scale gives nearly the same as at full scale.
    Returns a contiguous uint8 array (size, size, 3).
    """
    import numpy as np

    if recipe.resize == "box" and recipe.interpolation == "bilinear":
        pixels = image.image if isinstance(image, OpenedImage) else image
        box = _centre(pixels.size, recipe)
        if box[2] - box[0] < 2 * _GAP * recipe.size:  # otherwise Pillow averages blocks first
            fitted = resize_bilinear(pixels, recipe.size, box)
            if fitted is not None:
                return fitted
    return np.array(fit_to_recipe(image, recipe))


def fit_to_recipe(image: Image.Image | OpenedImage, recipe: Recipe) -> Image.Image:
    """Crop and resize an image as `fit_image` does; return a PIL image of (size, size)."""
    if isinstance(image, OpenedImage):
        pixels, area, full = image.image, image.area, (image.width, image.height)
    else:
        pixels, area, full = image, (0.0, 0.0, *image.size), image.size
    target = (recipe.size, recipe.size)
    if recipe.resize == "box":
        return resize_box(pixels, target, recipe, _centre(pixels.size, recipe), reducing_gap=_GAP)
    columns, rows = _resized_size(full, recipe)
    x, y = (area[2] - area[0]) / columns, (area[3] - area[1]) / rows
    first_column, first_row = (round((side - recipe.size) / 2) for side in (columns, rows))
    left, top = area[0] + first_column * x, area[1] + first_row * y
    right, bottom = left + recipe.size * x, top + recipe.size * y
    # Pillow 13 and later begins with the direction that shrinks more, and looks at the image for that, not at the box.
    above, below = math.floor(top - _filter_reach(y)), math.ceil(bottom + _filter_reach(y))
    if above > 0 or below < pixels.height:
        above, below = max(above, 0), min(below, pixels.height)
        pixels = pixels.crop((0, above, pixels.width, below))
        top, bottom = top - above, bottom - above
    return resize_box(pixels, target, recipe, (left, top, right, bottom))


def _centre(size: tuple[int, int], recipe: Recipe) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) of the centre of an image that a recipe with `resize` "box" keeps."""
    side = min(size) * recipe.crop
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def resize_box(
    image: Image.Image,
    size: tuple[int, int],
    recipe: Recipe,
    box: tuple[float, float, float, float],
    reducing_gap: float = SPARE,
) -> Image.Image:
    """Resize only the box (left, top, right, bottom), so that an image of 3000 x 2 pixels is never enlarged as a whole.

    `size` are width and height of the result.
    """
    from PIL.Image import Resampling

    return image.resize(size, Resampling[recipe.interpolation.upper()], box, reducing_gap)


def _filter_reach(scale: float) -> float:
    """Return how many pixels any filter reaches from the middle of a pixel, for an image that shrinks by `scale`."""
    return 3 * max(1.0, scale) + 1


def _resized_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """Return width and height that torchvision would resize an image of `size` to, before it crops the centre."""
    resized = recipe.resized_side
    if recipe.resize == "squash":
        return resized, resized
    width, height = size
    long = int(resized * max(size) / min(size))
    return (resized, long) if width <= height else (long, resized)


def normalize_pixels(pixels: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """Convert uint8 pixels (..., H, W, 3) to the normalised float32 (..., 3, H, W) that the encoder takes."""
    import numpy as np

    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be uint8 (..., H, W, 3), not {pixels.dtype} {pixels.shape}")
    *batch, height, width, _ = pixels.shape
    out = np.empty((*batch, 3, height, width), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(recipe.mean, recipe.std, strict=True)):
        plane = out[..., channel, :, :]
        np.multiply(pixels[..., channel], np.float32(1 / (255 * std)), out=plane, dtype=np.float32)
        plane -= np.float32(mean / std)
    return out
