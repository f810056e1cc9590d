"""JPEGs at an eighth of their scale, by code of our own: what a large photo costs is the decoding of its file.

`_jpeg_eighth.c` is compiled when the package is built. Where it is not there, as no compiler was, Pillow decodes these
files too, to the same pixels, in up to twice the time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LIBRARY = Path(__file__).with_name("_jpeg_eighth.so")
_CHANNELS = {"L": 1, "RGB": 3}


def decode_eighth(data: bytes, size: tuple[int, int], mode: str) -> Image.Image | None:
    """The picture in a JPEG file at the scale 1/8, of this `size` and mode ("L" or "RGB"), as libjpeg-turbo decodes it.

    None if the file is damaged or not of the usual kind (progressive, say), or if the code is not there: Pillow then
    has to decide what it is.
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
    try:
        import ctypes

        function = ctypes.CDLL(str(LIBRARY)).pixmatcher_eighth
    except (ImportError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function
