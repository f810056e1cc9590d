"""What a search is limited to: labels, a folder, dates and sizes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .._urls import is_url
from ..errors import CollectionError

_DATE = re.compile(r"\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?")


@dataclass(frozen=True)
class Filter:
    """Which items a search may find: those that meet all that is given.

    `labels`: an item has one of them, or its label is called so, alone or between commas. `folder`: it lies there or
    below; a path, or a URL. `after` and `before`: it was taken (or where that is not known, modified) on that day or
    later, and before that day; ISO 8601, which may be cut short: a year, a month, a day. `min_width` and `min_height`
    are pixels; what has no size that is known is left out.
    """

    labels: tuple[str, ...] | None = None
    folder: str | None = None
    after: str | None = None
    before: str | None = None
    min_width: int | None = None
    min_height: int | None = None

    def __post_init__(self) -> None:
        """Raises `CollectionError` if a value is of no use."""
        if self.labels is not None:
            if isinstance(self.labels, str):
                raise CollectionError("The labels of a filter are a list of texts: give one in brackets too.")
            object.__setattr__(self, "labels", tuple(sorted({*self.labels})))
        for date in (self.after, self.before):
            if date is not None and not _DATE.fullmatch(date):
                raise CollectionError(f"{date!r} is no date: write it like 2024, 2024-05 or 2024-05-17.")
        for size in (self.min_width, self.min_height):
            if size is not None and (type(size) is not int or size < 0):
                raise CollectionError(f"A size is a number of pixels, not {size!r}.")
        if self.folder is not None:
            folder = os.fspath(self.folder)
            place = folder.rstrip("/") if is_url(folder) else os.path.abspath(folder)
            object.__setattr__(self, "folder", place)

    @property
    def empty(self) -> bool:
        """Whether it lets everything pass."""
        return self == Filter()
