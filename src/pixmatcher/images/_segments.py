"""The segments of JPEG files (ITU-T T.81, B.1): markers with a length and a content."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

SCAN, END, RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_HEAD = 64
"""Bytes that are read at once, for a marker, its length, and the fill bytes before it."""


def segments(file: IO[bytes], at: int, *, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment from a place in a file on, and where its content begins and ends.

    The end is as the segment says, perhaps behind that of the file. Nothing after the end marker is yielded, nor after
    what is no marker, such as the data that follow the header of a scan; `most` is for hostile files.
    """
    for _ in range(most):
        file.seek(at)
        head = file.read(_HEAD)
        fill = len(head) - len(head.lstrip(b"\xff"))  # any number of 0xff may come before the code of the marker
        if fill > _HEAD - 3:
            at += fill - 1
            continue
        if not fill or fill == len(head):
            return
        marker, length = head[fill], head[fill + 1 : fill + 3]
        at += fill + 1
        if marker in _WITHOUT_LENGTH:
            yield marker, at, at
            if marker == END:
                return
            continue
        size = int.from_bytes(length, "big")
        if len(length) < 2 or size < 2:
            return
        yield marker, at + 2, at + size
        at += size
