"""Convert the pixels of any image mode, and arrays, to RGB with 8 bits a channel, and shrink them on the way.

Large images are converted in strips, so that no second image of the same size is made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

from ..errors import InvalidImageError
from ._limits import check_pixels
from ._pillow import pillow_limit_lifted
from ._profiles import srgb_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

_STRIP_PIXELS = 1 << 20
"""About how many pixels of a large image are converted at once."""


USUAL_INTEGERS, USUAL_FLOATS = (255.0, 65535.0), (1.0, 255.0, 65535.0)
"""What white may be in numbers that have no fixed range; black is 0."""

_WHITE, _DARK = (255, 255, 255), (96, 96, 96)
"""The grounds of transparent images. The grey is dark enough for white letters, and light enough for black parts."""


def to_rgb(image: Image.Image, min_side: int | None, info: Mapping[Any, Any]) -> Image.Image:
    """Return a loaded image of any mode as RGB, shrunk as far as `min_side` allows; the same object if that is all.

    `info` are the details of the file, as `Image.info` has them: its colour profile is turned to sRGB.
    """
    factor = shrink_factor(image.size, min_side)
    transform = srgb_transform(image.mode, info)
    if transform is None:
        return _shrunk_rgb(image, factor)
    if transform.mode == "CMYK":
        return _in_strips(image, factor, lambda part: transform(_reduce(part, factor)))
    rgb = _shrunk_rgb(image, factor)
    if transform.mode == "L":
        return _in_strips(rgb, 1, lambda part: transform(part.getchannel("R")))
    return _in_strips(rgb, 1, transform)


def _shrunk_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Return an image of any mode as RGB, its values as they are; the same object if there is nothing to do."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return _reduce(image, factor)
    convert = _converter(image)
    return _in_strips(image, factor, lambda part: _reduce(convert(part), factor))


def _in_strips(image: Image.Image, factor: int, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image by a function that makes RGB of a part of it, each side `factor` times smaller."""
    from PIL import Image

    width, height = image.size
    if width * height <= _STRIP_PIXELS:
        return convert(image)
    rgb = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    for left, top, strip in _strips(image, factor):
        rgb.paste(convert(strip), (left // factor, top // factor))
    return rgb


def shrink_factor(size: tuple[int, int], min_side: int | None) -> int:
    """Return how many pixels a side are averaged into one.

    The short side keeps twice `min_side` or more: `fit_image` does the rest.
    """
    return 1 if min_side is None else max(1, min(size) // (2 * min_side))


def array_to_pil(array: NDArray[Any], max_pixels: int) -> Image.Image:
    """Return an array (H, W), (H, W, 3) or (H, W, 4), of uint8 or of floats in [0, 1], as an image.

    Raises InvalidImageError if the array is something else or has more than `max_pixels`.
    """
    import numpy as np
    from PIL import Image

    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise InvalidImageError("unsupported array", f"shape {shape}, not (H, W), (H, W, 3) or (H, W, 4)")
    check_pixels(shape[1], shape[0], max_pixels)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # false for nan as well
            raise InvalidImageError("unsupported array", "floats must all be in [0, 1]")
        array = _floats_to_bytes(array)
    elif array.dtype != np.uint8:
        raise InvalidImageError("unsupported array", f"dtype {array.dtype}, not uint8 or a float in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _floats_to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert floats (H, W, ...) in [0, 1] to 0-255, a few rows at a time: each step makes two copies of them."""
    import numpy as np

    pixels = np.empty(array.shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // array.shape[1])
    for top in range(0, len(array), rows):
        pixels[top : top + rows] = array[top : top + rows] * 255 + 0.5
    return pixels


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, int, Image.Image]]:
    """Yield copies of the parts of an image with their left and top, which are multiples of `multiple`.

    A strip has about `_STRIP_PIXELS`. It is as wide as the image, unless a single row has more pixels than that.
    """
    width, height = image.size
    columns = min(width, _STRIP_PIXELS)
    rows = max(1, _STRIP_PIXELS // columns)
    columns, rows = (math.ceil(n / multiple) * multiple for n in (columns, rows))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            box = (left, top, min(left + columns, width), min(top + rows, height))
            with pillow_limit_lifted(width * height):
                strip = image.crop(box)
            yield left, top, strip


def _reduce(image: Image.Image, factor: int) -> Image.Image:
    """Average blocks of `factor` x `factor` pixels."""
    if factor == 1:
        return image
    from PIL.Image import Image

    return Image.reduce(image, factor)  # not image.reduce, which does something else for JPEG 2000 files


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the function that converts a loaded image, or any part of it, to RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        low, high = _value_range(image)
        key = image.info.get("transparency")  # in a PNG file of 16 bits
        if isinstance(key, int):
            return _over_ground(image, lambda part: _range_to_rgba(part, low, high, key))
        return lambda part: _range_to_rgb(part, low, high)
    if image.mode == "LAB":
        return _lab_converter()
    if image.has_transparency_data:
        return _over_ground(image, _rgba)
    return lambda part: part.convert("RGB")


def _over_ground(
    image: Image.Image, to_rgba: Callable[[Image.Image], Image.Image]
) -> Callable[[Image.Image], Image.Image]:
    """Return the function that lays a transparent image, or any part of it, over a colour that suits all of it."""
    ground = _ground(image, to_rgba)
    return lambda part: _laid_over(to_rgba(part), ground)


def _laid_over(rgba: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    from PIL import Image

    laid = Image.new("RGB", rgba.size, ground)
    laid.paste(rgba, mask=rgba.getchannel("A"))
    return laid


def _rgba(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # a PNG file of 16 bits, of which 8 are left
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image.convert("RGBA")


def _ground(image: Image.Image, to_rgba: Callable[[Image.Image], Image.Image]) -> tuple[int, int, int]:
    """Return the colour that a transparent image is laid over: white, unless the picture would be lost on it.

    It is chosen by up to 256 x 256 points of the image, so that all strips get the same one. A point is lost if its
    contrast with white is below 1.25. A picture is lost if nearly all that is visible in it is. It is also lost if that
    is most of it, such as the white letters beside a small coloured sign, and much around it is transparent; then it is
    not a photo whose corners are. What is faint on any ground, such as a soft shadow, stays on white.
    """
    import numpy as np
    from PIL.Image import Image, Resampling

    size = (min(256, image.width), min(256, image.height))
    with pillow_limit_lifted(image.width * image.height):
        points = to_rgba(Image.resize(image, size, Resampling.NEAREST))
    alpha = np.asarray(points.getchannel("A"), np.float32)
    visible = float(alpha.mean()) / 255
    if visible in (0.0, 1.0):
        return _WHITE
    on_white = _contrasts(points, _WHITE)
    lost = float(alpha[on_white < 1.25].sum()) / float(alpha.sum())
    if lost > 0.98 or (lost > 0.7 and visible < 0.75):
        on_dark = _contrasts(points, _DARK)
        if (alpha * on_dark).sum() > (alpha * on_white).sum():
            return _DARK
    return _WHITE


def _contrasts(rgba: Image.Image, ground: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return the contrast ratios (WCAG 2.2, from 1), (H, W), of the pixels laid over a colour with that colour."""
    import numpy as np

    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    shares = (linear[:, None] * (0.2126, 0.7152, 0.0722)).astype(np.float32)  # of a colour's value in the luminance
    seen = np.asarray(_laid_over(rgba, ground))
    luminance = sum((shares[seen[..., colour], colour] for colour in range(3)), np.float32(0.05))
    ratio = luminance / np.float32(sum(shares[ground[colour], colour] for colour in range(3)) + 0.05)
    contrasts: NDArray[np.float32] = np.maximum(ratio, 1 / ratio)
    return contrasts


def _range_to_rgb(image: Image.Image, low: float, high: float) -> Image.Image:
    """Convert grey of 16 or 32 bits or floats to RGB: `low` becomes black and `high` white."""
    import numpy as np
    from PIL import Image

    scaled = np.asarray(image).astype(np.float32)
    scaled -= low
    scaled *= 255.0 / (high - low) if high > low else 0.0
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0, 255, out=scaled)
    scaled += 0.5
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _range_to_rgba(image: Image.Image, low: float, high: float, key: int) -> Image.Image:
    """Convert grey as `_range_to_rgb` does; pixels whose value is `key` become transparent."""
    import numpy as np
    from PIL import Image

    rgba = _range_to_rgb(image, low, high)
    rgba.putalpha(Image.fromarray((np.asarray(image) != key).astype(np.uint8) * 255))
    return rgba


def _value_range(image: Image.Image) -> tuple[float, float]:
    """Return the values of a grey image that are black and white; see `open_image`."""
    if image.mode.startswith("I;16"):
        return 0.0, 4095.0 if _is_12_bit(image) else 65535.0
    if image.format in ("PPM", "PNG"):
        return 0.0, 65535.0  # they have 16 bits, which Pillow holds in 32
    extremes = _finite_extremes(image)
    if not extremes:
        return 0.0, 1.0
    return range_of_numbers(min(extremes), max(extremes), USUAL_FLOATS if image.mode == "F" else USUAL_INTEGERS)


def range_of_numbers(low: float, high: float, usual: tuple[float, ...]) -> tuple[float, float]:
    """Return the numbers that are black and white in an image of numbers from `low` to `high`; see `open_image`."""
    if low >= 0:
        for white in usual:
            if high <= white:
                return 0.0, white
    return low, high


def _finite_extremes(image: Image.Image) -> list[float]:
    """Return the least and the greatest finite number of each strip that has one."""
    import numpy as np

    extremes: list[float] = []
    for _, _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            extremes += float(finite.min()), float(finite.max())
    return extremes


def _is_12_bit(image: Image.Image) -> bool:
    return getattr(image, "tag_v2", {}).get(258) == (12,)


def _lab_converter() -> Callable[[Image.Image], Image.Image]:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    return lambda part: cast("Image.Image", ImageCms.applyTransform(part, transform))
