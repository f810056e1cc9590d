"""JPEG XL pictures (ISO/IEC 18181), by libjxl."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._directories import Tiff, camera_tags
from ._formats import JPEG_XL, jpeg_xl_header
from ._limits import check_pixels, decoding_slot

if TYPE_CHECKING:
    from PIL import Image

_SIGNATURE = b"\xff\x0a"
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
            if _is_cut_off(file):
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
    if file.read(2) == _SIGNATURE:
        return file.read(16)
    for name, begin, _ in _boxes(file):
        if name in (b"jxlc", b"jxlp"):
            file.seek(begin + (4 if name == b"jxlp" else 0))  # the number of the part comes first
            start = file.read(18)
            if start.startswith(_SIGNATURE) and len(start) > 4:
                return start[2:]
            break
    if _is_cut_off(file) or file.seek(0, os.SEEK_END) < 64:
        raise InvalidImageError("truncated", _TRUNCATED)
    raise InvalidImageError("damaged", "the JPEG XL file contains no picture")


def _is_cut_off(file: IO[bytes]) -> bool:
    """Return whether a box says that it has more bytes than the file; a bare codestream does not say its length."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    return file.read(2) != _SIGNATURE and any(end > length for _, _, end in _boxes(file))


def _boxes(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box of a container, and where its content begins and ends (ISO/IEC 18181-2)."""
    length, at = file.seek(0, os.SEEK_END), 0
    for _ in range(_MAX_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            if head:
                yield b"", at, at + 8
            return
        size, begin = int.from_bytes(head[:4], "big"), 8
        if size == 1:
            size, begin = int.from_bytes(head[8:16], "big"), 16
        end = at + size if size else length  # 0: up to the end of the file
        if end < at + begin:
            return
        yield head[4:8], at + begin, end
        at = end
