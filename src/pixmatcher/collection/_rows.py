"""What the rows of a collection hold: the label of each row, and which rows pass a filter."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import CollectionError
from .filters import Filter, comparable_date

if TYPE_CHECKING:
    from ._catalog import Catalog

_MOST_MASKS = 8
_SMALL_FOLDER = 5000
"""A folder of up to so many items is small."""


@dataclass(frozen=True)
class RowLabels:
    """The labels of a collection, and for each row (rows,) int32 the position of its label in them, -1 for no label."""

    names: list[str]
    codes: npt.NDArray[np.int32]


class RowProperties:
    """The labels of the rows, and the masks of filters, kept until any process writes something."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._state: tuple[int, ...] | None = None
        self._labels: RowLabels | None = None
        self._masks: dict[Filter, npt.NDArray[np.bool_]] = {}

    def labels(self) -> RowLabels:
        """Return the label of each row."""
        with self._catalog.reading():
            self._forget_if_written()
            if self._labels is None:
                self._labels = self._read_labels()
            return self._labels

    def mask(self, filter: Filter) -> npt.NDArray[np.bool_]:
        """Return which rows have an item that passes a filter (rows,) bool. The caller may not change the array."""
        with self._catalog.reading():
            self._forget_if_written()
            if filter not in self._masks:
                if len(self._masks) >= _MOST_MASKS:
                    del self._masks[next(iter(self._masks))]
                self._masks[filter] = self._read_mask(filter)
            return self._masks[filter]

    def _forget_if_written(self) -> None:
        state = self._catalog.write_count()
        if state != self._state:
            self._state, self._labels, self._masks = state, None, {}

    def _read_labels(self) -> RowLabels:
        found = self._catalog.query("SELECT row, label FROM items WHERE label IS NOT NULL")
        names = sorted({label for _, label in found})
        code_of = {label: code for code, label in enumerate(names)}
        codes = np.full(self._catalog.row_count(), -1, np.int32)
        codes[[row for row, _ in found]] = [code_of[label] for _, label in found]
        return RowLabels(names, codes)

    def _read_mask(self, filter: Filter) -> npt.NDArray[np.bool_]:
        mask = np.zeros(self._catalog.row_count(), np.bool_)
        conditions, values = filter_conditions(self._catalog, filter)
        if conditions or filter.labels is None:
            sql = f"SELECT row FROM items WHERE {' AND '.join(['1', *conditions])}"
            mask[self._catalog.numbers(sql, *values)] = True
        else:
            mask[:] = True  # the labels alone decide
        if filter.labels is not None:
            labels = self.labels()
            allowed = self._catalog.labels_called(filter.labels)
            mask &= np.isin(labels.codes, [code for code, name in enumerate(labels.names) if name in allowed])
        return mask


def filter_conditions(catalog: Catalog, filter: Filter) -> tuple[list[str], list[object]]:
    """Return the conditions of a filter in SQL, without those for labels, and their values."""
    conditions, values = list[str](), list[object]()
    for condition, value in (
        ("coalesce(taken, modified) >= ?", comparable_date(filter.after)),
        ("coalesce(taken, modified) < ?", comparable_date(filter.before)),
        ("width >= ?", filter.min_width),
        ("height >= ?", filter.min_height),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if filter.folder is not None:
        condition, places = catalog.uris_below(os.path.join(filter.folder, ""))
        conditions.append(condition)
        values += places
    return conditions, values


def page_conditions(catalog: Catalog, filter: Filter, source: str | None) -> tuple[list[str], list[object]]:
    """Return the conditions in SQL of a filter, with those for labels, and of a source by its spec, and their values.

    Raises `CollectionError` if there is no such source.
    """
    conditions, values = filter_conditions(catalog, replace(filter, folder=None))
    if filter.folder is not None:
        condition, places = catalog.uris_below(os.path.join(filter.folder, ""))
        # SQLite would walk past all items in the order of their ids, to find those of a small folder.
        found = catalog.query(f"SELECT id FROM items WHERE {condition} LIMIT ?", *places, _SMALL_FOLDER + 1)
        if len(found) <= _SMALL_FOLDER:
            condition, places = "id IN (SELECT value FROM json_each(?))", [json.dumps([each for (each,) in found])]
        conditions.append(condition)
        values += places
    if filter.labels is not None:
        conditions.append("label IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(sorted(catalog.labels_called(filter.labels))))
    if source is not None:
        source_id = catalog.sources().get(source)
        if source_id is None:
            raise CollectionError(f"The collection has no source {source}: name one that it lists.")
        conditions.append("source_id = ?")
        values.append(source_id)
    return conditions, values
