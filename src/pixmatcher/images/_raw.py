"""RAW files of cameras: find the largest preview that the camera stored, without decoding the values of the sensor.

Most RAW files are TIFF files (TIFF 6.0; DNG 1.7) whose directories say where JPEGs are. In the others, and where these
are too small, JPEGs are found by their first bytes. Only if that finds none, LibRaw (`rawpy`) reads the file.
"""

from __future__ import annotations

import os
import struct
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._boxes import boxes
from ._directories import Tiff
from ._formats import RAW
from ._limits import decoding_slot
from ._metadata import PhotoTags, raw_tags
from ._read import os_message
from ._reasons import CUT_OFF
from ._segments import SCAN, segments

if TYPE_CHECKING:
    from PIL import Image

_SUBFILE_TYPE, _COMPRESSION, _PHOTOMETRIC, _MAKE, _STRIPS, _STRIP_LENGTHS = 0xFE, 0x103, 0x106, 0x10F, 0x111, 0x117
_JPEG, _JPEG_LENGTH, _DNG_VERSION, _PANASONIC_JPEG = 0x201, 0x202, 0xC612, 0x2E
_SENSOR_PHOTOMETRIC = {32803, 34892}  # a filter of colours before the sensor; linear values
_SENSOR_COMPRESSION = {262, 32767, 32769, 32770, 34713, 65000, 65535}
"""Methods of Kodak, Sony, Epson, Samsung, Nikon, Kodak and Pentax."""
_JPEG_COMPRESSION = {6, 7}
_ELSEWHERE = 0xFFFFFFFF
"""What Panasonic says instead of the place of the values of the sensor."""

_BEFORE_FRAME = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
"""The markers of tables, comments and applications, which come before the size of a JPEG."""
_MAX_SEGMENTS, _MAX_JPEGS = 256, 1000
_BLOCK = 1 << 20
_LIBRAW_SECONDS = 120

_LARGE_ENOUGH = 320
"""A preview with a side of so many pixels is used; smaller ones are thumbnails, of 160 x 120 or 256 x 171 pixels."""
_THUMBNAIL = 160


@dataclass(frozen=True)
class _Jpeg:
    offset: int
    length: int
    """0 if it is not known."""
    width: int
    height: int


def is_raw(file: IO[bytes]) -> bool:
    """Return whether a TIFF file is a RAW file of a camera. Leaves the position of the file anywhere.

    The name of a maker alone does not say so: programs keep it when they save a developed photo as TIFF.
    """
    tiff = Tiff.of(file)
    if tiff is None:
        return False
    first, reduced = True, False
    for directory in tiff.directories():
        if first:
            if _DNG_VERSION in directory:
                return True
            first, reduced = False, bool(tiff.number(directory, _SUBFILE_TYPE) & 1) and _MAKE in directory
        if tiff.number(directory, _PHOTOMETRIC) in _SENSOR_PHOTOMETRIC:
            return True
        if tiff.number(directory, _COMPRESSION) in _SENSOR_COMPRESSION:
            return True
        if reduced and _JPEG in directory:  # a camera writes its thumbnail first, a program the picture
            return True
    return False


def raw_preview(file: IO[bytes], max_pixels: int) -> tuple[bytes | Image.Image, PhotoTags]:
    """Return the largest preview of a RAW file, or the developed picture in half size where there is none.

    With it, return the orientation of the RAW file, for a preview that does not say its own, and the time.

    Raises InvalidImageError: "unsupported format" if that needs LibRaw, which is not installed.
    """
    tiff = Tiff.of(file)
    declared, cut_off = _declared_jpegs(file, tiff)
    best = max(declared, key=lambda jpeg: jpeg.width * jpeg.height, default=None)
    is_dng = tiff is not None and _DNG_VERSION in tiff.directory(tiff.first)  # it declares all; tiles may be JPEGs too
    if not _is_large(best) and not is_dng:
        best = max(_found_jpegs(file), key=lambda jpeg: jpeg.width * jpeg.height, default=best)
    tags = raw_tags(file)
    if best is None or not _is_large(best):
        try:
            return _by_libraw(file, max_pixels, tags.taken)
        except InvalidImageError as error:
            if best is None or max(best.width, best.height) <= _THUMBNAIL or not _has_libraw():
                if cut_off and error.reason in ("damaged", "unsupported format"):
                    raise InvalidImageError("truncated", CUT_OFF) from error
                raise
    return _jpeg_bytes(file, best), tags


def _is_large(jpeg: _Jpeg | None) -> bool:
    return jpeg is not None and max(jpeg.width, jpeg.height) >= _LARGE_ENOUGH


def _declared_jpegs(file: IO[bytes], tiff: Tiff | None) -> tuple[list[_Jpeg], bool]:
    """Return the JPEGs that the headers of a RAW file point to, and whether they point behind the end of the file."""
    length = file.seek(0, os.SEEK_END)
    places: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    if tiff is None:
        file.seek(0)
        head = file.read(92)
        if head.startswith(b"FUJIFILMCCD-RAW") and len(head) == 92:
            places.append(struct.unpack_from(">II", head, 84))
        elif head[4:8] == b"ftyp":
            others = [(start, end - start) for _, start, end in boxes(file)]
    else:
        for directory in tiff.directories():
            places.append((tiff.number(directory, _JPEG), tiff.number(directory, _JPEG_LENGTH)))
            strips = list(zip(tiff.numbers(directory, _STRIPS), tiff.numbers(directory, _STRIP_LENGTHS), strict=False))
            is_jpeg = tiff.number(directory, _COMPRESSION) in _JPEG_COMPRESSION
            is_sensor = tiff.number(directory, _PHOTOMETRIC) in _SENSOR_PHOTOMETRIC
            (places if is_jpeg and len(strips) == 1 and not is_sensor else others).extend(strips)
            if _PANASONIC_JPEG in directory:
                places.append((tiff.place(directory, _PANASONIC_JPEG), directory[_PANASONIC_JPEG][1]))
    jpegs = []
    for offset, size in places:
        if 0 < offset < length and size > 0 and (sides := _jpeg_size(file, offset)):
            jpegs.append(_Jpeg(offset, min(size, length - offset), *sides))
    return jpegs, any(offset + size > length for offset, size in (*places, *others) if offset != _ELSEWHERE)


def _found_jpegs(file: IO[bytes]) -> list[_Jpeg]:
    """Return the JPEGs anywhere in a file, found by their first bytes."""
    jpegs: list[_Jpeg] = []
    tried, start, overlap = 0, 0, b""
    file.seek(0)
    while tried < _MAX_JPEGS and (block := file.read(_BLOCK)):
        data, at = overlap + block, -1
        while tried < _MAX_JPEGS and (at := data.find(b"\xff\xd8\xff", at + 1)) >= 0:
            tried += 1
            if sides := _jpeg_size(file, start - len(overlap) + at):
                jpegs.append(_Jpeg(start - len(overlap) + at, 0, *sides))
        overlap = data[-2:]
        start += len(block)
        file.seek(start)
    return jpegs


def _jpeg_size(file: IO[bytes], offset: int) -> tuple[int, int] | None:
    """Return the size of the JPEG at an offset; None if there is none that can be shown.

    The values of the sensor are often stored as lossless JPEG, or with 12 bits.
    """
    file.seek(offset)
    if file.read(2) != b"\xff\xd8":
        return None
    for marker, start, _ in segments(file, offset + 2, most=_MAX_SEGMENTS):
        if marker in (0xC0, 0xC1, 0xC2):
            file.seek(start)
            head = file.read(6)
            if len(head) < 6:
                return None
            bits, height, width, channels = struct.unpack(">BHHB", head)
            return (width, height) if bits == 8 and channels in (1, 3) and width and height else None
        if marker not in _BEFORE_FRAME:
            return None
    return None


def _jpeg_bytes(file: IO[bytes], jpeg: _Jpeg) -> bytes:
    """Return the bytes of a JPEG. If its length is not known, it ends at its end marker."""
    length = jpeg.length or jpeg.width * jpeg.height * 3 + _BLOCK  # no JPEG is larger than its pixels and its metadata
    length = min(length, file.seek(0, os.SEEK_END) - jpeg.offset)
    headers = segments(file, jpeg.offset, most=_MAX_SEGMENTS)
    scan = next((end - jpeg.offset for marker, _, end in headers if marker == SCAN), 0)
    file.seek(jpeg.offset)
    data = file.read(length)
    end = data.find(b"\xff\xd9", scan)  # a thumbnail in the headers has an end as well
    return data if jpeg.length or end < 0 else data[: end + 2]


def _has_libraw() -> bool:
    return find_spec("rawpy") is not None


def _by_libraw(file: IO[bytes], max_pixels: int, taken: str | None) -> tuple[bytes | Image.Image, PhotoTags]:
    """Return the preview that LibRaw finds, or the picture that it develops in half size; see `_libraw`.

    With it, return its orientation and the time, which is given.

    LibRaw runs in a process of its own: damaged files crash it at times, and it writes to standard error.

    Raises InvalidImageError if `rawpy` is not installed or LibRaw cannot read the file.
    """
    if not _has_libraw():
        detail = f"RAW without a preview needs an extra: pip install 'pixmatcher[{RAW.extra}]'"
        raise InvalidImageError("unsupported format", detail)
    import subprocess

    from PIL import Image

    command = [sys.executable, str(Path(__file__).with_name("_libraw.py")), str(max_pixels), str(_LARGE_ENOUGH)]
    file.seek(0)
    with decoding_slot(max_pixels):
        try:
            result = subprocess.run(command, input=file.read(), capture_output=True, timeout=_LIBRAW_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise InvalidImageError("damaged", f"LibRaw did not finish in {_LIBRAW_SECONDS} seconds") from error
        except OSError as error:
            raise InvalidImageError("cannot be read", f"LibRaw does not start: {os_message(error)}") from error
    line, _, data = result.stdout.partition(b"\n")
    kind, _, rest = line.decode().partition(" ")
    if kind == "failed":
        reason, _, detail = rest.partition(": ")
        raise InvalidImageError(reason, detail or CUT_OFF)
    if kind == "jpeg":
        return data, PhotoTags(int(rest), taken)
    if kind == "pixels":
        orientation, width, height = map(int, rest.split())
        return Image.frombytes("RGB", (width, height), data), PhotoTags(orientation, taken)
    raise InvalidImageError("damaged", "LibRaw cannot read it")
