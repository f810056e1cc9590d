"""Open an image and prepare it for an encoder in one call, as `preprocess_image` of the original project does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

from ..errors import PixMatcherError
from ._limits import DEFAULT_MAX_PIXELS
from ._open import ImageSource, open_image
from ._recipe import IMAGENET_RECIPE, Recipe
from ._resize import fit_image, fit_to_recipe, normalize_pixels, resize_box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image


@overload
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["array"] = "array",
    to_tensor: Literal[False] = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> NDArray[np.float32]: ...
@overload
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["pil"],
    to_tensor: Literal[False] = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image: ...
@overload
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["array"] = "array",
    to_tensor: Literal[True],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> torch.Tensor: ...
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["array", "pil"] = "array",
    to_tensor: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> NDArray[np.float32] | Image.Image | torch.Tensor:
    """Open an image and convert it to the input of an encoder; without a recipe, `IMAGENET_RECIPE` is used.

    With a `target_size` (width, height) the whole image is resized to that, whatever its shape.

    Returns a float32 array (3, size, size), or (3, height, width) with `target_size`; with `to_tensor=True` a
    `torch.Tensor` of the same shape, or with `output="pil"` the cropped and resized image. Raises the errors of
    `open_image`, and PixMatcherError if `to_tensor` is true and PyTorch is not installed.
    """
    if to_tensor:
        if output == "pil":
            raise ValueError("a PIL image is not a tensor: leave out output or to_tensor")
        from_numpy = _from_numpy()
    import numpy as np

    recipe = recipe or IMAGENET_RECIPE
    if target_size is None:
        image = fit_to_recipe(open_image(source, min_side=recipe.min_side, max_pixels=max_pixels), recipe)
    else:
        recipe = replace(recipe, size=max(target_size), crop=1.0, resize="squash")
        opened = open_image(source, min_side=recipe.min_side, max_pixels=max_pixels)
        image = resize_box(opened.image, target_size, recipe, opened.area)
    if output == "pil":
        return image
    pixels = normalize_pixels(np.asarray(image), recipe)
    return from_numpy(pixels) if to_tensor else pixels


def _from_numpy() -> Callable[[NDArray[np.float32]], torch.Tensor]:
    try:
        import torch
    except ImportError as error:
        raise PixMatcherError("A tensor needs PyTorch: run `pip install 'pixmatcher[torch]'`.") from error
    return torch.from_numpy  # type: ignore[no-any-return]


def preprocess_images(
    sources: Iterable[ImageSource], recipe: Recipe | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.float32]:
    """Open many images and convert them to one float32 array (N, 3, size, size); see `preprocess_image`."""
    import numpy as np

    recipe = recipe or IMAGENET_RECIPE
    fitted = [
        fit_image(open_image(source, min_side=recipe.min_side, max_pixels=max_pixels), recipe) for source in sources
    ]
    if not fitted:
        return np.empty((0, 3, recipe.size, recipe.size), dtype=np.float32)
    return normalize_pixels(np.stack(fitted), recipe)
