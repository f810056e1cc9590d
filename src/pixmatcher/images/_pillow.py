"""Pillow's plugins, and the global state of Pillow that has to be changed while they work."""

from __future__ import annotations

import logging
import threading
import warnings
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from ..errors import InvalidImageError
from ._formats import HEIF, PNG, TIFF, ImageFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import ImageFile


_MAX_PNG_CHUNK = 16 << 20
"""Largest profile or text of a PNG file in bytes, decompressed."""


def load_plugin(image_format: ImageFormat) -> type[ImageFile.ImageFile]:
    """Return the class of Pillow that decodes a format.

    Raises InvalidImageError if the format needs an extra that is not installed.
    """
    try:
        module = import_module(image_format.module)
    except ImportError as error:
        if image_format is not HEIF:
            raise
        detail = "HEIC needs an extra: pip install 'pixmatcher[heif]'"
        raise InvalidImageError("unsupported format", detail) from error
    if image_format is TIFF:
        _silence_libtiff()
    if image_format is PNG:  # Pillow refuses images with a profile above 1 MB, as those of calibrated screens are
        cast("Any", module).MAX_TEXT_CHUNK = _MAX_PNG_CHUNK
    return cast("type[ImageFile.ImageFile]", getattr(module, image_format.plugin))


@cache
def _silence_libtiff() -> None:
    """Keep libtiff and its plugin from writing to standard error, because Pillow raises errors anyway.

    If libtiff cannot be found through Pillow's library, a damaged TIFF file may print a line.
    """
    import ctypes

    from PIL import _imaging

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any handler, Python prints errors
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for set_handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


@cache
def tiff_codec_is_missing(compression: int) -> bool:
    """Return whether Pillow's libtiff says that it was built without a method of compression."""
    import ctypes

    from PIL import _imaging

    try:
        is_configured = ctypes.CDLL(_imaging.__file__).TIFFIsCODECConfigured
    except (OSError, AttributeError):  # not found through Pillow's library
        return False
    is_configured.argtypes, is_configured.restype = [ctypes.c_uint16], ctypes.c_int
    return not is_configured(compression)


_limit_lock = threading.Lock()
_limit_lifters = 0
_limit_of_pillow: int | None = None


@contextmanager
def pillow_limit_lifted(pixels: int) -> Iterator[None]:
    """Switch Pillow's own limit off while an image of more `pixels` than that, but within our limit, is decoded.

    Pillow's limit is a global variable that some plugins read. The first thread that needs it removes it, and the last
    one restores it. `Image.open`, which checks the limit for every format, is not used here.
    """
    global _limit_lifters, _limit_of_pillow
    from PIL import Image

    with _limit_lock:
        if _limit_lifters == 0:
            _limit_of_pillow = Image.MAX_IMAGE_PIXELS
        needed = _limit_of_pillow is not None and pixels > _limit_of_pillow
        if needed:
            _limit_lifters += 1
            Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        if needed:
            with _limit_lock:
                _limit_lifters -= 1
                if _limit_lifters == 0:
                    Image.MAX_IMAGE_PIXELS = _limit_of_pillow


class _QuietPillow(threading.local):
    """Silences Pillow's warnings in the threads that are inside this context, and in no other thread.

    What Pillow warns of (damaged metadata and the like) does not matter for an image that could be read.
    `warnings.catch_warnings` replaces the filters of the whole process, which fails with threads. So this object is
    part of one filter, as the pattern that the module of the warning must match, and matches only in those threads.
    """

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        filters = cast("list[Any]", warnings.filters)
        if not filters or filters[0] is not _quiet_filter:  # somebody may have changed the filters since
            filters.insert(0, _quiet_filter)

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1

    def match(self, module: str) -> bool:
        return self._depth > 0 and module.startswith(("PIL.", "pillow_heif"))


quiet_pillow = _QuietPillow()
_quiet_filter = ("ignore", None, Warning, quiet_pillow, 0)
