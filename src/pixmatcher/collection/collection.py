"""The collection: a folder on disk that holds items, embeddings and the index of each space."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._files import read_error, replacing, write_error
from ..errors import CollectionError, CollectionLockedError, NoCollectionError, PixMatcherError
from ..records import DescribesEncoder, EncoderRecord, Space
from ..vector_index.vectors import Float16, Rows, VectorFile, row_checksums, to_stored
from ._catalog import Catalog
from ._comparison import SourceComparison
from ._indexes import SpaceIndexes
from ._lock import WriterLock
from ._manifest import Manifest
from ._names import (
    CATALOG_NAME,
    FOLDER_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    MAPS_NAME,
    OWN_NAMES,
    THUMBNAILS_NAME,
    start_again,
)
from ._spaces import query_vector, space_named
from ._thumbnails import Thumbnails
from .filters import Filter
from .items import Changes, CollectionState, Failure, Hit, Item, Neighbour, Problem
from .stored_maps import damaged_maps, remove_damaged_maps

if TYPE_CHECKING:
    pass


class Collection:
    """Items, their embeddings, and the search among them.

    Use it as a context manager. Any number of processes may read a collection while one writes; the first call that
    writes takes the writer lock, and `close` gives it back. The methods may be called from several threads.
    """

    def __init__(self, path: Path, manifest: Manifest, catalog: Catalog) -> None:
        """For `create` and `open`."""
        self.path = path
        self.encoders: tuple[EncoderRecord, ...] = manifest.encoders
        self.spaces: dict[str, Space] = {s.name: s for e in manifest.encoders for s in e.spaces}
        self._catalog = catalog
        self._vectors = {
            s.name: VectorFile(path / "vectors" / f"{s.name}.f16", s.dimension) for s in self.spaces.values()
        }
        self._thumbnails = Thumbnails(path / THUMBNAILS_NAME)
        self._lock = WriterLock(path / LOCK_NAME)
        self._thread_lock = threading.RLock()
        self.indexes = SpaceIndexes(
            path, self.spaces, self._vectors, catalog, self._thread_lock, self._lock, self.begin_writing
        )

    FILES = OWN_NAMES
    """Names of all that a collection keeps in its folder."""

    # Opening and closing

    @classmethod
    def create(cls, path: str | os.PathLike[str], encoders: Sequence[DescribesEncoder]) -> Collection:
        """Make a new collection in the folder `path` for the spaces of these encoders.

        Raises `CollectionError` if there is one already or the folder cannot be written, `StorageError` if the disk is
        full.
        """
        folder = Path(os.path.abspath(path))
        manifest = Manifest.of(encoders)
        lock = WriterLock(folder / LOCK_NAME)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            if os.path.lexists(folder / MANIFEST_NAME):
                raise CollectionError(f"{folder} is a collection already: open it, or choose another folder.")
            catalog = Catalog(folder / CATALOG_NAME, folder.parent, create=True)
            known_rows = catalog.row_count()
            catalog.close()
            if known_rows:
                raise CollectionError(f"{folder} has lost its {MANIFEST_NAME}: {start_again(folder)}")
            # The manifest comes last: with it, the collection exists.
            with replacing(folder / MANIFEST_NAME) as file:
                file.write(manifest.text().encode())
        except OSError as error:
            raise write_error(folder, error) from error
        finally:
            lock.release()
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Collection:
        """Open the collection in the folder `path`, or in `.pixmatcher` inside it.

        Raises `CollectionError` if there is none, or if it cannot be read, is damaged or of a newer format.
        """
        folder = cls.locate(path)
        if folder is None:
            raise CollectionError(f"There is no collection in {path}: make one with `pixmatcher index FOLDER`.")
        manifest = Manifest.read(folder)
        if not os.path.lexists(folder / CATALOG_NAME):
            raise CollectionError(f"{folder} has lost its {CATALOG_NAME}: {start_again(folder)}")
        return cls(folder, manifest, Catalog(folder / CATALOG_NAME, folder.parent))

    @classmethod
    def find(cls, start: str | os.PathLike[str] = ".") -> Path:
        """The folder of the nearest collection at or above `start`, as git finds a repository.

        Raises `NoCollectionError` if there is none.
        """
        origin = Path(os.path.abspath(start))
        for folder in (origin, *origin.parents):
            if (found := cls.locate(folder)) is not None:
                return found
        raise NoCollectionError(
            f"There is no collection in {origin} or above it: run `pixmatcher index FOLDER` first, or name one with -c."
        )

    @staticmethod
    def locate(path: str | os.PathLike[str]) -> Path | None:
        """The folder of the collection that is in the folder `path` or in `.pixmatcher` inside it, if there is one.

        Raises `CollectionError` if one of them may not be entered, so that it cannot be known.
        """
        folder = Path(os.path.abspath(path))
        # Other programs know a collection.json too: where the name of the folder does not tell, the rest does.
        if _is_file(folder / MANIFEST_NAME) and (
            folder.name == FOLDER_NAME or any(os.path.exists(folder / name) for name in (CATALOG_NAME, "vectors"))
        ):
            return folder
        folder = folder / FOLDER_NAME
        return folder if _is_file(folder / MANIFEST_NAME) else None

    def close(self) -> None:
        """Save what is derived, end writing and free the files. An index that has to be trained may take minutes."""
        self._close(train=True)

    def _close(self, *, train: bool) -> None:
        with self._thread_lock:
            try:
                if self._lock.held:
                    # Thumbnails too many do no harm; another run can take them out.
                    with contextlib.suppress(PixMatcherError):
                        self._thumbnails.keep_those_in(self._catalog.path)
                    self.indexes.save(train=train)
            finally:
                self._thumbnails.close()
                self._catalog.close()
                self._give_locks()
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
            # The error that ends the block counts; what is derived can be saved another time.
            with contextlib.suppress(PixMatcherError):
                self._close(train=False)

    # Reading

    def __len__(self) -> int:
        return self._catalog.item_count()

    def items(self) -> Iterator[Item]:
        """All items, in the order in which they came."""
        return self._catalog.items()

    def items_by_id(self, ids: Iterable[int]) -> dict[int, Item]:
        """Return the items of these ids by their id; an id that does not exist is left out."""
        return self._catalog.items_by_id([_whole_number(item_id, "id") for item_id in ids])

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids of all items, ascending (N,) int64."""
        return self._catalog.ids()

    def sample_ids(self, count: int) -> list[int]:
        """Return the ids of up to `count` items, evenly spaced in the order of the ids."""
        return self._catalog.sample_ids(count)

    def failures(self) -> list[Failure]:
        """Return the images that could not be indexed and still exist."""
        return self._catalog.failures()

    def sources(self) -> list[str]:
        """Return the specs of the sources, in the order in which they were first indexed."""
        return [*self._catalog.sources()]

    def format_counts(self) -> dict[str, int]:
        """Return the number of items of each image format, the most frequent first."""
        return self._catalog.counts("format")

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
        return self._catalog.labels_by_id([_whole_number(item_id, "id") for item_id in ids])

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
        """Return the state of now, from which `changes_since` counts."""
        return self._catalog.state()

    def changes_since(self, state: CollectionState) -> Changes:
        """Count the items that were added, removed and changed since a state."""
        return self._catalog.changes_since(state)

    # Embeddings and search

    def embeddings(self, ids: Iterable[int], space: str) -> npt.NDArray[np.float32]:
        """The embeddings of items in a space (N, dimension) float32, in the order of the ids.

        Raises `CollectionError` if one of the ids is not there.
        """
        wanted = [_whole_number(item_id, "id") for item_id in ids]
        with self._catalog.reading():
            rows = self._catalog.rows_of(wanted)
            if unknown := [item_id for item_id in wanted if item_id not in rows]:
                raise CollectionError(f"There is no image with the id {unknown[0]} here.")
            found = self._vectors[space_named(self.spaces, space).name].read([rows[item_id] for item_id in wanted])
        return found.astype(np.float32)

    def thumbnail(self, content_hash: str) -> bytes | None:
        """A small JPEG of the image of this content, for images that may be out of reach; None where none was kept."""
        return self._thumbnails.get(content_hash)

    def search(
        self,
        vector: npt.ArrayLike,
        *,
        space: str,
        k: int = 12,
        min_score: float | None = None,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        """The k items nearest to a vector (dimension,) by inner product, best first; equals in the order of their ids.

        With `where`, only items that pass that filter. A trained index may miss one now and then; with `exact`, the
        stored embeddings themselves are compared where it is not exact. Raises `CollectionError` if there is no such
        space or the vector does not fit it.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        k = _whole_number(k, "number of results")
        if k < 1:
            raise CollectionError(f"The number of results must be 1 or more, not {k}.")
        with self._thread_lock, self._catalog.reading() as generation:
            index = self.indexes.current(space, generation, exact=exact)
            among = None if where is None or where.empty else self._catalog.rows_where(where)
            wanted = k
            # Of those that tie for the last place the first ids win, so all of them are needed.
            while True:
                scores, rows = index.search(query, wanted + 1, among)
                if len(rows) <= wanted or scores[wanted] < scores[k - 1]:
                    break
                wanted *= 4
            items = self._catalog.items_by_row(rows.tolist())
        if len(items) < len(rows):
            raise CollectionError(
                f"The index of the space {space} is damaged: run `pixmatcher verify --repair -c {self.path}`."
            )
        found = [
            (score, items[row])
            for score, row in zip(scores.tolist(), rows.tolist(), strict=True)
            if min_score is None or score >= min_score
        ]
        found.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [Hit(rank, score, item) for rank, (score, item) in enumerate(found[:k], start=1)]

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        """The k nearest items that have a label, best first.

        If they have fewer than `labels` different ones, the nearest items of the next labels follow. Fewer where there
        are fewer. Raises `CollectionError` if there is no such space or the vector does not fit it.
        """
        query = query_vector(vector, space_named(self.spaces, space))
        with self._thread_lock, self._catalog.reading() as generation:
            known = self._catalog.labels_by_row()
            index = self.indexes.current(space, generation)
            among = known.codes >= 0
            scores, rows = index.search(query, k, among)
            while True:
                seen, first = np.unique(known.codes[rows], return_index=True)
                among = among & ~np.isin(known.codes, seen)
                if len(seen) >= labels or not among.any():
                    break
                more_scores, more = index.search(query, k, among)
                nearest = np.sort(np.unique(known.codes[more], return_index=True)[1])
                scores, rows = np.append(scores, more_scores[nearest]), np.append(rows, more[nearest])
            items = self._catalog.items_by_row(rows[first].tolist())
        firsts = {int(position): items[int(rows[position])] for position in first}
        pairs = zip(known.codes[rows].tolist(), scores.tolist(), strict=True)
        return [Neighbour(known.names[code], score, firsts.get(n)) for n, (code, score) in enumerate(pairs)]

    # Writing

    def begin_writing(self) -> None:
        """Take the writer lock, or keep it.

        Raises `CollectionLockedError` if another process has it, `CollectionError` if a vector file was cut.
        """
        with self._thread_lock:
            if self._lock.held:
                return
            self._take_locks()
            try:
                rows = self._catalog.row_count()
                for file in self._vectors.values():
                    if file.size_in_rows() < rows:
                        raise CollectionError(
                            f"{file.path} is damaged: run `pixmatcher verify --repair -c {self.path}`, then "
                            "`pixmatcher index` to encode the lost images again."
                        )
            except BaseException:
                self._give_locks()
                raise

    def _take_locks(self) -> None:
        self._lock.acquire()
        try:
            for place in (self._catalog.path, self.path):
                if not os.access(place, os.W_OK):
                    raise write_error(self.path, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place)))
            self._catalog.require_writable()
            # So readers leave the index files to the writer. One that saves one just now may finish.
            with contextlib.suppress(CollectionLockedError):
                self.indexes.saving_lock.acquire()
        except BaseException:
            self._give_locks()
            raise

    def _give_locks(self) -> None:
        self.indexes.saving_lock.release()
        self._lock.release()

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source: str | None = None,
        thumbnails: Mapping[str, bytes] | None = None,
    ) -> list[int]:
        """Store items with their embeddings, for each space (N, dimension); returns their ids.

        An item of a uri that is there already replaces it and keeps its id. All of them are stored or none. Texts that
        are not valid Unicode are stored as escapes, but for the uri, which is kept as it is. `thumbnails` are JPEG
        files by the content hash of their images. Raises `StorageError` if the disk is full, `CollectionError` if the
        embeddings do not fit, or a uri or content hash cannot be one.
        """
        if set(embeddings) != set(self.spaces):
            raise CollectionError(f"Embeddings of the spaces {', '.join(self.spaces)} are needed, no more and no less.")
        stored = {name: to_stored(embeddings[name], space.dimension) for name, space in self.spaces.items()}
        if any(len(rows) != len(items) for rows in stored.values()):
            raise CollectionError("There must be as many embeddings as items in each space.")
        with self._thread_lock:
            self.begin_writing()
            # Before the items, so that a kill leaves no item without.
            self._thumbnails.put(thumbnails or {})
            return self._put(items, stored, source)

    def add_copies(self, items: Sequence[Item], *, source: str | None = None) -> list[Item]:
        """Store items with the embeddings of others of the same content; returns the items that have none.

        What the content tells (size, format, date taken) is copied too, where an item does not have it.
        """
        for item in items:
            _check(item)
        with self._thread_lock:
            rows = [self._catalog.row_with_content(item.content_hash) for item in items]
            known = [row for row in rows if row is not None]
            originals = self._catalog.items_by_row(known)
            copied = [
                _with_content(i, originals.get(row)) for i, row in zip(items, rows, strict=True) if row is not None
            ]
            self._put(copied, {name: file.read(known) for name, file in self._vectors.items()}, source)
        return [item for item, row in zip(items, rows, strict=True) if row is None]

    def remove(self, ids: Iterable[int]) -> int:
        """Take items out by id; returns how many there were. Files of the user are never touched."""
        with self._thread_lock:
            self.begin_writing()
            with self._catalog.writing():
                return self._catalog.remove_items(_whole_number(item_id, "id") for item_id in ids)

    def forget(self, source: str | os.PathLike[str]) -> int:
        """Take out a source and all its items; returns how many there were. Files of the user are never touched.

        Raises `CollectionError` if the collection has no such source.
        """
        given = os.fspath(source)
        kind, colon, rest = given.partition(":")
        path, mark, options = rest.partition("?")
        specs = {given, os.path.abspath(given), f"{kind}{colon}{os.path.abspath(path)}{mark}{options}"}
        with self._thread_lock:
            self.begin_writing()
            known = [spec for spec in self._catalog.sources() if spec in specs]
            if not known:
                names = ", ".join(self._catalog.sources()) or "none"
                raise CollectionError(f"{given} is no source of {self.path}: it has {names}.")
            with self._catalog.writing():
                return self._catalog.remove_source(known[0])

    def compare_sources(self, sources: Sequence[str]) -> SourceComparison:
        """Begin a comparison of sources, named by their specs, with the collection; an earlier comparison ends.

        Raises `CollectionLockedError` if another process writes.
        """
        self.begin_writing()
        return SourceComparison(self, self._catalog, sources)

    def _put(self, items: Sequence[Item], stored: Mapping[str, Float16], source: str | None) -> list[int]:
        if not items:
            return []
        for item in items:
            _check(item)
        with self._thread_lock:
            self.begin_writing()
            first_row = self._catalog.row_count()
            try:
                for name, file in self._vectors.items():
                    file.write(first_row, stored[name])
            except OSError as error:
                raise write_error(self.path, error) from error
            checksums = row_checksums([stored[name] for name in self.spaces])
            with self._catalog.writing():
                source_id = None if source is None else self._catalog.source_id(source)
                return self._catalog.put_items(items, first_row, checksums, source_id)

    # Maintenance

    def verify(self) -> list[Problem]:
        """Read everything and tell what is not whole. The files of the user are not looked at."""
        from ..vector_index import index_is_intact

        errors = self._catalog.integrity_errors()
        if errors:
            remedy = start_again(self.path)
            return [Problem("catalog", f"{CATALOG_NAME} is damaged: {errors[0]}", remedy[0].upper() + remedy[1:])]
        problems = []
        with self._catalog.reading():
            checksums = self._catalog.checksums()
            try:
                damaged = len(self._damaged_rows(*checksums))
            except CollectionError as error:
                problems.append(_unreadable("vectors", error))
                damaged = 0
            if damaged:
                problems.append(
                    Problem(
                        "vectors",
                        f"the embeddings of {damaged} of {len(self)} images are damaged",
                        "Run `pixmatcher verify --repair`, then `pixmatcher index` to encode these images again.",
                    )
                )
            if not self._thumbnails.whole():
                problems.append(
                    Problem(
                        "thumbnails",
                        f"{THUMBNAILS_NAME} is damaged",
                        "Run `pixmatcher verify --repair`, which deletes it: only pictures of remote images are lost.",
                    )
                )
            for name in self.spaces:
                path = self.indexes.path(name)
                # One that is only behind the catalog, or not built yet, is not damaged: that is done when next used.
                try:
                    whole = index_is_intact(path)
                except CollectionError as error:
                    problems.append(_unreadable("index", error))
                    continue
                if not whole:
                    problems.append(
                        Problem(
                            "index",
                            f"the index of the space {name} is damaged",
                            "Nothing is lost: run `pixmatcher verify --repair`, or search, and it is built again.",
                        )
                    )
            try:
                problems += [
                    Problem(
                        "map",
                        f"{path.relative_to(self.path)} is damaged",
                        "Nothing is lost: run `pixmatcher verify --repair`, which deletes it, and draw the map again.",
                    )
                    for path in damaged_maps(self.path)
                ]
            except CollectionError as error:
                problems.append(_unreadable("map", error))
        return problems

    def repair(self) -> int:
        """Take out the items whose embeddings are damaged and build the indexes again; returns how many it took out.

        Raises `CollectionError` if the catalog itself is damaged.
        """
        if errors := self._catalog.integrity_errors():
            raise CollectionError(f"{CATALOG_NAME} is damaged ({errors[0]}): {start_again(self.path)}")
        with self._thread_lock:
            self._take_locks()
            damaged = self._damaged_rows(*self._catalog.checksums())
            try:
                for file in self._vectors.values():
                    file.extend_with_zeros(self._catalog.row_count())
            except OSError as error:
                raise write_error(self.path, error) from error
            if len(damaged):
                with self._catalog.writing():
                    self._catalog.remove_rows(damaged.tolist())
            self.indexes.clear()
            if not self._thumbnails.whole():
                try:
                    self._thumbnails.clear()
                except OSError as error:
                    raise write_error(self.path, error) from error
            with self.indexes.saving(wait=True):
                try:
                    self.indexes.remove_files()
                    remove_damaged_maps(self.path)
                except OSError as error:
                    raise write_error(self.path, error) from error
                self.indexes.save()
        return len(damaged)

    def size_on_disk(self) -> int:
        """Bytes that the collection's own files take."""
        found = [self.path / name for name in self.FILES]
        for name in ("vectors", "index", MAPS_NAME):
            found += (Path(folder, file) for folder, _, files in os.walk(self.path / name) for file in files)
        total = 0
        for file in found:
            # Others may remove a file meanwhile.
            with contextlib.suppress(OSError):
                status = file.stat()
                total += status.st_size if stat.S_ISREG(status.st_mode) else 0
        return total

    def _damaged_rows(self, rows: Rows, expected: npt.NDArray[np.int64]) -> Rows:
        """Those of the given rows whose embeddings are not what the checksums (N,) expect."""
        present = min(file.size_in_rows() for file in self._vectors.values())
        readable = rows < present
        damaged = [rows[~readable]]
        files = list(self._vectors.values())
        rows, expected = rows[readable], expected[readable]
        for start in range(0, len(rows), 16384):
            block = rows[start : start + 16384]
            found = np.array(row_checksums([file.read(block) for file in files]), dtype=np.int64)
            damaged.append(block[found != expected[start : start + 16384]])
        return np.concatenate(damaged)


def _is_file(path: Path) -> bool:
    """As `os.path.isfile`, but raises `CollectionError` where that cannot be known."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise read_error(path.parent, error) from error


def _unreadable(part: str, error: CollectionError) -> Problem:
    """A problem of a file that is there, as the error tells it: what is wrong, then what to do."""
    message, _, remedy = str(error).rpartition(": ")
    return Problem(part, message, remedy[0].upper() + remedy[1:])


def _with_content(item: Item, original: Item | None) -> Item:
    """The item with what is known of the content from another one that has the same."""
    if original is None or item.format is not None:
        return item
    return replace(
        item, width=original.width, height=original.height, format=original.format, taken=item.taken or original.taken
    )


def _check(item: Item) -> None:
    """Raise `CollectionError` if the item could not be found again by its uri and its content."""
    if not item.uri:
        raise CollectionError("An item needs a uri: give the path or the URL of its image.")
    try:
        os.fsencode(item.uri)
    except UnicodeEncodeError:
        raise CollectionError(
            f"{item.uri!r} cannot be the uri of an item: give a path as os.fsdecode returns it, or a URL."
        ) from None
    if not item.content_hash.isascii():
        raise CollectionError(f"{item.content_hash!r} cannot be a content hash: give the SHA-256 in hexadecimal.")


def _whole_number(value: SupportsIndex, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise CollectionError(f"The {what} must be a whole number, not {value!r}.") from None
