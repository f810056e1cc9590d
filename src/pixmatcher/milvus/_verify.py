"""Verification: every row is read, and held against its checksum and the hash that is its id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ..collection import Problem
from ..records import Space
from ._expressions import shown_name
from ._notes import CALIBRATION, FAILURE, SOURCE, Notes
from ._rows import ITEM_FIELDS, checksum, item_of, row_bytes, vector_fields
from ._tables import Row, Table, id_of


def find_problems(items: Table, notes: Notes, spaces: Mapping[str, Space], name: str) -> list[Problem]:
    """Read everything of the collection of this name but its thumbnails, and return what is damaged."""
    problems = []
    if damaged := sum(1 for _ in damaged_ids(items, spaces)):
        problems.append(
            Problem(
                "items",
                f"{damaged:,} images are damaged",
                f"Run `pixmatcher verify --repair -c {name}`, then `pixmatcher index -c {name}` to encode them again.",
            )
        )
    for kind in (SOURCE, FAILURE, CALIBRATION):
        try:
            for _ in notes.all(kind):
                pass
        except ValueError:
            problems.append(
                Problem("notes", f"a note about a {kind} is damaged", f"Run `pixmatcher index -c {name}` again.")
            )
    return problems


def damaged_ids(items: Table, spaces: Mapping[str, Space]) -> Iterator[int]:
    """Yield the ids of the items that are damaged."""
    fields = vector_fields(spaces)
    for row in items.rows((*ITEM_FIELDS, "checksum", *fields), row_bytes=row_bytes(spaces)):
        if not _is_whole(row, fields):
            yield row["id"]


def _is_whole(row: Row, fields: list[str]) -> bool:
    try:
        item_of(row)
        vectors = {field: np.asarray(row[field], np.float32) for field in fields}
        return bool(row["id"] == id_of("item", shown_name(row["uri"])) and row["checksum"] == checksum(vectors))
    except (ValueError, TypeError, KeyError, OverflowError):
        return False
