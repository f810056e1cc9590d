"""Directories of tags, as TIFF and RAW files and EXIF blocks have them. Any byte may be wrong.

Source: TIFF 6.0, section 2, and BigTIFF, whose numbers of places and values have 64 bits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import IO

Directory = dict[int, tuple[int, int, bytes]]
"""Type, count, and the bytes of the value or of its place, by tag."""

_SIGNATURES = {
    b"II*\0": ("<", False),
    b"MM\0*": (">", False),
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
    b"IIU\0": ("<", False),  # Panasonic
    b"IIRO": ("<", False),  # Olympus
    b"IIRS": ("<", False),
    b"MMOR": (">", False),
}
"""The first bytes of files, with the order of the bytes of a number, and whether it is BigTIFF."""
_LAYOUTS = {
    (order, big): tuple(struct.Struct(order + codes) for codes in (("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")))
    for order in "<>"
    for big in (False, True)
}
"""The number of the tags of a directory, the entry of a tag, and a place."""
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""The types that are integers, as the codes of `struct`."""
_RATIONALS = {5: "I", 10: "i"}
_TEXTS = frozenset({1, 2, 7, 129})
_SIZES = {
    **{kind: struct.calcsize("=" + code) for kind, code in _CODES.items()},
    **{2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8, 129: 1},
}
_SUB_IFDS = 0x14A
_STRIPS_AND_TILES = ((0x111, 0x117), (0x144, 0x145))
"""The tags of the places and the lengths of strips, and of tiles."""
_PICTURE_TAGS = {0x102, 0x140, 0x152, 0x153, 0x15B, *_STRIPS_AND_TILES[0], *_STRIPS_AND_TILES[1]}
"""The tags of the picture whose values may be outside the directory: bits, palette, JPEG tables, strips and so on."""
_MAX_DIRECTORIES, _MAX_ENTRIES, _MAX_NUMBERS = 64, 4096, 16
_MAX_TEXT = 64


class Tiff:
    """The directories of a TIFF file or of an EXIF block. What is cut off or damaged is left out.

    The file must be seekable. Everything that is read has a bound. OSError alone is raised, if the file cannot be read.
    """

    def __init__(self, file: IO[bytes], head: bytes) -> None:
        """Take the first 16 bytes of the file, of which the first 4 are one of those of TIFF."""
        self._file = file
        self._order, big = _SIGNATURES[head[:4]]
        self._count, self._entry, self._place = _LAYOUTS[self._order, big]
        start = head[8:16] if big else head[4:8]
        self.first: int = self._place.unpack(start)[0] if len(start) == self._place.size else 0
        """The place of the first directory; 0 if the file is cut off before it says one."""

    @classmethod
    def of(cls, file: IO[bytes]) -> Tiff | None:
        """Return the reader of a file that begins like TIFF or one of its relatives, otherwise None."""
        file.seek(0)
        head = file.read(16)
        return cls(file, head) if head[:4] in _SIGNATURES else None

    def directories(self) -> Iterator[Directory]:
        """Yield the first directory, those that follow it, and those below each."""
        waiting, seen = [self.first], set[int]()
        while waiting and len(seen) < _MAX_DIRECTORIES:
            place = waiting.pop(0)
            if place <= 0 or place in seen:
                continue
            seen.add(place)
            directory, following = self._directory(place)
            yield directory
            waiting[:0] = [*self.numbers(directory, _SUB_IFDS), following]

    def directory(self, place: int) -> Directory:
        """Return the directory at a place, without tags that have no value; empty if there is none.

        Of a tag that occurs twice, the first one counts.
        """
        return self._directory(place)[0]

    def _directory(self, place: int) -> tuple[Directory, int]:
        """Return the directory at a place, and the place of the next one, or 0."""
        head = self._read(place, self._count.size) if place > 0 else b""
        if len(head) < self._count.size:
            return {}, 0
        number = self._count.unpack(head)[0]
        size = self._entry.size * min(number, _MAX_ENTRIES)
        table = self._file.read(size + self._place.size)
        whole = min(size, len(table)) // self._entry.size * self._entry.size
        entries = list(self._entry.iter_unpack(table[:whole]))
        directory = {tag: (kind, count, value) for tag, kind, count, value in reversed(entries) if count}
        is_whole = number <= _MAX_ENTRIES and len(table) == size + self._place.size
        return directory, self._place.unpack_from(table, size)[0] if is_whole else 0

    def is_cut_off(self) -> bool:
        """Return whether the first directory, a value of its picture, or one of its first strips is cut off."""
        head = self._read(self.first, self._count.size)
        if len(head) < self._count.size:
            return True
        end = self.first + self._count.size + self._entry.size * self._count.unpack(head)[0]
        directory = self.directory(self.first)
        for tag in _PICTURE_TAGS & directory.keys():
            kind, count, value = directory[tag]
            if _SIZES.get(kind, 0) * count > len(value):
                end = max(end, self.place(directory, tag) + _SIZES[kind] * count)
        for places, lengths in _STRIPS_AND_TILES:
            parts = zip(self.numbers(directory, places), self.numbers(directory, lengths), strict=False)
            end = max(end, *(place + length for place, length in parts), 0)
        return bool(end > self._file.seek(0, os.SEEK_END))

    def number(self, directory: Directory, tag: int) -> int:
        """Return the first number of a tag; 0 if it has none."""
        numbers = self._values(directory, tag, _CODES, 1)
        return numbers[0] if numbers else 0

    def numbers(self, directory: Directory, tag: int) -> list[int]:
        """Return the integers of a tag, up to 16 of them."""
        return list(self._values(directory, tag, _CODES, 1))

    def fractions(self, directory: Directory, tag: int) -> list[float]:
        """Return the fractions of a tag, up to 8 of them; none if one is divided by 0."""
        values = self._values(directory, tag, _RATIONALS, 2)
        return [a / b for a, b in zip(values[::2], values[1::2], strict=True)] if all(values[1::2]) else []

    def text(self, directory: Directory, tag: int) -> str:
        """Return the text of a tag up to its first zero; empty if it has more than 64 bytes."""
        if tag not in directory or directory[tag][0] not in _TEXTS or directory[tag][1] > _MAX_TEXT:
            return ""
        return self.value(directory, tag, _MAX_TEXT).split(b"\0")[0].decode("latin-1")

    def value(self, directory: Directory, tag: int, most: int) -> bytes:
        """Return the bytes of a tag, up to `most`; fewer than it says if the file is cut off."""
        if tag not in directory:
            return b""
        kind, count, value = directory[tag]
        size = _SIZES.get(kind, 0) * count
        if size <= len(value):
            return value[: min(size, most)]
        return self._read(self.place(directory, tag), min(size, most))

    def place(self, directory: Directory, tag: int) -> int:
        """Return the place of the value of a tag, which is elsewhere if it has more than 4 bytes (BigTIFF: 8)."""
        return int(self._place.unpack(directory[tag][2])[0])

    def _values(self, directory: Directory, tag: int, codes: dict[int, str], parts: int) -> tuple[int, ...]:
        """Return the numbers of a tag of one of these types, which have so many parts, as far as they are whole."""
        if tag not in directory or (kind := directory[tag][0]) not in codes:
            return ()
        size = _SIZES[kind]
        data = self.value(directory, tag, _MAX_NUMBERS // parts * size)
        count = len(data) // size
        return struct.unpack_from(f"{self._order}{count * parts}{codes[kind]}", data)

    def _read(self, place: int, length: int) -> bytes:
        if place >= 1 << 62:
            return b""
        self._file.seek(place)
        return self._file.read(length)
