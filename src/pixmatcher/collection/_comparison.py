"""The comparison of sources with a collection: which of their entries are new, changed, moved or missing.

It works in temporary tables of the catalog's database: `seen` has every entry of the sources, `pending` those that need
work, `missing` the items that no source lists any more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy.typing as npt

from ..records import Entry
from ._catalog import Catalog
from ._entry_table import ENTRY_COLUMNS, create_entry_table, entry_of, insert_entries
from .items import Failure, Item

_NEWER = "items.version IS NOT seen.version AND items.modified > seen.modified"
"""Whether an item is of a later file than the entry of its uri; NULL, as FALSE, if one of them has no date."""


@dataclass(frozen=True)
class ComparisonResult:
    """What a comparison found.

    Counts of the entries whose item is `unchanged`, of those whose item received a new label, caption or details
    (`updated`), of those that are `pending`: their image must be read, of those whose image failed before and is not
    tried again (`remembered`), and of those whose item is of a `newer` file.
    """

    unchanged: int
    updated: int
    pending: int
    remembered: int = 0
    newer: int = 0


@dataclass(frozen=True)
class StoredItems:
    """What happened to items that were stored: how many of them were added, changed, moved or left as they were.

    `unknown` are the uris of the items that could not be stored, because no item of the collection has their content.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    unknown: frozenset[str] = frozenset()


class StoresItems(Protocol):
    """What a comparison needs of the collection that it writes to; `Collection` says what each method does."""

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source: str,
        thumbnails: Mapping[str, bytes],
    ) -> object:
        """Store items of a source with their embeddings."""

    def add_copies(self, items: Sequence[Item], *, source: str) -> list[Item]:
        """Store items whose content the collection has; return those whose content it does not have."""


class SourceComparison:
    """A comparison of sources with a collection, and the storing of what it finds.

    Get one from `Collection.compare_sources`. First give it the entries of each source (`add_entries`), then call
    `compare`. Then read the images of the `pending` entries and store them; at last remove the `missing` items.
    Sources are named by their specs. All methods but `known_contents` are called from one thread.
    """

    def __init__(self, collection: StoresItems, catalog: Catalog, sources: Sequence[str]) -> None:
        """Called only by `Collection.compare_sources`."""
        self._collection = collection
        self._catalog = catalog
        with catalog.writing():
            self._ids = {spec: catalog.source_id(spec) for spec in sources}
        for table in ("pending", "missing"):
            catalog.query(f"DROP TABLE IF EXISTS temp.{table}")
        create_entry_table(catalog, "seen")

    # Comparing

    def add_entries(self, source: str, entries: Iterable[Entry]) -> None:
        """Add the entries that a source lists now. An entry that two sources list belongs to the first of them."""
        insert_entries(self._catalog, "seen", self._ids[source], entries)

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
        """Find the entries that need work and the items that are missing, and update the labels of the other items.

        Items at or below one of `unknown_paths`, and those of `unknown_sources`, are not missing: their files could not
        be listed. The ids of items of other sources in `missing` are. An image that failed is pending again, unless
        the version of its failure is the version of its entry, a space and a line of `decoder_capabilities`; and with
        `retry_failed`. With `keep_newer`, for entries that were listed a while ago, an entry whose item has a later
        date `modified` is not pending. Failures that do not hold any more are deleted.
        """
        sources = json.dumps([*self._ids.values()])
        listed = json.dumps([source_id for spec, source_id in self._ids.items() if spec not in unknown_sources])
        with self._catalog.writing():
            self._find_pending(decoder_capabilities.split("\n"), retry_failed, keep_newer)
            self._find_missing(listed, missing, unknown_paths)
            run = self._catalog.connection.execute
            run(
                "DELETE FROM failures WHERE source_id IN (SELECT value FROM json_each(?)) AND NOT EXISTS "
                "(SELECT 1 FROM temp.seen LEFT JOIN items USING (uri) "
                "WHERE seen.uri = failures.uri AND items.version IS NOT seen.version)",
                (sources,),
            )
            same = self._catalog.number("SELECT count(*) FROM temp.seen JOIN items USING (uri, version)")
            # An item that its source does not list any more, or that an earlier source of this run lists too, passes
            # to that source.
            run(
                "UPDATE items SET source_id = (SELECT source_id FROM temp.seen WHERE seen.uri = items.uri) "
                "WHERE source_id IN (SELECT value FROM json_each(?)) AND EXISTS (SELECT 1 FROM temp.seen "
                "WHERE seen.uri = items.uri AND seen.version = items.version AND seen.source_id <> items.source_id)",
                (listed,),
            )
            updated = run(
                "UPDATE items SET (label, caption, details) = "
                "(SELECT label, caption, details FROM temp.seen WHERE seen.uri = items.uri) WHERE EXISTS "
                "(SELECT 1 FROM temp.seen WHERE seen.uri = items.uri AND seen.version = items.version "
                "AND seen.source_id = items.source_id AND (seen.label IS NOT items.label "
                "OR seen.caption IS NOT items.caption OR seen.details IS NOT items.details))"
            ).rowcount
            pending = self._catalog.number("SELECT count(*) FROM temp.pending")
            newer = 0
            if keep_newer:
                newer = self._catalog.number(f"SELECT count(*) FROM temp.seen JOIN items USING (uri) WHERE {_NEWER}")
            listed_entries = self._catalog.number("SELECT count(*) FROM temp.seen")
        return ComparisonResult(same - updated, updated, pending, listed_entries - same - pending - newer, newer)

    def _find_pending(self, capabilities: Sequence[str], retry_failed: bool, keep_newer: bool) -> None:
        places = ", ".join(["seen.version || ' ' || ?"] * len(capabilities))
        self._catalog.connection.execute(
            "CREATE TEMP TABLE pending AS SELECT seen.* FROM temp.seen LEFT JOIN items USING (uri) "
            "LEFT JOIN failures USING (uri) WHERE items.version IS NOT seen.version "
            f"AND (? OR failures.version IS NULL OR failures.version NOT IN ({places})) "
            f"AND NOT (? AND coalesce({_NEWER}, FALSE))",
            (retry_failed, *capabilities, keep_newer),
        )

    def _find_missing(self, sources: str, missing: Sequence[int], unknown_paths: Sequence[str]) -> None:
        run = self._catalog.connection.execute
        run(
            "CREATE TEMP TABLE missing AS SELECT id, uri, content_hash FROM items "
            "WHERE (source_id IN (SELECT value FROM json_each(?)) OR id IN (SELECT value FROM json_each(?))) "
            "AND NOT EXISTS (SELECT 1 FROM temp.seen WHERE seen.uri = items.uri)",
            (sources, json.dumps(missing)),
        )
        if unknown_paths:
            paths, below = {*unknown_paths}, tuple(os.path.join(path, "") for path in unknown_paths)
            found = run("SELECT id, uri FROM temp.missing").fetchall()
            uris = ((item_id, self._catalog.shown_uri(uri)) for item_id, uri in found)
            kept = [(item_id,) for item_id, uri in uris if uri in paths or uri.startswith(below)]
            self._catalog.connection.executemany("DELETE FROM temp.missing WHERE id = ?", kept)
        run("CREATE INDEX temp.missing_by_content ON missing (content_hash)")

    def other_sources(self) -> list[str]:
        """Return the specs of the sources of the collection that are not compared."""
        return [spec for spec in self._catalog.sources() if spec not in self._ids]

    def item_count(self, source: str) -> int:
        """Return how many items of the collection come from a source."""
        return self._catalog.item_count(self._ids[source])

    def unlisted_items(self, sources: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield the id and uri of each item of these sources that no compared source lists."""
        ids = self._catalog.sources()
        found = self._catalog.query(
            "SELECT id, uri FROM items WHERE source_id IN (SELECT value FROM json_each(?)) "
            "AND NOT EXISTS (SELECT 1 FROM temp.seen WHERE seen.uri = items.uri)",
            json.dumps([ids[spec] for spec in sources]),
        )
        return ((item_id, self._catalog.shown_uri(uri)) for item_id, uri in found)

    # Results of the comparison

    def pending(self, source: str) -> Iterator[Entry]:
        """Yield the entries of a source whose image must be read, in pages, so that items can be stored meanwhile."""
        last = 0
        while rows := self._catalog.query(
            f"SELECT rowid, {', '.join(ENTRY_COLUMNS)} FROM temp.pending "
            "WHERE rowid > ? AND source_id = ? ORDER BY rowid LIMIT 1000",
            last,
            self._ids[source],
        ):
            for _, *values in rows:
                yield entry_of(self._catalog, values)
            last = rows[-1][0]

    def missing(self) -> list[int]:
        """Return the ids of the items that no source lists and whose content was not found elsewhere."""
        return [item_id for (item_id,) in self._catalog.query("SELECT id FROM temp.missing")]

    def failures(self) -> list[Failure]:
        """Return the images of the compared sources that could not be indexed."""
        return self._catalog.failures([*self._ids.values()])

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return those of these content hashes that an item of the collection has. Any thread may call it."""
        return self._catalog.known_contents(content_hashes)

    # Storing

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        """Store items of a source with their embeddings; arguments and errors as those of `Collection.add`."""
        changed = self._catalog.count_uris(item.uri for item in items)
        self._collection.add(items, embeddings, source=source, thumbnails=thumbnails)
        return StoredItems(added=len(items) - changed, changed=changed)

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        """Store items of a source whose content the collection has: touched, moved, or copies of other items.

        An item whose content is missing at its old place is moved; else the embeddings are copied. What the collection
        does not have any more is in `StoredItems.unknown`.
        """
        copies: list[Item] = []
        unchanged = moved = 0
        with self._catalog.writing():
            for item in items:
                current = self._catalog.item_at(item.uri)
                if current is not None and current.content_hash == item.content_hash:
                    unchanged += 1
                    same: int | None = current.id
                else:
                    same = self._take_missing(item.content_hash)
                    moved += same is not None
                if same is None:
                    copies.append(item)
                else:
                    self._catalog.update_item(replace(item, id=same), self._ids[source])
        existing = {item.uri for item in copies if self._catalog.item_at(item.uri) is not None}
        unknown = {item.uri for item in self._collection.add_copies(copies, source=source)}
        copied = {item.uri for item in copies} - unknown
        changed = len(copied & existing)
        return StoredItems(len(copied) - changed, changed, moved, unchanged, frozenset(unknown))

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        """Store failures of a source, and remove the items of the uris `remove`; return how many were removed."""
        with self._catalog.writing():
            self._catalog.put_failures(failures, self._ids[source])
            return self._catalog.remove_uris(remove)

    def _take_missing(self, content_hash: str) -> int | None:
        """Return the id of a missing item that has this content, and take it out of the missing ones."""
        found = self._catalog.query("SELECT id FROM temp.missing WHERE content_hash = ? LIMIT 1", content_hash)
        if not found:
            return None
        item_id: int = found[0][0]
        # The content counts too, because only the content is indexed.
        self._catalog.query("DELETE FROM temp.missing WHERE content_hash = ? AND id = ?", content_hash, item_id)
        return item_id
