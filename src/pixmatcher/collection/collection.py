"""The collection: a folder on disk that holds items, embeddings and the index of each space."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .._files import write_error
from .._progress import ProgressCallback
from ..errors import CollectionError, CollectionLockedError, NoItemError, PixMatcherError
from ..records import (
    CATALOG_NAME,
    COLLECTION_NAMES,
    LOCK_NAME,
    THUMBNAILS_NAME,
    Calibration,
    DescribesEncoder,
    EncoderRecord,
    FolderNotes,
    QueryKind,
    Space,
)
from ..vector_index.vectors import Float16
from ._catalog import Catalog
from ._editions import Edition, abandon_next, begin_next, current_edition, next_edition, remove_leftovers
from ._forgetting import ToForget, find_to_forget
from ._indexes import SpaceIndexes
from ._location import advice_without_collection, find_collection, locate_collection
from ._lock import WriterLock
from ._manifest import Manifest, records_of
from ._names import size_of_files, start_again
from ._rows import RowProperties, page_conditions
from ._search import nearest_items, nearest_labelled_items
from ._spaces import query_vector, space_named, whole_number
from ._storing import check_item, store_items, stored_embeddings, with_content_of
from ._thumbnails import Thumbnails
from .filters import Filter
from .items import Changes, CollectionState, Failure, Hit, IndexDescription, Item, Neighbour, Problem

if TYPE_CHECKING:
    from ._comparison import SourceComparison
    from ._reencoding import Reencoding
    from ._verify import Parts


class Collection:
    """A folder of items and their embeddings, which can be searched.

    Use it as a context manager. Any number of processes may read a collection while one writes; the first call that
    writes takes the writer lock, and `close` releases it. The methods may be called from several threads.
    """

    def __init__(self, path: Path, edition: Edition, catalog: Catalog) -> None:
        """Called only by `create` and `open`."""
        self.path = path
        self.encoders: tuple[EncoderRecord, ...] = edition.encoders
        self.spaces: dict[str, Space] = edition.spaces
        self._edition = edition
        self._catalog = catalog
        catalog.edition = edition.number
        self._properties = RowProperties(catalog)
        self._vectors = edition.vector_files(path)
        self._thumbnails = Thumbnails(path / THUMBNAILS_NAME)
        self._lock = WriterLock(path / LOCK_NAME)
        self._thread_lock = threading.RLock()
        self.indexes = SpaceIndexes(
            path, edition, self._vectors, catalog, self._thread_lock, self._lock, self.begin_writing
        )

    FILES = COLLECTION_NAMES
    """The names of all files and folders that a collection keeps in its folder."""

    # Opening and closing

    @classmethod
    def create(cls, path: str | os.PathLike[str], encoders: Sequence[DescribesEncoder]) -> Collection:
        """Create a collection in the folder `path` for the spaces of these encoders, and open it.

        Raises `CollectionError` if the folder is a collection already or cannot be written, `StorageError` if the disk
        is full.
        """
        folder = Path(os.path.abspath(path))
        from ._creation import create_files

        create_files(folder, encoders)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Collection:
        """Open the collection in the folder `path`, or in `.pixmatcher` inside it.

        Raises `CollectionError` if it does not exist, cannot be read, is damaged, or has a newer format.
        """
        folder = cls.locate(path)
        if folder is None:
            raise CollectionError(f"There is no collection in {path}", advice_without_collection(path))
        manifest = Manifest.read(folder)
        if not os.path.lexists(folder / CATALOG_NAME):
            raise CollectionError(f"The file {CATALOG_NAME} of {folder} is missing", start_again(folder))
        catalog = Catalog(folder / CATALOG_NAME, folder.parent)
        try:
            return cls(folder, current_edition(catalog, manifest.encoders, folder), catalog)
        except BaseException:
            catalog.close()
            raise

    @staticmethod
    def find(start: str | os.PathLike[str] = ".") -> Path:
        """Return the folder of the nearest collection at or above `start`, as git finds a repository.

        Raises `NoCollectionError` if no folder there is a collection.
        """
        return find_collection(start)

    @staticmethod
    def locate(path: str | os.PathLike[str]) -> Path | None:
        """Return the folder of the collection in `path` or in `.pixmatcher` inside it; None if neither is a collection.

        Raises `CollectionError` if one of these folders cannot be read, so that the answer is not known.
        """
        return locate_collection(path)

    def close(self) -> None:
        """Save the indexes, end writing and close the files. Training an index may take minutes."""
        self._close(train=True)

    def _close(self, *, train: bool) -> None:
        with self._thread_lock:
            try:
                if self._lock.held and not self.upgraded:
                    # Thumbnails of removed items do no harm; another run can remove them.
                    with contextlib.suppress(PixMatcherError):
                        self._thumbnails.keep(self._catalog.needed_contents)
                    self.indexes.save(train=train)
            finally:
                self._thumbnails.close()
                self._catalog.close()
                self._release_locks()
                self.indexes.clear()
                for file in self._vectors.values():
                    file.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            # The error that ends the block matters; the indexes can be saved another time.
            with contextlib.suppress(PixMatcherError):
                self._close(train=False)

    # Reading

    def __len__(self) -> int:
        """Return the number of items."""
        return self._catalog.item_count()

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids; items may be added or removed meanwhile."""
        return self._catalog.items()

    def items_page(
        self, after_id: int = 0, limit: int = 100, *, filter: Filter | None = None, source: str | None = None
    ) -> list[Item]:
        """Return up to `limit` items whose id is greater than `after_id`, in the order of their ids.

        Only items that pass the filter, and of the source with this spec, are returned. The id of the last one begins
        the next page. Raises `CollectionError` if the collection has no such source.
        """
        after_id, limit = whole_number(after_id, "id"), whole_number(limit, "number of items")
        with self._catalog.transaction_for_reading():
            conditions, values = page_conditions(self._catalog, filter or Filter(), source)
        return self._catalog.items_page(after_id, limit, conditions, values)

    def items_by_id(self, ids: Iterable[int]) -> dict[int, Item]:
        """Return the items of these ids by their id; an id that does not exist is left out."""
        return self._catalog.items_by_id([whole_number(item_id, "id") for item_id in ids])

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids of all items, ascending (N,) int64."""
        return self._catalog.ids()

    def ids_page(self, after_id: int = 0, limit: int = 100) -> npt.NDArray[np.int64]:
        """Return up to `limit` ids greater than `after_id`, ascending (N,) int64."""
        return self._catalog.ids_page(whole_number(after_id, "id"), whole_number(limit, "number of ids"))

    def sample_ids(self, count: int) -> list[int]:
        """Return the ids of up to `count` items, evenly spaced in the order of the ids."""
        return self._catalog.sample_ids(count)

    def failures(self) -> list[Failure]:
        """Return the images that could not be indexed and still exist."""
        return self._catalog.failures()

    def failures_page(self, start: int = 0, limit: int = 100) -> list[Failure]:
        """Return up to `limit` of `failures`, after the first `start` ones."""
        start, limit = whole_number(start, "number of failures"), whole_number(limit, "number of failures")
        return self._catalog.failures(start=start, limit=limit)

    def sources(self) -> list[str]:
        """Return the specs of the sources, in the order in which they were first indexed."""
        return [*self._catalog.sources()]

    def has_items_in(self, folder: str) -> bool:
        """Return whether an item is in a folder, which is an absolute path or the beginning of a URL, or below it."""
        return self._catalog.has_uris_below(folder)

    def item_folders(self) -> set[str]:
        """Return the folders that contain items directly, as absolute paths or beginnings of URLs."""
        return {os.path.dirname(uri) for uri in self._catalog.uris()}

    def format_counts(self) -> dict[str, int]:
        """Return the number of items of each image format, the most frequent first."""
        return self._catalog.counts("format")

    def incomplete(self) -> list[Item]:
        """Return the items of files whose end is missing; see `Item.missing`."""
        return self._catalog.incomplete_items()

    def incomplete_page(self, after_id: int = 0, limit: int = 100) -> list[Item]:
        """Return up to `limit` of `incomplete` whose id is greater than `after_id`."""
        return self._catalog.incomplete_items(whole_number(after_id, "id"), whole_number(limit, "number of items"))

    # Labels

    def label_counts(self) -> dict[str, int]:
        """Return the number of items of each label, the most frequent first."""
        return self._catalog.counts("label")

    def label_names(self) -> dict[str, str]:
        """Return the names of labels, such as "goldfish" of "n01443537"; labels without a name are left out."""
        return self._catalog.label_names()

    def set_label_names(self, names: Mapping[str, str]) -> None:
        """Store the names of labels; names of other labels stay as they are."""
        with self._thread_lock:
            self.begin_writing()
            with self._catalog.writing():
                self._catalog.put_label_names(names)

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        """Return the labels that equal one of these texts, or whose name does, in full or in a part between commas."""
        return self._catalog.labels_called(texts)

    def labels_by_id(self, ids: Iterable[int]) -> dict[int, str | None]:
        """Return the label, or None, of each of these ids that exists."""
        return self._catalog.labels_by_id([whole_number(item_id, "id") for item_id in ids])

    # Calibrations

    def calibrations(self) -> dict[str, dict[QueryKind, Calibration]]:
        """Return the collection's own calibrations of scores: name of the space -> kind of query -> calibration.

        Those that were made with another version of the encoder are left out.
        """
        with self._catalog.reading():
            return self._catalog.calibrations({space: self._fingerprint(space) for space in self.spaces})

    def set_calibrations(self, space: str, calibrations: Mapping[QueryKind, Calibration | None]) -> None:
        """Store calibrations of a space, or remove that of a kind of queries with None; those of other kinds stay.

        Raises `CollectionError` if the space does not exist.
        """
        name = space_named(self.spaces, space).name
        with self._thread_lock:
            self.begin_writing()
            with self._catalog.writing():
                self._catalog.put_calibrations(name, self._fingerprint(name), calibrations)

    def _fingerprint(self, space: str) -> str:
        """Return the fingerprint of the encoder of a space."""
        return next(record.fingerprint for record in self.encoders if space in {s.name for s in record.spaces})

    # State

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[int]:
        """Read one consistent state in all calls of the block, whatever is written meanwhile; yield its generation.

        The generation is a number that rises with each change to the rows of embeddings.
        """
        with self._catalog.reading() as generation:
            yield generation

    @property
    def generation(self) -> int:
        """A number that rises with each change to the rows of embeddings."""
        with self._catalog.reading() as generation:
            return generation

    def state(self) -> CollectionState:
        """Return the current state; `changes_since` counts the changes after it."""
        return self._catalog.state()

    def changes_since(self, state: CollectionState) -> Changes:
        """Count the items that were added, removed and changed since a state."""
        return self._catalog.changes_since(state)

    @property
    def upgraded(self) -> bool:
        """Whether the collection got the embeddings of other encoders after it was opened.

        Then this object can list items, but its methods that need embeddings raise `CollectionUpgradedError`.
        """
        return self._catalog.upgraded()

    @property
    def encoded_since(self) -> int:
        """The generation since which all embeddings are those of the current encoders; 0 if it was never upgraded."""
        return self._edition.generation

    # Embeddings and search

    def embeddings(self, ids: Iterable[int], space: str) -> npt.NDArray[np.float32]:
        """Return the embeddings of items in a space (N, dimension) float32, in the order of the ids.

        Raises `CollectionError` if an id or the space does not exist.
        """
        requested = [whole_number(item_id, "id") for item_id in ids]
        with self._catalog.reading():
            rows = self._catalog.rows_of(requested)
            if unknown := [item_id for item_id in requested if item_id not in rows]:
                raise NoItemError(unknown[0])
            found = self._vectors[space_named(self.spaces, space).name].read([rows[item_id] for item_id in requested])
        return found.astype(np.float32)

    def thumbnail(self, content_hash: str) -> bytes | None:
        """Return a small JPEG of the image with this content hash; None if none was stored.

        Thumbnails are stored for images that may be out of reach later, such as those of URLs.
        """
        return self._thumbnails.get(content_hash)

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

        With `filter`, only items that pass the filter are returned. A trained index may miss some of the nearest items;
        with `exact`, all stored embeddings are compared. Hits that score less than `min_score` are left out. Raises
        `CollectionError` if the space does not exist, the vector does not fit it, or k is below 1.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        k = whole_number(k, "number of results")
        if k < 1:
            raise CollectionError(f"The number of results must be 1 or more, not {k}.")
        with self._thread_lock:
            return nearest_items(
                self._catalog,
                self.indexes,
                self._properties,
                query,
                space,
                k=k,
                min_score=min_score,
                filter=filter,
                exact=exact,
            )

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        """Return the k nearest items that have a label, best first, or fewer if the collection has fewer.

        If these have fewer than `labels` different labels, the nearest item of each of the next labels follows. Raises
        `CollectionError` if the space does not exist or the vector does not fit it.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        with self._thread_lock:
            return nearest_labelled_items(
                self._catalog, self.indexes, self._properties, query, space, k=k, labels=labels
            )

    # Writing

    def begin_writing(self) -> None:
        """Take the writer lock, unless this collection has it already, and update an older schema.

        Raises `CollectionLockedError` if another process writes, `CollectionError` if a vector file is too short.
        """
        with self._thread_lock:
            if self._lock.held:
                return
            self._take_locks()
            try:
                rows = self._catalog.row_count()
                for file in self._vectors.values():
                    if file.end_row() < rows:
                        raise CollectionError(
                            f"{file.path} is damaged",
                            f"run `pixmatcher verify --repair -c {self.path}`, then `pixmatcher index` to encode the "
                            "lost images again.",
                        )
            except BaseException:
                self._release_locks()
                raise

    def _take_locks(self) -> None:
        self._lock.acquire()
        try:
            for place in (self._catalog.path, self.path):
                if not os.access(place, os.W_OK):
                    raise write_error(self.path, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place)))
            self._catalog.prepare_to_write()
            self._catalog.check_edition()
            remove_leftovers(self.path, self._edition, next_edition(self._catalog, self.path))
            # With this lock, readers leave the index files to the writer. A reader that is saving one may finish.
            with contextlib.suppress(CollectionLockedError):
                self.indexes.saving_lock.acquire()
        except BaseException:
            self._release_locks()
            raise

    def _release_locks(self) -> None:
        self.indexes.saving_lock.release()
        if self._lock.held:
            # What prevents reading now is reported when something is read.
            with contextlib.suppress(PixMatcherError):
                self._catalog.end_writing()
        self._lock.release()

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source: str | None = None,
        thumbnails: Mapping[str, bytes] | None = None,
    ) -> list[int]:
        """Store items with their embeddings of each space (N, dimension), all of them or none; return their ids.

        An item replaces the one of the same uri and keeps its id. `source` is the spec of the source that lists them.
        `thumbnails` are JPEG files by the content hash of their images. Texts that are not valid Unicode are stored as
        escapes; the uri is stored as it is. Raises `StorageError` if the disk is full, `CollectionError` if the
        embeddings do not fit, or a uri or content hash cannot be one.
        """
        stored = stored_embeddings(embeddings, self.spaces, len(items))
        with self._thread_lock:
            self.begin_writing()
            # Before the items, so that a process that is killed here leaves no item without its thumbnail.
            self._thumbnails.put(thumbnails or {})
            return self._store(items, stored, source)

    def add_copies(self, items: Sequence[Item], *, source: str | None = None) -> list[Item]:
        """Store items with the embeddings of other items that have the same content hash.

        Size, format and date taken are copied too, if an item has no format; if the other item has no date, that of
        the item counts. Return the items that were not stored, because no other item has their content.
        """
        for item in items:
            check_item(item)
        with self._thread_lock:
            self.begin_writing()
            rows = [self._catalog.row_with_content(item.content_hash) for item in items]
            known = [row for row in rows if row is not None]
            originals = self._catalog.items_by_row(known)
            copied = [
                with_content_of(i, originals.get(row)) for i, row in zip(items, rows, strict=True) if row is not None
            ]
            self._store(copied, {name: file.read(known) for name, file in self._vectors.items()}, source)
        return [item for item, row in zip(items, rows, strict=True) if row is None]

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items by id; return how many were removed. The image files are never touched."""
        with self._thread_lock:
            self.begin_writing()
            with self._catalog.writing():
                return self._catalog.remove_items(whole_number(item_id, "id") for item_id in ids)

    def forget(self, source: str | os.PathLike[str]) -> int:
        """Remove a source and all its items; return how many were removed. The image files are never touched.

        `source` can also be a folder or a file below a folder that is a source. Its items are removed, and the source
        does not list it any more until it is indexed as a source itself. Sources below it are removed. Raises
        `CollectionError` if it is neither.
        """
        with self._thread_lock:
            self.begin_writing()
            with self._catalog.writing():
                return self._to_forget(source).remove(self._catalog)

    def count_to_forget(self, source: str | os.PathLike[str]) -> int:
        """Return how many items `forget` would remove. Raises `CollectionError` as it does."""
        with self._catalog.transaction_for_reading():
            return self._to_forget(source).count(self._catalog)

    def _to_forget(self, source: str | os.PathLike[str]) -> ToForget:
        sources = [*self._catalog.sources()]
        return find_to_forget(sources, self.path, os.fspath(source), lambda found: found.count(self._catalog))

    def folder_notes(self, source: str) -> FolderNotes:
        """Return what is kept of a folder source, by its spec, from one run to the next; empty notes if it is new."""
        with self._catalog.transaction_for_reading():
            return self._catalog.folder_notes(source)

    def set_folder_notes(self, source: str, notes: FolderNotes) -> None:
        """Store what is to be kept of a folder source until the next run."""
        with self._thread_lock:
            self.begin_writing()
            with self._catalog.writing():
                self._catalog.put_folder_notes(source, notes)

    def compare_sources(self, sources: Sequence[str]) -> SourceComparison:
        """Begin a comparison of sources, named by their specs, with the collection; an earlier comparison ends.

        Raises `CollectionLockedError` if another process writes.
        """
        self.begin_writing()
        from ._comparison import SourceComparison

        return SourceComparison(self, self._catalog, sources)

    # Other encoders

    def begin_upgrade(self, encoders: Sequence[DescribesEncoder]) -> Reencoding | None:
        """Begin to replace all embeddings by those of other encoders, or continue; see `Reencoding`.

        An unfinished upgrade to other encoders than these ends, and what it stored is deleted. Return None if the
        collection is of exactly these encoders already. Raises `CollectionLockedError` if another process writes,
        `CollectionError` if the spaces cannot be used.
        """
        from ._reencoding import Reencoding

        records = records_of(encoders)
        with self._thread_lock:
            self.begin_writing()
            following = next_edition(self._catalog, self.path)
            if records == self.encoders:
                if following is not None:
                    abandon_next(self._catalog)
                    remove_leftovers(self.path, self._edition, None)
                return None
            if following is None or following.encoders != records:
                remove_leftovers(self.path, self._edition, None)
                following = begin_next(self._catalog, self._edition, records)
            return Reencoding(self.path, self._catalog, self._edition, following, self._thumbnails, self._thread_lock)

    def unfinished_encoders(self) -> tuple[EncoderRecord, ...]:
        """Return the encoders of an upgrade that was begun and is not finished; () if there is none."""
        following = next_edition(self._catalog, self.path)
        return () if following is None else following.encoders

    def _store(self, items: Sequence[Item], embeddings: Mapping[str, Float16], source: str | None) -> list[int]:
        """Check and store items, whose embeddings are float16 already; return their ids."""
        if not items:
            return []
        for item in items:
            check_item(item)
        with self._thread_lock:
            self.begin_writing()
            return store_items(self.path, self._catalog, self._vectors, items, embeddings, source)

    # Maintenance

    def verify(self) -> list[Problem]:
        """Read all files of the collection and return what is damaged. Files of the user are not read."""
        from ._verify import find_problems

        return find_problems(self._parts())

    def repair(self) -> int:
        """Remove the items whose embeddings are damaged and rebuild the indexes; return how many were removed.

        Raises `CollectionError` if the catalog itself is damaged, `CollectionLockedError` if another process writes.
        """
        from ._verify import repair_parts, require_intact_catalog

        parts = self._parts()
        require_intact_catalog(parts)
        with self._thread_lock:
            self._take_locks()
            return repair_parts(parts)

    def _parts(self) -> Parts:
        from ._verify import Parts

        return Parts(self.path, self._catalog, self._vectors, self._thumbnails, self.indexes)

    def index_descriptions(self) -> dict[str, IndexDescription]:
        """Return the index of each space: its kind, and its measured recall if it is known."""
        return {name: IndexDescription(self.indexes.kind(name), self.indexes.recall(name)) for name in self.spaces}

    def update_indexes(self, *, progress: ProgressCallback | None = None) -> None:
        """Update the index file of each space after all items were stored; arguments and errors as `indexes.save`."""
        self.indexes.save(progress=progress)

    def size_on_disk(self) -> int:
        """Return the bytes that the files of the collection take."""
        return size_of_files(self.path)
