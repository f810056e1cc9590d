"""Counts of the items of a collection: by year and by size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .items import Item

MEGAPIXEL_LIMITS = (0.0, 0.1, 1.0, 4.0, 12.0, 50.0)
"""Lower limits of the size classes, in millions of pixels."""


@dataclass(frozen=True)
class ItemSummary:
    """Counts of items, without the items whose year or size is unknown."""

    count: int
    """All items."""
    bytes: int
    """The size of all their files."""
    by_year: dict[str, int]
    """The number of items by the year in which the image was taken or, if that is unknown, modified, sorted."""
    by_megapixels: dict[float, int]
    """The number of items by size class, sorted; a key is the lower limit, one of `MEGAPIXEL_LIMITS`."""


def summarize_items(items: Iterable[Item]) -> ItemSummary:
    """Count items by year and by size."""
    count = size = 0
    years: Counter[str] = Counter()
    classes: Counter[float] = Counter()
    for item in items:
        count += 1
        size += item.bytes or 0
        if date := item.taken or item.modified:
            years[date[:4]] += 1
        if item.width and item.height:
            megapixels = item.width * item.height / 1e6
            classes[max(limit for limit in MEGAPIXEL_LIMITS if limit <= megapixels)] += 1
    return ItemSummary(count, size, dict(sorted(years.items())), dict(sorted(classes.items())))
