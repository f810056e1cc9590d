"""Indexing: source -> decode -> encode -> collection, overlapped, resumable, with a report of what failed."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from .._cores import usable_cores
from .._progress import Progress, ProgressCallback
from .._version import __version__
from ..collection import (
    CATALOG_NAME,
    FOLDER_NAME,
    Collection,
    Failure,
    Item,
    StoredItems,
    WritableStore,
    delete_collection,
    open_named_store,
)
from ..encoders import (
    DEFAULT_ENCODER,
    Encoder,
    Runtime,
    full_name,
    load_encoders,
    load_recorded,
    with_encoders,
)
from ..errors import CollectionError, EncoderError, SourceError
from ..images import DEFAULT_MAX_PIXELS, THUMBNAIL_SIDE, Recipe, fit_image, make_thumbnail, open_image
from ..records import EncoderRecord
from ..sources import Entry, HoldsEmbeddings, Source, Unusable, open_source
from .reading import Turn, as_completed, read_entry, reason_of, take_turns

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AnySource: TypeAlias = "str | os.PathLike[str] | Source"
"""A spec, see `open_source`, a folder, or a source itself."""

_IF_GONE = "is its disk mounted? its images stay; `pixmatcher forget` takes them out"
_MOST_UNUSABLE = 100_000
"""Entries of a source that are named in the report because they cannot be used."""
_FLUSH_ITEMS = 512
_FLUSH_SECONDS = 1.0
# After these the image may well be what it was: its item stays, and every run tries again.
_UNKNOWN_STATE = {"cannot be read", "permission denied", "unexpected error", "out of memory"}
# These depend on what this installation can open: it tries again when it can open more.
_BEYOND_MEANS = {"too many pixels", "unsupported format"}


@dataclass
class IndexReport:
    """What a run did. `failures` are all images of its sources that cannot be indexed, those of earlier runs too."""

    collection: Path
    total: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class _Decoded:
    item: Item
    pixels: list[npt.NDArray[np.uint8]]
    """One array (H, W, 3) for each recipe."""
    thumbnail: bytes | None


@dataclass
class _Outcome:
    """What became of a batch of entries."""

    encoded: list[Item] = field(default_factory=list)
    embeddings: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    known: list[tuple[Item, Entry]] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.encoded) + len(self.known) + len(self.failed)


def index(
    sources: AnySource | Sequence[AnySource] | None = None,
    collection: str | os.PathLike[str] | WritableStore | None = None,
    *,
    encoders: Sequence[str | Encoder] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    retry_failed: bool = False,
    thumbnails: bool = True,
    allow_private: bool = False,
    workers: int | None = None,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> IndexReport:
    """Index sources into a collection, or refresh it: added, changed, moved and deleted images.

    Without `sources` those that the collection has are refreshed; one that is missing is reported and its images stay.
    `encoders` are names or encoder objects, by default `lite`; a collection that was made with an object needs it again
    in each call. `collection` is a folder, a store such as NAME:REST of an installed package, or a store object, which
    the caller closes. Without it, it lies in `.pixmatcher` inside the one folder that is indexed, or, without
    `sources`, at or above the current folder; it is made if need be. Images that failed before are tried again when
    they or the reason change, or with `retry_failed`; remote ones in every run. Of images that may be out of reach
    later a small picture is kept, unless `thumbnails` is false. URLs of private and loopback addresses are refused
    unless `allow_private`. What is stored stays stored, whenever the run ends; the next run goes on from there. The
    indexes of a large collection are trained at the end: `progress` is called with the images that
    are done, then with the rows of an index that is trained.

    Raises `SourceError`, `CollectionError`, `CollectionLockedError` or `StorageError` if it cannot begin or go on;
    a broken image never does that, it is in the report.
    """
    if isinstance(collection, (str, os.PathLike)) and (named := _writable_store(collection)) is not None:
        with closing(named):
            return index(
                sources,
                named,
                encoders=encoders,
                max_pixels=max_pixels,
                retry_failed=retry_failed,
                thumbnails=thumbnails,
                allow_private=allow_private,
                workers=workers,
                runtime=runtime,
                progress=progress,
            )
    store = collection if isinstance(collection, WritableStore) else None
    folder = None if isinstance(collection, WritableStore) else collection
    started = time.monotonic()
    runtime = with_encoders(runtime, [encoder for encoder in encoders or () if not isinstance(encoder, str)])
    missing: list[Failure] = []
    if sources is None and store is not None:
        opened = list(_open_present(store.sources(), missing))
    elif sources is None:
        with Collection.open(folder or Collection.find()) as existing:
            known, folder = existing.sources(), existing.path
        opened = list(_open_present(known, missing))
    else:
        listed = sources if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
        opened = [open_source(os.fspath(s)) if isinstance(s, (str, os.PathLike)) else s for s in listed]
    if not opened and not missing:
        raise SourceError("There is no source to index: name a folder of images.")
    path = store.path if store is not None else _collection_path(opened, folder)
    workers = max(1, workers or usable_cores())
    saved = [source for source in opened if isinstance(source, HoldsEmbeddings)]
    created = store is None and Collection.locate(path) is None
    with (
        ExitStack() as afterwards,
        ThreadPoolExecutor(workers, thread_name_prefix="pixmatcher") as executor,
        _open_or_create(path, encoders, opened, runtime)
        if store is None
        else _checked(store, encoders, saved) as target,
    ):
        target.begin_writing()
        # Saved embeddings may be of an encoder that is not there.
        loaded = load_recorded(target.encoders, runtime) if len(saved) < len(opened) else []
        report = IndexReport(target.path)
        options = _Options(max_pixels, thumbnails, allow_private)
        run = _Run(opened, target, loaded, options, executor, workers, report, progress)
        try:
            run.refresh(retry_failed)
        except SourceError:
            if created and not len(target):
                afterwards.callback(delete_collection, target.path)  # a wrong call leaves nothing behind
            raise
        report.failures = missing + run.failures()
        report.total = len(target)
        target.update_indexes(progress=progress)
    report.seconds = time.monotonic() - started
    return report


def _writable_store(reference: str | os.PathLike[str]) -> WritableStore | None:
    """Open the store NAME:REST of an installed package; None if the reference is a folder."""
    store = open_named_store(reference)
    if store is None or isinstance(store, WritableStore):
        return store
    store.close()
    raise CollectionError(f"{reference} can only be searched: name another collection with -c.")


@contextmanager
def _checked(
    store: WritableStore, encoders: Sequence[str | Encoder] | None, saved: Sequence[HoldsEmbeddings]
) -> Iterator[WritableStore]:
    """Use a store that fits these encoders and saved embeddings. Its owner closes it."""
    _check_fit(store.path, store.encoders, encoders, saved)
    yield store


def _open_present(specs: Sequence[str], missing: list[Failure]) -> Iterator[Source]:
    """Open the sources that are there; the others are noted in `missing`."""
    for spec in specs:
        try:
            yield open_source(spec)
        except SourceError as error:
            missing.append(Failure(spec, "missing source", f"{str(error).rstrip('.')}; {_IF_GONE}"))


def _collection_path(sources: Sequence[Source], collection: str | os.PathLike[str] | None) -> Path:
    """Where the collection is or will be."""
    if collection is None:
        if len(sources) != 1:
            raise CollectionError("Several sources need a collection to go to: name one with -c FOLDER.")
        if sources[0].folder is None:
            raise CollectionError(f"{sources[0].spec} is no folder: name one for the collection with -c FOLDER.")
        return Path(sources[0].folder) / FOLDER_NAME
    path = Path(collection)
    if not path.is_dir() or path.name == FOLDER_NAME or Collection.locate(path) is not None:
        return path
    # A folder of the user's gets the collection inside it, unless all it holds is a collection that was begun.
    names = set(os.listdir(path)) if os.access(path, os.R_OK) else set()
    begun = Collection.FILES.issuperset(names) and not names.isdisjoint({"lock", CATALOG_NAME})
    return path if begun else path / FOLDER_NAME


def _open_or_create(
    path: Path,
    encoders: Sequence[str | Encoder] | None,
    sources: Sequence[Source],
    runtime: Runtime | None,
) -> Collection:
    """Open the collection, or make it for these encoders, or for those of saved embeddings."""
    saved = [source for source in sources if isinstance(source, HoldsEmbeddings)]
    if Collection.locate(path) is None:
        if saved:
            _check_fit(path, saved[0].describes, encoders, saved)
            if others := [source.spec for source in sources if not isinstance(source, HoldsEmbeddings)]:
                _check_encodes(saved[0], others[0], runtime)
            return Collection.create(path, saved[0].describes)
        return Collection.create(path, load_encoders(encoders or (DEFAULT_ENCODER,), runtime))
    existing = Collection.open(path)
    try:
        _check_fit(existing.path, existing.encoders, encoders, saved)
    except CollectionError:
        existing.close()
        raise
    return existing


def _check_fit(
    path: Path,
    records: Sequence[EncoderRecord],
    encoders: Sequence[str | Encoder] | None,
    saved: Sequence[HoldsEmbeddings],
) -> None:
    """Raise `CollectionError` if a collection of these encoders cannot take what it is given."""
    names = [record.name for record in records]
    if encoders is not None and [*dict.fromkeys(map(full_name, encoders))] != names:
        raise CollectionError(f"{path} was made with the encoders {', '.join(names)}: name another collection with -c.")
    for source in saved:
        offered = {record.name: record for record in source.describes}
        for record in records:
            offer = offered.get(record.name)
            if offer is None or len({offer.fingerprint, record.fingerprint} - {""}) > 1:
                raise CollectionError(
                    f"{source.spec} has no embeddings of the encoder {record.name} ({record.fingerprint or 'any'}), of "
                    f"which {path} is made: name another collection with -c."
                )
            if missing := [space.name for space in record.spaces if space not in offer.spaces]:
                raise CollectionError(
                    f"{source.spec} has no embeddings of the space {missing[0]}, which {path} has: name another "
                    "collection with -c."
                )


def _check_encodes(saved: HoldsEmbeddings, other: str, runtime: Runtime | None) -> None:
    """Raise `CollectionError` if the encoders of saved embeddings are not at hand for the images of another source."""
    try:
        load_recorded(saved.describes, runtime)
    except EncoderError as error:
        names = ", ".join(record.name for record in saved.describes)
        raise CollectionError(
            f"{saved.spec} is of the encoder {names}, in a version that is not at hand to encode {other}: name another "
            "collection for one of them with -c."
        ) from error


@dataclass(frozen=True)
class _Options:
    max_pixels: int
    thumbnails: bool
    allow_private: bool


class _Run:
    """The indexing of some sources.

    Each worker thread decodes a batch and encodes it by itself. So every core is busy whatever the images cost, and
    memory is bounded by the batches under way. This thread alone writes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        collection: WritableStore,
        encoders: Sequence[Encoder],
        options: _Options,
        executor: ThreadPoolExecutor,
        workers: int,
        report: IndexReport,
        progress: ProgressCallback | None,
    ) -> None:
        self._collection = collection
        self._encoders = encoders
        self._recipes: list[Recipe] = list(dict.fromkeys(encoder.recipe for encoder in encoders))
        self._min_side = max((recipe.min_side for recipe in self._recipes), default=1)
        self._batch_size = max((encoder.batch_size for encoder in encoders), default=1)
        self._options = options
        self._means = f"{options.max_pixels} {__version__} {find_spec('pillow_heif') is not None}"
        self._executor = executor
        self._workers = workers
        self._report = report
        self._progress = progress
        self._buffer: list[_Outcome] = []
        self._sources = {source.spec: source for source in sources}
        self._comparison = collection.compare_sources([*self._sources])

    def refresh(self, retry_failed: bool) -> None:
        # Once: a second call would keep another worker waiting for the first, instead of decoding.
        begun = not len(self._collection)  # all images will be new
        if begun:
            self._executor.submit(_load, self._encoders)
        # All sources are listed before any image is encoded, so that one moved from one to another is recognised.
        self._pending = self._compare(retry_failed)
        self._done = 0
        self._tell_progress()
        if self._pending and not begun:
            self._executor.submit(_load, self._encoders)
        for source in self._sources.values():
            self._index_pending(source)
        self._report.removed += self._collection.remove(self._comparison.missing())

    def failures(self) -> list[Failure]:
        """All images of the sources that cannot be indexed."""
        return self._comparison.failures()

    def _index_pending(self, source: Source) -> None:
        last_flush = time.monotonic()
        turns = self._take_turns(source, self._comparison.pending(source.spec))
        # At most two batches a worker are under way.
        work = partial(self._process, source)
        try:
            with closing(turns), closing(as_completed(self._executor, work, turns, 2 * self._workers)) as outcomes:
                for outcome in outcomes:
                    self._buffer.append(outcome)
                    self._done += len(outcome)
                    self._tell_progress()
                    waiting = sum(map(len, self._buffer))
                    if waiting >= _FLUSH_ITEMS or time.monotonic() - last_flush > _FLUSH_SECONDS:
                        self._flush(source)
                        last_flush = time.monotonic()
        finally:
            # Also when the user interrupts: what is encoded is kept.
            self._flush(source)

    def _tell_progress(self) -> None:
        if self._progress:
            self._progress(Progress("Indexing", self._done, self._pending, "images"))

    # Comparing the sources with the collection

    def _compare(self, retry_failed: bool) -> int:
        """Find out what is to be done; returns how many entries need work."""
        unusable: dict[str, list[Unusable]] = {}
        for spec, source in self._sources.items():
            unusable[spec] = []
            self._found = 0
            self._comparison.add_entries(spec, self._scan(source, unusable[spec]))
            known = any(u.contents_unknown and u.uri == spec for u in unusable[spec])
            if not (self._found or known or self._may_be_empty(source)) and self._comparison.item_count(spec):
                unusable[spec].append(Unusable(source.spec, "no images any more", _IF_GONE, contents_unknown=True))
        hiding = [(spec, u.uri) for spec, found in unusable.items() for u in found if u.contents_unknown]
        result = self._comparison.compare(
            unknown_paths=[uri for _, uri in hiding],
            unknown_sources=[spec for spec, uri in hiding if uri == spec],
            missing=self._vanished_of_others(),
            decoder_capabilities=self._means,
            retry_failed=retry_failed,
        )
        for spec, source in self._sources.items():
            try:
                if names := source.label_names():
                    self._collection.set_label_names(names)
            except SourceError as error:
                unusable[spec].append(Unusable(spec, "no names of labels", str(error)))
        for spec, found in unusable.items():
            if found:
                self._comparison.record_failures(spec, (Failure(u.uri, u.reason, u.detail) for u in found))
        self._report.unchanged += result.unchanged
        self._report.changed += result.updated
        return result.pending

    def _scan(self, source: Source, unusable: list[Unusable]) -> Iterator[Entry]:
        unnamed = 0
        try:
            for found in source.scan():
                if isinstance(found, Unusable):
                    # A list that is none may have millions of bad rows.
                    if len(unusable) < _MOST_UNUSABLE or found.contents_unknown:
                        unusable.append(found)
                    else:
                        unnamed += 1
                else:
                    self._found += 1
                    yield found
        except SourceError as error:
            if len(self._sources) == 1:
                raise
            unusable.append(Unusable(source.spec, "source cannot be read", str(error), contents_unknown=True))
        if unnamed:
            unusable.append(Unusable(source.spec, "more of these", f"{unnamed:,} entries that are not named"))

    def _may_be_empty(self, source: Source) -> bool:
        """An empty folder may be a disk that is not mounted; a collection inside it shows that it is."""
        return source.folder is not None and self._collection.path.is_relative_to(source.folder)

    def _vanished_of_others(self) -> list[int]:
        """The items of sources that overlap those of this run, which lie in the latter and whose files are gone."""
        mine = tuple(os.path.join(source.folder, "") for source in self._sources.values() if source.folder)
        others = [
            spec
            for spec in self._comparison.other_sources()
            if (spec.startswith(mine) or any(folder.startswith(os.path.join(spec, "")) for folder in mine))
            and _holds_something(spec)
        ]
        if not others:
            return []
        unseen = self._comparison.unlisted_items(others)
        return [item_id for item_id, uri in unseen if uri.startswith(mine) and not os.path.lexists(uri)]

    # Decoding and encoding, in the worker threads

    def _process(self, source: Source, turns: Sequence[Turn], *, encode_known: bool = False) -> _Outcome:
        if isinstance(source, HoldsEmbeddings):
            return self._take_saved(source, [turn.entry for turn in turns], encode_known)
        outcome = _Outcome()
        decoded: list[_Decoded] = []
        for turn in turns:
            try:
                found = self._decode(source, turn, encode_known)
            except Exception as error:  # one file must never end the run
                outcome.failed.append(self._failure(source, turn.entry, *reason_of(error)))
            else:
                if isinstance(found, Item):
                    outcome.known.append((found, turn.entry))
                else:
                    decoded.append(found)
        outcome.encoded = [d.item for d in decoded]
        outcome.thumbnails = {d.item.content_hash: d.thumbnail for d in decoded if d.thumbnail is not None}
        if decoded:
            outcome.embeddings = self._encode(decoded)
        return outcome

    def _take_saved(self, source: HoldsEmbeddings, batch: Sequence[Entry], take_known: bool) -> _Outcome:
        """What becomes of entries whose embeddings the source has: their version is the hash of these."""
        outcome = _Outcome()
        known = set() if take_known else self._comparison.known_contents([entry.version for entry in batch])
        taken = [entry for entry in batch if entry.version not in known]
        outcome.known = [(_item_of(entry, entry.version), entry) for entry in batch if entry.version in known]
        try:
            outcome.embeddings = source.embeddings([entry.uri for entry in taken])
            outcome.encoded = [_item_of(entry, entry.version) for entry in taken]
        except SourceError as error:
            outcome.failed = [self._failure(source, entry, "cannot be read", str(error)) for entry in taken]
        return outcome

    def _failure(self, source: Source, entry: Entry, reason: str, detail: str) -> Failure:
        """The failure, with a version that tells when to try again."""
        version = entry.version
        if source.remote or reason in _UNKNOWN_STATE:
            version = ""
        elif reason in _BEYOND_MEANS:
            version = f"{entry.version} {self._means}"
        return Failure(entry.uri, reason, detail, version)

    def _decode(self, source: Source, turn: Turn, encode_known: bool) -> _Decoded | Item:
        """Read and decode an image; only its item where an image of the same content is known already."""
        entry = turn.entry
        keeps_thumbnail = source.thumbnails and self._options.thumbnails
        with read_entry(source, turn) as read:
            item = replace(_item_of(entry, read.content_hash), bytes=read.bytes)
            if (
                not encode_known
                and self._comparison.known_contents([item.content_hash])
                and (not keeps_thumbnail or self._collection.thumbnail(item.content_hash) is not None)
            ):
                return item
            opened = open_image(
                read.data,
                min_side=max(self._min_side, THUMBNAIL_SIDE if keeps_thumbnail else 0),
                max_pixels=self._options.max_pixels,
                rotation=entry.rotation,
            )
        item = replace(item, width=opened.width, height=opened.height, format=opened.format, taken=opened.taken)
        thumbnail = make_thumbnail(opened.image) if keeps_thumbnail else None
        return _Decoded(item, [fit_image(opened, recipe) for recipe in self._recipes], thumbnail)

    def _encode(self, decoded: Sequence[_Decoded]) -> dict[str, npt.NDArray[np.float32]]:
        import numpy as np

        pixels = {
            recipe: np.stack([d.pixels[position] for d in decoded]) for position, recipe in enumerate(self._recipes)
        }
        embeddings: dict[str, npt.NDArray[np.float32]] = {}
        for encoder in self._encoders:
            embeddings.update(encoder.encode_images(pixels[encoder.recipe]))
        return embeddings

    # Storing, in the thread of the caller

    def _flush(self, source: Source) -> None:
        """Store all outcomes that wait. Where that is interrupted they wait on, and can be stored again."""
        while outcomes := self._buffer:
            # Known ones come first: what they are copies of may be among those that change now.
            known = [pair for outcome in outcomes for pair in outcome.known]
            again = self._store_known(known, source)
            self._store_encoded(outcomes, source)
            failures = [failure for outcome in outcomes for failure in outcome.failed]
            if failures:
                # What a server says now is no proof that an image is lost.
                lost = [] if source.remote else [f.uri for f in failures if f.reason not in _UNKNOWN_STATE]
                self._report.removed += self._comparison.record_failures(source.spec, failures, remove=lost)
            # Where the item of that content has itself changed meanwhile, there is nothing left to copy.
            turns = self._take_turns(source, again)
            self._buffer = [self._process(source, batch, encode_known=True) for batch in turns]

    def _take_turns(self, source: Source, entries: Iterable[Entry]) -> Generator[list[Turn], None, None]:
        size = source.batch_size if isinstance(source, HoldsEmbeddings) else self._batch_size
        return take_turns(source, entries, size, allow_private=self._options.allow_private)

    def _store_encoded(self, outcomes: Sequence[_Outcome], source: Source) -> None:
        import numpy as np

        outcomes = [outcome for outcome in outcomes if outcome.encoded]
        items = [item for outcome in outcomes for item in outcome.encoded]
        if not items:
            return
        embeddings = {
            space: np.concatenate([outcome.embeddings[space] for outcome in outcomes])
            for space in self._collection.spaces
        }
        thumbnails = {key: jpeg for outcome in outcomes for key, jpeg in outcome.thumbnails.items()}
        self._count(self._comparison.store(source.spec, items, embeddings, thumbnails))

    def _store_known(self, known: Sequence[tuple[Item, Entry]], source: Source) -> list[Entry]:
        """Store items whose content is in the collection: touched, moved, or copies.

        Returns the entries of those whose content was there a moment ago, but is no longer.
        """
        stored = self._comparison.store_known(source.spec, [item for item, _ in known])
        self._count(stored)
        return [entry for item, entry in known if item.uri in stored.unknown]

    def _count(self, stored: StoredItems) -> None:
        self._report.added += stored.added
        self._report.changed += stored.changed
        self._report.moved += stored.moved
        self._report.unchanged += stored.unchanged


def _item_of(entry: Entry, content_hash: str) -> Item:
    return Item(
        entry.uri,
        content_hash,
        entry.version,
        label=entry.label,
        caption=entry.caption,
        modified=entry.modified,
        details=entry.details,
    )


def _load(encoders: Sequence[Encoder]) -> None:
    """Load what the run needs, while other threads begin to decode. What fails here fails again where it is used."""
    for encoder in encoders:
        encoder.load_images()
    import_module("faiss")  # for the indexes that are saved at the end, when only one core has work


def _holds_something(folder: str) -> bool:
    """Whether there is anything in the folder; where there is not, its disk may not be mounted."""
    try:
        with os.scandir(folder) as listing:
            return any(listing)
    except OSError:
        return False
