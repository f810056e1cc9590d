"""Dates of photos: from the texts that cameras and programs write into metadata, and from the names of files."""

from __future__ import annotations

import re
import time
from datetime import date, datetime, timedelta, timezone
from urllib.parse import unquote

from .._urls import is_url

_FIRST_PHOTO = 1826
_FIRST_YEAR_IN_NAMES = 1970
_DATE = re.compile(
    r"\s*(?P<year>\d{4})(?:(?P<sep>[-:/.])(?P<month>\d\d?)(?:(?P=sep)(?P<day>\d\d?)(?!\d)"
    r"(?:[T ]\s{0,3}(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,]\d{1,12})?)?"
    r"\s?(?P<zone>Z|[+-]\d\d:?\d\d)?)?)?)?",
    re.ASCII,
)
_ZONE = re.compile(r"([+-]\d\d):?(\d\d)", re.ASCII)
_EPOCHS = ("1970-01-01", "1904-01-01")
"""A clock that was never set says one of these days."""

_NAME_DATE = re.compile(r"(?<!\d)(?P<year>\d{4})(?P<sep>[-_. :]?)(?P<month>\d\d)(?P=sep)(?P<day>\d\d)", re.ASCII)
_NAME_TIME = re.compile(
    r"(?:[\W_]{0,3}|T|[\W_]{1,3}(?:[^\W\d_]{1,5}[\W_]{1,3}){1,2})"  # also " at ", " um ", " a las "
    r"(?:([0-9]{2})([0-9]{2})([0-9]{2})|([0-9]{1,2})[-_.:h]([0-9]{2})[-_.:m]([0-9]{2}))"
    r"(?:[0-9]{3})?(?![0-9])(?:s?\s?(?P<half>[ap])\.?m)?",
    re.I,
)
_AFTER_NAME_DATE = re.compile(r"\Z|[\W_]|T?[0-9]{6}|[^\W\d_](?:\Z|[\W_])", re.I)
"""What follows the eight digits of a date, but not eight digits within other letters and digits, such as a hash."""


def iso_date(text: str, zone: str = "", *, partial: bool = False) -> str | None:
    """Return the date in a text of EXIF, XMP and the like, in ISO 8601; None if there is none or it cannot be right.

    Understands "2024:01:31 12:00:00" and ISO 8601. `zone` is the UTC offset, if it is in a field of its own. With
    `partial`, a year or a month alone is its first day, as is a month or a day "00". If only the time is not valid, the
    date counts. A date before photography or after next year is not a date of a photo, nor is that of a clock that was
    never set.
    """
    match = _DATE.match(text[:64])
    if match is None:
        return None
    numbers = [int(match[part] or 0) for part in ("year", "month", "day")]
    if partial:
        numbers = [numbers[0], numbers[1] or 1, (numbers[2] or 1) if numbers[1] else 1]
    day = _day(*numbers, earliest=_FIRST_PHOTO)
    if day is None or match["hour"] is None:
        return day
    clock = _clock(int(match["hour"]), int(match["minute"]), int(match["second"] or 0))
    if day in _EPOCHS:
        return None
    return day if clock is None else f"{day}T{clock}{_offset(zone) or _offset(match['zone'] or '')}"


def utc_date(day: str, hours: float, minutes: float, seconds: float) -> str | None:
    """Return a day, such as "2024:01:31", with a time of that day in UTC, in ISO 8601; None if the day is not valid."""
    start = iso_date(day)
    length = hours * 3600 + minutes * 60 + seconds
    if start is None or not 0 <= length < 24 * 3600:
        return start
    return (datetime.fromisoformat(start).replace(tzinfo=timezone.utc) + timedelta(seconds=int(length))).isoformat()


def date_in_name(uri: str) -> str | None:
    """Return the date, and the time if there is one, in the last part of a path or a URL, in ISO 8601, or None.

    These are the names that phones, messengers and programs for screenshots give: IMG_20240131_120000.jpg,
    "2024-01-31 12.00.00.png". The year is 1970 to next year, and the digits are no part of a longer number.
    """
    path = unquote(re.split(r"[?#]", uri, maxsplit=1)[0]) if is_url(uri) else uri
    name = path.replace("\\", "/").rpartition("/")[2][:255]
    for match in _NAME_DATE.finditer(name):
        day = _day(*(int(match[part]) for part in ("year", "month", "day")), earliest=_FIRST_YEAR_IN_NAMES)
        if day is None or not _stands_alone(name, match):
            continue
        found = _NAME_TIME.match(name, match.end())
        if found is None:
            return day
        if day in _EPOCHS:
            continue
        hour, minute, second = (int(found[n] or found[n + 3]) for n in (1, 2, 3))
        if found["half"] and 1 <= hour <= 12:
            hour = hour % 12 + (12 if found["half"] in "pP" else 0)
        clock = _clock(hour, minute, second)
        return day if clock is None else f"{day}T{clock}"
    return None


def _stands_alone(name: str, match: re.Match[str]) -> bool:
    """Return whether the digits of a date are no part of a longer number, or of a word with other digits."""
    before, after = name[: match.start()], name[match.end() :]
    if match["sep"]:
        return not after[:1].isdecimal()
    word = re.split(r"[\W_]", before)[-1]
    return not any(c.isdecimal() for c in word) and _AFTER_NAME_DATE.match(after) is not None


def _day(year: int, month: int, day: int, *, earliest: int) -> str | None:
    if not earliest <= year <= time.localtime().tm_year + 1:
        return None
    try:
        return date(year, month, day).isoformat()
    except ValueError:
        return None


def _clock(hour: int, minute: int, second: int) -> str | None:
    if hour > 23 or minute > 59 or second > 60:
        return None
    return f"{hour:02}:{minute:02}:{min(second, 59):02}"  # a leap second


def _offset(zone: str) -> str:
    """Return a UTC offset as "+01:00", or an empty text if it is none."""
    zone = zone.strip(" \0")
    if zone == "Z":
        return "+00:00"
    match = _ZONE.fullmatch(zone)
    return f"{match[1]}:{match[2]}" if match and int(match[1][1:]) < 24 and int(match[2]) < 60 else ""
