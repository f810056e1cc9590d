"""Decode JPEGs at the scale 1/8 with PixMatcher's own code, because decoding is the most expensive step for photos.

`_jpeg_eighth.c` is compiled when the package is built. If there was no compiler, Pillow decodes these files: to the
same pixels, in up to twice the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .._libraries import load_library

if TYPE_CHECKING:
    from PIL import Image

LIBRARY = Path(__file__).with_name("_jpeg_eighth.so")
_CHANNELS = {"L": 1, "RGB": 3}


def decode_eighth(data: bytes, size: tuple[int, int], mode: str) -> Image.Image | None:
    """Decode a JPEG file at the scale 1/8 to the same pixels as libjpeg-turbo.

    `size` (width, height) and `mode` ("L" or "RGB") are those of the result. Returns None if the file is damaged or not
    of the usual kind (progressive, for example), or if the library is not built: then Pillow has to decode it.
    """
    decode = _decoder()
    if decode is None or mode not in _CHANNELS:
        return None
    import ctypes

    from PIL import Image

    pixels = bytearray(size[0] * size[1] * _CHANNELS[mode])
    first = ctypes.c_ubyte.from_buffer(pixels)
    if not decode(data, len(data), *size, _CHANNELS[mode], ctypes.byref(first)):
        return None
    return Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1)


@cache
def _decoder() -> Callable[..., int] | None:
    """Return the decoder in the compiled library, or None if it was not compiled."""
    library = load_library(LIBRARY, "pixmatcher_eighth")
    if library is None:
        return None
    import ctypes

    function = library.pixmatcher_eighth
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function
