"""Limits on what an image may take: pixels, tiles, scans, and the memory of several huge images at once."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any

from ..errors import InvalidImageError

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MAX_PIXELS = 512_000_000

MAX_ENCODED_BYTES = 1 << 30
"""Largest file of a compressed format; the plugins may read all of it into memory."""

MAX_METADATA_BYTES = 4 << 20
"""Longer blocks of metadata are cut off here."""

_MAX_SCANS = 500

_HUGE_PIXELS = 32_000_000
"""Images of more pixels than this are decoded one at a time."""

_huge_image_lock = threading.RLock()  # reentrant: reading a file may open other images in the same thread


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise InvalidImageError if an image has more than `max_pixels`."""
    if width * height > max_pixels:
        raise InvalidImageError("too many pixels", f"{width} x {height}, the limit is {max_pixels:,}")


def check_tiles(image: Any, max_pixels: int) -> None:
    """Check the tile size of a TIFF image: the decoder needs a buffer for each tile, also if the image is small."""
    check_pixels(int(image.tag_v2.get(322, 1)), int(image.tag_v2.get(323, 1)), max_pixels)


def check_scans(file: IO[bytes]) -> None:
    """Raise InvalidImageError for a progressive JPEG with too many scans: each scan covers the complete image."""
    position = file.tell()
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(1 << 20):
        scans += (last + block).count(b"\xff\xda")  # never within the data of a scan, where 0xff is escaped
        last = block[-1:]
    file.seek(position)
    if scans > _MAX_SCANS:
        raise InvalidImageError("too many scans", f"{scans:,} in one image")


def decoding_slot(pixels: int) -> AbstractContextManager[object]:
    """Return a context in which an image of so many pixels may be decoded.

    Small images never wait. Huge images wait for each other, so that threads that decode several of them at the same
    time take the memory of one.
    """
    return _huge_image_lock if pixels > _HUGE_PIXELS else nullcontext()


def pixels_in_memory(image: Image.Image, width: int, height: int) -> int:
    """Return how many pixels the decoder will hold for an image of `width` x `height` at full scale."""
    if "progressive" in image.info:  # the decoder keeps the coefficients of all pixels, however small the result is
        return width * height
    return image.width * image.height
