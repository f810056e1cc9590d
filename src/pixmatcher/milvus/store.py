"""`MilvusCollection`: a collection in Milvus, with the methods and results of a collection in a folder."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .._progress import ProgressCallback
from .._text import as_unicode
from .._urls import is_url
from ..collection import (
    Changes,
    CollectionState,
    Failure,
    Filter,
    Hit,
    IndexDescription,
    IndexTuning,
    Item,
    Neighbour,
    Problem,
    ToForget,
    TuningPoint,
    check_item,
    evenly_spaced,
    find_to_forget,
    forgetting,
    labels_named,
    query_vector,
    records_as_json,
    records_from_json,
    records_of,
    space_named,
    stored_embeddings,
    whole_number,
    with_content_of,
)
from ..collection.row_stores import Change, Copy, RefusedItemsError, RowComparison, StoredRow, compare_rows
from ..errors import CollectionError, NoItemError
from ..records import Calibration, DescribesEncoder, EncoderRecord, FolderNotes, QueryKind, Space
from . import _lite
from ._address import Address, parse_address
from ._connection import Connection
from ._expressions import all_of, below, filter_condition, one_of, quoted, shown_name, stored_name
from ._indexes import Indexes
from ._notes import CALIBRATION, FAILURE, LABEL_NAMES, MANIFEST, SOURCE, STATE, Notes, Thumbnails
from ._rows import (
    ITEM_FIELDS,
    item_of,
    row_bytes,
    row_of,
    source_number,
    too_long,
    vector_field,
    vector_fields,
)
from ._schema import NOTES, THUMBNAILS, create_notes, create_tables
from ._tables import LATE_SECONDS, MOST_ROWS, Row, Table, id_of

_FORMAT = 1
_MOST_HITS = MOST_ROWS - 1
"""One more is asked for, to see whether its score is the same."""
_TIMED_QUERIES = 30
_DECIMALS = 6
"""Scores have so many decimals."""


def open_milvus(rest: str) -> MilvusCollection:
    """Open what `-c milvus:REST` names. Raises `CollectionError` if that is impossible."""
    return MilvusCollection(parse_address(rest))


class MilvusCollection:
    """A collection in Milvus. Open one with `open_milvus`; `create` makes it if it does not exist yet.

    Any number of processes may use a server. The id of an item is a hash of its uri, so everything that is written can
    be written again, and processes that write at the same time do each other no harm. The methods may be called from
    several threads.
    """

    encoded_since = 0
    """Embeddings are never replaced by those of other encoders."""

    def __init__(self, address: Address) -> None:
        """Called only by `open_milvus`."""
        self.path = address.path
        self.encoders: tuple[EncoderRecord, ...] = ()
        self.spaces: dict[str, Space] = {}
        self._address = address
        self._connected: Connection | None = None
        self._lock = threading.RLock()
        self._snapshots = threading.local()
        self._kept_counts: tuple[int, dict[str, int], dict[str, int]] | None = None
        self._known_sources: dict[str, Any] = {}
        self._written_generation = 0
        self._latest = _LatestRows()
        if address.folder is not None and not _lite.is_database(address.folder):
            return
        connection = self._connect()
        try:
            if connection.call("has_collection", address.name):
                self._open()
        except BaseException:
            self.close()
            raise

    @property
    def one_process(self) -> bool:
        """Whether only one process can have the collection open: Milvus Lite locks its folder."""
        return self._address.folder is not None

    # Opening and closing

    def create(self, encoders: Sequence[DescribesEncoder]) -> None:
        """Create the collection for the spaces of these encoders, unless it exists.

        Raises `CollectionError` if Milvus cannot keep these spaces.
        """
        if self.encoders:
            return
        records = records_of(encoders)
        connection = self._connect()
        spaces = {space.name: space for record in records for space in record.spaces}
        connection.check_spaces(len(spaces))
        create_tables(connection, self._address.name, spaces)
        notes = Notes(Table(connection, self._address.name + NOTES))
        notes.table.load()
        if notes.get(MANIFEST) is None:
            notes.put(MANIFEST, {"": {"format": _FORMAT, "encoders": records_as_json(records)}})
        self._open()

    def _connect(self) -> Connection:
        if self._connected is None:
            self._connected = Connection(self._address)
        return self._connected

    def _open(self) -> None:
        """Read what the collection consists of. It stays without encoders if it was not completely created."""
        connection, name = self._connect(), self._address.name
        if not connection.call("has_collection", name + NOTES):
            raise CollectionError(f"{self.path} is a collection of another program: name another one with -c.")
        self._items = Table(connection, name)
        self._notes = Notes(Table(connection, name + NOTES))
        # Pictures can be made again: a collection without those that it had is a whole one.
        create_notes(connection, name + THUMBNAILS)
        thumbnails = Table(connection, name + THUMBNAILS)
        self._thumbnails = Thumbnails(Notes(thumbnails))
        for table in (self._notes.table, thumbnails):
            table.load()
        manifest = self._notes.get(MANIFEST)
        if manifest is None:
            return
        try:
            version = int(manifest["format"])
            if version > _FORMAT:
                raise CollectionError(
                    f"{self.path} has the format {version}, newer than the {_FORMAT} that this version of PixMatcher "
                    "reads",
                    "upgrade with `pip install --upgrade pixmatcher`.",
                )
            self.encoders = records_from_json(manifest["encoders"])
        except (ValueError, KeyError, TypeError) as error:
            raise CollectionError(f"{self.path} is damaged: index again under another name.") from error
        self.spaces = {space.name: space for record in self.encoders for space in record.spaces}
        self._indexes = Indexes(connection, self._items, self._notes, self.spaces)
        self._indexes.load()

    def delete(self) -> None:
        """Delete the collection with all that Milvus holds of it. Image files are never touched."""
        self._connect().check_writable()
        for ending in ("", NOTES, THUMBNAILS):
            self._connect().call("drop_collection", self._address.name + ending)
        self.encoders, self.spaces = (), {}

    def close(self) -> None:
        """Close the connection."""
        connected, self._connected = self._connected, None
        if connected is not None:
            connected.close()

    def __enter__(self) -> MilvusCollection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Reading

    def __len__(self) -> int:
        """Return the number of items."""
        return self._items.count() if self.encoders else 0

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids; items may be added or removed meanwhile."""
        return map(item_of, self._items.rows(ITEM_FIELDS))

    def items_page(
        self, after_id: int = 0, limit: int = 100, *, filter: Filter | None = None, source: str | None = None
    ) -> list[Item]:
        """Return up to `limit` items whose id is greater than `after_id`, in the order of their ids.

        Only items that pass the filter, and of the source with this spec, are returned. Raises `CollectionError` if the
        collection has no such source.
        """
        after_id, limit = whole_number(after_id, "id"), whole_number(limit, "number of items")
        condition = self._condition(filter)
        if condition is None:
            return []
        if source is not None:
            if source not in self.sources():
                raise CollectionError(f"The collection has no source {source}: name one that it lists.")
            condition = all_of(condition, f"source == {source_number(source)}")
        found = self._items.rows(ITEM_FIELDS, condition, after=max(0, after_id), whole=not condition)
        return [item_of(row) for _, row in zip(range(limit), found, strict=False)]

    def items_by_id(self, ids: Iterable[int]) -> dict[int, Item]:
        """Return the items of these ids by their id; an id that does not exist is left out."""
        wanted = [whole_number(item_id, "id") for item_id in ids]
        found = self._items.get([each for each in wanted if _is_id(each)], ITEM_FIELDS)
        return {item_id: item_of(row) for item_id, row in found.items()}

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids of all items, ascending (N,) int64."""
        return np.fromiter((row["id"] for row in self._items.rows((), row_bytes=500)), np.int64)

    def sample_ids(self, count: int) -> list[int]:
        """Return the ids of up to `count` items, evenly spaced in the order of the ids."""
        return evenly_spaced(self.ids(), count)

    def failures(self) -> list[Failure]:
        """Return the images that could not be indexed and still exist."""
        return sorted((failure for _, failure in self.failures_by_source()), key=lambda failure: failure.uri)

    def failures_by_source(self) -> Iterator[tuple[str, Failure]]:
        """Yield all failures, each after the spec of its source."""
        for uri, found in self._notes.all(FAILURE):
            yield found["source"], Failure(uri, found["reason"], found["detail"], found["version"])

    def sources(self) -> list[str]:
        """Return the specs of the sources, in the order in which they were first indexed."""
        return [*self._sources()]

    def _sources(self) -> dict[str, Any]:
        found = dict(self._notes.all(SOURCE)) if self.encoders else {}
        return dict(sorted(found.items(), key=lambda pair: (pair[1]["created"], pair[0])))

    def has_items_in(self, folder: str) -> bool:
        """Return whether an item is in a folder, which is an absolute path or the beginning of a URL, or below it."""
        return self._items.first(below("uri", folder)) is not None

    def item_folders(self) -> set[str]:
        """Return the folders that contain items directly, as absolute paths or beginnings of URLs."""
        return {os.path.dirname(item.uri) for item in self.items()}

    def incomplete(self) -> list[Item]:
        """Return the items of files whose end is missing; see `Item.missing`."""
        return [item_of(row) for row in self._items.rows(ITEM_FIELDS, "incomplete == true", whole=False)]

    def format_counts(self) -> dict[str, int]:
        """Return the number of items of each image format, the most frequent first."""
        return dict(self._counts()[1])

    def size_on_disk(self) -> int | None:
        """Return the bytes that the files of Milvus Lite take; None for a server."""
        folder = self._address.folder
        if folder is None:
            return None
        sizes = 0
        for inner, _, files in os.walk(folder):
            for file in files:
                with contextlib.suppress(OSError):  # another thread of Milvus may remove a file meanwhile
                    sizes += os.stat(os.path.join(inner, file)).st_size
        return sizes

    def index_descriptions(self) -> dict[str, IndexDescription]:
        """Return the index of each space."""
        found = {name: self._indexes.of(name) for name in self.spaces}
        return {name: IndexDescription(each.name, each.recall) for name, each in found.items()}

    # Labels

    def label_counts(self) -> dict[str, int]:
        """Return the number of items of each label, the most frequent first."""
        return dict(self._counts()[0])

    def _counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of items of each label and format. All rows are read, once for each generation."""
        generation = self.generation
        if self._kept_counts is None or self._kept_counts[0] != generation:
            labels, formats = dict[str, int](), dict[str, int]()
            for row in self._items.rows(("label", "labelled", "format"), row_bytes=500):
                if row["labelled"]:
                    labels[row["label"]] = labels.get(row["label"], 0) + 1
                if row["format"]:
                    formats[row["format"]] = formats.get(row["format"], 0) + 1
            self._kept_counts = (generation, _frequent_first(labels), _frequent_first(formats))
        return self._kept_counts[1:]

    def label_names(self) -> dict[str, str]:
        """Return the names of labels, for those that have one."""
        names: dict[str, str] = self._notes.get(LABEL_NAMES) or {}
        return names

    def set_label_names(self, names: Mapping[str, str]) -> None:
        """Store the names of labels; names of other labels stay as they are."""
        with self._lock:
            known = self.label_names()
            changed = known | {as_unicode(label): as_unicode(name) for label, name in names.items()}
            if changed != known:
                self._notes.put(LABEL_NAMES, {"": changed})

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        """Return the labels that equal one of these texts, or whose name does, in full or in a part between commas."""
        return {
            label for label in self._labels_meant(texts) if self._items.first(all_of("labelled == true", _is(label)))
        }

    def _labels_meant(self, texts: Iterable[str]) -> set[str]:
        """Return the labels that `labels_called` returns, and others that no item has."""
        wanted = {*map(as_unicode, texts)}
        return wanted | labels_named(self.label_names(), wanted)

    def labels_by_id(self, ids: Iterable[int]) -> dict[int, str | None]:
        """Return the label, or None, of each of these ids that exists."""
        found = self._items.get([whole_number(each, "id") for each in ids], ("label", "labelled"))
        return {item_id: row["label"] if row["labelled"] else None for item_id, row in found.items()}

    # Calibrations

    def calibrations(self) -> dict[str, dict[QueryKind, Calibration]]:
        """Return the collection's own calibrations of scores: name of the space -> kind of query -> calibration."""
        found: dict[str, dict[QueryKind, Calibration]] = {}
        for space, kinds in self._notes.all(CALIBRATION):
            for kind, values in kinds.items():
                if values["fingerprint"] == self._fingerprint(space):
                    numbers = values["slope"], values["intercept"], values["weak_below"]
                    found.setdefault(space, {})[kind] = Calibration(*numbers)
        return found

    def set_calibrations(self, space: str, calibrations: Mapping[QueryKind, Calibration | None]) -> None:
        """Store calibrations of a space, or remove that of a kind of queries with None; those of other kinds stay.

        Raises `CollectionError` if the space does not exist.
        """
        name = space_named(self.spaces, space).name
        with self._lock:
            known = self._notes.get(CALIBRATION, name) or {}
            for kind, each in calibrations.items():
                known.pop(kind, None)
                if each is not None:
                    known[kind] = {**vars(each), "fingerprint": self._fingerprint(name)}
            self._notes.put(CALIBRATION, {name: known})

    def _fingerprint(self, space: str) -> str | None:
        return next((each.fingerprint for each in self.encoders if space in {s.name for s in each.spaces}), None)

    # State

    @property
    def generation(self) -> int:
        """A number that rises with each change to the items: nanoseconds since 1970."""
        return max(self._written_generation, int(self._notes.get(STATE) or 0))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[int]:
        """Yield the generation, and raise `CollectionError` at the end of the block if it has changed meanwhile.

        Unlike a collection in a folder, Milvus does not keep one state for the block.
        """
        if getattr(self._snapshots, "inside", False):
            yield self.generation
            return
        before = self.generation
        self._snapshots.inside = True
        try:
            yield before
        finally:
            self._snapshots.inside = False
        if self.generation != before:
            raise CollectionError(f"{self.path} changed while it was read", "try again when nothing changes it.")

    def state(self) -> CollectionState:
        """Return the current state; `changes_since` counts the changes after it."""
        return CollectionState(self.generation, len(self), 0, 0)

    def changes_since(self, state: CollectionState) -> Changes:
        """Count the items that were added, removed and changed since a state."""
        since = state.generation
        if self.generation == since:
            return Changes(0, 0, 0)
        added = self._items.count(f"created > {since}")
        changed = self._items.count(f"written > {since} and created <= {since}")
        return Changes(added, max(0, state.items - (len(self) - added)), changed)

    # Embeddings and search

    def embeddings(self, ids: Iterable[int], space: str) -> npt.NDArray[np.float32]:
        """Return the embeddings of items in a space (N, dimension) float32, in the order of the ids.

        Raises `CollectionError` if an id or the space does not exist.
        """
        wanted = [whole_number(item_id, "id") for item_id in ids]
        named = space_named(self.spaces, space)
        field = vector_field(self.spaces, space)
        known = [each for each in dict.fromkeys(wanted) if _is_id(each)]
        rows = self._items.get(known, [field], row_bytes=4 * named.dimension)
        if unknown := [item_id for item_id in wanted if item_id not in rows]:
            raise NoItemError(unknown[0])
        return np.array([rows[item_id][field] for item_id in wanted], np.float32).reshape(-1, named.dimension)

    def thumbnail(self, content_hash: str) -> bytes | None:
        """Return a small JPEG of the image with this content hash; None if none was stored."""
        return self._thumbnails.get(as_unicode(content_hash))

    def search(
        self,
        vector: npt.ArrayLike,
        *,
        space: str,
        k: int = 12,
        min_score: float | None = None,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """Return the k items of the highest inner product with a vector (dimension,), best first, ties by id.

        With `filter`, only items that pass the filter are returned. An index of lists may miss some of the nearest
        items; with `exact`, all embeddings are compared. Hits that score less than `min_score` are left out. Raises
        `CollectionError` if the space does not exist, the vector does not fit it, k is less than 1, or there are
        more than 16,383 results.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        k = whole_number(k, "number of results")
        if k < 1:
            raise CollectionError(f"The number of results must be 1 or more, not {k}.")
        condition = self._condition(filter)
        if condition is None:
            return []
        if k > _MOST_HITS and (k := min(k, self._items.count(condition))) > _MOST_HITS:
            raise CollectionError(
                f"{k:,} images can be results, and Milvus returns up to {_MOST_HITS:,}: ask for fewer, or use a filter."
            )
        if not k:
            return []
        found = self._nearest(query, space, k, condition, exact=exact)
        hits = [(score, item_of(row)) for score, row in found if min_score is None or score >= min_score]
        return [Hit(rank, score, item) for rank, (score, item) in enumerate(hits, start=1)]

    def _nearest(
        self, query: npt.NDArray[np.float32], space: str, k: int, condition: str, *, exact: bool = False
    ) -> list[tuple[float, Row]]:
        """Return the k rows of the highest inner products, best first, ties by id."""
        count = k
        # Among items with the score of the last hit, the lowest ids are returned, so all of these items are needed.
        while True:
            (found,) = self._items.search(
                query[np.newaxis],
                field=vector_field(self.spaces, space),
                count=count + 1,
                condition=condition,
                parameters=self._indexes.of(space).parameters(exact=exact),
                fields=ITEM_FIELDS,
            )
            # Milvus adds in an order that differs from row to row, so that equal rows differ in the seventh decimal.
            found = [(round(score, _DECIMALS), row) for score, row in found]
            if len(found) <= count or found[count][0] < found[k - 1][0] or count == _MOST_HITS:
                return sorted(found, key=lambda pair: (-pair[0], pair[1]["id"]))[:k]
            count = min(4 * count, _MOST_HITS)

    def _condition(self, filter: Filter | None) -> str | None:
        """Return the condition of a filter; None if it lets no item pass."""
        if filter is None or filter.empty:
            return ""
        labels = set[str]() if filter.labels is None else self._labels_meant(filter.labels)
        return None if filter.labels is not None and not labels else filter_condition(filter, labels)

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        """Return the k nearest items that have a label, best first, or fewer if the collection has fewer.

        If these have fewer than `labels` different labels, the nearest item of each of the next labels follows. Raises
        `CollectionError` if the space does not exist or the vector does not fit it.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        condition = "labelled == true"
        found = self._nearest(query, space, k, condition)
        seen = {row["label"] for _, row in found}
        while len(seen) < labels:
            more = self._nearest(query, space, k, all_of(condition, f"not ({one_of('label', seen)})")) if seen else []
            if not more:
                break
            for score, row in more:
                if row["label"] not in seen:
                    seen.add(row["label"])
                    found.append((score, row))
        neighbours, named = list[Neighbour](), set[str]()
        for score, row in found:
            neighbours.append(Neighbour(row["label"], score, None if row["label"] in named else item_of(row)))
            named.add(row["label"])
        return neighbours

    # Writing

    def begin_writing(self) -> None:
        """Raise `CollectionError` if the collection can only be read. Several processes may write at the same time."""
        self._connect().check_writable()

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source: str | None = None,
        thumbnails: Mapping[str, bytes] | None = None,
    ) -> list[int]:
        """Store items with their embeddings of each space (N, dimension); return their ids.

        An item replaces the one of the same uri. `source` is the spec of the source that lists them. `thumbnails` are
        JPEG files by the content hash of their images. Raises `RefusedItemsError` before anything is stored if an item
        does not fit the fields of Milvus, or has the id of another one; `CollectionError` if the embeddings do not fit.
        """
        stored = stored_embeddings(embeddings, self.spaces, len(items))
        items = [self._absolute(item) for item in items]
        # The same values as in a folder, where they are float16, so that scores are the same.
        vectors = {vector_field(self.spaces, name): rows.astype(np.float32) for name, rows in stored.items()}
        now = time.time_ns()
        with self._lock:
            ids = [id_of("item", item.uri) for item in items]
            known = self._latest.put_over(self._items.get(ids, ("uri", "created"), late=True), ids)
            rows: list[dict[str, Any]] = []
            for position, item in enumerate(items):
                old = known.get(ids[position])
                created = now if old is None else old["created"]
                values = {field: found[position] for field, found in vectors.items()}
                rows.append(row_of(item, source=source_number(source), created=created, written=now, vectors=values))
            if refused := _refused(items, rows, known):
                raise RefusedItemsError(refused)
            # Before the items, so that a process that is killed here leaves no item without its thumbnail.
            self._thumbnails.put(thumbnails or {})
            if source is not None:
                self.add_source(source)
            self._put(rows)
        return [row["id"] for row in rows]

    def _absolute(self, item: Item) -> Item:
        check_item(item)
        if os.path.isabs(item.uri) or is_url(item.uri):
            return item
        return replace(item, uri=os.path.join(self._address.home, item.uri))

    def _put(self, rows: Sequence[Row]) -> None:
        """Store rows; of several with the same id, the last one. Their failures are removed."""
        unique = {row["id"]: row for row in rows}
        self._items.put([*unique.values()], row_bytes=row_bytes(self.spaces))
        self._latest.note({item_id: {"uri": row["uri"], "created": row["created"]} for item_id, row in unique.items()})
        self._notes.delete(FAILURE, [_uri(row) for row in unique.values()])
        self._note_change()

    def _delete(self, ids: Sequence[int]) -> None:
        self._items.delete(ids)
        self._latest.note(dict.fromkeys(ids))

    def _note_change(self) -> None:
        self._written_generation = time.time_ns()
        self._notes.put(STATE, {"": self._written_generation}, awaited=False)

    def add_source(self, source: str) -> None:
        """Store the spec of a source, unless it is stored."""
        if source not in self._known_sources and self._notes.get(SOURCE, source) is None:
            self._notes.put(SOURCE, {source: {"created": time.time_ns()}})
        self._known_sources[source] = None

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items by id, with their thumbnails; return how many were removed. Image files are never touched."""
        with self._lock:
            wanted = [whole_number(item_id, "id") for item_id in ids]
            found = self._items.get([each for each in wanted if _is_id(each)], ("content_hash",))
            if not found:
                return 0
            self._delete([*found])
            self._note_change()
            hashes = [*{row["content_hash"] for row in found.values()}]
            for start in range(0, len(hashes), 1000):
                block = {*hashes[start : start + 1000]}
                self._thumbnails.delete(block - self.known_contents([*block]))
        return len(found)

    def forget(self, source: str | os.PathLike[str]) -> int:
        """Remove a source, or a part of a folder, and its items; return how many were removed.

        As `Collection.forget`; raises `CollectionError` if it is neither.
        """
        with self._lock:
            found = self._to_forget(source)
            ids = [row["id"] for row in self._items.rows((), _condition_to_forget(found), whole=False)]
            removed = sum(self.remove(ids[start : start + 1000]) for start in range(0, len(ids), 1000))
            inside = os.path.join(found.place, "")
            self._notes.delete(
                FAILURE,
                [
                    failure.uri
                    for spec, failure in self.failures_by_source()
                    if spec in found.sources
                    or (spec in found.around and (failure.uri == found.place or failure.uri.startswith(inside)))
                ],
            )
            self._notes.delete(SOURCE, found.sources)
            for spec in found.sources:
                self._known_sources.pop(spec, None)
            for spec, relative in found.around.items():
                self.set_folder_notes(spec, forgetting(self.folder_notes(spec), relative))
        return removed

    def count_to_forget(self, source: str | os.PathLike[str]) -> int:
        """Return how many items `forget` would remove. Raises `CollectionError` as it does."""
        return self._items.count(_condition_to_forget(self._to_forget(source)))

    def _to_forget(self, source: str | os.PathLike[str]) -> ToForget:
        return find_to_forget(
            self.sources(),
            self.path,
            os.fspath(source),
            lambda found: self._items.count(_condition_to_forget(found)),
        )

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return those of these content hashes that an item has."""
        if not content_hashes:
            return set()
        found = self._items.rows(("content_hash",), one_of("content_hash", content_hashes), whole=False)
        return {row["content_hash"] for row in found}

    def change(self, changes: Sequence[Change]) -> list[int]:
        """Store uri, version, label, caption, date and details of items, and return their ids then.

        Raises `RefusedItemsError` before anything is stored if Milvus cannot hold one of them.
        """
        with self._lock:
            found = self._whole_rows([each.id for each in changes])
            changed = []
            for each in changes:
                if (row := found.get(each.id)) is None:
                    continue
                new = replace(
                    item_of(row),
                    uri=self._absolute(each.item).uri,
                    version=each.item.version,
                    label=each.item.label,
                    caption=each.item.caption,
                    modified=each.item.modified,
                    details=each.item.details,
                )
                changed.append((each.id, self._copied(row, new, each.source, row["created"], row["written"])))
            rows = [row for _, row in changed]
            known = self._items.get([row["id"] for row in rows], ("uri",))
            if refused := _refused([item_of(row) for row in rows], rows, known):
                raise RefusedItemsError(refused)
            if rows:
                self._put(rows)
            # Items that moved: the new rows first, so that a process that is killed here loses nothing.
            self._delete([old for old, row in changed if row["id"] != old])
        new_ids = {old: row["id"] for old, row in changed}
        return [new_ids.get(each.id, each.id) for each in changes]

    def copy(self, copies: Sequence[Copy], *, source: str) -> list[int | None]:
        """Store items with the embeddings of others; return their ids, or None where that is impossible."""
        now = time.time_ns()
        with self._lock:
            originals = self._whole_rows([each.original for each in copies])
            known = self._items.get([id_of("item", each.item.uri) for each in copies], ("created",))
            rows: list[dict[str, Any] | None] = []
            for each in copies:
                row = originals.get(each.original)
                if row is None or row["content_hash"] != each.item.content_hash:
                    rows.append(None)
                    continue
                item = with_content_of(self._absolute(each.item), item_of(row))
                old = known.get(id_of("item", item.uri))
                rows.append(self._copied(row, item, source, now if old is None else old["created"], now))
            stored = self._put_accepted([row for row in rows if row is not None])
        return [None if row is None or row["id"] not in stored else row["id"] for row in rows]

    def _whole_rows(self, ids: Sequence[int]) -> dict[int, Row]:
        fields = (*ITEM_FIELDS, "source", "written", *vector_fields(self.spaces))
        return self._items.get([*dict.fromkeys(ids)], fields, row_bytes=row_bytes(self.spaces))

    def _copied(self, row: Row, item: Item, source: str, created: int, written: int) -> dict[str, Any]:
        vectors = {field: np.asarray(row[field], np.float32) for field in vector_fields(self.spaces)}
        return row_of(item, source=source_number(source), created=created, written=written, vectors=vectors)

    def _put_accepted(self, rows: Sequence[dict[str, Any]]) -> set[int]:
        """Store rows without those that Milvus cannot hold; return the ids of the stored ones."""
        if not rows:
            return set()
        known = self._items.get([row["id"] for row in rows], ("uri",))
        refused = {failure.uri for failure in _refused([item_of(row) for row in rows], rows, known)}
        accepted = [row for row in rows if _uri(row) not in refused]
        if accepted:
            self._put(accepted)
        return {row["id"] for row in accepted}

    # Maintenance

    def verify(self) -> list[Problem]:
        """Read all items with their embeddings, and return what is damaged. Thumbnails are not read."""
        from ._verify import find_problems

        return find_problems(self._items, self._notes, self.spaces, str(self.path))

    def repair(self) -> int:
        """Remove the items that are damaged; return how many were removed."""
        from ._verify import damaged_ids

        removed = self.remove(damaged_ids(self._items, self.spaces))
        self.update_indexes()
        return removed

    def tune_index(
        self, space: str, recall: float | None = None, *, queries: npt.NDArray[np.float32] | None = None
    ) -> IndexTuning:
        """Measure the index of a space against an exact search, and store how much of it a search visits.

        `recall` is the recall@10 that it should reach; without it, the former one counts. `queries` (N, dimension) are
        measured besides those that are derived from items. Raises `CollectionError` if the space does not exist.
        """
        named = space_named(self.spaces, space).name
        with self._lock:
            former = self._indexes.of(named).target
            points = self._indexes.tune(named, former if recall is None else recall, queries)
        index, timed = self._indexes.of(named), self._indexes.sample(named, _TIMED_QUERIES)
        return IndexTuning(
            kind=index.name,
            rows=len(self),
            recall=index.recall,
            ms=self._indexes.milliseconds(named, timed, index),
            exact_ms=self._indexes.milliseconds(named, timed, index, exact=True),
            points=tuple(TuningPoint(p.visited, p.recall, p.ms, p.visited == index.visited) for p in points),
        )

    # Comparing

    def compare_sources(self, sources: Sequence[str]) -> RowComparison:
        """Begin a comparison of sources, named by their specs, with the collection."""
        return compare_rows(self, sources)

    def rows(self) -> Iterator[StoredRow]:
        """Yield all items with their sources."""
        specs = {source_number(spec): spec for spec in self.sources()}
        for row in self._items.rows((*ITEM_FIELDS, "source")):
            yield StoredRow(item_of(row), specs.get(row["source"], ""))

    def put_failures(self, source: str, failures: Sequence[Failure]) -> None:
        """Store failures of a source, or replace those of the same uri."""
        self._notes.put(
            FAILURE,
            {
                failure.uri: {
                    "source": source,
                    "reason": failure.reason,
                    "detail": as_unicode(failure.detail),
                    "version": failure.version,
                }
                for failure in failures
            },
        )

    def remove_failures(self, uris: Sequence[str]) -> None:
        """Remove the failures of these uris."""
        self._notes.delete(FAILURE, uris)

    def folder_notes(self, source: str) -> FolderNotes:
        """Return what is kept of a folder source, by its spec, from one run to the next; empty notes if it is new."""
        return FolderNotes.from_json((self._notes.get(SOURCE, source) or {}).get("notes") or {})

    def set_folder_notes(self, source: str, notes: FolderNotes) -> None:
        """Store what is to be kept of a folder source until the next run."""
        with self._lock:
            known = self._notes.get(SOURCE, source) or {"created": time.time_ns()}
            self._notes.put(SOURCE, {source: {**known, "notes": notes.as_json()}})

    def update_indexes(self, *, progress: ProgressCallback | None = None) -> None:
        """Write everything to disk, and build the indexes that the number of items asks for now."""
        for table in (self._items, self._notes.table):
            table.flush()
        self._indexes.update()
        for table in (self._items, self._notes.table):
            table.catch_up()


class _LatestRows:
    """The rows that this process wrote in the last seconds, which a read that does not wait may miss."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, Row | None]] = {}

    def note(self, rows: Mapping[int, Row | None]) -> None:
        """Note rows by their ids, with None for those that were deleted, and forget older ones."""
        now = time.monotonic()
        for item_id, row in rows.items():
            self._rows.pop(item_id, None)  # the oldest come first
            self._rows[item_id] = (now, row)
        while self._rows and next(iter(self._rows.values()))[0] < now - LATE_SECONDS:
            del self._rows[next(iter(self._rows))]

    def put_over(self, found: dict[int, Row], ids: Iterable[int]) -> dict[int, Row]:
        """Return what was found of these ids, as this process left it."""
        latest = {item_id: self._rows[item_id][1] for item_id in ids if item_id in self._rows}
        return {item_id: row for item_id, row in {**found, **latest}.items() if row is not None}


def _refused(items: Sequence[Item], rows: Sequence[Row], known: Mapping[int, Row]) -> list[Failure]:
    """Return the failures of items that cannot be stored; `known` are the stored rows of their ids, with the uris."""
    refused, taken = list[Failure](), {item_id: row["uri"] for item_id, row in known.items()}
    for item, row in zip(items, rows, strict=True):
        if (field := too_long(row)) is not None:
            detail = f"its field {field} is longer than Milvus holds"
            refused.append(Failure(item.uri, "text too long for Milvus", detail, item.version))
        elif taken.setdefault(row["id"], row["uri"]) != row["uri"]:
            detail = "another image of the collection has the same id: give one of both another name"
            # Without a version it is tried again in the next run, when the other image may be gone.
            refused.append(Failure(item.uri, "id in use", detail))
    return refused


def _condition_to_forget(found: ToForget) -> str:
    """Return the condition that an item is among those to forget."""
    condition = _of_sources(found.sources)
    if not found.around:
        return condition
    inside = f"uri == {quoted(stored_name(found.place))} or ({below('uri', found.place)})"
    return f"{condition} or ({_of_sources(found.around)} and ({inside}))"


def _of_sources(specs: Iterable[str]) -> str:
    return f"source in [{', '.join(str(source_number(spec)) for spec in specs)}]"


def _uri(row: Row) -> str:
    return shown_name(row["uri"])


def _is(label: str) -> str:
    return f"label == {quoted(label)}"


def _is_id(item_id: int) -> bool:
    return 0 < item_id < 2**63


def _frequent_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
