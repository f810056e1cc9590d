"""A filter limits a search to labels, a folder, dates and sizes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime

from .._urls import is_url, local_path
from ..errors import CollectionError

_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?", re.ASCII)
_EARLIEST = "0001-01-01T00:00:00"
"""What completes a date that says less, so that it can be checked."""


@dataclass(frozen=True)
class Filter:
    """Which items a search may return: those that meet all conditions that are given.

    `labels`: the item has one of these labels, or its label has one of these names, in full or in a part between
    commas. `folder`: a path or a URL that the item is in, directly or in a subfolder. `after`: the image was taken, or
    if that is not known modified, on that day or later; `before`: before that day. Dates are ISO 8601; a year, or a
    year and a month, is enough. `min_width` and `min_height` are pixels; items of unknown size are left out.
    """

    labels: tuple[str, ...] | None = None
    folder: str | None = None
    after: str | None = None
    before: str | None = None
    min_width: int | None = None
    min_height: int | None = None

    def __post_init__(self) -> None:
        """Raise `CollectionError` if a value is not valid."""
        if self.labels is not None:
            if isinstance(self.labels, str):
                raise CollectionError(
                    "The labels of a filter are a list of texts: write a single label in brackets too."
                )
            object.__setattr__(self, "labels", tuple(sorted({*self.labels})))
        for date in (self.after, self.before):
            if date is not None and not _is_date(date):
                raise CollectionError(f"{date!r} is not a date: write it like 2024, 2024-05 or 2024-05-17.")
        for size in (self.min_width, self.min_height):
            if size is not None and (type(size) is not int or not 0 <= size < 2**63):
                raise CollectionError(f"A size is a number of pixels, not {size!r}.")
        if self.folder is not None:
            folder = local_path(os.fspath(self.folder))
            if not folder:
                raise CollectionError("The folder of the filter is empty: name a folder.")
            place = folder.rstrip("/") if is_url(folder) else os.path.abspath(folder)
            object.__setattr__(self, "folder", place)

    @property
    def empty(self) -> bool:
        """Whether all items pass."""
        return self == Filter()


def comparable_date(date: str | None) -> str | None:
    """Return a date of a filter as it is compared with those of items, some of which are a day without a time."""
    return date and re.sub("T00(:00){0,2}$", "", date.replace(" ", "T"))


def _is_date(text: object) -> bool:
    """Return whether a text is a year, month, day or time in ISO 8601 that exists."""
    if not isinstance(text, str) or not _DATE.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text + _EARLIEST[len(text) :])
    except ValueError:
        return False
    return True
