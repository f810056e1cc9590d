"""Metadata of a photo that is used: its EXIF orientation and the time it was taken."""

from __future__ import annotations

import re
import struct
from datetime import datetime
from typing import Any

_ORIENTATION, _EXIF_IFD, _TAKEN, _TAKEN_OFFSET = 0x0112, 0x8769, 0x9003, 0x9011
_TAKEN_PATTERN = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_OFFSET_PATTERN = re.compile(r"[+-]\d\d:\d\d")


def orientation_and_time(exif: object) -> tuple[int, str | None]:
    """Return orientation (1 to 8) and time (ISO 8601) of an EXIF block; (1, None) if it has none.

    Pillow's own reader decodes every tag, and warns and raises. This one looks at four tags and does neither.
    """
    if not isinstance(exif, bytes):
        return 1, None
    data = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 1, None
    try:
        main = _ifd_values(data, order, struct.unpack_from(order + "I", data, 4)[0])
        orientation = main.get(_ORIENTATION, 1)
        offset = main.get(_EXIF_IFD)
        taken = _ifd_values(data, order, offset) if isinstance(offset, int) else {}
    except struct.error:  # the block is cut off
        return 1, None
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    return orientation, _iso_time(taken.get(_TAKEN), taken.get(_TAKEN_OFFSET))


def tiff_time(image: Any) -> str | None:
    """Return when the photo in a TIFF file, opened by Pillow, was taken, in ISO 8601; None if it is not known."""
    try:
        ifd = image.getexif().get_ifd(_EXIF_IFD)
    except Exception:  # a hostile file can cause any exception, and the time is optional
        return None
    return _iso_time(ifd.get(_TAKEN), ifd.get(_TAKEN_OFFSET))


def _ifd_values(data: bytes, order: str, offset: int) -> dict[int, int | str]:
    """Return the tags that are used of one directory of an EXIF block. Raises struct.error if it is cut off."""
    values: dict[int, int | str] = {}
    (count,) = struct.unpack_from(order + "H", data, offset)
    for at in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, at)
        if tag not in (_ORIENTATION, _EXIF_IFD, _TAKEN, _TAKEN_OFFSET):
            continue
        if kind == 3:
            values[tag] = struct.unpack_from(order + "H", data, at + 8)[0]
        elif kind == 4:
            values[tag] = struct.unpack_from(order + "I", data, at + 8)[0]
        elif kind == 2 and 4 < length <= 64:
            (start,) = struct.unpack_from(order + "I", data, at + 8)
            values[tag] = data[start : start + length].split(b"\0")[0].decode("ascii", "replace")
    return values


def _iso_time(taken: object, offset: object) -> str | None:
    match = _TAKEN_PATTERN.match(taken) if isinstance(taken, str) else None
    if match is None:
        return None
    text = "{}-{}-{}T{}:{}:{}".format(*match.groups())
    if isinstance(offset, str) and _OFFSET_PATTERN.fullmatch(offset.strip()) and _is_time(text + offset.strip()):
        return text + offset.strip()
    return text if _is_time(text) else None


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
