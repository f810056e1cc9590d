"""Icons and cursors: the largest picture of an ICO or CUR file."""

from __future__ import annotations

import io
import os
import struct
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._formats import DIB, DIB_HEADER_SIZES, PNG, format_of
from ._limits import check_pixels, decoding_slot
from ._metadata import NO_TAGS, PhotoTags
from ._reasons import CUT_OFF

if TYPE_CHECKING:
    from PIL import Image

_MAX_ENTRIES = 1024


def icon_picture(file: IO[bytes], max_pixels: int) -> tuple[bytes | Image.Image, PhotoTags]:
    """Return the picture with the most pixels, and of several of these the one with the most colours.

    The directory says sizes up to 256, and the picture, a PNG or a DIB, has its own: the latter is checked. An icon has
    no tags.

    Raises InvalidImageError.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    _, kind, count = struct.unpack("<HHH", file.read(6))
    directory = file.read(16 * min(count, _MAX_ENTRIES))
    entries = list(struct.iter_unpack("<BBBBHHII", directory[: len(directory) // 16 * 16]))
    if not entries:
        raise InvalidImageError("truncated", CUT_OFF)

    def rank(entry: tuple[int, ...]) -> tuple[int, int, int]:
        width, height, colours, _, _, bits, size, _ = entry
        depth = bits if kind == 1 else 0  # a cursor has its hot spot there
        return (width or 256) * (height or 256), depth or (colours - 1).bit_length() if colours else depth or 256, size

    width, height, colours, _, _, _, size, offset = max(entries, key=rank)
    if offset + size > length:
        raise InvalidImageError("truncated", CUT_OFF)
    file.seek(offset)
    data = file.read(size)
    try:
        image_format = format_of(data[:512])
    except InvalidImageError:  # a header that only icons have
        image_format = DIB
    if image_format is PNG:
        return data, NO_TAGS
    if image_format is not DIB:
        raise InvalidImageError("unsupported format", f"an icon with a picture of the format {image_format.name}")
    return _from_dib(data, (width, height, colours), max_pixels), NO_TAGS


def _from_dib(data: bytes, entry: tuple[int, int, int], max_pixels: int) -> Image.Image:
    """Return the picture of a DIB whose height counts its colours and its mask of transparent pixels."""
    from PIL.IcoImagePlugin import IcoImageFile

    if len(data) < 40 or int.from_bytes(data[:4], "little") not in DIB_HEADER_SIZES - {12}:
        raise InvalidImageError("damaged", "the picture in the icon has no header")
    width, height, _, bits = struct.unpack_from("<iiHH", data, 4)
    check_pixels(abs(width), abs(height), max_pixels)
    single = struct.pack("<HHHBBBBHHII", 0, 1, 1, *entry, 0, 1, bits, len(data), 22) + data
    with decoding_slot(abs(width * height)):
        return IcoImageFile(io.BytesIO(single))
