"""Stores that keep rows of items, such as databases: the comparison of sources with such a store.

A store with the methods of `RowStore` gets from `compare_rows` what `WritableStore.compare_sources` must return.
The comparison copies what the store holds, but for the embeddings, to a temporary catalog, and compares there as a
collection in a folder does. What it finds is written to the store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from .._text import as_unicode, values_as_unicode
from ..errors import CollectionError
from ..records import Entry
from ._catalog import Catalog, sql_value
from ._comparison import ComparisonResult, SourceComparison, StoredItems
from ._entry_table import ENTRY_COLUMNS, entry_of
from .items import Failure, Item

_BLOCK = 2000
_T = TypeVar("_T")
_COLUMNS = tuple(field.name for field in fields(Item) if field.name not in ("id", "added"))
_values = attrgetter(*_COLUMNS[1:])


class StoredRow(NamedTuple):
    """An item as a store keeps it, and the spec of its source; "" if it was stored without a source."""

    item: Item
    source: str


class Change(NamedTuple):
    """New fields of an item: the id that it has now, and what it becomes. Its content and embeddings stay."""

    id: int
    item: Item
    source: str


class Copy(NamedTuple):
    """An item that gets the embeddings of another one: the id of that one, and the item."""

    original: int
    item: Item


class RefusedItemsError(CollectionError):
    """Items that a store cannot hold, with the `failures` that say why. Nothing was stored.

    An image whose failure has a version is not tried again until the image or what its source says of it changes.
    """

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__(f"{failures[0].uri} cannot be stored: {failures[0].detail}.")
        self.failures = failures


class RowStore(Protocol):
    """What a store needs so that `compare_rows` compares sources with it. One thread calls these methods."""

    def rows(self) -> Iterator[StoredRow]:
        """Yield all items with their sources."""

    def sources(self) -> list[str]:
        """Return the specs of the sources."""

    def add_source(self, source: str) -> None:
        """Store the spec of a source, unless it is stored."""

    def failures_by_source(self) -> Iterator[tuple[str, Failure]]:
        """Yield all failures, each after the spec of its source."""

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source: str | None = None,
        thumbnails: Mapping[str, bytes] | None = None,
    ) -> list[int]:
        """Store items with their embeddings, as `Collection.add` does, and return their ids.

        Raises `RefusedItemsError`, before anything is stored, if the store cannot hold some of the items.
        """

    def change(self, changes: Sequence[Change]) -> list[int]:
        """Store new fields of items, and return the ids that they have then, in the same order.

        Raises `RefusedItemsError`, before anything is stored, if the store cannot hold some of the items.
        """

    def copy(self, copies: Sequence[Copy], *, source: str) -> list[int | None]:
        """Store items with the embeddings of others; return their ids, or None where the other item is missing."""

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items by id; return how many were removed."""

    def put_failures(self, source: str, failures: Sequence[Failure]) -> None:
        """Store failures of a source, or replace those of the same uri."""

    def remove_failures(self, uris: Sequence[str]) -> None:
        """Remove the failures of these uris."""


def compare_rows(store: RowStore, sources: Sequence[str]) -> RowComparison:
    """Begin a comparison of sources, named by their specs, with a store of rows."""
    folder = Path(tempfile.mkdtemp(prefix="pixmatcher-"))
    try:
        mirror = _Mirror(folder)
        mirror.fill(store)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for source in sources:
        store.add_source(source)
    comparison = RowComparison(store, mirror, sources)
    weakref.finalize(comparison, _delete, mirror, folder)
    return comparison


def _delete(mirror: Catalog, folder: Path) -> None:
    mirror.close()
    shutil.rmtree(folder, ignore_errors=True)


class RowComparison(SourceComparison):
    """A comparison of sources with a store of rows; see `SourceComparison`. Get one from `compare_rows`."""

    def __init__(self, store: RowStore, mirror: _Mirror, sources: Sequence[str]) -> None:
        """Called only by `compare_rows`."""
        super().__init__(_StoredAndMirrored(store, mirror), mirror, sources)
        self._store = store
        self._mirror = mirror

    def compare(
        self,
        *,
        unknown_paths: Sequence[str] = (),
        unknown_sources: Sequence[str] = (),
        missing: Sequence[int] = (),
        decoder_capabilities: str = "",
        retry_failed: bool = False,
        keep_newer: bool = False,
    ) -> ComparisonResult:
        """Find the entries that need work and the missing items, and update the labels of the other items."""
        self._mirror.watch()
        result = super().compare(
            unknown_paths=unknown_paths,
            unknown_sources=unknown_sources,
            missing=missing,
            decoder_capabilities=decoder_capabilities,
            retry_failed=retry_failed,
            keep_newer=keep_newer,
        )
        for changes in _blocks(self._mirror.changes()):
            self._change(changes)
        for uris in _blocks(self._mirror.removed_failures()):
            self._store.remove_failures(uris)
        return result

    def _find_pending(self, capabilities: Sequence[str], retry_failed: bool, keep_newer: bool) -> None:
        super()._find_pending(capabilities, retry_failed, keep_newer)
        if not retry_failed:
            self._mirror.drop_refused()

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        """Store items of a source with their embeddings. Those that the store cannot hold become failures."""
        try:
            return super().store(source, items, embeddings, thumbnails)
        except RefusedItemsError as error:
            failures = {failure.uri: failure for failure in error.failures}
        refused = [_remembered(failures[item.uri], item) for item in items if item.uri in failures]
        self.record_failures(source, refused)
        kept = [position for position, item in enumerate(items) if item.uri not in failures]
        arrays = {space: np.asarray(rows)[kept] for space, rows in embeddings.items()}
        return super().store(source, [items[position] for position in kept], arrays, thumbnails)

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        """Store items of a source whose content the store has: touched, moved, or copies of other items."""
        with self._mirror.noting_updates(source) as updates:
            result = super().store_known(source, items)
        # The store may know its items by what has changed of them, so that a moved item gets another id.
        self._mirror.set_ids(zip((u.id for u in updates), self._change(updates), strict=True) if updates else ())
        return result

    def _change(self, changes: Sequence[Change]) -> list[int]:
        """Change items of the store, and return their ids. Those that it cannot hold any more become failures."""
        try:
            return self._store.change(changes)
        except RefusedItemsError as error:
            refused = {failure.uri: failure for failure in error.failures}
        for change in changes:
            if (failure := refused.get(change.item.uri)) is not None:
                self.record_failures(change.source, [_remembered(failure, change.item)], remove=[failure.uri])
        kept = [change for change in changes if change.item.uri not in refused]
        ids = dict(zip((change.id for change in kept), self._store.change(kept), strict=True)) if kept else {}
        return [ids.get(change.id, change.id) for change in changes]

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        """Store failures of a source, and remove the items of the uris `remove`; return how many were removed."""
        listed, uris = [*failures], [*remove]
        if listed:
            self._store.put_failures(source, listed)
        if ids := self._mirror.ids_of(uris):
            self._store.remove(ids)
        return super().record_failures(source, listed, remove=uris)


class _StoredAndMirrored:
    """The methods that `SourceComparison` calls of a collection: they write to the store, then to its mirror."""

    def __init__(self, store: RowStore, mirror: _Mirror) -> None:
        self._store = store
        self._mirror = mirror

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source: str,
        thumbnails: Mapping[str, bytes],
    ) -> None:
        ids = self._store.add(items, embeddings, source=source, thumbnails=thumbnails)
        self._mirror.put(zip(items, ids, strict=True), source)

    def add_copies(self, items: Sequence[Item], *, source: str) -> list[Item]:
        originals = [self._mirror.row_with_content(item.content_hash) for item in items]
        copies = [Copy(row, item) for item, row in zip(items, originals, strict=True) if row is not None]
        ids = self._store.copy(copies, source=source) if copies else []
        stored = [(copy.item, item_id) for copy, item_id in zip(copies, ids, strict=True) if item_id is not None]
        self._mirror.put(stored, source)
        uris = {item.uri for item, _ in stored}
        return [item for item in items if item.uri not in uris]


class _Mirror(Catalog):
    """A temporary catalog of what a store holds. The row of an item is its id."""

    def __init__(self, folder: Path) -> None:
        self._specs: dict[str, int] = {}
        super().__init__(folder / "mirror.sqlite", folder, create=True)
        self._updates: list[Change] | None = None
        self._update_source = ""

    def source_id(self, spec: str) -> int:
        self._specs[spec] = super().source_id(spec)
        return self._specs[spec]

    def sources(self) -> dict[str, int]:
        # As the store knows them: a catalog completes a spec without an absolute path by its own folder.
        return dict(self._specs)

    def fill(self, store: RowStore) -> None:
        """Copy all that the store holds, but for the embeddings."""
        with self.writing():
            ids = {source: self.source_id(source) for source in store.sources()}
        # Failures first: storing an item deletes that of its uri.
        for failures in _blocks(store.failures_by_source()):
            with self.writing():
                for source, failure in failures:
                    self.put_failures([failure], ids[source])
        for rows in _blocks(store.rows()):
            with self.writing():
                self._insert((row.item, row.item.id, ids.get(row.source)) for row in rows)

    def put(self, items: Iterable[tuple[Item, int]], source: str) -> None:
        """Store items under their ids."""
        with self.writing():
            source_id = self.source_id(source)
            stored = [*items]
            self._insert((item, item_id, source_id) for item, item_id in stored)
            uris = ((self.stored_uri(item.uri),) for item, _ in stored)
            self.connection.executemany("DELETE FROM failures WHERE uri = ?", uris)

    def _insert(self, rows: Iterable[tuple[Item, int, int | None]]) -> None:
        values = (
            (self.stored_uri(item.uri), *map(sql_value, _values(item)), item_id, item_id, source_id)
            for item, item_id, source_id in rows
        )
        columns = ", ".join([*_COLUMNS, "id", "row", "source_id"])
        places = ", ".join("?" * (len(_COLUMNS) + 3))
        self.connection.executemany(
            f"INSERT OR REPLACE INTO items ({columns}, checksum, added) VALUES ({places}, 0, '')", values
        )

    def update_item(self, item: Item, source_id: int | None) -> None:
        super().update_item(item, source_id)
        if self._updates is not None:
            self._updates.append(Change(item.id, item, self._update_source))

    @contextmanager
    def noting_updates(self, source: str) -> Iterator[list[Change]]:
        """Yield the updates of items of a source, which are noted until the end of the block."""
        self._updates, self._update_source = [], source
        try:
            yield self._updates
        finally:
            self._updates = None

    def set_ids(self, changed: Iterable[tuple[int, int]]) -> None:
        """Give items another id."""
        with self.writing():
            self.connection.executemany(
                "UPDATE items SET id = ?2, row = ?2 WHERE id = ?1", ((old, new) for old, new in changed if old != new)
            )

    def ids_of(self, uris: Sequence[str]) -> list[int]:
        """Return the ids of the items of these uris."""
        return [item.id for uri in uris if (item := self.item_at(uri)) is not None]

    def watch(self) -> None:
        """Note from now on which items change and which failures are deleted, in temporary tables."""
        for statement in _WATCH:
            self.query(statement)

    def changes(self) -> Iterator[Change]:
        """Yield the items whose fields changed since `watch`."""
        names = {source_id: spec for spec, source_id in self.sources().items()}
        found = self.query("SELECT id, source_id FROM items WHERE id IN (SELECT id FROM temp.changed) ORDER BY id")
        for block in _blocks(iter(found)):
            items = self.items_by_id([item_id for item_id, _ in block])
            for item_id, source_id in block:
                yield Change(item_id, items[item_id], names.get(source_id, ""))

    def drop_refused(self) -> None:
        """Take those entries out of the pending ones that the store refused as they are now."""
        places = ", ".join(f"pending.{name}" for name in ENTRY_COLUMNS)
        found = self.query(
            f"SELECT pending.rowid, failures.version, {places} FROM temp.pending JOIN failures USING (uri) "
            f"WHERE failures.version LIKE '%{_REFUSED}%'"
        )
        same = [(row,) for row, version, *values in found if version == _refused_version(entry_of(self, values))]
        self.connection.executemany("DELETE FROM temp.pending WHERE rowid = ?", same)

    def removed_failures(self) -> Iterator[str]:
        """Yield the uris of the failures that were deleted since `watch`."""
        specs = {*self.sources()}
        found = self.query("SELECT uri FROM temp.removed_failures")
        return (uri if uri in specs else self.shown_uri(uri) for (uri,) in found)


_WATCH = (
    "DROP TABLE IF EXISTS temp.changed",
    "DROP TABLE IF EXISTS temp.removed_failures",
    "CREATE TEMP TABLE changed (id INTEGER PRIMARY KEY)",
    "CREATE TEMP TABLE removed_failures (uri PRIMARY KEY)",
    "CREATE TEMP TRIGGER IF NOT EXISTS note_change AFTER UPDATE OF label, caption, details, source_id ON main.items "
    "BEGIN INSERT OR IGNORE INTO changed VALUES (new.id); END",
    "CREATE TEMP TRIGGER IF NOT EXISTS note_failure AFTER DELETE ON main.failures "
    "BEGIN INSERT OR IGNORE INTO removed_failures VALUES (old.uri); END",
)


_REFUSED = " refused "


def _remembered(failure: Failure, item: Item) -> Failure:
    """Return the failure of an item with a version by which `drop_refused` knows it; as it is if it has none."""
    return replace(failure, version=_refused_version(item)) if failure.version else failure


def _refused_version(image: Item | Entry) -> str:
    """Return the version of a failure: that of the image, and a hash of what its source says of it."""
    said = json.dumps(values_as_unicode([image.label, image.caption, image.details]), sort_keys=True)
    return f"{as_unicode(image.version)}{_REFUSED}{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _blocks(values: Iterator[_T]) -> Iterator[list[_T]]:
    while block := list(islice(values, _BLOCK)):
        yield block
