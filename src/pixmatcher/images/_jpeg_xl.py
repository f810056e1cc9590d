"""JPEG XL pictures (ISO/IEC 18181), by libjxl."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._boxes import boxes
from ._endings import ends_early
from ._exif import read_exif
from ._formats import JPEG_XL, jpeg_xl_header
from ._limits import check_pixels, decoding_slot
from ._metadata import NO_TAGS, PhotoTags, first_valid
from ._reasons import CUT_OFF
from ._xmp import read_xmp

if TYPE_CHECKING:
    from PIL import Image

_SIGNATURE = b"\xff\x0a"


def jpeg_xl_picture(file: IO[bytes], max_pixels: int) -> tuple[bytes | Image.Image, PhotoTags]:
    """Return the picture, or the JPEG from which the file was made, which is then decoded as such.

    Of an animation it is the last frame, because the decoder writes all of them to the same place. The size is checked
    before libjxl gets the file. It makes the picture upright as the codestream says; the orientation in EXIF or XMP
    counts only if that says nothing.

    Raises InvalidImageError.
    """
    width, height, orientation = jpeg_xl_header(_codestream_start(file))
    check_pixels(width, height, max_pixels)
    try:
        from pillow_jxl import Decoder
    except ImportError as error:
        detail = f"JPEG XL needs an extra: pip install 'pixmatcher[{JPEG_XL.extra}]'"
        raise InvalidImageError("unsupported format", detail) from error
    from PIL import Image

    file.seek(0)
    with decoding_slot(width * height):
        try:
            is_jpeg, info, data, profile, found = Decoder(num_threads=0)(file.read())
        except RuntimeError as error:  # it has one message for everything
            if ends_early(JPEG_XL, file):
                raise InvalidImageError("truncated", CUT_OFF) from error
            raise InvalidImageError("damaged", "it is cut off, or libjxl cannot decode it") from error
        if is_jpeg:
            return bytes(data), NO_TAGS
        image = Image.frombytes(info.mode, (info.width, info.height), data)
    if profile:
        image.info["icc_profile"] = bytes(profile)
    blocks = {bytes(box.box_type): bytes(box.data) for box in reversed(found)}
    exif, xmp = read_exif(blocks.get(b"Exif", b"")), read_xmp(blocks.get(b"xml ", b""))
    return image, first_valid([exif], [xmp], known=PhotoTags(None if orientation == 1 else 1))


def _codestream_start(file: IO[bytes]) -> bytes:
    """Return the bytes after the signature of the codestream, which may be in a box of a container."""
    file.seek(0)
    if file.read(2) == _SIGNATURE:
        return file.read(16)
    for name, begin, _ in boxes(file):
        if name in (b"jxlc", b"jxlp"):
            file.seek(begin + (4 if name == b"jxlp" else 0))  # the number of the part comes first
            start = file.read(18)
            if start.startswith(_SIGNATURE) and len(start) > 4:
                return start[2:]
            break
    if ends_early(JPEG_XL, file) or file.seek(0, os.SEEK_END) < 64:
        raise InvalidImageError("truncated", CUT_OFF)
    raise InvalidImageError("damaged", "the JPEG XL file contains no picture")
