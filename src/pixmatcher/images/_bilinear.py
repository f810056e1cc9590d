"""Resize images with the bilinear filter in PixMatcher's own code, because that is most of the work on small images.

`_resize_bilinear.c` is compiled when the package is built. Without it, and on processors without AVX2, Pillow
resizes: to the same bytes, in several times the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .._libraries import load_library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

LIBRARY = Path(__file__).with_name("_resize_bilinear.so")
_MARGIN = 32
"""Bytes that the library may write after the result."""
_MOST_PIXELS = 1_000_000
"""Of a larger image, copying its pixels for the library takes longer than Pillow's resizing, which needs no copy."""


def resize_bilinear(image: Image.Image, side: int, box: tuple[float, float, float, float]) -> NDArray[np.uint8] | None:
    """Resize the box (left, top, right, bottom) of an RGB image to (side, side, 3), to the same bytes as Pillow.

    Returns None if Pillow has to resize it: if the library is not built, if the image is large, or if Pillow would
    begin with the rows (it does if the image shrinks, and more in height than in width).
    """
    resize = _resizer()
    if resize is None or image.mode != "RGB" or image.height > max(image.width, side):
        return None
    if image.width * image.height > _MOST_PIXELS:
        return None
    import ctypes

    import numpy as np

    pixels = image.tobytes()  # a zero follows, so that the last pixel too can be read as 4 bytes
    result = np.empty(side * side * 3 + _MARGIN, np.uint8)
    if not resize(pixels, image.width, image.height, (ctypes.c_float * 4)(*box), side, result.ctypes.data):
        return None
    return result[:-_MARGIN].reshape(side, side, 3)


@cache
def _resizer() -> Callable[..., int] | None:
    """Return the function of the compiled library, or None if it was not compiled or this processor has no AVX2."""
    library = load_library(LIBRARY, "pixmatcher_bilinear", "pixmatcher_bilinear_suits")
    if library is None or not library.pixmatcher_bilinear_suits():
        return None
    import ctypes

    function = library.pixmatcher_bilinear
    function.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 2, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function
