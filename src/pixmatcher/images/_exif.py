"""EXIF: the tags of a photo that are used, from a block of bytes or from a file with the structure of TIFF.

The structure is that of TIFF 6.0, with the extension of BigTIFF; the tags are those of EXIF 3.0 (CIPA DC-008).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import IO

from ._dates import iso_date, utc_date

_ORIENTATION, _XMP, _IPTC, _PHOTOSHOP, _EXIF_IFD, _GPS_IFD = 0x0112, 0x02BC, 0x83BB, 0x8649, 0x8769, 0x8825
_TIMES = ((0x9003, 0x9011), (0x9004, 0x9012), (0x0132, 0x9010))
"""The tags DateTimeOriginal, DateTimeDigitized and DateTime, each with that of its UTC offset, the first that counts
first."""
_GPS_TIME, _GPS_DAY = 0x0007, 0x001D
_USED = frozenset(
    {
        _ORIENTATION,
        _XMP,
        _IPTC,
        _PHOTOSHOP,
        _EXIF_IFD,
        _GPS_IFD,
        _GPS_TIME,
        _GPS_DAY,
        *(tag for t in _TIMES for tag in t),
    }
)

_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""The types of TIFF that are integers, as the codes of `struct`."""
_RATIONALS = {5: "I", 10: "i"}
_TEXTS = frozenset({1, 2, 7, 129})
_MAX_TEXT = 64
_MAX_PACKET = 4 << 20
"""The most bytes of a block within the metadata that are read."""
_MAX_PADDING = 64
"""Some programs write other bytes than "Exif" and two zeros before the block."""
_SIGNATURES = (b"II*\0", b"MM\0*")
_FILE_SIGNATURES = {
    b"II*\0": "<",
    b"MM\0*": ">",
    b"II+\0": "<",  # BigTIFF
    b"MM\0+": ">",
    b"IIU\0": "<",  # Panasonic
    b"IIRO": "<",  # Olympus
    b"IIRS": "<",
    b"MMOR": ">",
}


@dataclass(frozen=True)
class ExifValues:
    """What EXIF says, as far as it is valid."""

    orientation: int | None = None
    """1 to 8."""
    taken: str | None = None
    """The first of DateTimeOriginal, DateTimeDigitized and DateTime, in ISO 8601."""
    located: str | None = None
    """The time of the GPS, in ISO 8601."""
    xmp: bytes = b""
    """The XMP packet of a TIFF file."""
    iptc: bytes = b""
    """The IPTC record of a TIFF file, or the Photoshop resources that may contain it."""


def read_exif(data: bytes | IO[bytes]) -> ExifValues:
    """Return what an EXIF block says, with or without its prefix, or a file with the structure of TIFF.

    Raw files of most cameras have that structure. The file must be seekable; not more is read than the tables and the
    values that are used. What is cut off or damaged is left out; OSError alone is raised, if the file cannot be read.
    """
    if isinstance(data, bytes):
        at = [place for place in (data.find(start, 0, _MAX_PADDING + 4) for start in _SIGNATURES) if place >= 0]
        if not at:
            return ExifValues()
        data = io.BytesIO(data[min(at) :])
    return _Reader(data).values()


class _Reader:
    """Reads the directories of a file or a block that begins with the header of TIFF."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        head = self._read(0, 16)
        self._order = _FILE_SIGNATURES.get(head[:4], "")
        self._big = head[2:4] in (b"+\0", b"\0+")
        at, code = (8, "Q") if self._big else (4, "I")
        whole = self._order and len(head) >= at + struct.calcsize(code)
        self._first: int | None = struct.unpack_from(self._order + code, head, at)[0] if whole else None

    def values(self) -> ExifValues:
        main = self._directory(self._first)
        camera = self._directory(self._integer(main.get(_EXIF_IFD)))
        gps = self._directory(self._integer(main.get(_GPS_IFD)))
        orientation = self._integer(main.get(_ORIENTATION))
        taken = None
        for tag, offset in _TIMES:  # TIFF/EP has the tags of the second directory in the first one
            text = self._text(camera.get(tag) or main.get(tag))
            taken = taken or iso_date(text, self._text(camera.get(offset) or main.get(offset)))
        return ExifValues(
            orientation if orientation is not None and 1 <= orientation <= 8 else None,
            taken,
            utc_date(self._text(gps.get(_GPS_DAY)), *self._hours(gps.get(_GPS_TIME))),
            self._bytes(main.get(_XMP)),
            self._bytes(main.get(_IPTC)) or self._bytes(main.get(_PHOTOSHOP)),
        )

    def _read(self, offset: int, length: int) -> bytes:
        if offset >= 1 << 62:
            return b""
        self._file.seek(offset)
        return self._file.read(length)

    def _directory(self, offset: int | None) -> dict[int, tuple[int, int, bytes]]:
        """Return type, number of values, and value or its place, of the tags of a directory that are used."""
        if not offset or offset < 0:
            return {}
        code, entry = ("Q", "HHQ8s") if self._big else ("H", "HHI4s")
        head = self._read(offset, struct.calcsize(code))
        if len(head) < struct.calcsize(code):
            return {}
        count = min(struct.unpack(self._order + code, head)[0], 0xFFFF)
        size = struct.calcsize("=" + entry)
        table = self._read(offset + len(head), count * size)
        found: dict[int, tuple[int, int, bytes]] = {}
        for tag, kind, length, value in struct.iter_unpack(self._order + entry, table[: len(table) // size * size]):
            if tag in _USED and length:
                found.setdefault(tag, (kind, length, value))
        return found

    def _value(self, value: bytes, length: int) -> bytes:
        """Return `length` bytes of a value: those in the table, or those at the place that it names."""
        if length <= len(value):
            return value[:length]
        return self._read(struct.unpack(self._order + ("Q" if self._big else "I"), value)[0], length)

    def _integer(self, entry: tuple[int, int, bytes] | None) -> int | None:
        code = _INTEGERS.get(entry[0]) if entry else None
        if entry is None or code is None:
            return None
        size = struct.calcsize("=" + code)
        content = entry[2] if size * entry[1] <= len(entry[2]) else self._value(entry[2], size * min(entry[1], 16))
        return int(struct.unpack_from(self._order + code, content)[0]) if len(content) >= size else None

    def _text(self, entry: tuple[int, int, bytes] | None) -> str:
        if entry is None or entry[0] not in _TEXTS or entry[1] > _MAX_TEXT:
            return ""
        return self._value(entry[2], entry[1]).split(b"\0")[0].decode("latin-1")

    def _bytes(self, entry: tuple[int, int, bytes] | None) -> bytes:
        size = {1: 1, 2: 1, 4: 4, 7: 1}.get(entry[0]) if entry else None
        if entry is None or size is None:
            return b""
        return self._value(entry[2], min(entry[1] * size, _MAX_PACKET))

    def _hours(self, entry: tuple[int, int, bytes] | None) -> tuple[float, float, float]:
        """Return hours, minutes and seconds; -1 for the hours if they are not known."""
        code = _RATIONALS.get(entry[0]) if entry else None
        content = self._value(entry[2], 24) if entry and code and entry[1] >= 3 else b""
        if len(content) < 24:
            return -1, 0, 0
        numbers = struct.unpack(f"{self._order}6{code}", content)
        if not all(numbers[1::2]):
            return -1, 0, 0
        hours, minutes, seconds = (numbers[n] / numbers[n + 1] for n in (0, 2, 4))
        return hours, minutes, seconds
