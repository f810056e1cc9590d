"""The index of each space of a collection: which one answers, and when it is loaded, updated, rebuilt and saved.

An index is derived from the vector file of its space. It is held in memory with the generation of the catalog that it
was made for, and compared with the catalog before each use.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .._files import remove, write_error
from .._progress import ProgressCallback
from ..errors import PixMatcherError
from ..records import INDEX_LOCK_NAME
from ..vector_index.vectors import VectorFile
from ._catalog import Catalog
from ._editions import Edition
from ._lock import WriterLock
from ._spaces import space_named

if TYPE_CHECKING:
    import threading

    from ..vector_index import IndexTarget, OperatingPoint, SavableIndex, VectorIndex

logger = logging.getLogger("pixmatcher.collection")


@dataclass
class _HeldIndex:
    index: VectorIndex
    generation: int


class _Origin(enum.Enum):
    """Where an index comes from."""

    FILE = "is the one in the file"
    UPDATED = "an older one was updated"
    BUILT = "was built from the embeddings, as its file is missing or damaged"


class SpaceIndexes:
    """The indexes of a collection, one a space. Get it as `Collection.indexes`."""

    def __init__(
        self,
        folder: Path,
        edition: Edition,
        vectors: Mapping[str, VectorFile],
        catalog: Catalog,
        thread_lock: threading.RLock,
        writer_lock: WriterLock,
        begin_writing: Callable[[], None],
    ) -> None:
        """Called only by `Collection`."""
        self._folder = folder
        self._edition = edition
        self._spaces = edition.spaces
        self._vectors = vectors
        self._catalog = catalog
        self._thread_lock = thread_lock
        self._writer_lock = writer_lock
        self._begin_writing = begin_writing
        # A process holds this lock while it saves an index: a writer during all writes, a reader only to save.
        self.saving_lock = WriterLock(folder / INDEX_LOCK_NAME)
        self._held: dict[str, _HeldIndex] = {}
        self._scans: dict[str, _HeldIndex] = {}

    # About an index

    def kind(self, space: str) -> str:
        """Return the kind of index that a space has, or will have once it is built; no index is loaded.

        Raises `CollectionError` if the space does not exist.
        """
        from ..vector_index import index_kind, read_stamp

        dimension = space_named(self._spaces, space).dimension
        stamp = read_stamp(self.path(space))
        return stamp.index if stamp else index_kind(self._catalog.item_count(), dimension)

    def recall(self, space: str) -> float | None:
        """Return the measured recall@10 of the index of a space; None if the index is exact or not built.

        Raises `CollectionError` if the space does not exist.
        """
        from ..vector_index import read_stamp

        space_named(self._spaces, space)
        stamp = read_stamp(self.path(space))
        return stamp.recall if stamp else None

    def target(self, space: str) -> IndexTarget:
        """Return the target of the index of a space. Raises `CollectionError` if the space does not exist."""
        from ..vector_index import read_target, target_path

        space_named(self._spaces, space)
        return read_target(target_path(self.path(space)))

    def has_scanned(self, space: str) -> bool:
        """Return whether the last search in a space scanned all embeddings, because the space has no index yet.

        The next writer, or `tune`, builds the index.
        """
        from ..vector_index import SCAN

        held = self._held.get(space)
        return held is not None and held.index.name == SCAN

    def path(self, space: str) -> Path:
        """Return the path of the index file of a space."""
        return self._edition.index_path(self._folder, space)

    # Use

    def current(self, space: str, generation: int, *, exact: bool = False) -> VectorIndex:
        """Return the index of a space for the rows of this generation. Call it inside `Catalog.reading`.

        With `exact`, the result compares all rows.
        """
        index = self._index_of(space, generation)
        if not exact or index.recall is None:
            return index
        from ..vector_index import new_scan_index

        scan = self._scans.get(space)
        if scan is None or scan.generation != generation:
            scan = _HeldIndex(new_scan_index(self._vectors[space], index.rows), generation)
            self._scans[space] = scan
        return scan.index

    def _index_of(self, space: str, generation: int) -> VectorIndex:
        """Return the index of a generation: the one in memory, updated, or loaded or built. Readers save a new one."""
        from ..vector_index import SCAN, is_savable

        held = self._held.get(space)
        if held is not None and held.generation == generation and held.index.name != SCAN:
            return held.index
        if held is not None and not held.index.mapped and not self._file_has_generation(space, generation):
            index = held.index if held.generation == generation else self._updated(held.index, space)
            origin = _Origin.UPDATED
        else:
            index, origin = self._load_or_build(space, generation)
        if held is None or held.index is not index:
            logger.debug("Index of the space %s of %s: %s, %s", space, self._folder, index.name, origin.value)
        self._held[space] = _HeldIndex(index, generation)
        # A writer saves its indexes when it closes.
        if origin is not _Origin.FILE and not self._writer_lock.held and is_savable(index):
            self._save_as_reader(space, index, generation, replace=origin is _Origin.BUILT)
        return index

    def _file_has_generation(self, space: str, generation: int) -> bool:
        """Return whether the index file was built from this generation of the catalog."""
        from ..vector_index import read_stamp

        stamp = read_stamp(self.path(space))
        return stamp is not None and stamp.generation == generation

    def _load_or_build(self, space: str, generation: int) -> tuple[VectorIndex, _Origin]:
        from ..vector_index import load_index, new_index

        vectors = self._vectors[space]
        loaded, current = load_index(self.path(space), generation, vectors)
        if loaded is None:
            return new_index(vectors, self._catalog.rows()), _Origin.BUILT
        return (loaded, _Origin.FILE) if current else (self._updated(loaded, space), _Origin.UPDATED)

    def _updated(self, index: VectorIndex, space: str) -> VectorIndex:
        """Return the index with the current rows, or one that scans the rows if the update would take long."""
        from ..vector_index import new_index, update_takes_long

        rows, vectors = self._catalog.rows(), self._vectors[space]
        # A reader does not wait for a long update: that is a writer's work.
        if not self._writer_lock.held and update_takes_long(index, len(rows), vectors):
            return new_index(vectors, rows)
        index.update(rows)
        return index

    def _save_as_reader(self, space: str, index: SavableIndex, generation: int, *, replace: bool) -> None:
        """Save an index that was missing, old or damaged, unless another process writes or saves: that one will."""
        from ..vector_index import read_intact_stamp, save_index

        path = self.path(space)
        with contextlib.suppress(PixMatcherError, OSError), self.saving(wait=False):
            stamp = read_intact_stamp(path)
            if replace or stamp is None or stamp.generation < generation:
                save_index(index, path, generation, self._vectors[space].dimension)
                logger.info("Index of the space %s of %s saved", space, self._folder)

    # Saving

    @contextlib.contextmanager
    def saving(self, *, wait: bool) -> Iterator[None]:
        """Hold the lock for saving an index during the block; a writer that holds it already keeps it.

        Only a writer may wait: it waits for a reader that saves, never for another writer.
        """
        held = self.saving_lock.held
        self.saving_lock.acquire(wait=wait)
        try:
            yield
        finally:
            if not held:
                self.saving_lock.release()

    def save(self, *, train: bool = True, progress: ProgressCallback | None = None) -> None:
        """Update the index file of each space.

        A large collection needs a trained index, and training may take minutes; without `train`, the next writer does
        it. `progress` is called with the rows that are done. Raises `StorageError`
        if the disk is full, `CollectionLockedError` if another process writes.
        """
        with (
            self._thread_lock,
            self.saving(wait=self._writer_lock.held),
            self._catalog.reading() as generation,
        ):
            count = self._catalog.item_count()
            for name in self._spaces:
                self._save_space(name, generation, count, train=train, progress=progress)

    def _save_space(
        self, name: str, generation: int, count: int, *, train: bool, progress: ProgressCallback | None
    ) -> None:
        from ..vector_index import (
            index_kind,
            is_savable,
            read_intact_stamp,
            read_target,
            rebuild_if_needed,
            save_index,
            target_path,
        )

        space, path, vectors = self._spaces[name], self.path(name), self._vectors[name]
        stamp = read_intact_stamp(path)
        current = stamp is not None and stamp.generation == generation
        if stamp and current and stamp.index == index_kind(count, space.dimension, stamp.index):
            return
        index = self._index_of(name, generation)
        if train:
            target = read_target(target_path(path))
            index = rebuild_if_needed(index, vectors, target, text=space.text, progress=progress)
            self._held[name] = _HeldIndex(index, generation)
        if not is_savable(index) or (current and not train):
            return
        try:
            save_index(index, path, generation, space.dimension)
        except OSError as error:
            raise write_error(self._folder, error) from error
        logger.info("Index of the space %s of %s saved: %s, %d rows", name, self._folder, index.name, len(index.rows))
        vectors.close()  # its memory map, of which all may have been read, counts as memory of this process

    def tune(
        self,
        space: str,
        target: IndexTarget | None = None,
        *,
        queries: npt.NDArray[np.float32] | None = None,
        progress: ProgressCallback | None = None,
    ) -> tuple[VectorIndex, list[OperatingPoint]]:
        """Build the index of a space for a target, now and whenever it is rebuilt; return it and its measured points.

        Without a target, the last one is used. `queries` (Q, dimension) are measured beside those that are made from
        the rows. An exact index has no points. Raises `CollectionError` if the space does not exist or no index can
        meet the target, `CollectionLockedError` if another process writes.
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

        known = space_named(self._spaces, space)
        path, vectors = self.path(space), self._vectors[space]
        with self._thread_lock:
            self._begin_writing()
            target = target or read_target(target_path(path))
            check_memory_limit(self._catalog.item_count(), target)
            with self.saving(wait=True), self._catalog.reading() as generation:
                index = rebuild_if_needed(
                    self._index_of(space, generation), vectors, target, text=known.text, progress=progress
                )
                points = calibrate_index(index, target, text=known.text, queries=queries, progress=progress)
                self._held[space] = _HeldIndex(index, generation)
                try:
                    save_target(target_path(path), target)
                    if is_savable(index):
                        save_index(index, path, generation, known.dimension)
                except OSError as error:
                    raise write_error(self._folder, error) from error
        return index, points

    def clear(self) -> None:
        """Free the indexes in memory; they are loaded again when they are used."""
        self._held.clear()
        self._scans.clear()

    def remove_files(self) -> None:
        """Delete the index files, which can be rebuilt. Raises `OSError` if the disk fails."""
        from ..vector_index import index_files, target_path

        for name in self._spaces:
            path = self.path(name)
            if not path.parent.is_dir():
                remove(path.parent)
            for derived in index_files(path):
                remove(derived)
            if target_path(path).is_dir():
                remove(target_path(path))
