"""Temporary tables of the catalog's database that hold the entries which sources list now."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ..records import Entry
from ._catalog import Catalog, details_from_json, sql_text, sql_value

ENTRY_COLUMNS = ("uri", "version", "modified", "label", "caption", "urls", "rotation", "details")
"""The columns of an entry; `source_id` follows."""
_BLOCK = 1000


def create_entry_table(catalog: Catalog, table: str) -> None:
    """Create an empty table `temp.TABLE`; an existing one is replaced."""
    catalog.query(f"DROP TABLE IF EXISTS temp.{table}")
    columns = ", ".join(ENTRY_COLUMNS).replace("uri", "uri PRIMARY KEY")
    catalog.query(f"CREATE TEMP TABLE {table} ({columns}, source_id) WITHOUT ROWID")


def insert_entries(catalog: Catalog, table: str, source_id: int, entries: Iterable[Entry]) -> None:
    """Insert the entries of a source; those whose uri the table has already are left out."""
    rows = ((*_values(catalog, entry), source_id) for entry in entries)
    places = ", ".join("?" * (len(ENTRY_COLUMNS) + 1))
    while block := list(islice(rows, _BLOCK)):
        with catalog.writing():
            catalog.connection.executemany(f"INSERT OR IGNORE INTO temp.{table} VALUES ({places})", block)


def _values(catalog: Catalog, entry: Entry) -> Iterator[object]:
    yield catalog.stored_uri(entry.uri)
    yield sql_text(entry.version)
    yield entry.modified
    yield sql_value(entry.label)
    yield sql_value(entry.caption)
    yield json.dumps(entry.urls) if entry.urls else None
    yield entry.rotation
    yield sql_value(entry.details)


def entry_of(catalog: Catalog, values: Sequence[Any]) -> Entry:
    """Return the entry of the values of `ENTRY_COLUMNS`."""
    uri, version, modified, label, caption, urls, rotation, details = values
    places = tuple(json.loads(urls)) if urls else ()
    shown = catalog.shown_uri(uri)
    return Entry(shown, version, modified, label, caption, places, rotation, details_from_json(details))
