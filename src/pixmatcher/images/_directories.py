"""Directories of tags, as TIFF and RAW files and EXIF blocks have them (TIFF 6.0, section 2). Any byte may be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_Value = tuple[int, int, bytes]
"""Type, count, and the bytes of the value or of its offset."""
Directory = dict[int, _Value]

_ORIENTATION, _SUB_IFDS, _EXIF_IFD, _TAKEN, _TAKEN_OFFSET = 0x112, 0x14A, 0x8769, 0x9003, 0x9011
_VALUE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 13: 4}
_MAX_DIRECTORIES, _MAX_ENTRIES = 64, 1024


class Tiff:
    """The directories of a TIFF file or of an EXIF block. Nothing it reads raises an error or has no bound."""

    def __init__(self, file: IO[bytes], order: str) -> None:
        self._file, self._order = file, order

    @classmethod
    def of(cls, file: IO[bytes]) -> Tiff | None:
        """Return the reader of a file that begins like TIFF or one of its relatives, otherwise None."""
        file.seek(0)
        head = file.read(4)
        relatives = {b"II*\0": "<", b"MM\0*": ">", b"IIRO": "<", b"IIRS": "<", b"MMOR": ">", b"IIU\0": "<"}
        return cls(file, relatives[head]) if head in relatives else None

    def directories(self) -> Iterator[Directory]:
        """Yield the first directory, those that follow it, and those below each."""
        waiting, seen = [self._first_offset()], set[int]()
        while waiting and len(seen) < _MAX_DIRECTORIES:
            offset = waiting.pop(0)
            if not offset or offset in seen:
                continue
            seen.add(offset)
            directory, following = self.directory(offset)
            yield directory
            waiting[:0] = [*self.numbers(directory, _SUB_IFDS), following]

    def directory(self, offset: int) -> tuple[Directory, int]:
        """Return the directory at an offset, and the offset of the next one; empty and 0 if there is none."""
        self._file.seek(offset)
        head = self._file.read(2)
        count = struct.unpack(self._order + "H", head)[0] if len(head) == 2 else 0
        if not 0 < count <= _MAX_ENTRIES:
            return {}, 0
        data = self._file.read(12 * count + 4)
        directory: Directory = {}
        for at in range(0, min(12 * count, len(data) - 11), 12):
            tag, kind, length, value = struct.unpack_from(self._order + "HHI4s", data, at)
            directory[tag] = (kind, length, value)
        following = struct.unpack_from(self._order + "I", data, 12 * count)[0] if len(data) == 12 * count + 4 else 0
        return directory, following

    def first_directory(self) -> Directory:
        """Return the first directory; empty if there is none."""
        return self.directory(self._first_offset())[0]

    def number(self, directory: Directory, tag: int) -> int:
        """Return the first number of a tag; 0 if it has none."""
        return next(iter(self.numbers(directory, tag)), 0)

    def numbers(self, directory: Directory, tag: int) -> list[int]:
        """Return the numbers of a tag, up to 16 of them."""
        kind = directory.get(tag, (0, 0, b""))[0]
        size = {3: 2, 4: 4, 13: 4}.get(kind)
        if size is None:
            return []
        data = self.value(directory, tag)[: 16 * size]
        return list(struct.unpack(f"{self._order}{len(data) // size}{'H' if size == 2 else 'I'}", data))

    def value(self, directory: Directory, tag: int) -> bytes:
        """Return the bytes of a tag, up to 256 of them; fewer than it says if the file is cut off."""
        kind, length, value = directory.get(tag, (0, 0, b""))
        size = _VALUE_SIZES.get(kind, 0) * length
        if size <= 4:
            return value[:size]
        self._file.seek(self.place(directory, tag))
        data = self._file.read(min(size, 256))
        return data[: len(data) // _VALUE_SIZES[kind] * _VALUE_SIZES[kind]]

    def place(self, directory: Directory, tag: int) -> int:
        """Return the offset at which the value of a tag is, unless it has four bytes or fewer."""
        return int(struct.unpack(self._order + "I", directory[tag][2])[0])

    def _first_offset(self) -> int:
        """Return the offset of the first directory; 0 if the file is cut off before it."""
        self._file.seek(4)
        data = self._file.read(4)
        return int(struct.unpack(self._order + "I", data)[0]) if len(data) == 4 else 0


@dataclass(frozen=True)
class CameraTags:
    """What a camera says in EXIF, as far as it is used."""

    orientation: int = 0
    """1 to 8; 0 if it is not known."""
    taken: bytes = b""
    """The value of DateTimeOriginal."""
    taken_offset: bytes = b""
    """The value of OffsetTimeOriginal."""

    def exif_block(self, orientation: int) -> bytes:
        """Return an EXIF block (TIFF 6.0, little-endian) with these times and this orientation."""
        main = struct.pack("<HHHIHHHHIII", 2, _ORIENTATION, 3, 1, orientation, 0, _EXIF_IFD, 4, 1, 38, 0)
        texts = [(_TAKEN, self.taken), (_TAKEN_OFFSET, self.taken_offset)]
        texts = [(tag, text) for tag, text in texts if len(text) > 4]
        at = 38 + 2 + 12 * len(texts) + 4
        below = struct.pack("<H", len(texts))
        for tag, text in texts:
            below += struct.pack("<HHII", tag, 2, len(text), at)
            at += len(text)
        return b"II*\0\x08\0\0\0" + main + below + bytes(4) + b"".join(text for _, text in texts)


def camera_tags(tiff: Tiff | None, exif: Tiff | None = None) -> CameraTags:
    """Return the tags of a file or an EXIF block; `exif` is where the times are if they are in a block of their own."""
    first = tiff.first_directory() if tiff is not None else {}
    orientation = tiff.number(first, _ORIENTATION) if tiff is not None else 0
    if not 1 <= orientation <= 8:
        orientation = 0
    if exif is not None:
        times, reader = exif.first_directory(), exif
    elif tiff is not None:
        times, reader = tiff.directory(tiff.number(first, _EXIF_IFD))[0], tiff
    else:
        return CameraTags(orientation)
    return CameraTags(orientation, reader.value(times, _TAKEN), reader.value(times, _TAKEN_OFFSET))
