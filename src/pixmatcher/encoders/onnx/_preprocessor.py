"""Read the recipe of a model's images from `preprocessor_config.json`, as the library transformers writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...images import Recipe
from .card import LARGEST_SIDE


class UnsupportedError(ValueError):
    """A file of a model cannot be used; the message is the predicate of a sentence about that file."""


@dataclass(frozen=True)
class _Family:
    """The defaults of the image processors of a family of models."""

    square: bool
    """Whether a size of one number means both sides; otherwise it means the shortest side."""
    crop: bool
    resample: int


_FAMILIES = {
    "CLIP": _Family(square=False, crop=True, resample=3),
    "Bit": _Family(square=False, crop=True, resample=3),
    "Siglip": _Family(square=True, crop=False, resample=3),
    "ViT": _Family(square=True, crop=False, resample=2),
    "DINOv3ViT": _Family(square=True, crop=False, resample=2),
}
"""Settings by the first part of the name of a class; the values are from `image_processing_*.py` in transformers."""
_INTERPOLATIONS: dict[object, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""The interpolations by the values of `PIL.Image.Resampling`."""
_UNSUPPORTED_STEPS = (
    "do_pad",
    "do_flip_channel_order",
    "rescale_offset",
    "include_top",
    "do_thumbnail",
    "do_align_long_axis",
)
"""Steps of some image processors that PixMatcher does not have."""


def read_recipe(config: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `preprocessor_config.json` describes. Raises `UnsupportedError` if that is impossible."""
    if not config:
        raise UnsupportedError("is missing or empty, so the preprocessing of images is unknown")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")[:100]
    family = next((family for name, family in _FAMILIES.items() if kind.startswith(name)), None)
    if also := [key for key in _UNSUPPORTED_STEPS if config.get(key)]:
        raise UnsupportedError(f"requires {also[0]}, which pixmatcher does not support")
    if config.get("do_resize") is False:
        raise UnsupportedError("requires images that are not resized, which pixmatcher does not support")
    form, side = _side(config.get("size"), family)
    crop = config.get("do_center_crop")
    if crop is None:
        crop = family.crop if family else config.get("crop_size") is not None
    if crop:
        given = config.get("crop_size", side)
        _, kept = _side(given, _FAMILIES["ViT"])
    else:
        kept = side
    if form == "shortest" and not crop:
        raise UnsupportedError("requires images that are not square, which pixmatcher does not support")
    if kept > side:
        raise UnsupportedError(f"requires a crop of {kept} out of {side} pixels, which pixmatcher does not support")
    resample = config.get("resample", family.resample if family else None)
    interpolation = None if isinstance(resample, bool) else _INTERPOLATIONS.get(resample)
    if interpolation is None:
        raise UnsupportedError(f"requires the interpolation {str(resample)[:20]}, which pixmatcher does not support")
    mean, std = _normalisation(config)
    return Recipe(kept, kept / side, interpolation, mean, std, form)


def _side(size: object, family: _Family | None) -> tuple[Literal["shortest", "squash"], int]:
    """Return how an image is resized, and the size in pixels of its shortest side, or of both sides."""
    form: Literal["shortest", "squash"] = "squash"
    if isinstance(size, dict):
        stated = {key: value for key, value in size.items() if value is not None}
        if stated.keys() == {"shortest_edge"}:
            form, size = "shortest", stated["shortest_edge"]
        elif stated.keys() == {"height", "width"} and stated["height"] == stated["width"]:
            size = stated["height"]
    elif family is not None and not family.square:
        form = "shortest"
    elif family is None:
        size = None
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE:
        raise UnsupportedError("requires an image size that pixmatcher does not support")
    return form, size


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and the standard deviation of values in [0, 1]."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = _three_colours(config.get("image_mean")), _three_colours(config.get("image_std"))
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not is_number(factor) or factor <= 0 or min(std) <= 0:
        raise UnsupportedError("has values for the normalisation that are not possible")
    if not math.isclose(255 * factor, 1, rel_tol=1e-6):
        # The network expects (x * factor - mean) / std for a byte x; a recipe uses x / 255.
        mean, std = _scaled(mean, 255 * factor), _scaled(std, 255 * factor)
    return mean, std


def _three_colours(values: object) -> tuple[float, float, float]:
    """Return three values for red, green and blue. Raises `UnsupportedError` if they are something else."""
    if not isinstance(values, list) or len(values) != 3 or not all(map(is_number, values)):
        raise UnsupportedError("has no mean and standard deviation of three colours")
    red, green, blue = map(float, values)
    return red, green, blue


def is_number(value: object) -> bool:
    """Return whether a value of JSON is a number of moderate size."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _scaled(values: tuple[float, float, float], divisor: float) -> tuple[float, float, float]:
    red, green, blue = (value / divisor for value in values)
    return red, green, blue
