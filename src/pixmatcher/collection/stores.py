"""Stores: anything that keeps a collection. `Collection` is the store of this package; others can be of any package.

A store of another package is passed as an object, or named as NAME:REST, such as `-c memory:photos`. NAME is then an
entry point of the group `pixmatcher.stores`: a class or function that takes REST and returns a store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .._plugins import STORES, load_plugin, plugin_names
from .._progress import ProgressCallback
from ..errors import CollectionError
from ..records import Calibration, DescribesEncoder, EncoderRecord, Entry, FolderNotes, QueryKind, Space
from ._location import find_collection, locate_collection
from .collection import Collection
from .filters import Filter
from .items import Changes, CollectionState, Failure, Hit, IndexDescription, IndexTuning, Item, Neighbour, Problem

if TYPE_CHECKING:
    from ._comparison import ComparisonResult, StoredItems

_REFERENCE = re.compile(r"([a-z][a-z0-9_-]+):(.*)", re.DOTALL)


@runtime_checkable
class Store(Protocol):
    """What searching needs of a collection: `search`, `search_similar`, `search_batch` and `classify` accept any store.

    Each method does what the method of `Collection` of the same name does, and raises `CollectionError` as it does.
    `calibrations()` is optional: without it, the calibrations of the encoders hold.
    """

    @property
    def path(self) -> Path:
        """The folder of the collection. A store without a folder returns a path that names it, for messages."""

    @property
    def encoders(self) -> Sequence[EncoderRecord]:
        """The encoders of the embeddings."""

    @property
    def spaces(self) -> Mapping[str, Space]:
        """The embedding spaces by name."""

    def __len__(self) -> int:
        """Return the number of items."""

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
        """Return the k items of the highest inner product with a vector (dimension,), best first."""

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        """Return the k nearest items that have a label, and the nearest ones of further labels up to `labels`."""

    def embeddings(self, ids: Iterable[int], space: str) -> npt.NDArray[np.float32]:
        """Return the embeddings of items (N, dimension) float32, in the order of the ids."""

    def label_names(self) -> dict[str, str]:
        """Return the names of labels, for those that have one."""

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        """Return the labels that equal one of these texts or have it as their name."""

    def thumbnail(self, content_hash: str) -> bytes | None:
        """Return a small JPEG of the image of this content; None if none is kept."""

    def close(self) -> None:
        """Save what is to be saved, and free what is open."""


@runtime_checkable
class ReadableStore(Store, Protocol):
    """What `info`, `evaluate`, the exports and the maps need of a collection: `Collection` and `Client` have it.

    Each method does what the method of `Collection` of the same name does.
    """

    @property
    def encoded_since(self) -> int:
        """The generation since which all embeddings are those of the current encoders; 0 if it was never upgraded."""

    def items(self) -> Iterator[Item]:
        """Yield all items in the order of their ids."""

    def items_by_id(self, ids: Iterable[int]) -> dict[int, Item]:
        """Return the items of these ids by their id; an id that does not exist is left out."""

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids of all items, ascending (N,) int64."""

    def label_counts(self) -> dict[str, int]:
        """Return the number of items of each label, the most frequent first."""

    def labels_by_id(self, ids: Iterable[int]) -> dict[int, str | None]:
        """Return the label, or None, of each of these ids that exists."""

    def failures(self) -> list[Failure]:
        """Return the images that could not be indexed and still exist."""

    def incomplete(self) -> list[Item]:
        """Return the items of files whose end is missing."""

    def snapshot(self) -> AbstractContextManager[int]:
        """Read one consistent state in all calls of the block, or raise `CollectionError`; yield its generation."""

    def state(self) -> CollectionState:
        """Return the current state."""

    def changes_since(self, state: CollectionState) -> Changes:
        """Count the items that were added, removed and changed since a state."""


@runtime_checkable
class ForgetsSources(Store, Protocol):
    """What `pixmatcher forget` needs of a collection: `Collection` and `Client` have it."""

    def sources(self) -> list[str]:
        """Return the specs of the sources."""

    def folder_notes(self, source: str) -> FolderNotes:
        """Return the notes of a folder source, by its spec."""

    def count_to_forget(self, source: str) -> int:
        """Return how many items `forget` would remove."""

    def forget(self, source: str) -> int:
        """Remove a source, or a part of a folder, and its items; return how many were removed."""


class PendingWork(Protocol):
    """The images that must be encoded, and the storing of what came of them: of a comparison, or of an upgrade."""

    def pending(self, source: str) -> Iterator[Entry]:
        """Yield the entries of a source whose image must be read."""

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return those of these content hashes that an item has. Any thread may call it."""

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        """Store items of a source with their embeddings."""

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        """Store items of a source whose content the store has."""

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        """Store failures of a source, and remove the items of the uris `remove`; return how many were removed."""


class Comparison(PendingWork, Protocol):
    """What indexing needs of a comparison of sources with a store. `SourceComparison` says what each method does."""

    def add_entries(self, source: str, entries: Iterable[Entry]) -> None:
        """Add the entries that a source lists now."""

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
        """Find the entries that need work and the items that are missing."""

    def other_sources(self) -> list[str]:
        """Return the sources of the store that are not compared."""

    def item_count(self, source: str) -> int:
        """Return how many items come from a source."""

    def unlisted_items(self, sources: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield the id and uri of each item of these sources that no compared source lists."""

    def missing(self) -> list[int]:
        """Return the ids of the items that no source lists any more."""

    def failures(self) -> list[Failure]:
        """Return the images of the compared sources that could not be indexed."""


@runtime_checkable
class WritableStore(Store, Protocol):
    """What indexing needs of a collection: `index` accepts any such store."""

    def begin_writing(self) -> None:
        """Become the only writer. Raises `CollectionLockedError` if another process writes."""

    def sources(self) -> list[str]:
        """Return the specs of the sources."""

    def compare_sources(self, sources: Sequence[str]) -> Comparison:
        """Begin a comparison of sources, named by their specs, with the store."""

    def set_label_names(self, names: Mapping[str, str]) -> None:
        """Store the names of labels."""

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items by id; return how many were removed."""

    def update_indexes(self, *, progress: ProgressCallback | None = None) -> None:
        """Update what is derived from the embeddings, after all items were stored."""


@runtime_checkable
class KeepsFolderNotes(Protocol):
    """What a `WritableStore` may have too: notes of folder sources, such as what they exclude.

    Without it, the options of a folder hold for one run, and the files of unknown kinds are opened in every run.
    """

    def folder_notes(self, source: str) -> FolderNotes:
        """Return the notes of a folder source, by its spec; `FolderNotes()` if there are none."""

    def set_folder_notes(self, source: str, notes: FolderNotes) -> None:
        """Store the notes of a folder source."""


@runtime_checkable
class CreatedByIndexing(Protocol):
    """What a `WritableStore` may have too: the first run of `index` creates it, for its encoders.

    Before that, its `encoders` are empty.
    """

    def create(self, encoders: Sequence[DescribesEncoder]) -> None:
        """Create it for the spaces of these encoders. Raises `CollectionError` if that is impossible."""


@runtime_checkable
class UsedByProcesses(Protocol):
    """What a store may have too: it says whether several processes can use it. Without it, they can."""

    @property
    def one_process(self) -> bool:
        """Whether only one process can have the collection open at a time."""


@runtime_checkable
class VerifiesItself(Store, Protocol):
    """What a store may have too: `pixmatcher verify` checks it."""

    def verify(self) -> list[Problem]:
        """Read everything and return what is damaged."""

    def repair(self) -> int:
        """Remove the items that are damaged; return how many were removed."""


@runtime_checkable
class DescribesIndexes(Protocol):
    """What a store may have too: it knows the index of each space."""

    def index_descriptions(self) -> Mapping[str, IndexDescription]:
        """Return the index of each space, by the name of the space."""


@runtime_checkable
class CalibratedStore(ReadableStore, Protocol):
    """What the calibration of probabilities needs of a collection."""

    def set_calibrations(self, space: str, calibrations: Mapping[QueryKind, Calibration | None]) -> None:
        """Store calibrations of a space, or remove that of a kind of queries with None; those of other kinds stay."""


@runtime_checkable
class TunedStore(CalibratedStore, Protocol):
    """What `pixmatcher tune` needs of a store that is no folder: it measures its indexes itself."""

    def sample_ids(self, count: int) -> list[int]:
        """Return the ids of up to `count` items, evenly spaced in the order of the ids."""

    def tune_index(
        self, space: str, recall: float | None = None, *, queries: npt.NDArray[np.float32] | None = None
    ) -> IndexTuning:
        """Choose how a search uses the index of a space, for a recall@10; `queries` (N, dimension) are measured too."""


def open_collection(reference: str | os.PathLike[str] | None = None) -> Store:
    """Open a collection: the one in a folder, or the store NAME:REST of an installed package.

    Without a reference, open the nearest collection at or above the current folder. A path that exists is a folder,
    whatever its name. Raises `CollectionError` if there is no such collection or store, or if the
    package that declares the store is broken.
    """
    if reference is None:
        return Collection.open(find_collection())
    store = open_named_store(reference)
    if store is not None:
        if isinstance(store, CreatedByIndexing) and not store.encoders:
            store.close()
            raise CollectionError(
                f"There is no collection in {store.path}", f"create it with `pixmatcher index FOLDER -c {store.path}`."
            )
        return store
    text = os.fspath(reference)
    match = _match_store(text)
    if match is not None:
        known = ", ".join(plugin_names(STORES)) or "none"
        raise CollectionError(
            f"There is no collection in {text}, and no installed package declares a store {match[1]!r} "
            f"(declared: {known})",
            f"install the package, or write {os.path.join(os.curdir, text)} for a folder of that name.",
        )
    return Collection.open(reference)


def open_named_store(reference: str | os.PathLike[str]) -> Store | None:
    """Open the store NAME:REST of an installed package.

    Return None if the reference is a folder: it exists, or no package declares the name. Raises `CollectionError` if
    the package is broken or its store cannot be opened.
    """
    match = _match_store(os.fspath(reference))
    if match is None:
        return None
    name, rest = match.groups()
    plugin = load_plugin(STORES, name, CollectionError)
    if plugin is None:
        return None
    try:
        store = plugin(rest)
    except CollectionError:
        raise
    except Exception as error:  # the code of another package may raise anything
        raise CollectionError(
            f"The store {name!r} cannot open {rest!r} ({type(error).__name__}: {error})",
            "correct the name, or ask the author of its package.",
        ) from error
    if not isinstance(store, Store):
        absent = [member for member in _members(Store) if not hasattr(store, member)]
        raise CollectionError(
            f"The store {name!r} of an installed package lacks {', '.join(absent)}", "ask the author of its package."
        )
    return store


def _match_store(text: str) -> re.Match[str] | None:
    """Return the match of NAME:REST; None if the text is not of that form, or is a path that exists."""
    match = _REFERENCE.fullmatch(text)
    if match is None or os.path.exists(text) or locate_collection(text) is not None:
        return None
    return match


def _members(protocol: type) -> list[str]:
    """Return the names of the members of a protocol, sorted."""
    return sorted(name for name in vars(protocol) if not name.startswith("_") or name == "__len__")
