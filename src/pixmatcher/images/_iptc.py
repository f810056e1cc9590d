"""IPTC: the date in the records that press agencies and photo managers write (IPTC IIM 4.2)."""

from __future__ import annotations

import io

from ._dates import iso_date
from ._resources import IPTC, photoshop_resources

_DATES = ((55, 60), (62, 63))
"""The fields of date and time: of creation, and of digital creation."""


def iptc_date(data: bytes) -> str | None:
    """Return the date of creation in an IPTC record, or in the Photoshop resources that contain one, in ISO 8601."""
    fields = _fields(_record_of(data))
    for date_field, time_field in _DATES:
        day, clock = fields.get(date_field, ""), fields.get(time_field, "")
        if len(day) == 8 and day.isascii() and day.isdecimal():
            text = f"{day[:4]}-{day[4:6]}-{day[6:]}"
            if len(clock) >= 6:
                text += f"T{clock[:2]}:{clock[2:4]}:{clock[4:6]}{clock[6:]}"
            if (found := iso_date(text, partial=True)) is not None:
                return found
    return None


def _record_of(data: bytes) -> bytes:
    """Return the IPTC record in Photoshop resources (8BIM, number 0x0404), or the data if they are none."""
    at = data.find(b"8BIM", 0, 64)
    if data[:1] == b"\x1c" or at < 0:
        return data
    resources = photoshop_resources(io.BytesIO(data), at, len(data))
    return next((data[start:end] for number, start, end in resources if number == IPTC), b"")


def _fields(record: bytes) -> dict[int, str]:
    """Return the first value of each date field of the second record."""
    found: dict[int, str] = {}
    wanted = {field for pair in _DATES for field in pair}
    at = 0
    while at + 5 <= len(record) and record[at] == 0x1C:
        length = int.from_bytes(record[at + 3 : at + 5], "big")
        start = at + 5
        if length & 0x8000:  # the length is in the bytes that follow
            size = length & 0x7FFF
            length = int.from_bytes(record[start : start + min(size, 8)], "big")
            start += size
        if record[at + 1] == 2 and record[at + 2] in wanted:
            found.setdefault(record[at + 2], record[start : start + min(length, 16)].decode("latin-1"))
        at = start + length
    return found
