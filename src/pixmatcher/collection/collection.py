"""The collection: a folder on disk that holds items, embeddings and the index of each space."""

from __future__ import annotations

import contextlib
import errno
import operator
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import numpy.typing as npt

from .._files import read_error, remove, replacing, write_error
from ..errors import CollectionError, CollectionLockedError, NoCollectionError, PixMatcherError
from ..records import EncoderRecord, Space
from ..vector_index.vectors import Float16, Rows, VectorFile, row_checksums, to_stored
from ._catalog import Catalog
from ._lock import WriterLock
from ._manifest import DescribesEncoder, Manifest
from ._maps import damaged_maps, remove_damaged_maps
from ._names import (
    CATALOG_NAME,
    FOLDER_NAME,
    INDEX_LOCK_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    MAPS_NAME,
    OWN_NAMES,
    THUMBNAILS_NAME,
    start_again,
)
from ._thumbnails import Thumbnails
from .filters import Filter
from .items import Failure, Hit, Item, Neighbour, Problem

if TYPE_CHECKING:
    from ..vector_index import IndexTarget, OperatingPoint, StageProgress, VectorIndex


@dataclass
class _OpenIndex:
    index: VectorIndex
    generation: int


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
        self.catalog = catalog
        self._vectors = {
            s.name: VectorFile(path / "vectors" / f"{s.name}.f16", s.dimension) for s in self.spaces.values()
        }
        self._thumbnails = Thumbnails(path / THUMBNAILS_NAME)
        self._indexes: dict[str, _OpenIndex] = {}
        self._scans: dict[str, tuple[int, VectorIndex]] = {}
        self._lock = WriterLock(path / LOCK_NAME)
        # Whoever saves an index has this one: a writer as long as it writes, a reader only meanwhile.
        self._index_lock = WriterLock(path / INDEX_LOCK_NAME)
        self._thread_lock = threading.RLock()

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
                        self._thumbnails.keep_those_in(self.catalog.path)
                    self.save_indexes(train=train)
            finally:
                self._thumbnails.close()
                self.catalog.close()
                self._give_locks()
                self._indexes.clear()
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
        return self.catalog.item_count()

    def items(self) -> Iterator[Item]:
        """All items, in the order in which they came."""
        return self.catalog.items()

    def failures(self) -> list[Failure]:
        """The images that could not be indexed and are still there."""
        return self.catalog.failures()

    def embeddings(self, ids: Iterable[int], space: str) -> npt.NDArray[np.float32]:
        """The embeddings of items in a space (N, dimension) float32, in the order of the ids.

        Raises `CollectionError` if one of the ids is not there.
        """
        wanted = [_whole_number(item_id, "id") for item_id in ids]
        with self.catalog.reading():
            rows = self.catalog.rows_of(wanted)
            if unknown := [item_id for item_id in wanted if item_id not in rows]:
                raise CollectionError(f"There is no image with the id {unknown[0]} here.")
            found = self._vectors[self._space(space).name].read([rows[item_id] for item_id in wanted])
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
        query = query_vector(vector, self._space(space))
        k = _whole_number(k, "number of results")
        if k < 1:
            raise CollectionError(f"The number of results must be 1 or more, not {k}.")
        with self._thread_lock, self.catalog.reading() as generation:
            index = self._index(space, generation)
            if exact and index.recall is not None:
                index = self._scan(space, index, generation)
            among = None if where is None or where.empty else self.catalog.rows_where(where)
            wanted = k
            # Of those that tie for the last place the first ids win, so all of them are needed.
            while True:
                scores, rows = index.search(query, wanted + 1, among)
                if len(rows) <= wanted or scores[wanted] < scores[k - 1]:
                    break
                wanted *= 4
            items = self.catalog.items_by_row(rows.tolist())
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

    def _scan(self, space: str, index: VectorIndex, generation: int) -> VectorIndex:
        """An exact index of the rows of another one, kept as long as that."""
        from ..vector_index import new_scan_index

        if space not in self._scans or self._scans[space][0] != generation:
            self._scans[space] = (generation, new_scan_index(self._vectors[space], index.rows))
        return self._scans[space][1]

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        """The k nearest items that have a label, best first.

        If they have fewer than `labels` different ones, the nearest items of the next labels follow. Fewer where there
        are fewer. Raises `CollectionError` if there is no such space or the vector does not fit it.
        """
        query = query_vector(vector, self._space(space))
        with self._thread_lock, self.catalog.reading() as generation:
            known = self.catalog.labels_by_row()
            index = self._index(space, generation)
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
            items = self.catalog.items_by_row(rows[first].tolist())
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
                rows = self.catalog.row_count()
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
            for place in (self.catalog.path, self.path):
                if not os.access(place, os.W_OK):
                    raise write_error(self.path, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place)))
            self.catalog.require_writable()
            # So readers leave the index files to the writer. One that saves one just now may finish.
            with contextlib.suppress(CollectionLockedError):
                self._index_lock.acquire()
        except BaseException:
            self._give_locks()
            raise

    def _give_locks(self) -> None:
        self._index_lock.release()
        self._lock.release()

    def add(
        self,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        *,
        source_id: int | None = None,
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
            return self._put(items, stored, source_id)

    def add_copies(self, items: Sequence[Item], *, source_id: int | None = None) -> list[Item]:
        """Store items with the embeddings of others of the same content; returns the items that have none.

        What the content tells (size, format, date taken) is copied too, where an item does not have it.
        """
        for item in items:
            _check(item)
        with self._thread_lock:
            rows = [self.catalog.row_with_content(item.content_hash) for item in items]
            known = [row for row in rows if row is not None]
            originals = self.catalog.items_by_row(known)
            copied = [
                _with_content(i, originals.get(row)) for i, row in zip(items, rows, strict=True) if row is not None
            ]
            self._put(copied, {name: file.read(known) for name, file in self._vectors.items()}, source_id)
        return [item for item, row in zip(items, rows, strict=True) if row is None]

    def remove(self, ids: Iterable[int]) -> int:
        """Take items out by id; returns how many there were. Files of the user are never touched."""
        with self._thread_lock:
            self.begin_writing()
            with self.catalog.writing():
                return self.catalog.remove_items(_whole_number(item_id, "id") for item_id in ids)

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
            known = [spec for spec in self.catalog.sources() if spec in specs]
            if not known:
                names = ", ".join(self.catalog.sources()) or "none"
                raise CollectionError(f"{given} is no source of {self.path}: it has {names}.")
            with self.catalog.writing():
                return self.catalog.remove_source(known[0])

    def _put(self, items: Sequence[Item], stored: Mapping[str, Float16], source_id: int | None) -> list[int]:
        if not items:
            return []
        for item in items:
            _check(item)
        with self._thread_lock:
            self.begin_writing()
            first_row = self.catalog.row_count()
            try:
                for name, file in self._vectors.items():
                    file.write(first_row, stored[name])
            except OSError as error:
                raise write_error(self.path, error) from error
            checksums = row_checksums([stored[name] for name in self.spaces])
            with self.catalog.writing():
                return self.catalog.put_items(items, first_row, checksums, source_id)

    # Care

    def save_indexes(self, *, train: bool = True, progress: StageProgress | None = None) -> None:
        """Bring the index file of each space up to date.

        A large collection needs an index that is trained, which may take minutes; without `train`, that is left to the
        next writer. `progress` is called with what is done, and how much of it is done and to do. Raises `StorageError`
        if the disk is full, `CollectionLockedError` if another process writes.
        """
        from ..vector_index import (
            index_kind,
            is_savable,
            read_intact_stamp,
            read_target,
            rebuild_if_needed,
            save_index,
            target_path,
        )

        with self._thread_lock, self._saving(wait=self._lock.held), self.catalog.reading() as generation:
            count = len(self)
            for name, space in self.spaces.items():
                path, vectors = self._index_path(name), self._vectors[name]
                stamp = read_intact_stamp(path)
                current = stamp is not None and stamp.generation == generation
                if stamp and current and stamp.index == index_kind(count, space.dimension, stamp.index):
                    continue
                index = self._index(name, generation)
                if train:
                    target = read_target(target_path(path))
                    index = rebuild_if_needed(index, vectors, target, text=space.text, progress=progress)
                    self._indexes[name] = _OpenIndex(index, generation)
                if not is_savable(index) or (current and not train):
                    continue
                try:
                    save_index(index, path, generation, space.dimension)
                except OSError as error:
                    raise write_error(self.path, error) from error
                vectors.close()  # its map, of which all may have been read, counts as memory of this process

    def tune_index(
        self,
        space: str,
        target: IndexTarget | None = None,
        *,
        queries: npt.NDArray[np.float32] | None = None,
        progress: StageProgress | None = None,
    ) -> tuple[VectorIndex, list[OperatingPoint]]:
        """Let the index of a space answer by a target, now and whenever it is built again; returns it and its points.

        Without a target, by the one before. `queries` (Q, dimension) are measured beside those that are made from the
        rows. An exact index has no points. Raises `CollectionError` if there is no such space or no index can meet the
        target, `CollectionLockedError` if another process writes.
        """
        from ..vector_index import (
            calibrate_index,
            check_memory_limit,
            is_savable,
            read_target,
            rebuild_if_needed,
            save_index,
            save_target,
            target_path,
        )

        known, path, vectors = self._space(space), self._index_path(space), self._vectors[space]
        with self._thread_lock:
            self.begin_writing()
            wanted = target or read_target(target_path(path))
            check_memory_limit(len(self), wanted)
            with self._saving(wait=True), self.catalog.reading() as generation:
                index = rebuild_if_needed(
                    self._index(space, generation), vectors, wanted, text=known.text, progress=progress
                )
                points = calibrate_index(index, wanted, text=known.text, queries=queries, progress=progress)
                self._indexes[space] = _OpenIndex(index, generation)
                try:
                    save_target(target_path(path), wanted)
                    if is_savable(index):
                        save_index(index, path, generation, known.dimension)
                except OSError as error:
                    raise write_error(self.path, error) from error
        return index, points

    def has_scanned(self, space: str) -> bool:
        """Whether the last search in a space had no index to use: it waits for a writer, or for `tune_index`."""
        held = self._indexes.get(space)
        return held is not None and held.index.name == "scan"

    def index_target(self, space: str) -> IndexTarget:
        """What the index of a space is wanted to be. Raises `CollectionError` if there is no such space."""
        from ..vector_index import read_target, target_path

        return read_target(target_path(self._index_path(self._space(space).name)))

    def index_recall(self, space: str) -> float | None:
        """The measured recall@10 of the index of a space; None where it is exact or not built."""
        from ..vector_index import read_stamp

        stamp = read_stamp(self._index_path(self._space(space).name))
        return stamp.recall if stamp else None

    @contextlib.contextmanager
    def _saving(self, *, wait: bool) -> Iterator[None]:
        """Hold the lock for saving an index during the block; a writer that holds it already keeps it.

        Only a writer may wait: what it waits for is a reader that saves, never another writer.
        """
        held = self._index_lock.held
        self._index_lock.acquire(wait=wait)
        try:
            yield
        finally:
            if not held:
                self._index_lock.release()

    def index_name(self, space: str) -> str:
        """What kind of index a space has, or will have once it is built; nothing is loaded for that.

        Raises `CollectionError` if there is no such space.
        """
        from ..vector_index import index_kind, read_stamp

        stamp = read_stamp(self._index_path(self._space(space).name))
        return stamp.index if stamp else index_kind(len(self), self.spaces[space].dimension)

    def verify(self) -> list[Problem]:
        """Read everything and tell what is not whole. The files of the user are not looked at."""
        from ..vector_index import index_is_intact

        errors = self.catalog.integrity_errors()
        if errors:
            remedy = start_again(self.path)
            return [Problem("catalog", f"{CATALOG_NAME} is damaged: {errors[0]}", remedy[0].upper() + remedy[1:])]
        problems = []
        with self.catalog.reading():
            checksums = self.catalog.checksums()
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
                path = self._index_path(name)
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
        if errors := self.catalog.integrity_errors():
            raise CollectionError(f"{CATALOG_NAME} is damaged ({errors[0]}): {start_again(self.path)}")
        from ..vector_index import index_files, target_path

        with self._thread_lock:
            self._take_locks()
            damaged = self._damaged_rows(*self.catalog.checksums())
            try:
                for file in self._vectors.values():
                    file.extend_with_zeros(self.catalog.row_count())
            except OSError as error:
                raise write_error(self.path, error) from error
            if len(damaged):
                with self.catalog.writing():
                    self.catalog.remove_rows(damaged.tolist())
            self._indexes.clear()
            if not self._thumbnails.whole():
                try:
                    self._thumbnails.clear()
                except OSError as error:
                    raise write_error(self.path, error) from error
            with self._saving(wait=True):
                try:
                    for name in self.spaces:
                        path = self._index_path(name)
                        if not path.parent.is_dir():
                            remove(path.parent)
                        for derived in index_files(path):
                            remove(derived)
                        if target_path(path).is_dir():
                            remove(target_path(path))
                    remove_damaged_maps(self.path)
                except OSError as error:
                    raise write_error(self.path, error) from error
                self.save_indexes()
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

    def _index(self, space: str, generation: int) -> VectorIndex:
        """The index of a space, of this very generation. Call it inside `catalog.reading()`."""
        from ..vector_index import (
            SCAN,
            is_savable,
            load_index,
            new_index,
            read_intact_stamp,
            read_stamp,
            save_index,
            update_takes_long,
        )

        held = self._indexes.get(space)
        if held is not None and held.generation == generation and held.index.name != SCAN:
            return held.index
        path, vectors = self._index_path(space), self._vectors[space]
        damaged = False
        stamp = read_stamp(path) if held is not None else None
        if held is not None and not held.index.mapped and (stamp is None or stamp.generation != generation):
            index, current = held.index, False
        else:
            loaded, current = load_index(path, generation, vectors)
            damaged = loaded is None
            index = loaded or new_index(vectors, self.catalog.rows())
        if not (current or damaged or (held is not None and held.index is index and held.generation == generation)):
            rows = self.catalog.rows()
            # A reader does not wait until so many rows have their codes: that is a writer's work.
            if self._lock.held or not update_takes_long(index, len(rows), vectors):
                index.update(rows)
            else:
                index = new_index(vectors, rows)
        self._indexes[space] = _OpenIndex(index, generation)
        if not current and not self._lock.held and is_savable(index):
            # Whoever finds it missing, stale or damaged mends it, unless somebody is writing or saving, who will.
            with contextlib.suppress(PixMatcherError, OSError), self._saving(wait=False):
                stamp = read_intact_stamp(path)
                if damaged or stamp is None or stamp.generation < generation:
                    save_index(index, path, generation, vectors.dimension)
        return index

    def _index_path(self, space: str) -> Path:
        return self.path / "index" / f"{space}.faiss"

    def _space(self, name: str) -> Space:
        try:
            return self.spaces[name]
        except KeyError:
            raise CollectionError(f"There is no space {name!r} here: choose one of {', '.join(self.spaces)}.") from None


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


def query_vector(vector: npt.ArrayLike, space: Space) -> npt.NDArray[np.float32]:
    """The vector (dimension,) float32 to search for. Raises `CollectionError` if it does not fit the space."""
    try:
        with np.errstate(over="ignore"):
            query = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        query = np.empty(0, np.float32)
    # No score may leave float32, whatever is stored.
    greatest_score = np.abs(query).sum(dtype=np.float64) * np.finfo(np.float16).max
    if query.shape != (space.dimension,) or not greatest_score < np.finfo(np.float32).max:
        raise CollectionError(
            f"A vector of the space {space.name} has {space.dimension} finite values, none of them huge: give such one."
        )
    return query


def _whole_number(value: SupportsIndex, what: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise CollectionError(f"The {what} must be a whole number, not {value!r}.") from None
