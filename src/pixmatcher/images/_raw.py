"""RAW files of cameras: find the largest preview that the camera stored, without decoding the values of the sensor.

Most RAW files are TIFF files (TIFF 6.0; DNG 1.7) whose directories say where JPEGs are. In the others, and where these
are too small, JPEGs are found by their first bytes. Only if that finds none, LibRaw (`rawpy`) reads the file.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._directories import CameraTags, Tiff, camera_tags
from ._formats import RAW
from ._limits import decoding_slot
from ._read import os_message

if TYPE_CHECKING:
    from PIL import Image

_SUBFILE_TYPE, _COMPRESSION, _PHOTOMETRIC, _MAKE, _STRIPS, _STRIP_LENGTHS = 0xFE, 0x103, 0x106, 0x10F, 0x111, 0x117
_JPEG, _JPEG_LENGTH, _DNG_VERSION, _PANASONIC_JPEG = 0x201, 0x202, 0xC612, 0x2E
_SENSOR_PHOTOMETRIC = {32803, 34892}  # a filter of colours before the sensor; linear values
_SENSOR_COMPRESSION = {262, 32767, 32769, 32770, 34713, 65000, 65535}
"""Methods of Kodak, Sony, Epson, Samsung, Nikon, Kodak and Pentax."""
_JPEG_COMPRESSION = {6, 7}

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


def raw_preview(file: IO[bytes], max_pixels: int) -> bytes | Image.Image:
    """Return the largest preview of a RAW file, or the developed picture in half size where there is none.

    It has EXIF with the orientation and the time of the RAW file, unless it says itself how it is oriented.

    Raises InvalidImageError: "unsupported format" if that needs LibRaw, which is not installed.
    """
    length = file.seek(0, os.SEEK_END)
    tiff = Tiff.of(file)
    declared = _declared_jpegs(file, tiff, length)
    best = max(declared, key=lambda jpeg: jpeg.width * jpeg.height, default=None)
    is_dng = tiff is not None and _DNG_VERSION in tiff.first_directory()  # it declares all; tiles may be JPEGs as well
    if not _is_large(best) and not is_dng:
        best = max(_found_jpegs(file), key=lambda jpeg: jpeg.width * jpeg.height, default=best)
    tags = _tags(file, tiff)
    if best is None or not _is_large(best):
        try:
            return _by_libraw(file, max_pixels, tags)
        except InvalidImageError:
            if best is None or max(best.width, best.height) <= _THUMBNAIL or not _has_libraw():
                raise
    return _with_tags(_jpeg_bytes(file, best), tags)


def _is_large(jpeg: _Jpeg | None) -> bool:
    return jpeg is not None and max(jpeg.width, jpeg.height) >= _LARGE_ENOUGH


def _declared_jpegs(file: IO[bytes], tiff: Tiff | None, length: int) -> list[_Jpeg]:
    """Return the JPEGs that the headers of a RAW file point to."""
    places: list[tuple[int, int]] = []
    if tiff is None:
        file.seek(0)
        head = file.read(92)
        if head.startswith(b"FUJIFILMCCD-RAW") and len(head) == 92:
            places.append(struct.unpack_from(">II", head, 84))
    else:
        for directory in tiff.directories():
            places.append((tiff.number(directory, _JPEG), tiff.number(directory, _JPEG_LENGTH)))
            strips = tiff.numbers(directory, _STRIPS)
            is_jpeg = tiff.number(directory, _COMPRESSION) in _JPEG_COMPRESSION
            if is_jpeg and len(strips) == 1 and tiff.number(directory, _PHOTOMETRIC) not in _SENSOR_PHOTOMETRIC:
                places.append((strips[0], tiff.number(directory, _STRIP_LENGTHS)))
            if _PANASONIC_JPEG in directory:
                places.append((tiff.place(directory, _PANASONIC_JPEG), directory[_PANASONIC_JPEG][1]))
    jpegs = []
    for offset, size in places:
        if 0 < offset < length and size > 0 and (sides := _jpeg_size(file, offset)):
            jpegs.append(_Jpeg(offset, min(size, length - offset), *sides))
    return jpegs


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
    at = offset + 2
    for _ in range(_MAX_SEGMENTS):
        file.seek(at)
        head = file.read(10)
        if len(head) < 10 or head[0] != 0xFF:
            return None
        marker, length = head[1], int.from_bytes(head[2:4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            height, width, channels = struct.unpack_from(">HHB", head, 5)
            return (width, height) if head[4] == 8 and channels in (1, 3) and width and height else None
        if marker == 0xFF:  # padding
            at += 1
        elif marker in (0xC4, 0xCC, 0xDB, 0xDD, 0xFE) or 0xE0 <= marker <= 0xEF:
            at += 2 + length
        else:
            return None
    return None


def _jpeg_bytes(file: IO[bytes], jpeg: _Jpeg) -> bytes:
    """Return the bytes of a JPEG. If its length is not known, it ends at its end marker."""
    file.seek(jpeg.offset)
    if jpeg.length:
        return file.read(jpeg.length)
    most = jpeg.width * jpeg.height * 3 + _BLOCK  # no JPEG is larger than its pixels and its metadata
    length = file.seek(0, os.SEEK_END)
    file.seek(jpeg.offset)
    data = file.read(min(most, length - jpeg.offset))
    scan = 2
    while data[scan : scan + 1] == b"\xff" and data[scan + 1 : scan + 2] != b"\xda":  # a thumbnail has an end as well
        scan += 1 if data[scan + 1 : scan + 2] == b"\xff" else 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
    end = data.find(b"\xff\xd9", scan)
    return data[: end + 2] if end >= 0 else data


def _with_tags(jpeg: bytes, tags: CameraTags) -> bytes:
    """Return a JPEG with an EXIF block of these tags before its own metadata, unless that says an orientation."""
    if tags.orientation < 2 and not tags.taken:
        return jpeg
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker, length = jpeg[at : at + 2], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == b"\xff\xff":  # padding
            at += 1
            continue
        if not marker.startswith(b"\xff") or marker == b"\xff\xda":
            break
        is_exif = marker == b"\xff\xe1" and jpeg[at + 4 : at + 10] == b"Exif\0\0"
        if is_exif and camera_tags(Tiff.of(io.BytesIO(jpeg[at + 10 : at + 2 + length]))).orientation:
            return jpeg
        at += 2 + length
    block = b"Exif\0\0" + tags.exif_block(tags.orientation or 1)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + jpeg[2:]


def _tags(file: IO[bytes], tiff: Tiff | None) -> CameraTags:
    """Return the tags of a RAW file, which Canon's CR3 has in two boxes: the first directory, and the one of EXIF."""
    if tiff is not None:
        return camera_tags(tiff)
    file.seek(0)
    head = file.read(_BLOCK)
    if head[4:12] != b"ftypcrx ":
        return CameraTags()
    blocks = []
    for name in (b"CMT1", b"CMT2"):
        at = head.find(name)
        size = int.from_bytes(head[max(0, at - 4) : max(0, at)], "big")
        blocks.append(Tiff.of(io.BytesIO(head[at + 4 : at - 4 + size] if at > 0 else b"")))
    return camera_tags(*blocks)


def _has_libraw() -> bool:
    return find_spec("rawpy") is not None


def _by_libraw(file: IO[bytes], max_pixels: int, tags: CameraTags) -> bytes | Image.Image:
    """Return the preview that LibRaw finds, or the picture that it develops in half size; see `_libraw`.

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
        raise InvalidImageError(reason, detail)
    if kind == "jpeg":
        return _with_tags(data, replace(tags, orientation=int(rest)))
    if kind == "pixels":
        orientation, width, height = map(int, rest.split())
        image = Image.frombytes("RGB", (width, height), data)
        image.info["exif"] = tags.exif_block(orientation)
        return image
    raise InvalidImageError("damaged", "LibRaw cannot read it")
