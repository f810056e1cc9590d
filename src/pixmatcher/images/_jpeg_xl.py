"""JPEG XL pictures (ISO/IEC 18181), by libjxl."""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._directories import Tiff, camera_tags
from ._formats import JPEG_XL, ends_early, jpeg_xl_header
from ._limits import check_pixels, decoding_slot

if TYPE_CHECKING:
    from PIL import Image

_MAX_BOXES = 1000
_TRUNCATED = "the file is cut off before the end of the image"


def jpeg_xl_picture(file: IO[bytes], max_pixels: int) -> bytes | Image.Image:
    """Return the picture, or the JPEG from which the file was made, which is then decoded as such.

    Of an animation it is the last frame, because the decoder writes all of them to the same place. The size is checked
    before libjxl gets the file. It makes the picture upright as the codestream says; EXIF counts only if that says
    nothing.

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
            is_jpeg, info, data, profile, boxes = Decoder(num_threads=0)(file.read())
        except RuntimeError as error:  # it has one message for everything
            if ends_early(JPEG_XL, file):
                raise InvalidImageError("truncated", _TRUNCATED) from error
            raise InvalidImageError("damaged", "it is cut off, or libjxl cannot decode it") from error
        if is_jpeg:
            return bytes(data)
        image = Image.frombytes(info.mode, (info.width, info.height), data)
    if profile:
        image.info["icc_profile"] = bytes(profile)
    exif = next((bytes(box.data) for box in boxes if bytes(box.box_type) == b"Exif"), b"")
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        exif = exif[4 + int.from_bytes(exif[:4], "big") :]  # the box says where it begins
    if orientation != 1:
        exif = camera_tags(Tiff.of(io.BytesIO(exif))).exif_block(1)
    image.info["exif"] = exif
    return image


def _codestream_start(file: IO[bytes]) -> bytes:
    """Return the bytes after the signature of the codestream, which may be in a box of a container."""
    file.seek(0)
    if file.read(2) == b"\xff\x0a":
        return file.read(16)
    length, at = file.seek(0, os.SEEK_END), 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        size, begin = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, begin = int.from_bytes(head[8:16], "big"), 16
        if head[4:8] in (b"jxlc", b"jxlp"):
            file.seek(at + begin + (4 if head[4:8] == b"jxlp" else 0))
            start = file.read(18)
            if start.startswith(b"\xff\x0a") and len(start) > 4:
                return start[2:]
            break
        if size < begin:
            break
        at += size
    if at >= length or length < 64:
        raise InvalidImageError("truncated", _TRUNCATED)
    raise InvalidImageError("damaged", "the JPEG XL file contains no picture")
