"""The resources that Photoshop keeps in its own files, and in JPEG and TIFF files beside the picture.

Source: Adobe Photoshop File Formats Specification, November 2019, Image Resource Blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

IPTC, PROFILE, VERSION_INFO, EXIF, XMP = 1028, 1039, 1057, 1058, 1060
_MAX_RESOURCES = 10_000


def photoshop_resources(file: IO[bytes], at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number of each resource between two places of a file, and where its content begins and ends.

    The end is as the resource says, perhaps behind that of all.
    """
    for _ in range(_MAX_RESOURCES):
        file.seek(at)
        head = file.read(7)
        if at + 12 > end or len(head) < 7:
            return
        start = at + 6 + (head[6] + 2) // 2 * 2  # its name: a length, and padded to an even number
        file.seek(start)
        start += 4
        at = start + int.from_bytes(file.read(4), "big")
        yield int.from_bytes(head[4:6], "big"), start, at
        at += (at - start) % 2
