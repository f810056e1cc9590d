"""The supported image formats: their file extensions, and how the content of a file shows its format."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO

from ..errors import InvalidImageError


@dataclass(frozen=True)
class ImageFormat:
    """An image format and what decodes it: a plugin of Pillow, or a function that finds a picture in the file."""

    name: str
    module: str
    """The module of the `plugin`, or, without one, of the package that a function in `_open._EMBEDDED` uses."""
    plugin: str
    extensions: tuple[str, ...]
    compressed: bool = True


JPEG = ImageFormat(
    "JPEG",
    "PIL.JpegImagePlugin",
    "JpegImageFile",
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp"),
        *(".jpg_large", ".jpg-large", ".jpg_small", ".jpg_orig", ".jpeg_large"),  # downloads from social networks
        *(".mpo", ".jps", ".insp", ".thm"),  # several JPEGs in one file, two in one picture, a sphere, a thumbnail
    ),
)
PNG = ImageFormat("PNG", "PIL.PngImagePlugin", "PngImageFile", (".png", ".apng"))
WEBP = ImageFormat("WEBP", "PIL.WebPImagePlugin", "WebPImageFile", (".webp",))
GIF = ImageFormat("GIF", "PIL.GifImagePlugin", "GifImageFile", (".gif",))
BMP = ImageFormat("BMP", "PIL.BmpImagePlugin", "BmpImageFile", (".bmp",), compressed=False)
DIB = ImageFormat("DIB", "PIL.BmpImagePlugin", "DibImageFile", (".dib",), compressed=False)
TIFF = ImageFormat("TIFF", "pixmatcher.images._tiff", "TiffFile", (".tif", ".tiff"), compressed=False)
JPEG2000 = ImageFormat(
    "JPEG2000",
    "PIL.Jpeg2KImagePlugin",
    "Jpeg2KImageFile",
    (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
)
PPM = ImageFormat("PPM", "PIL.PpmImagePlugin", "PpmImageFile", (".ppm", ".pgm", ".pbm", ".pnm"), compressed=False)
AVIF = ImageFormat("AVIF", "PIL.AvifImagePlugin", "AvifImageFile", (".avif", ".avifs"))
HEIF = ImageFormat("HEIF", "pillow_heif", "HeifImageFile", (".heic", ".heics", ".heif", ".heifs", ".hif"))
JPEG_XL = ImageFormat("JXL", "pillow_jxl", "", (".jxl",))
ICO = ImageFormat("ICO", "PIL.IcoImagePlugin", "", (".ico", ".cur"))
PSD = ImageFormat("PSD", "pixmatcher.images._psd", "PsdImageFile", (".psd", ".psb"))
TGA = ImageFormat("TGA", "pixmatcher.images._tga", "TgaImageFile", (".tga", ".vda", ".icb", ".vst"), compressed=False)
PCX = ImageFormat("PCX", "pixmatcher.images._pcx", "PcxImageFile", (".pcx",), compressed=False)
DDS = ImageFormat("DDS", "pixmatcher.images._dds", "DdsImageFile", (".dds",), compressed=False)
RAW = ImageFormat(
    "RAW",
    "rawpy",
    "",
    (
        *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".dng", ".gpr", ".raf", ".orf", ".rw2"),
        *(".rwl", ".pef", ".srw", ".3fr", ".fff", ".iiq", ".mos", ".mef", ".erf", ".kdc", ".dcr", ".mrw", ".x3f"),
    ),
)

FORMATS = (JPEG, PNG, WEBP, GIF, BMP, DIB, TIFF, JPEG2000, PPM, AVIF, HEIF, JPEG_XL, ICO, PSD, TGA, PCX, DDS, RAW)


ALLOWED_EXTENSIONS: frozenset[str] = frozenset(e for f in FORMATS for e in f.extensions)
"""Extensions, lower case with the dot, of the files worth opening; the content then decides."""


MEDIA_TYPES: dict[str, str] = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "DIB": "image/bmp",
    "TIFF": "image/tiff",
    "JPEG2000": "image/jp2",
    "PPM": "image/x-portable-anymap",
    "AVIF": "image/avif",
    "HEIF": "image/heif",
    "JXL": "image/jxl",
    "ICO": "image/vnd.microsoft.icon",
    "PSD": "image/vnd.adobe.photoshop",
    "TGA": "image/x-tga",
    "PCX": "image/vnd.zbrush.pcx",
    "DDS": "image/vnd-ms.dds",
}
"""The media type of files of a format, by its name; the other formats have none that programs know."""


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
    (b"\xff\x0a", JPEG_XL),
    (b"\0\0\0\x0cJXL \r\n\x87\n", JPEG_XL),
    (b"8BPS\0\x01", PSD),
    (b"8BPS\0\x02", PSD),
    (b"DDS \x7c\0\0\0", DDS),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),  # Olympus
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),  # Panasonic and Leica
    (b"II\x1a\0\0\0HEAPCCDR", RAW),  # Canon until 2004
    (b"\0MRM", RAW),  # Minolta
    (b"FOVb", RAW),  # Sigma
)
DIB_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_PPM_HEADER = re.compile(rb"P(?:[14]|[2356](?=(?:\s+(?:#[^\n]*\n\s*)*\d+){3}))(?:\s+(?:#[^\n]*\n\s*)*\d{1,9}){2}\s")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
UNSUPPORTED_SIGNATURES: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\s*<(!doctype html|html)", re.I), "not an image", "it is a web page"),
    (re.compile(rb"PK\x03\x04"), "not an image", "it is a ZIP archive"),
    (re.compile(rb"%PDF-"), "unsupported format", "PDF"),
    (re.compile(rb"%!PS"), "unsupported format", "PostScript"),
    (re.compile(rb"\xc5\xd0\xd3\xc6"), "unsupported format", "PostScript"),  # EPS with a preview
    (re.compile(rb"gimp xcf "), "unsupported format", "GIMP (XCF): export it as PNG"),
    (re.compile(rb"\s*(<\?xml[^>]*>)?\s*<svg", re.I), "unsupported format", "SVG"),
)
"""The first bytes of common files that are not supported, with the reason and the detail of the error."""


def format_of(head: bytes) -> ImageFormat:
    """Return the format of a file from its first bytes: 128 or more, unless the file is shorter.

    RAW files that are TIFF files by these bytes are TIFF here; `_raw.is_raw` tells them apart.

    Raises InvalidImageError: "not an image" or "unsupported format".
    """
    if head[:4] in (b"II*\0", b"MM\0*") and _is_raw_head(head):
        return RAW
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
        if b"crx " in brands:  # Canon since 2018
            return RAW
        raise InvalidImageError("not an image", "it is a video or another media file")
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return PPM
    if _is_dib(head):
        return DIB
    if _is_icon(head):
        return ICO
    if _is_pcx(head):
        return PCX
    if _is_tga(head):
        return TGA
    for pattern, reason, detail in UNSUPPORTED_SIGNATURES:
        if pattern.match(head):
            raise InvalidImageError(reason, detail)
    raise InvalidImageError("not an image", "its content has no known image format")


def has_image_content(head: bytes) -> bool:
    """Return whether the first 512 bytes of a file of any name are those of an image that can be opened.

    A format whose files begin with only two certain bytes must have a plausible header as well.
    """
    try:
        image_format = format_of(head)
    except InvalidImageError:
        return False
    if image_format is JPEG:
        return 0xC0 <= (head[3:4] or b"\0")[0] < 0xFF
    if image_format is BMP:
        return _is_dib(head[14:])
    if image_format is PPM:
        return _PPM_HEADER.match(head) is not None
    if image_format is JPEG_XL:
        return head[:2] != b"\xff\n" or _is_jpeg_xl_stream(head)
    return True


def _is_raw_head(head: bytes) -> bool:
    """Return whether the head of a TIFF file has the marker of Canon (CR2) or Phase One (IIQ)."""
    if head[8:11] == b"CR\x02":
        return True
    return (head[8:12], head[13:16]) == (b"IIII", b"waR") or (head[8:12], head[12:15]) == (b"MMMM", b"Raw")


def _is_dib(head: bytes) -> bool:
    """Return whether a file begins like the header of a BMP without its first 14 bytes."""
    size = int.from_bytes(head[:4], "little")
    if size not in DIB_HEADER_SIZES or len(head) < 16:
        return False
    width, height, planes, bits = struct.unpack_from("<HHHH" if size == 12 else "<iiHH", head, 4)
    return width > 0 and height != 0 and planes == 1 and bits in (1, 2, 4, 8, 16, 24, 32)


def _is_icon(head: bytes) -> bool:
    """Return whether a file begins like an icon or a cursor: every entry of its directory must be plausible."""
    if head[:4] not in (b"\0\0\1\0", b"\0\0\2\0") or len(head) < 22:
        return False
    count = int.from_bytes(head[4:6], "little")
    for at in range(6, min(6 + 16 * count, len(head) - 15), 16):
        reserved, planes, bits, size, offset = struct.unpack_from("<BHHII", head, at + 3)
        if reserved not in (0, 255) or size < 12 or offset < 6 + 16 * count:
            return False
        if head[2] == 1 and (planes > 1 or bits not in (0, 1, 4, 8, 16, 24, 32)):
            return False
    return 0 < count <= 1024


def _is_pcx(head: bytes) -> bool:
    """Return whether a file begins like a PCX file."""
    if len(head) < 128 or head[0] != 10 or head[1] not in (0, 2, 3, 4, 5) or head[2] > 1 or head[64]:
        return False
    left, top, right, bottom = struct.unpack_from("<4H", head, 4)
    planes, stride = head[65], int.from_bytes(head[66:68], "little")
    bits = head[3]
    plausible = right >= left and bottom >= top and bits in (1, 2, 4, 8) and 1 <= planes <= 4
    return plausible and 0 <= stride * 8 - (right - left + 1) * bits < 64  # rows end at 2, 4 or 8 bytes


def _is_tga(head: bytes) -> bool:
    """Return whether a file begins like a TGA file, which has no signature: all fields must be plausible."""
    if len(head) < 19 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11):
        return False
    first, length, entry, _, _, width, height, depth, flags = struct.unpack_from("<HHBHHHHBB", head, 3)
    if not (width and height) or flags & 0xC0:
        return False
    with_map = head[2] in (1, 9)
    if with_map != (head[1] == 1):
        return False
    if with_map:
        return entry in (15, 16, 24, 32) and depth == 8 and 0 < first + length <= 256
    if (first, length, entry) not in ((0, 0, 0), (0, 0, 24), (0, 256, 24)):
        return False
    alpha_bits = {(2, 16): (0, 1), (2, 24): (0,), (2, 32): (0, 8), (3, 8): (0, 8), (3, 16): (0, 8)}
    return flags & 0x0F in alpha_bits.get((head[2] & 7, depth), ())


def _is_jpeg_xl_stream(head: bytes) -> bool:
    """Return whether a JPEG XL codestream says a plausible size, which is all that can be seen of two certain bytes."""
    width, height, _ = jpeg_xl_header(head[2:])
    return len(head) > 12 and min(width, height) >= 64 and max(width, height) <= min(32_768, 8 * min(width, height))


def jpeg_xl_header(data: bytes) -> tuple[int, int, int]:
    """Return width, height and orientation (1 to 8) from the bytes of a JPEG XL codestream after its signature.

    ISO/IEC 18181-1, SizeHeader and the begin of ImageMetadata. Width and height are those before the rotation.
    """
    bits, at = int.from_bytes(data[:16], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (at - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    above, below = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    width = height * above // below if ratio else side()
    all_default = take(1)
    orientation = 1 + take(3) if not all_default and take(1) else 1
    return width, height, orientation


def has_tga_footer(file: IO[bytes]) -> bool:
    """Return whether the file ends like a TGA file of version 2, whatever its header looks like."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 18))
    return file.read(18) == b"TRUEVISION-XFILE.\0"


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
