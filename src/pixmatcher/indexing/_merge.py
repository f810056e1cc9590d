"""`merge_shards`: store what the shards of a source contain in a collection."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter as Counts
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING

from .._progress import ProgressCallback
from ..collection import Collection, CreatedByIndexing, Failure, Item, KeepsFolderNotes, WritableStore
from ..errors import InvalidImageError, ShardError
from ..records import EncoderRecord, Entry, FolderNotes
from ..sources import Source, open_source
from ._encode import BatchResult
from ._report import IndexReport
from ._shard_files import (
    CommonFacts,
    ListingFacts,
    Part,
    open_listing,
    part_names,
    read_common,
    read_part,
)
from ._shard_places import Place, open_place
from ._shards import Shard, SourcePlace, digest_of, numbers_text, shard_of_folder
from ._stages import Counter
from ._store import ResultStore
from ._target import IndexesSources, check_offered, collection_path, open_writable_store
from .reading import in_batches

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_log = logging.getLogger("pixmatcher.indexing")

_BATCH = 2048


@dataclass
class MergeReport:
    """The result of `merge_shards`: what was stored, and which shards are not complete."""

    index: IndexReport
    """What was stored. Its failures are those of all images of the source."""
    source: str
    """The spec of the source."""
    place: str
    count: int
    """The number of shards of the source."""
    missing: list[int]
    """The numbers of the shards that were not begun."""
    unfinished: dict[int, int] = field(default_factory=dict)
    """How many images the shards of these numbers still have to encode."""
    differing: list[int] = field(default_factory=list)
    """The numbers of the shards that saw another list of images than most shards did."""

    @property
    def to_run_again(self) -> str:
        """The numbers of the shards that are not complete, as Slurm writes them, such as "3,7-9"; "" if all are."""
        return numbers_text(sorted({*self.missing, *self.unfinished, *self.differing}))


def merge_shards(
    place: str | os.PathLike[str],
    collection: str | os.PathLike[str] | WritableStore,
    *,
    source: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> MergeReport:
    """Store what the shards at a place contain in a collection. Neither the images nor the encoder are needed.

    The collection is then as after `index` of the source, except for the order of its items. Nothing is removed: the
    next `index` removes images that do not exist any more. An item of a later file than that of the shards is kept.
    If shards are missing or unfinished, what is there is stored, and the report says what is not; the next call stores
    the rest. A call that is interrupted is continued by the next one, too.

    Arguments:
        place: The folder of the shards.
        collection: As for `index`; the collection is created if it does not exist.
        source: The source on this machine, if it is in another folder than where the shards were made. The items of
            the collection are then in that folder.
        progress: Called with the number of images that are stored, then with the rows of an index that is trained.

    Raises `ShardError` if the place has no shards, or if they are damaged, do not belong together or are written
    meanwhile; `CollectionError` if the collection has other encoders, `CollectionLockedError` if another process
    writes to it.
    """
    started = time.monotonic()
    opened = open_place(place)
    common = read_common(opened)
    listed = {} if common is None else _read_listings(opened, common)
    if common is None or not listed:
        raise ShardError(
            f"There are no shards in {opened.name}: make them first, with `pixmatcher index SOURCE --shard 1/2 --to "
            f"{opened.name}` and so on."
        )
    at = _source_place(listed, common, source)
    with _open_target(collection, common.encoders, f"{at.spec} in shards") as target:
        target.begin_writing()
        missing = [number for number in range(1, common.count + 1) if number not in listed]
        report = MergeReport(
            IndexReport(target.path), at.spec, opened.name, common.count, missing, differing=_differing(listed)
        )
        _Merge(opened, common, listed, at, target, report).run(progress)
        report.index.total = len(target)
        target.update_indexes(progress=progress)
    report.index.seconds = time.monotonic() - started
    _log.info("Merged %s into %s in %.2f s", opened.name, report.index.collection, report.index.seconds)
    return report


def _read_listings(place: Place, common: CommonFacts) -> dict[int, ListingFacts]:
    """Return how each shard was listed, by its number. Raises `ShardError` if the shards do not belong together."""
    found = {}
    for shard in sorted(filter(None, map(shard_of_folder, place.names())), key=lambda shard: shard.number):
        with open_listing(place, shard) as listing:
            if listing is None:
                continue
            facts = listing[0]
        if difference := common.difference(facts.common):
            raise ShardError(
                f"The shard {shard} in {place.name} is made with {difference}: delete its folder {shard.folder}, and "
                "encode it again."
            )
        if shard.count != common.count:
            raise _of_another_shard(shard, place)
        found[shard.number] = facts
    return found


def _of_another_shard(shard: Shard, place: Place) -> ShardError:
    return ShardError(
        f"The folder {shard.folder} in {place.name} has the files of another shard: delete it, and merge again to "
        "see what is missing."
    )


def _source_place(
    listed: Mapping[int, ListingFacts], common: CommonFacts, source: str | os.PathLike[str] | None
) -> SourcePlace:
    """Return where the source is. Raises `ShardError` if that is not known, or if the given source is another one."""
    places = {facts.place for facts in listed.values()}
    if source is not None:
        here = SourcePlace.of(open_source(os.fspath(source)).spec)
        if here.source_name != common.source:
            raise ShardError(f"The shards are of the source {common.source}, not of {here.source_name}: name that one.")
        return here
    if len(places) > 1:
        folders = " and ".join(sorted(place.folder for place in places)[:2])
        raise ShardError(
            f"The source was in different folders when the shards were made ({folders}): say with --source where it is "
            "on this machine."
        )
    return places.pop()


def _differing(listed: Mapping[int, ListingFacts]) -> list[int]:
    """Return the numbers of the shards that saw another list of images than most shards did."""
    lists = Counts((facts.entries, facts.digest) for facts in listed.values())
    most, _ = lists.most_common(1)[0]
    return [number for number, facts in listed.items() if (facts.entries, facts.digest) != most]


@contextmanager
def _open_target(
    collection: str | os.PathLike[str] | WritableStore, records: Sequence[EncoderRecord], what: str
) -> Iterator[WritableStore]:
    """Yield the collection, which is created for these encoders if it does not exist. A given store stays open."""
    if isinstance(collection, (str, os.PathLike)):
        store = open_writable_store(collection)
        if store is None:
            path = collection_path([], collection)
            is_new = Collection.locate(path) is None
            with Collection.create(path, records) if is_new else Collection.open(path) as target:
                check_offered(target.path, target.encoders, what, records)
                yield target
            return
        with closing(store):
            if isinstance(store, IndexesSources) or not isinstance(store, WritableStore):
                raise ShardError(f"{collection} is a collection of a service: merge where its folder is.")
            yield _fitting(store, records, what)
        return
    yield _fitting(collection, records, what)


def _fitting(store: WritableStore, records: Sequence[EncoderRecord], what: str) -> WritableStore:
    """Return a store, which is created if need be, after a check that these encoders are its own."""
    if isinstance(store, CreatedByIndexing) and not store.encoders:
        store.create(records)
    check_offered(store.path, store.encoders, what, records)
    return store


class _Merge:
    """One run of `merge_shards`."""

    def __init__(
        self,
        place: Place,
        common: CommonFacts,
        listed: Mapping[int, ListingFacts],
        at: SourcePlace,
        target: WritableStore,
        report: MergeReport,
    ) -> None:
        self._place = place
        self._options = common.options
        self._shards = {Shard(number, common.count): facts for number, facts in listed.items()}
        self._at = at
        self._target = target
        self._report = report
        self._comparison = target.compare_sources([at.spec])
        self._current: dict[str, tuple[Item, dict[str, npt.NDArray[np.float16]]]] = {}
        """The items of the batch that is being stored, with their embeddings of each space, by uri."""

    def run(self, progress: ProgressCallback | None) -> None:
        """Compare the shards with the collection, and store what it does not have."""
        import numpy as np

        spec, index = self._at.spec, self._report.index
        notes = self._notes()
        for shard in self._shards:
            self._comparison.add_entries(spec, self._entries(shard, notes))
        # Of an unknown source nothing is removed.
        compared = self._comparison.compare(unknown_sources=[spec], keep_newer=True)
        index.unchanged, index.changed = compared.unchanged, compared.updated
        if compared.newer:
            images = f"{compared.newer:,} image" + ("s are" if compared.newer > 1 else " is")
            index.notes.append(
                f"{images} kept as in the collection, which has later files than the shards: to take the files of now, "
                f"index {spec} into it."
            )
        self._store_facts(notes)
        digests = (digest_of(entry.uri, entry.version) for entry in self._comparison.pending(spec))
        pending = np.sort(np.fromiter(digests, np.uint64))  # 8 bytes an image
        if len(pending):
            self._store_pending(pending, notes, progress)
        index.failures = self._comparison.failures()

    def _store_pending(
        self, pending: npt.NDArray[np.uint64], notes: FolderNotes | None, progress: ProgressCallback | None
    ) -> None:
        """Store the results of the entries whose digests are `pending`, ascending."""
        spec, index = self._at.spec, self._report.index
        counter = Counter(len(pending), progress, "Merging")
        source = _MergedSource(spec, any(facts.remote for facts in self._shards.values()))
        store = ResultStore(self._target, self._comparison, source, index, self._with_embeddings)
        found = 0
        for shard in self._shards:
            left = {
                entry.uri: entry
                for entry in self._entries(shard, notes)
                if _contains(pending, digest_of(entry.uri, entry.version))
            }
            found += len(left)
            for name in reversed(part_names(self._place, shard)):  # of several results the last one counts
                if not left:
                    break
                self._store_part(read_part(self._place, name, self._target.spaces), left, store, counter)
            if left:
                self._report.unfinished[shard.number] = len(left)
        if found < len(pending):
            raise self._written_meanwhile()

    def _written_meanwhile(self) -> ShardError:
        """Return the error for listings that were replaced or deleted during the merge."""
        return ShardError(
            f"The shards in {self._place.name} were written while they were merged: merge again when that has "
            "finished; what is stored is kept."
        )

    def _notes(self) -> FolderNotes | None:
        """Return what to keep of a folder source; None for other sources."""
        found = [facts.notes for facts in self._shards.values() if facts.notes is not None]
        if not found:
            return None
        notes = replace(found[-1], forgotten=())
        if isinstance(self._target, KeepsFolderNotes):
            stored = self._target.folder_notes(self._at.spec)
            notes = replace(notes, forgotten=stored.forgotten)
            # As `index` without these options does.
            if self._options.exclude is None:
                notes = replace(notes, exclude=stored.exclude)
            if self._options.hidden is None:
                notes = replace(notes, hidden=stored.hidden)
        return notes

    def _entries(self, shard: Shard, notes: FolderNotes | None) -> Iterator[Entry]:
        """Yield the entries that a shard lists, but for those that were removed from the collection by `forget`."""
        forgotten = {*(notes.forgotten if notes is not None else ())}
        with open_listing(self._place, shard) as listing:
            if listing is None:
                raise self._written_meanwhile()
            for entry in listing[1]:
                if not shard.has(digest_of(entry.uri)):
                    raise _of_another_shard(shard, self._place)
                if not (forgotten and _is_below(entry.uri, forgotten)):
                    yield replace(entry, uri=self._at.uri_of(entry.uri))

    def _store_facts(self, notes: FolderNotes | None) -> None:
        """Store what is known of the complete source: names of labels, notes, and what cannot be used."""
        unusable = {self._uri_here(u.uri, facts.place): u for facts in self._shards.values() for u in facts.unusable}
        failures = (Failure(uri, u.reason, u.detail) for uri, u in unusable.items())
        self._comparison.record_failures(self._at.spec, failures)
        names = {label: name for facts in self._shards.values() for label, name in facts.label_names.items()}
        if names:
            self._target.set_label_names(names)
        if notes is not None:
            self._report.index.passed_over = {kind: dict(counts) for kind, counts in notes.passed_over.items()}
            if isinstance(self._target, KeepsFolderNotes) and notes != self._target.folder_notes(self._at.spec):
                self._target.set_folder_notes(self._at.spec, notes)

    def _uri_here(self, uri: str, place: SourcePlace) -> str:
        """Return where something is on this machine whose uri is that of the machine with the source at `place`."""
        return self._at.spec if uri == place.spec else self._at.uri_of(place.name_of(uri))

    def _store_part(self, part: Part, left: dict[str, Entry], store: ResultStore, counter: Counter) -> None:
        """Store those results of a part that belong to the entries `left`, and take these out."""
        items = list[tuple[Item, Entry, int]]()
        failed = list[Failure]()
        row = 0
        for result in part.results:
            uri = self._at.uri_of(result.name)
            entry = left.get(uri)
            if entry is not None and entry.version == result.version:
                del left[uri]
                if result.failure is not None:
                    failed.append(replace(result.failure, uri=uri))
                else:
                    items.append((result.item_of(entry), entry, row))
            row += result.item is not None
        for batch in in_batches(items, _BATCH):
            store.add(self._batch_result(part, batch))
            store.flush()
            counter.add(len(batch))
        store.add(BatchResult(failed=failed))
        store.flush()
        counter.add(len(failed))

    def _batch_result(self, part: Part, batch: Sequence[tuple[Item, Entry, int]]) -> BatchResult:
        """Return items of a part with their embeddings, or without if the collection has an image of their content."""
        known = self._comparison.known_contents([item.content_hash for item, _, _ in batch])
        known -= {each for each in known & part.thumbnails.keys() if self._target.thumbnail(each) is None}
        self._current = {
            item.uri: (item, {space: rows[row] for space, rows in part.embeddings.items()}) for item, _, row in batch
        }
        result = self._stacked([item for item, _, _ in batch if item.content_hash not in known])
        result.known = [(item, entry) for item, entry, _ in batch if item.content_hash in known]
        hashes = [item.content_hash for item in result.encoded]
        result.thumbnails = {each: part.thumbnails[each] for each in hashes if each in part.thumbnails}
        return result

    def _with_embeddings(self, source: Source, entries: Iterable[Entry]) -> list[BatchResult]:
        """Return entries of the current batch with their embeddings: the other item of their content is gone."""
        items = [self._current[entry.uri][0] for entry in entries]
        return [self._stacked(items)] if items else []

    def _stacked(self, items: list[Item]) -> BatchResult:
        import numpy as np

        if not items:
            return BatchResult()
        rows = [self._current[item.uri][1] for item in items]
        embeddings = {space: np.stack([each[space] for each in rows]).astype(np.float32) for space in rows[0]}
        return BatchResult(items, embeddings)


def _contains(numbers: npt.NDArray[np.uint64], number: int) -> bool:
    """Return whether sorted numbers contain a number."""
    import numpy as np

    place = int(np.searchsorted(numbers, np.uint64(number)))
    return place < len(numbers) and int(numbers[place]) == number


def _is_below(name: str, folders: set[str]) -> bool:
    """Return whether a relative path is one of these, or below one of them."""
    while name:
        if name in folders:
            return True
        name = os.path.dirname(name)
    return False


class _MergedSource:
    """A source whose images are in shards, for `ResultStore`. It lists nothing, and no image of it can be opened."""

    folder: str | None = None
    thumbnails = True

    def __init__(self, spec: str, remote: bool) -> None:
        self.spec = spec
        self.remote = remote

    def scan(self) -> Iterator[Entry]:
        return iter(())

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        raise InvalidImageError("cannot be read", "it is in a shard")

    def label_names(self) -> Mapping[str, str]:
        return {}
