"""RAW files of cameras: find the largest preview that the camera stored, without decoding the values of the sensor.

Most RAW files are TIFF files (TIFF 6.0; DNG 1.7) whose directories say where JPEGs are. In the others, and where these
are too small, JPEGs are found by their first bytes. Only if that finds none, LibRaw (`rawpy`) reads the file.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from ..errors import InvalidImageError
from ._embedded import EmbeddedPicture
from ._formats import RAW
from ._limits import decoding_slot
from ._read import os_message

_Value = tuple[int, int, bytes]
"""Type, count, and the bytes of the value or of its offset."""
_Directory = dict[int, _Value]

_SUBFILE_TYPE, _COMPRESSION, _PHOTOMETRIC, _MAKE, _STRIPS, _ORIENTATION = 0xFE, 0x103, 0x106, 0x10F, 0x111, 0x112
_STRIP_LENGTHS, _SUB_IFDS, _JPEG, _JPEG_LENGTH, _EXIF_IFD = 0x117, 0x14A, 0x201, 0x202, 0x8769
_TAKEN, _TAKEN_OFFSET, _DNG_VERSION, _PANASONIC_JPEG = 0x9003, 0x9011, 0xC612, 0x2E
_SENSOR_PHOTOMETRIC = {32803, 34892}  # a filter of colours before the sensor; linear values
_SENSOR_COMPRESSION = {262, 32767, 32769, 32770, 34713, 65000, 65535}
"""Methods of Kodak, Sony, Epson, Samsung, Nikon, Kodak and Pentax."""
_JPEG_COMPRESSION = {6, 7}
_VALUE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4}

_MAX_DIRECTORIES, _MAX_ENTRIES, _MAX_SEGMENTS, _MAX_JPEGS = 64, 1024, 256, 1000
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
    tiff = _Tiff.of(file)
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


def raw_preview(file: IO[bytes], max_pixels: int) -> EmbeddedPicture:
    """Return the largest preview of a RAW file, or the developed picture in half size where there is none.

    Raises InvalidImageError: "unsupported format" if that needs LibRaw, which is not installed.
    """
    length = file.seek(0, os.SEEK_END)
    tiff = _Tiff.of(file)
    declared = _declared_jpegs(file, tiff, length)
    best = max(declared, key=lambda jpeg: jpeg.width * jpeg.height, default=None)
    is_dng = tiff is not None and tiff.first_has(_DNG_VERSION)  # it declares all; its picture may consist of JPEGs
    if not _is_large(best) and not is_dng:
        best = max(_found_jpegs(file), key=lambda jpeg: jpeg.width * jpeg.height, default=best)
    exif = _exif(file, tiff)
    if best is None or not _is_large(best):
        try:
            return _by_libraw(file, max_pixels, exif)
        except InvalidImageError:
            if best is None or max(best.width, best.height) <= _THUMBNAIL or not _has_libraw():
                raise
    data = _jpeg_bytes(file, best)
    orientation = 1 if _has_orientation(data) else _orientation(exif) or 1
    return EmbeddedPicture(data, orientation, exif)


def _is_large(jpeg: _Jpeg | None) -> bool:
    return jpeg is not None and max(jpeg.width, jpeg.height) >= _LARGE_ENOUGH


class _Tiff:
    """The directories of a TIFF file or of an EXIF block. Nothing it reads raises an error or has no bound."""

    def __init__(self, file: IO[bytes], order: str) -> None:
        self._file, self._order = file, order

    @classmethod
    def of(cls, file: IO[bytes]) -> _Tiff | None:
        """Return the reader of a file that begins like TIFF or one of its relatives, otherwise None."""
        file.seek(0)
        head = file.read(4)
        relatives = {b"II*\0": "<", b"MM\0*": ">", b"IIRO": "<", b"IIRS": "<", b"MMOR": ">", b"IIU\0": "<"}
        return cls(file, relatives[head]) if head in relatives else None

    def directories(self) -> Iterator[_Directory]:
        """Yield the first directory, those that follow it, and those below each."""
        waiting, seen = [self.first_offset()], set[int]()
        while waiting and len(seen) < _MAX_DIRECTORIES:
            offset = waiting.pop(0)
            if not offset or offset in seen:
                continue
            seen.add(offset)
            directory, following = self.directory(offset)
            yield directory
            waiting[:0] = [*self.numbers(directory, _SUB_IFDS), following]

    def directory(self, offset: int) -> tuple[_Directory, int]:
        """Return the directory at an offset, and the offset of the next one; empty and 0 if there is none."""
        self._file.seek(offset)
        head = self._file.read(2)
        count = struct.unpack(self._order + "H", head)[0] if len(head) == 2 else 0
        if not 0 < count <= _MAX_ENTRIES:
            return {}, 0
        data = self._file.read(12 * count + 4)
        directory: _Directory = {}
        for at in range(0, min(12 * count, len(data) - 11), 12):
            tag, kind, length, value = struct.unpack_from(self._order + "HHI4s", data, at)
            directory[tag] = (kind, length, value)
        following = struct.unpack_from(self._order + "I", data, 12 * count)[0] if len(data) == 12 * count + 4 else 0
        return directory, following

    def first_has(self, tag: int) -> bool:
        """Return whether the first directory has a tag."""
        return tag in self.directory(self.first_offset())[0]

    def first_number(self, tag: int) -> int:
        """Return the first number of a tag of the first directory; 0 if it has none."""
        return self.number(self.directory(self.first_offset())[0], tag)

    def number(self, directory: _Directory, tag: int) -> int:
        """Return the first number of a tag; 0 if it has none."""
        return next(iter(self.numbers(directory, tag)), 0)

    def numbers(self, directory: _Directory, tag: int) -> list[int]:
        """Return the numbers of a tag, up to 16 of them."""
        kind = directory.get(tag, (0, 0, b""))[0]
        size = {3: 2, 4: 4, 13: 4}.get(kind)
        if size is None:
            return []
        data = self.value(directory, tag)[: 16 * size]
        return list(struct.unpack(f"{self._order}{len(data) // size}{'H' if size == 2 else 'I'}", data))

    def value(self, directory: _Directory, tag: int) -> bytes:
        """Return the bytes of a tag, up to 256 of them; fewer than it says if the file is cut off."""
        kind, length, value = directory.get(tag, (0, 0, b""))
        size = _VALUE_SIZES.get(kind, 0) * length
        if size <= 4:
            return value[:size]
        self._file.seek(self.place(directory, tag))
        data = self._file.read(min(size, 256))
        return data[: len(data) // _VALUE_SIZES[kind] * _VALUE_SIZES[kind]]

    def place(self, directory: _Directory, tag: int) -> int:
        """Return the offset at which the value of a tag is, unless it has four bytes or fewer."""
        return int(struct.unpack(self._order + "I", directory[tag][2])[0])

    def first_offset(self) -> int:
        """Return the offset of the first directory; 0 if the file is cut off before it."""
        self._file.seek(4)
        data = self._file.read(4)
        return int(struct.unpack(self._order + "I", data)[0]) if len(data) == 4 else 0


def _declared_jpegs(file: IO[bytes], tiff: _Tiff | None, length: int) -> list[_Jpeg]:
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


def _has_orientation(jpeg: bytes) -> bool:
    """Return whether the metadata of a JPEG says an orientation."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if jpeg[at : at + 1] != b"\xff" or jpeg[at + 1 : at + 2] == b"\xda":
            return False
        if jpeg[at + 1 : at + 2] == b"\xff":
            at += 1
            continue
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == 0xE1:
            segment = jpeg[at + 4 : at + 2 + length]
            if segment.startswith(b"Exif\0\0") and _orientation(segment[6:]):
                return True
            if b"tiff:Orientation" in segment:
                return True
        at += 2 + length
    return False


def _orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block; 0 if it has none."""
    tiff = _Tiff.of(io.BytesIO(exif))
    orientation = tiff.first_number(_ORIENTATION) if tiff is not None else 0
    return orientation if 1 <= orientation <= 8 else 0


def _exif(file: IO[bytes], tiff: _Tiff | None) -> bytes:
    """Return an EXIF block with the orientation and the time of a RAW file; empty if it has neither."""
    if tiff is not None:
        first, _ = tiff.directory(tiff.first_offset())
        below, _ = tiff.directory(tiff.number(first, _EXIF_IFD))
        return _exif_block(
            tiff.number(first, _ORIENTATION), tiff.value(below, _TAKEN), tiff.value(below, _TAKEN_OFFSET)
        )
    file.seek(0)
    head = file.read(_BLOCK)
    if head[4:12] != b"ftypcrx ":
        return b""
    blocks = []
    for name in (b"CMT1", b"CMT2"):  # Canon's boxes with the first directory and the one of EXIF
        at = head.find(name)
        size = int.from_bytes(head[max(0, at - 4) : max(0, at)], "big")
        blocks.append(_Tiff.of(io.BytesIO(head[at + 4 : at - 4 + size] if at > 0 else b"")))
    main, below_tiff = blocks
    orientation = main.first_number(_ORIENTATION) if main is not None else 0
    if below_tiff is None:
        return _exif_block(orientation, b"", b"")
    first, _ = below_tiff.directory(below_tiff.first_offset())
    return _exif_block(orientation, below_tiff.value(first, _TAKEN), below_tiff.value(first, _TAKEN_OFFSET))


def _exif_block(orientation: int, taken: bytes, taken_offset: bytes) -> bytes:
    """Return an EXIF block (TIFF 6.0, little-endian) with these values; `taken` and its UTC offset may be empty."""
    main = struct.pack("<HHHIHHHHIII", 2, _ORIENTATION, 3, 1, orientation or 1, 0, _EXIF_IFD, 4, 1, 38, 0)
    texts = [(tag, text) for tag, text in ((_TAKEN, taken), (_TAKEN_OFFSET, taken_offset)) if len(text) > 4]
    at = 38 + 2 + 12 * len(texts) + 4
    below = struct.pack("<H", len(texts))
    for tag, text in texts:
        below += struct.pack("<HHII", tag, 2, len(text), at)
        at += len(text)
    return b"II*\0\x08\0\0\0" + main + below + bytes(4) + b"".join(text for _, text in texts)


def _has_libraw() -> bool:
    return find_spec("rawpy") is not None


def _by_libraw(file: IO[bytes], max_pixels: int, exif: bytes) -> EmbeddedPicture:
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
        return EmbeddedPicture(data, 1 if _has_orientation(data) else int(rest), exif)
    if kind == "pixels":
        orientation, width, height = map(int, rest.split())
        return EmbeddedPicture(Image.frombytes("RGB", (width, height), data), orientation, exif)
    raise InvalidImageError("damaged", "LibRaw cannot read it")
