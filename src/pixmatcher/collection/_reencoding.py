"""Other encoders for a collection: the new embeddings are stored beside the current ones, which go on answering.

The table `reencoded` of the catalog has a row for each item that is encoded: its `place` in the new files, and the
hash of the content that was encoded. The rows of the items, and with them the answers, change in `finish`, in one
transaction. A process that is killed before it leaves the old embeddings and what is encoded so far; a process that is
killed after it leaves the new ones, and files that the next writer deletes.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .._files import replacing, write_error
from .._urls import is_url
from ..errors import CollectionError
from ..records import MANIFEST_NAME, EncoderRecord, Entry, Space
from ..vector_index.vectors import Float16, row_checksums
from ._catalog import Catalog, sql_value
from ._comparison import StoredItems
from ._editions import Edition, copy_targets, make_current
from ._entry_table import ENTRY_COLUMNS, create_entry_table, entry_of, insert_entries
from ._manifest import FORMAT_VERSION, Manifest
from ._storing import stored_embeddings
from ._thumbnails import Thumbnails
from .items import Failure, Item

logger = logging.getLogger("pixmatcher.collection")

_BLOCK = 1000
_CHANGES = ("content_hash", "version", "bytes", "width", "height", "format", "modified", "taken", "missing")
"""The columns of an item that change with the content of its image."""
_VALID = (
    "(items.content_hash = reencoded.content_hash "
    "OR (reencoded.changes IS NOT NULL AND items.content_hash = reencoded.former_hash))"
)
"""Whether the new embedding of an item is that of its image, in SQL."""
_NOT_DONE = "NOT EXISTS (SELECT 1 FROM reencoded WHERE reencoded.id = items.id)"
"""Whether an item has no new embedding yet, in SQL."""


class _NewRow(NamedTuple):
    """What is stored with a new embedding: its position in a batch, and the values of `reencoded`."""

    position: int
    content_hash: str
    former_hash: str | None
    changes: str | None


class Reencoding:
    """The encoding of all items of a collection by other encoders. Get one from `Collection.begin_upgrade`.

    First give it the entries that the sources list now (`add_entries`). Then, until `begin_round` returns 0, read the
    images of the `pending` entries and store their embeddings in the `new_spaces`; if there are none, call `copy_all`.
    After `begin_last_round`, store the embeddings of the pending entries in all `spaces`. At last call `finish`, if no
    item is `missing` or those that are may be removed. All methods but `known_contents` and `thumbnail` are called from
    one thread.
    """

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        current: Edition,
        following: Edition,
        thumbnails: Thumbnails,
        thread_lock: threading.RLock,
    ) -> None:
        """Called only by `Collection.begin_upgrade`."""
        self.path = folder
        self.encoders: tuple[EncoderRecord, ...] = following.encoders
        self.spaces: dict[str, Space] = following.spaces
        self._kept = [
            space.name
            for record in following.encoders
            if record.fingerprint and record in current.encoders
            for space in record.spaces
        ]
        self.new_spaces = {name: space for name, space in self.spaces.items() if name not in self._kept}
        """The spaces whose embeddings must be made; those of the other spaces are copied."""
        self._failures: dict[str, Failure] = {}
        self._catalog = catalog
        self._current = current
        self._following = following
        self._vectors = following.vector_files(folder)
        self._current_vectors = current.vector_files(folder)
        self._thumbnails = thumbnails
        self._thread_lock = thread_lock
        self._source_ids = catalog.sources()
        with catalog.writing():
            # What an `index` run changed or removed meanwhile is encoded again.
            catalog.connection.execute(
                "DELETE FROM reencoded WHERE NOT EXISTS "
                f"(SELECT 1 FROM items WHERE items.id = reencoded.id AND {_VALID})"
            )
        self._forget_lost_rows()
        create_entry_table(catalog, "listed")
        for table in ("tried", "chosen", "unusable"):
            catalog.query(f"DROP TABLE IF EXISTS temp.{table}")
            catalog.query(f"CREATE TEMP TABLE {table} (id INTEGER PRIMARY KEY)")

    def _forget_lost_rows(self) -> None:
        """Forget the embeddings that the new files do not hold any more."""
        stored = min(file.end_row() for file in self._vectors.values())
        with self._catalog.writing():
            self._catalog.connection.execute("DELETE FROM reencoded WHERE place >= ?", (stored,))

    # What is to be done

    def done_count(self) -> int:
        """Return how many items have new embeddings."""
        return self._catalog.number("SELECT count(*) FROM reencoded")

    def add_entries(self, source: str, entries: Iterable[Entry]) -> None:
        """Add the entries that a source lists now. An entry that two sources list belongs to the first of them."""
        insert_entries(self._catalog, "listed", self._source_ids[source], entries)

    def begin_round(self) -> int:
        """Choose one listed image of each content that has no new embedding; return how many are `pending`.

        If an image could not be read, the next round tries one of its copies. No image is tried twice.
        """
        return self._choose(
            f"SELECT min(items.id) FROM items JOIN temp.listed USING (uri) WHERE {_NOT_DONE} "
            "AND NOT EXISTS (SELECT 1 FROM temp.tried WHERE tried.id = items.id) "
            "GROUP BY CASE items.content_hash WHEN '' THEN items.id ELSE items.content_hash END",
            "INSERT INTO temp.tried SELECT id FROM temp.chosen",
        )

    def begin_last_round(self) -> int:
        """Choose the items whose current embeddings could not be copied; return how many are `pending`.

        Their files have changed, or their current embeddings are damaged.
        """
        return self._choose(
            f"SELECT items.id FROM temp.unusable AS items WHERE {_NOT_DONE}",
            "DELETE FROM temp.unusable",  # no image is tried twice
        )

    def _choose(self, ids: str, then: str) -> int:
        """Choose the ids of a query in SQL, run a statement, and return how many are chosen."""
        with self._catalog.writing():
            run = self._catalog.connection.execute
            run("DELETE FROM temp.chosen")
            run(f"INSERT INTO temp.chosen {ids}")
            run(then)
            return self._catalog.number("SELECT count(*) FROM temp.chosen")

    def pending(self, source: str) -> Iterator[Entry]:
        """Yield the entries of a source whose image must be read in this round, in pages."""
        last = 0
        columns = ", ".join(f"listed.{name}" for name in ENTRY_COLUMNS)
        while rows := self._catalog.query(
            f"SELECT chosen.id, {columns} FROM temp.chosen CROSS JOIN items ON items.id = chosen.id "
            "CROSS JOIN temp.listed ON listed.uri = items.uri "
            "WHERE chosen.id > ? AND listed.source_id = ? ORDER BY chosen.id LIMIT ?",
            last,
            self._source_ids[source],
            _BLOCK,
        ):
            for _, *values in rows:
                yield entry_of(self._catalog, values)
            last = rows[-1][0]

    def missing(self) -> list[Failure]:
        """Return the items without a new embedding, each with the reason."""
        sources = {source_id: spec for spec, source_id in self._source_ids.items()}
        found = self._catalog.query(f"SELECT uri, source_id FROM items WHERE {_NOT_DONE} ORDER BY id")
        missing = []
        for stored, source_id in found:
            uri, spec = self._catalog.shown_uri(stored), sources.get(source_id)
            reasons = [self._failures[place] for place in _places(uri, spec) if place in self._failures]
            lost = Failure(uri, "missing", f"{spec} does not list it" if spec else "it is not of a source")
            missing.append(replace(next(iter(reasons), lost), uri=uri))
        return missing

    def sources_of_missing(self) -> list[str]:
        """Return the sources that have an item without a new embedding."""
        found = self._catalog.query(f"SELECT DISTINCT source_id FROM items WHERE {_NOT_DONE}")
        ids = {source_id for (source_id,) in found}
        return [spec for spec, source_id in self._source_ids.items() if source_id in ids]

    # What indexing needs of a store and of a comparison

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return no content: each image of a round is encoded. Any thread may call it."""
        return set()

    def thumbnail(self, content_hash: str) -> bytes | None:
        """Return the thumbnail of an image, or None if none is stored. Any thread may call it."""
        return self._thumbnails.get(content_hash)

    @property
    def has_thumbnails(self) -> bool:
        """Whether the collection keeps thumbnails."""
        return self._thumbnails.path.exists()

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        """Store embeddings of items, and of the items with the same content; the current ones stay.

        The embeddings are of the `new_spaces`, or of all `spaces`. An item whose image has another content than in the
        collection gets that content when the upgrade ends. `thumbnails` are JPEG files by content hash. Raises
        `StorageError` if the disk is full, `CollectionError` if the embeddings do not fit.
        """
        partial = self._kept and embeddings.keys() == self.new_spaces.keys()
        stored = stored_embeddings(embeddings, self.new_spaces if partial else self.spaces, len(items))
        with self._thread_lock:
            self._thumbnails.put(thumbnails)
            rows = self._rows_to_store(items)
            copied = self._copied_embeddings(rows) if partial else {}
            positions = np.array([row.position for row in rows.values()], np.int64)
            self._store(rows, copied | {name: values[positions] for name, values in stored.items()})
        return StoredItems(changed=len(rows))

    def copy_all(self) -> None:
        """Copy the embeddings of all items, which have all spaces already. Raises as `store`."""
        with self._thread_lock:
            last = 0
            while found := self._catalog.query(
                f"SELECT id, content_hash FROM items WHERE id > ? AND {_NOT_DONE} ORDER BY id LIMIT ?",
                last,
                _BLOCK,
            ):
                rows = {item_id: _NewRow(0, content, None, None) for item_id, content in found}
                self._store(rows, self._copied_embeddings(rows))
                last = found[-1][0]

    def _copied_embeddings(self, rows: dict[int, _NewRow]) -> dict[str, Float16]:
        """Return the current embeddings of items in the spaces that are kept, in the order of `rows`.

        Items whose embeddings cannot be copied are removed from `rows`, for the last round.
        """
        found = self._catalog.query(
            "SELECT id, row, checksum FROM items WHERE id IN (SELECT value FROM json_each(?))", json.dumps([*rows])
        )
        row_of = {item_id: row for item_id, row, _ in found}
        numbers = [row_of[item_id] for item_id in rows]
        current = {name: file.read(numbers) for name, file in self._current_vectors.items()}
        expected = {item_id: checksum for item_id, _, checksum in found}
        sums = dict(zip(rows, row_checksums([*current.values()]), strict=True))
        usable = [rows[i].changes is None and sums[i] == expected[i] for i in rows]
        lost = [(item_id,) for item_id, good in zip(rows, usable, strict=True) if not good]
        with self._catalog.writing():
            self._catalog.connection.executemany("INSERT OR IGNORE INTO temp.unusable VALUES (?)", lost)
        for (item_id,) in lost:
            del rows[item_id]
        return {name: current[name][np.array(usable, bool)] for name in self._kept}

    def _store(self, rows: Mapping[int, _NewRow], embeddings: Mapping[str, Float16]) -> None:
        """Store items with their embeddings of all spaces: first the embeddings, then what is known of them."""
        if not rows:  # none of a batch could be copied
            return
        first = self._catalog.number("SELECT coalesce(max(place) + 1, 0) FROM reencoded")
        try:
            for name, file in self._vectors.items():
                file.write(first, embeddings[name])
        except OSError as error:
            raise write_error(self.path, error) from error
        sums = row_checksums([embeddings[name] for name in self._vectors])
        with self._catalog.writing():
            self._catalog.connection.executemany(
                "INSERT OR REPLACE INTO reencoded VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (item_id, place, checksum, row.content_hash, row.former_hash, row.changes)
                    for place, ((item_id, row), checksum) in enumerate(zip(rows.items(), sums, strict=True), first)
                ),
            )

    def _rows_to_store(self, items: Sequence[Item]) -> dict[int, _NewRow]:
        """Return the items that get the embeddings of `items`, by their ids."""
        rows: dict[int, _NewRow] = {}
        for position, item in enumerate(items):
            current = self._catalog.item_at(item.uri)
            if current is None or current.id in rows:
                continue
            same = [current.id]
            changes = None
            if current.content_hash == item.content_hash:
                found = self._catalog.query(
                    f"SELECT id FROM items WHERE content_hash = ? AND {_NOT_DONE}", item.content_hash
                )
                same = [item_id for (item_id,) in found]
            else:
                changes = json.dumps(
                    {name: sql_value(value) for name, value in asdict(item).items() if name in _CHANGES}
                )
            for item_id in same:
                former = current.content_hash if changes else None
                rows.setdefault(item_id, _NewRow(position, item.content_hash, former, changes))
        return rows

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        """Store nothing: no content is known."""
        return StoredItems()

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        """Remember failures for `missing`: those of images, of folders and of whole sources. Nothing is removed."""
        self._failures |= {failure.uri: failure for failure in failures}
        return 0

    # The end

    def finish(self, *, remove_missing: bool = False) -> int:
        """Make the new embeddings the current ones, in one step. Return how many items were removed.

        With `remove_missing`, items without a new embedding are removed. Open the collection again afterwards. Raises
        `CollectionError` if items are missing otherwise, `StorageError` if the disk is full.
        """
        if not remove_missing and self.missing():
            raise CollectionError(f"Images of {self.path} have no new embeddings: make them available, or remove them.")
        try:
            for file in self._vectors.values():
                file.extend_with_zeros(0)  # the file exists, also without items
            copy_targets(self.path, self._current, self._following)
            # Version 0.1.0 knows only the number in this file. From here on it refuses the collection.
            manifest = Manifest.read(self.path)
            if manifest.format < FORMAT_VERSION:
                with replacing(self.path / MANIFEST_NAME) as opened:
                    opened.write(replace(manifest, format=FORMAT_VERSION).text().encode())
        except OSError as error:
            raise write_error(self.path, error) from error
        with self._catalog.writing():
            return self._switch()

    def _switch(self) -> int:
        catalog = self._catalog
        run = catalog.connection.execute
        first_row = catalog.row_count()
        removed = run(f"DELETE FROM items WHERE {_NOT_DONE}").rowcount
        changed = run(
            "SELECT items.id, changes FROM items JOIN reencoded USING (id) "
            "WHERE changes IS NOT NULL AND items.content_hash = reencoded.former_hash"
        ).fetchall()
        # The new numbers are above all former ones: no number is used twice.
        run(
            "UPDATE items SET (row, checksum) = "
            "(SELECT ? + place, reencoded.checksum FROM reencoded WHERE reencoded.id = items.id)",
            (first_row,),
        )
        columns = ", ".join(f"{name} = ?" for name in _CHANGES)
        for item_id, text in changed:
            changes = json.loads(text)
            run(f"UPDATE items SET {columns} WHERE id = ?", (*(changes.get(name) for name in _CHANGES), item_id))
        run(
            "UPDATE state SET rows = ? + (SELECT coalesce(max(place) + 1, 0) FROM reencoded), "
            "generation = generation + 1",
            (first_row,),
        )
        # Encoders of other packages may have the same fingerprint.
        run("DELETE FROM calibrations WHERE space NOT IN (SELECT value FROM json_each(?))", (json.dumps(self._kept),))
        make_current(catalog, self._following, first_row)
        logger.info("%s has the embeddings of %s", self.path, ", ".join(e.name for e in self.encoders))
        return removed


def _places(uri: str, source: str | None) -> Iterator[str]:
    """Yield what may say why an image is missing: its uri, the folders above it, and its source."""
    yield uri
    if not is_url(uri):
        yield from map(str, Path(uri).parents)
    if source is not None:
        yield source
