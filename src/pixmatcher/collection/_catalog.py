"""The catalog: the SQLite database that is the only truth about what a collection holds."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from datetime import datetime, timezone
from itertools import islice
from operator import attrgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._text import as_unicode
from .._urls import is_url
from ..errors import CollectionError, CollectionUpgradedError
from ..records import Calibration, FolderNotes, QueryKind
from ._database import Database
from ._migrations import readable_columns
from ._spaces import labels_named
from .items import Changes, CollectionState, Failure, Item

_ITEM_COLUMNS = tuple(field.name for field in fields(Item))
_ITEM_VALUES = attrgetter(*_ITEM_COLUMNS[1:-1])
"""The values of an item between its uri and its id; the date `added` is the last of them."""
_KIND = re.compile(r"[a-z][a-z0-9-]+:/")
"""Matches the beginning of the spec of a source that is not a folder."""

_STEP = 50_000
"""How many ids `items_page` walks past at once."""


class Catalog(Database):
    """The tables of a collection. Paths below `home` are stored relative to it, so that both can be moved together."""

    def __init__(self, path: Path, home: Path, *, create: bool = False) -> None:
        """Open the catalog, or create it if need be with `create`. Raises `CollectionError` if that is impossible."""
        self._home = os.path.join(home, "")
        self.edition: int | None = None
        """The number of the edition whose rows may be read; None for any."""
        super().__init__(path, create=create)

    def _connect(self) -> None:
        super()._connect()
        # Old catalogs have no column for details, and no editions; the next write adds them.
        self._columns = readable_columns(self.connection, "items", _ITEM_COLUMNS)
        self._has_editions = False

    def prepare_to_write(self) -> None:
        """Change an older schema to the newest. Raises `StorageError` if the database can only be read."""
        super().prepare_to_write()
        self._columns = ", ".join(_ITEM_COLUMNS)

    @contextlib.contextmanager
    def reading(self) -> Iterator[int]:
        """Read one consistent state in the whole block; yield the generation, which counts changes to rows of items.

        Raises `CollectionUpgradedError` if the rows are those of another edition than `edition`.
        """
        try:
            with self.transaction_for_reading():
                self.check_edition()
                yield int(self.connection.execute("SELECT generation FROM state").fetchone()[0])
        except CollectionUpgradedError:
            raise
        except CollectionError as error:
            # An upgrade that ended during the block may have deleted a file that the block needed.
            upgraded = False
            with contextlib.suppress(CollectionError):
                upgraded = self.upgraded()
            if upgraded:
                raise self._upgraded_error() from error
            raise

    def _has_table(self, name: str) -> bool:
        """Return whether the database has this table, which an older schema may lack."""
        return bool(self.number("SELECT count(*) FROM sqlite_master WHERE name = ?", name))

    def _rows_changed(self) -> None:
        self.connection.execute("UPDATE state SET generation = generation + 1")

    # Editions

    def edition_rows(self, condition: str) -> list[tuple[int, str, int | None, int | None]]:
        """Return number, encoders (JSON), first row and generation of the editions that meet a condition in SQL."""
        self._has_editions = self._has_editions or self._has_table("editions")
        if not self._has_editions:
            return []
        return self.query(
            f"SELECT number, encoders, first_row, generation FROM editions WHERE {condition} ORDER BY number"
        )

    def upgraded(self) -> bool:
        """Return whether the rows are now those of another edition than `edition`."""
        if self.edition is None:
            return False
        found = self.edition_rows("first_row IS NOT NULL")
        return (found[-1][0] if found else 0) != self.edition

    def check_edition(self) -> None:
        """Raise `CollectionUpgradedError` if the rows are now those of another edition than `edition`."""
        if self.upgraded():
            raise self._upgraded_error()

    def _upgraded_error(self) -> CollectionUpgradedError:
        return CollectionUpgradedError(
            f"{self.path.parent} got the embeddings of other encoders after it was opened",
            "open it again, or run the same command again.",
        )

    # Items

    def row_count(self) -> int:
        """Return the number of committed rows of the vector files, those of removed items included."""
        return self.number("SELECT rows FROM state")

    def item_count(self, source_id: int | None = None) -> int:
        """Return the number of items, of all sources or of one."""
        if source_id is None:
            return self.number("SELECT count(*) FROM items")
        return self.number("SELECT count(*) FROM items WHERE source_id = ?", source_id)

    def count_uris(self, uris: Iterable[str]) -> int:
        """Return how many of these uris an item has."""
        stored, count = iter([self.stored_uri(uri) for uri in uris]), 0
        while block := list(islice(stored, 500)):
            places = ", ".join("?" * len(block))
            count += self.number(f"SELECT count(*) FROM items WHERE uri IN ({places})", *block)
        return count

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the rows of all items, ascending (N,) int64."""
        return self.numbers("SELECT row FROM items ORDER BY row")

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids of all items, ascending (N,) int64."""
        return self.numbers("SELECT id FROM items ORDER BY id")

    def ids_page(self, after_id: int, limit: int) -> npt.NDArray[np.int64]:
        """Return up to `limit` ids above one, ascending (N,) int64."""
        return self.numbers("SELECT id FROM items WHERE id > ? ORDER BY id LIMIT ?", after_id, limit)

    def state(self) -> CollectionState:
        """Return the current state; `changes_since` counts the changes after it."""
        with self.reading() as generation:
            last_id = self.number("SELECT coalesce(max(id), 0) FROM items")
            return CollectionState(generation, self.item_count(), last_id, self.row_count())

    def changes_since(self, state: CollectionState) -> Changes:
        """Count the items that were added, removed and changed since a state."""
        with self.reading() as generation:
            if generation == state.generation:
                return Changes(0, 0, 0)
            added = self.number("SELECT count(*) FROM items WHERE id > ?", state.last_id)
            changed = self.number(
                "SELECT count(*) FROM items WHERE row >= ? AND id <= ?", state.row_count, state.last_id
            )
            return Changes(added, state.items - (self.item_count() - added), changed)

    def labels_by_id(self, ids: Sequence[int]) -> dict[int, str | None]:
        """Return the label, or None, of each of these ids that exists."""
        listed = json.dumps([int(item_id) for item_id in ids])
        found = self.query("SELECT id, label FROM items WHERE id IN (SELECT value FROM json_each(?))", listed)
        return dict(found)

    def checksums(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows of all items, ascending, and the CRC-32 of each, both (N,) int64."""
        table = np.array(self.query("SELECT row, checksum FROM items ORDER BY row"), dtype=np.int64)
        return (table[:, 0], table[:, 1]) if len(table) else (np.empty(0, np.int64), np.empty(0, np.int64))

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids, read in pages, so that a writer may write meanwhile."""
        last = 0
        while True:
            page = self.query(f"SELECT {self._columns} FROM items WHERE id > ? ORDER BY id LIMIT 1000", last)
            items = [self._item_of_row(values) for values in page]
            if not items:
                return
            yield from items
            last = items[-1].id

    def items_page(self, after_id: int, limit: int, conditions: Sequence[str], values: Sequence[object]) -> list[Item]:
        """Return the next items after an id that meet conditions in SQL, in the order of their ids.

        A walk past many other items is made in steps, between which other threads can read.
        """
        items = list[Item]()
        last_id = self.number("SELECT coalesce(max(id), 0) FROM items")
        where = " AND ".join(["id > ?", "id <= ?", *conditions])
        sql = f"SELECT {self._columns} FROM items WHERE {where} ORDER BY id LIMIT ?"
        while after_id < last_id and len(items) < limit:
            found = self.query(sql, after_id, after_id + _STEP, *values, limit - len(items))
            items += map(self._item_of_row, found)
            after_id += _STEP
        return items

    def items_by_row(self, rows: Sequence[int]) -> dict[int, Item]:
        """Return the items of those of these rows that an item has, by row."""
        found = self.query(
            f"SELECT {self._columns}, row FROM items WHERE row IN (SELECT value FROM json_each(?))",
            json.dumps(list(rows)),
        )
        return {row: self._item_of_row(values) for *values, row in found}

    def items_by_id(self, ids: Sequence[int]) -> dict[int, Item]:
        """Return the items of those of these ids that exist, by id."""
        found = self.query(
            f"SELECT {self._columns} FROM items WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(ids))
        )
        return {item.id: item for item in map(self._item_of_row, found)}

    def item_at(self, uri: str) -> Item | None:
        """Return the item of this uri, or None."""
        found = self.query(f"SELECT {self._columns} FROM items WHERE uri = ?", self.stored_uri(uri))
        return self._item_of_row(found[0]) if found else None

    def incomplete_items(self, after_id: int = 0, limit: int | None = None) -> list[Item]:
        """Return the items of files whose end is missing, in the order of their ids; up to `limit` above an id."""
        if "NULL AS missing" in self._columns:
            return []
        found = self.query(
            f"SELECT {self._columns} FROM items WHERE missing IS NOT NULL AND id > ? ORDER BY id LIMIT ?",
            after_id,
            -1 if limit is None else limit,
        )
        return [*map(self._item_of_row, found)]

    def rows_of(self, ids: Sequence[int]) -> dict[int, int]:
        """Return the row of each of these ids that exists."""
        listed = json.dumps([int(item_id) for item_id in ids])
        found = self.query("SELECT id, row FROM items WHERE id IN (SELECT value FROM json_each(?))", listed)
        return dict(found)

    def sample_ids(self, count: int) -> list[int]:
        """Return the ids of up to `count` items, evenly spaced in the order of the ids."""
        step = max(1, self.item_count() // count)
        found = self.query(
            "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM items) "
            "WHERE place % ? = 0 LIMIT ?",
            step,
            count,
        )
        return [item_id for (item_id,) in found]

    def row_with_content(self, content_hash: str) -> int | None:
        """Return the row of an item with this content, or None."""
        found = self.query("SELECT row FROM items WHERE content_hash = ? LIMIT 1", content_hash)
        return found[0][0] if found else None

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return those of these content hashes that an item has."""
        found = self.query(
            "SELECT DISTINCT content_hash FROM items WHERE content_hash IN (SELECT value FROM json_each(?))",
            json.dumps(content_hashes),
        )
        return {content_hash for (content_hash,) in found}

    def needed_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return those of these content hashes that an item has, or an image of an unfinished upgrade."""
        found = self.query(
            "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM items WHERE content_hash = value) "
            "OR EXISTS (SELECT 1 FROM reencoded WHERE content_hash = value)",
            json.dumps(content_hashes),
        )
        return {content_hash for (content_hash,) in found}

    def put_items(
        self, items: Sequence[Item], first_row: int, checksums: Sequence[int], source_id: int | None
    ) -> list[int]:
        """Insert items, or replace those of the same uri; their rows count from `first_row`. Return their ids."""
        added = datetime.now(timezone.utc).isoformat(timespec="seconds")
        uris = [self.stored_uri(item.uri) for item in items]
        rows = []
        for position, (item, uri) in enumerate(zip(items, uris, strict=True)):
            values = [sql_value(value) for value in _ITEM_VALUES(item)]
            values[-1] = added
            rows.append((uri, *values, first_row + position, checksums[position], source_id))
        columns = ", ".join([*_ITEM_COLUMNS[:-1], "row", "checksum", "source_id"])
        self.connection.executemany(
            f"INSERT INTO items ({columns}) VALUES ({', '.join('?' * (columns.count(',') + 1))}) "
            "ON CONFLICT (uri) DO UPDATE SET content_hash = excluded.content_hash, version = excluded.version, "
            "bytes = excluded.bytes, width = excluded.width, height = excluded.height, format = excluded.format, "
            "label = excluded.label, caption = excluded.caption, modified = excluded.modified, "
            "taken = excluded.taken, missing = excluded.missing, details = excluded.details, row = excluded.row, "
            "checksum = excluded.checksum, source_id = excluded.source_id",
            rows,
        )
        self.connection.executemany("DELETE FROM failures WHERE uri = ?", ((uri,) for uri in uris))
        self.connection.execute("UPDATE state SET rows = ?", (first_row + len(items),))
        self._rows_changed()
        ids = dict(self.connection.execute("SELECT uri, id FROM items WHERE row >= ?", (first_row,)))
        return [ids[uri] for uri in uris]

    def update_item(self, item: Item, source_id: int | None) -> None:
        """Change the uri, version, label, caption, date and details of the item of this id; its content stays."""
        uri = self.stored_uri(item.uri)
        if self.connection.execute("DELETE FROM items WHERE uri = ? AND id != ?", (uri, item.id)).rowcount:
            self._rows_changed()
        self.connection.execute(
            "UPDATE items SET uri = ?, version = ?, label = ?, caption = ?, modified = ?, details = ?, source_id = ? "
            "WHERE id = ?",
            (
                uri,
                *map(sql_value, (item.version, item.label, item.caption, item.modified, item.details)),
                source_id,
                item.id,
            ),
        )
        self.connection.execute("DELETE FROM failures WHERE uri = ?", (uri,))

    def remove_items(self, ids: Iterable[int]) -> int:
        """Remove items by id; return how many were removed."""
        return self._remove_where("id", ids)

    def remove_rows(self, rows: Iterable[int]) -> int:
        """Remove the items of these rows; return how many were removed."""
        return self._remove_where("row", rows)

    def remove_uris(self, uris: Iterable[str]) -> int:
        """Remove items by uri; return how many were removed."""
        return self._remove_where("uri", (self.stored_uri(uri) for uri in uris))

    def _remove_where(self, column: str, values: Iterable[object]) -> int:
        """Remove the items whose `column` has one of the values; return how many were removed."""
        cursor = self.connection.cursor()
        cursor.executemany(f"DELETE FROM items WHERE {column} = ?", ((value,) for value in values))
        removed = max(cursor.rowcount, 0)
        if removed:
            self._rows_changed()
        return removed

    # Sources and failures

    def source_id(self, spec: str) -> int:
        """Return the id of a source; a new source is stored."""
        stored = spec if _KIND.match(spec) else self.stored_uri(spec)
        self.connection.execute("INSERT OR IGNORE INTO sources (spec) VALUES (?)", (stored,))
        return int(self.connection.execute("SELECT id FROM sources WHERE spec = ?", (stored,)).fetchone()[0])

    def remove_source(self, spec: str) -> int:
        """Remove a source, its failures and its items; return how many items were removed."""
        source_id = self.source_id(spec)
        self.connection.execute("DELETE FROM failures WHERE source_id = ?", (source_id,))
        removed = self._remove_where("source_id", [source_id])
        self.connection.execute("DELETE FROM sources WHERE id = ?", (source_id,))
        return removed

    def sources(self) -> dict[str, int]:
        """Return the id of each source by its spec, in the order in which they were stored."""
        found = self.query("SELECT id, spec FROM sources ORDER BY id")
        return {
            spec if isinstance(spec, str) and _KIND.match(spec) else self.shown_uri(spec): source_id
            for source_id, spec in found
        }

    def folder_notes(self, spec: str) -> FolderNotes:
        """Return the notes of a folder source; empty ones if it is new."""
        source_id = self.sources().get(spec)
        columns = readable_columns(self.connection, "sources", ("notes", "judged"))
        found = self.query(f"SELECT {columns} FROM sources WHERE id = ?", source_id)
        if not found or found[0][0] is None:
            return FolderNotes()
        return replace(FolderNotes.from_json(json.loads(found[0][0])), judged=found[0][1] or b"")

    def put_folder_notes(self, spec: str, notes: FolderNotes) -> None:
        """Store the notes of a folder source."""
        values = notes.as_json()
        del values["judged"]  # it has a column of its own
        self.connection.execute(
            "UPDATE sources SET notes = ?, judged = ? WHERE id = ?",
            (json.dumps(values), notes.judged, self.source_id(spec)),
        )

    def put_failures(self, failures: Iterable[Failure], source_id: int) -> None:
        """Store failures of a source, or replace those of the same uri."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO failures (uri, reason, detail, version, source_id) VALUES (?, ?, ?, ?, ?)",
            [(self.stored_uri(f.uri), f.reason, sql_text(f.detail), f.version, source_id) for f in failures],
        )

    def failures(
        self, source_ids: Sequence[int] | None = None, *, start: int = 0, limit: int | None = None
    ) -> list[Failure]:
        """Return the failures of these sources, or of all; up to `limit` of them after the first `start` ones."""
        found = self.query(
            "SELECT uri, reason, detail, version FROM failures "
            "WHERE ?1 IS NULL OR source_id IN (SELECT value FROM json_each(?1)) ORDER BY uri LIMIT ?2 OFFSET ?3",
            None if source_ids is None else json.dumps(source_ids),
            -1 if limit is None else limit,
            start,
        )
        specs = {*self.sources()}
        return [Failure(uri if uri in specs else self.shown_uri(uri), *rest) for uri, *rest in found]

    # Labels

    def put_label_names(self, names: Mapping[str, str]) -> None:
        """Store the names of labels."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO label_names VALUES (?, ?)", [tuple(map(sql_text, pair)) for pair in names.items()]
        )

    def label_names(self) -> dict[str, str]:
        """Return the names of labels, for those that have one."""
        return dict(self.query("SELECT label, name FROM label_names"))

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        """Return the labels that equal one of these texts, or whose name does, in full or in a part between commas."""
        requested = {*map(as_unicode, texts)}  # as labels are stored
        found = self.query("SELECT DISTINCT label FROM items WHERE label IS NOT NULL")
        labels = {label for (label,) in found}
        return labels & (requested | labels_named(self.label_names(), requested))

    # Calibrations

    def put_calibrations(
        self, space: str, fingerprint: str, calibrations: Mapping[QueryKind, Calibration | None]
    ) -> None:
        """Store calibrations of a space for kinds of queries, or remove one with None; those of other kinds stay."""
        self.connection.executemany(
            "DELETE FROM calibrations WHERE space = ? AND kind = ?", [(space, kind) for kind in calibrations]
        )
        self.connection.executemany(
            "INSERT INTO calibrations (space, kind, fingerprint, slope, intercept, weak_below) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [
                (space, kind, fingerprint, each.slope, each.intercept, each.weak_below)
                for kind, each in calibrations.items()
                if each is not None
            ],
        )

    def calibrations(self, fingerprints: Mapping[str, str]) -> dict[str, dict[QueryKind, Calibration]]:
        """Return the calibrations of spaces that were made with the encoder of the space's fingerprint."""
        if not self._has_table("calibrations"):
            return {}
        found: dict[str, dict[QueryKind, Calibration]] = {}
        rows = self.query("SELECT space, kind, fingerprint, slope, intercept, weak_below FROM calibrations")
        for space, kind, fingerprint, *numbers in rows:
            if fingerprints.get(space) == fingerprint:
                found.setdefault(space, {})[kind] = Calibration(*numbers)
        return found

    # Values

    def counts(self, column: str) -> dict[str, int]:
        """Return the number of items for each value of a column, the most frequent first."""
        return dict(
            self.query(f"SELECT {column}, count(*) FROM items WHERE {column} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1")
        )

    def _item_of_row(self, values: Sequence[object]) -> Item:
        """Return the item of a row of the catalog."""
        item = Item(*values)  # type: ignore[arg-type]
        return replace(item, uri=self.shown_uri(item.uri), details=details_from_json(item.details))

    def uris_below(self, prefix: str) -> tuple[str, list[object]]:
        """Return a condition in SQL, and its values: the uri begins with `prefix`, a folder or URL and a slash."""
        stored = self.stored_uri(prefix)
        start = os.fsencode(stored)
        # Text or bytes that begin so sort between that and the same with the last byte, a slash, raised by one.
        conditions, values = list[str](), list[object]()
        if stored:
            conditions.append("(typeof(uri) = 'blob' AND uri >= ? AND uri < ?)")
            values += [start, start[:-1] + b"0"]
        if stored and isinstance(stored, str):
            conditions.append("(uri >= ? AND uri < ?)")
            values += [stored, stored[:-1] + "0"]
        if self._home.startswith(prefix):
            conditions.append("(CAST(uri AS TEXT) NOT GLOB '/*' AND CAST(uri AS TEXT) NOT GLOB '[a-zA-Z]*://*')")
        return f"({' OR '.join(conditions)})", values

    def has_uris_below(self, folder: str) -> bool:
        """Return whether an item is in a folder, which is an absolute path or a URL, or in a folder below it."""
        condition, values = self.uris_below(os.path.join(folder, ""))
        return bool(self.query(f"SELECT 1 FROM items WHERE {condition} LIMIT 1", *values))

    def uris(self) -> Iterator[str]:
        """Yield the uris of all items."""
        return (self.shown_uri(uri) for (uri,) in self.query("SELECT uri FROM items"))

    def stored_uri(self, uri: str) -> str | bytes:
        """Return a uri as stored: relative to `home` if it is below it, and bytes if it is not valid Unicode."""
        relative = uri.removeprefix(self._home) if uri != self._home[:-1] else "."
        try:
            relative.encode()
        except UnicodeEncodeError:
            return os.fsencode(relative)
        return relative

    def shown_uri(self, stored: str | bytes) -> str:
        """Return a stored uri as it is shown: an absolute path or a URL."""
        text = os.fsdecode(stored) if isinstance(stored, bytes) else stored
        if text.startswith("/") or is_url(text):
            return text
        return self._home[:-1] if text == "." else self._home + text


def sql_value(value: object) -> object:
    """Return a value of an item as SQLite stores it; empty details become NULL."""
    if isinstance(value, Mapping):
        return json.dumps(dict(value)) if value else None
    return sql_text(value) if isinstance(value, str) else value


def details_from_json(details: object) -> dict[str, str]:
    """Return the details of an item from their JSON or NULL."""
    known: dict[str, str] = json.loads(details) if isinstance(details, str) else {}
    return known


def sql_text(text: str) -> str:
    """Return text as SQLite stores it: invalid Unicode becomes escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
