"""The supported image formats: their file extensions, and how the content of a file shows its format."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import PurePath

from ..errors import InvalidImageError


@dataclass(frozen=True)
class ImageFormat:
    """An image format and the Pillow plugin that decodes it."""

    name: str
    module: str
    plugin: str
    extensions: tuple[str, ...]
    compressed: bool = True


JPEG = ImageFormat("JPEG", "PIL.JpegImagePlugin", "JpegImageFile", (".jpg", ".jpeg", ".jpe", ".jfif"))
PNG = ImageFormat("PNG", "PIL.PngImagePlugin", "PngImageFile", (".png", ".apng"))
WEBP = ImageFormat("WEBP", "PIL.WebPImagePlugin", "WebPImageFile", (".webp",))
GIF = ImageFormat("GIF", "PIL.GifImagePlugin", "GifImageFile", (".gif",))
BMP = ImageFormat("BMP", "PIL.BmpImagePlugin", "BmpImageFile", (".bmp",), compressed=False)
DIB = ImageFormat("DIB", "PIL.BmpImagePlugin", "DibImageFile", (".dib",), compressed=False)
TIFF = ImageFormat("TIFF", "PIL.TiffImagePlugin", "TiffImageFile", (".tif", ".tiff"), compressed=False)
JPEG2000 = ImageFormat(
    "JPEG2000",
    "PIL.Jpeg2KImagePlugin",
    "Jpeg2KImageFile",
    (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
)
PPM = ImageFormat("PPM", "PIL.PpmImagePlugin", "PpmImageFile", (".ppm", ".pgm", ".pbm", ".pnm"), compressed=False)
AVIF = ImageFormat("AVIF", "PIL.AvifImagePlugin", "AvifImageFile", (".avif", ".avifs"))
HEIF = ImageFormat("HEIF", "pillow_heif", "HeifImageFile", (".heic", ".heics", ".heif", ".heifs", ".hif"))

FORMATS = (JPEG, PNG, WEBP, GIF, BMP, DIB, TIFF, JPEG2000, PPM, AVIF, HEIF)

ALLOWED_EXTENSIONS: frozenset[str] = frozenset(e for f in FORMATS for e in f.extensions)
"""Extensions, lower case with the dot, of the files worth opening; the content then decides."""


def is_allowed_extension(path: str | os.PathLike[str]) -> bool:
    """Return whether the file name has the extension of an image, in upper or lower case. The file is not read."""
    return PurePath(path).suffix.lower() in ALLOWED_EXTENSIONS


_SIGNATURES: tuple[tuple[bytes, ImageFormat], ...] = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", JPEG2000),
    (b"\xff\x4f\xff\x51", JPEG2000),
    (b"BM", BMP),
)
_DIB_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
UNSUPPORTED_SIGNATURES: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\s*<(!doctype html|html)", re.I), "not an image", "it is a web page"),
    (re.compile(rb"PK\x03\x04"), "not an image", "it is a ZIP archive"),
    (re.compile(rb"%PDF-"), "unsupported format", "PDF"),
    (re.compile(rb"%!PS"), "unsupported format", "PostScript"),
    (re.compile(rb"8BPS"), "unsupported format", "Photoshop"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "unsupported format", "JPEG XL"),
    (re.compile(rb"\s*(<\?xml[^>]*>)?\s*<svg", re.I), "unsupported format", "SVG"),
)
"""The first bytes of common files that are not supported, with the reason and the detail of the error."""


def format_of(head: bytes) -> ImageFormat:
    """Return the format of a file from its first bytes: 32 or more, unless the file is shorter.

    Raises InvalidImageError: "not an image" or "unsupported format".
    """
    for signature, image_format in _SIGNATURES:
        if head.startswith(signature):
            return image_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(_u32(head, 0), len(head)), 4)}
        if brands & {b"avif", b"avis"}:
            return AVIF
        if brands & _HEIF_BRANDS:
            return HEIF
        raise InvalidImageError("not an image", "it is a video or another media file")
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return PPM
    if len(head) >= 16 and int.from_bytes(head[:4], "little") in _DIB_HEADER_SIZES:
        return DIB
    for pattern, reason, detail in UNSUPPORTED_SIGNATURES:
        if pattern.match(head):
            raise InvalidImageError(reason, detail)
    raise InvalidImageError("not an image", "its content has no known image format")


def has_image_content(head: bytes) -> bool:
    """Return whether the first 512 bytes of a file of any name are those of an image that can be opened."""
    try:
        return format_of(head) is not DIB  # four bytes that other files also begin with
    except InvalidImageError:
        return False


def webp_size(head: bytes) -> tuple[int, int]:
    """Return width and height from the first 30 bytes of a WebP file; (0, 0) if they do not contain them."""
    if len(head) >= 30:
        chunk = head[12:16]
        if chunk == b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        if chunk == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "big")
