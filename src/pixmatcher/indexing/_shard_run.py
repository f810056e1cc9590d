"""`index_shard`: encode the images of one shard of a source, and write them to a place that `merge_shards` reads."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

import numpy.typing as npt

from .._cores import usable_cores
from .._progress import ProgressCallback
from ..collection import Failure, Item, StoredItems, records_of, stored_embeddings
from ..encoders import DEFAULT_ENCODER, Encoder, Runtime, load_encoders, with_encoders
from ..errors import ShardError, SourceError
from ..images import DEFAULT_MAX_PIXELS
from ..records import EncoderRecord, Entry, Space
from ..sources import HoldsEmbeddings, Source
from ..sources.folder import FolderSource
from ._compare import Listing, list_entries, no_label_names
from ._encode import DecoderCapabilities, EncodeOptions
from ._folders import choose_options, count_passed_over
from ._pipeline import AnySource, open_given_source
from ._report import IndexReport
from ._shard_files import (
    CommonFacts,
    ListingFacts,
    Result,
    ShardOptions,
    entries_of_lines,
    entry_line,
    open_listing,
    part_names,
    part_number,
    read_common,
    read_results,
    write_common,
    write_listing,
    write_part,
)
from ._shard_places import Place, open_place
from ._shards import Shard, SourcePlace, digest_of
from ._stages import Counter, Stages
from ._workers import ThreadWorkers

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger("pixmatcher.indexing")

_PART_ITEMS = 2048
_PART_SECONDS = 60.0
"""A part is written when it has so many images, or when it was begun so long ago. A killed process loses it."""


@dataclass
class ShardReport:
    """The result of a run over one shard."""

    place: str
    shard: Shard
    entries: int = 0
    """The number of images that the source lists for this shard."""
    encoded: int = 0
    """How many were encoded in this run."""
    unchanged: int = 0
    """How many were done in earlier runs; those that failed then and were not tried again count too."""
    failures: list[Failure] = field(default_factory=list)
    """All images of the shard that cannot be indexed."""
    incomplete: list[Item] = field(default_factory=list)
    """The images that were encoded in this run although the end of their file is missing; see `Item.missing`."""
    passed_over: dict[str, dict[str, int]] = field(default_factory=dict)
    """As in `IndexReport`, of the complete source."""
    notes: list[str] = field(default_factory=list)
    """What the source found out about itself: sentences."""
    seconds: float = 0.0


def index_shard(
    source: AnySource,
    shard: Shard | str,
    to: str | os.PathLike[str],
    *,
    encoders: Sequence[str | Encoder] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    retry_failed: bool = False,
    thumbnails: bool = True,
    allow_private: bool = False,
    exclude: Sequence[str] | None = None,
    hidden: bool | None = None,
    workers: int | None = None,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> ShardReport:
    """Encode the images of one shard of a source, and keep the embeddings where `merge_shards` finds them.

    Every image of the source belongs to exactly one shard. A hash of its name decides which one, the same on every
    machine, also where the source is in another folder; no image is opened for it.

    Arguments:
        source: A folder, a spec or a source object. It must list the same images on every machine.
        shard: Such as "3/64": the third of 64 shards.
        to: The folder for all shards of this source, which is created if it does not exist.
        encoders: Names or encoder objects, by default `lite`; the same for all shards.

    The other arguments are those of `index`; the limit of pixels, thumbnails and what is left out must be the same for
    all shards.

    What is written stays written when the run is interrupted; the next run continues from there. A run after the source
    has changed encodes what is new or changed.

    Raises `ShardError` if the shards at this place are of another source, of other encoders or options, or if another
    process writes this shard; `SourceError` if the source cannot be read. An image that cannot be used does not raise.
    """
    started = time.monotonic()
    shard = Shard.parse(shard) if isinstance(shard, str) else shard
    opened, place = open_given_source(source), open_place(to)
    choose_options([opened], exclude, hidden)
    runtime = with_encoders(runtime, [encoder for encoder in encoders or () if not isinstance(encoder, str)])
    loaded, records = _encoders_of(opened, encoders, runtime)
    options = ShardOptions(max_pixels, thumbnails, None if exclude is None else tuple(exclude), hidden)
    common = CommonFacts(SourcePlace.of(opened.spec).source_name, shard.count, records, options)
    known = read_common(place)
    if known is not None and (difference := common.difference(known)):
        raise ShardError(f"The shards in {place.name} are made with {difference}: name another place with --to.")
    report = ShardReport(place.name, shard)
    with place.locked(shard.folder, f"The shard {shard} in {place.name}"), TemporaryFile() as lines:
        if known is None:
            write_common(place, shard, common)
        work = _ShardWork(place, shard, SourcePlace.of(opened.spec), {s.name: s for r in records for s in r.spaces})
        encode_options = EncodeOptions(max_pixels, thumbnails, allow_private)
        workers = max(1, workers or usable_cores())
        with ThreadPoolExecutor(workers, thread_name_prefix="pixmatcher") as executor:
            threads = ThreadWorkers(executor, workers, work, work, loaded, encode_options)
            stages = Stages(work, work, threads)
            work.find_done([] if retry_failed else str(DecoderCapabilities(max_pixels)).split("\n"))
            facts = _list(opened, shard, common, work, lines)
            _check_same_source(place, shard, facts, work)
            write_listing(place, shard, facts, lines)
            found = IndexReport(Path(place.name))
            work.lines = lines
            if work.pending_count:
                threads.prepare(work.pending_count)
            try:
                stages.run(opened, found, Counter(work.pending_count, progress, f"Shard {shard}"))
            finally:
                work.write()  # also when the user interrupts the run
    report.entries, report.encoded = work.entry_count, found.added
    report.unchanged = work.entry_count - work.pending_count
    report.incomplete = found.incomplete
    report.failures = [Failure(u.uri, u.reason, u.detail) for u in facts.unusable] + work.failures()
    report.passed_over = count_passed_over([opened])
    report.notes = [*getattr(opened, "notes", ())]
    report.seconds = time.monotonic() - started
    _log.info("Shard %s: %d of %d images encoded, %.2f s", shard, report.encoded, report.entries, report.seconds)
    return report


def _encoders_of(
    source: Source, encoders: Sequence[str | Encoder] | None, runtime: Runtime | None
) -> tuple[list[Encoder], tuple[EncoderRecord, ...]]:
    """Return the encoders of a run, and what is recorded of them; saved embeddings need no encoder."""
    if isinstance(source, HoldsEmbeddings):
        if encoders is not None:
            raise SourceError(f"{source.spec} has embeddings of its own encoder: leave the encoders out.")
        return [], tuple(source.describes)
    loaded = load_encoders(encoders or (DEFAULT_ENCODER,), runtime)
    return loaded, records_of(loaded)


def _list(source: Source, shard: Shard, common: CommonFacts, work: _ShardWork, lines: IO[bytes]) -> ListingFacts:
    """List the source, write the entries of the shard to `lines`, and return what to keep of the rest."""
    at = SourcePlace.of(source.spec)
    listing = Listing()
    digest = 0
    for entry in list_entries(source, listing, alone=True):
        name = at.name_of(entry.uri)
        found = digest_of(name)
        digest = (digest + found) % (1 << 64)
        if shard.has(found) and work.add_entry(name, found, entry):
            lines.write(entry_line(replace(entry, uri=name)))
    # What each shard must know is kept by all, so that a folder that one machine cannot read is reported.
    unusable = tuple(u for u in listing.unusable if u.contents_unknown or shard.has(digest_of(at.name_of(u.uri))))
    label_names: Mapping[str, str] = {}
    try:
        label_names = source.label_names()
    except SourceError as error:
        unusable = (*unusable, no_label_names(source.spec, error))
    notes = source.folder_notes() if isinstance(source, FolderSource) else None
    return ListingFacts(common, at, source.remote, listing.count, digest, label_names, notes, unusable)


def _check_same_source(place: Place, shard: Shard, facts: ListingFacts, work: _ShardWork) -> None:
    """Raise `ShardError` if the shard is of another folder: none of the names that it listed is listed now."""
    try:
        with open_listing(place, shard) as known:
            if known is None or known[0].place.spec == facts.place.spec:
                return
            spec, names = known[0].place.spec, [entry.uri for entry in known[1]]
    except ShardError:
        return  # it is damaged, and made again
    if names and work.entry_count and not any(map(work.has_listed, names)):
        raise ShardError(
            f"The shard {shard} in {place.name} is of {spec}, and {facts.place.spec} has none of its images: name "
            "another place with --to."
        )


class _ShardWork:
    """The images of a shard that must be encoded, and the parts that are written of them.

    It is what `Stages` needs of a collection and of a comparison.
    """

    def __init__(self, place: Place, shard: Shard, at: SourcePlace, spaces: Mapping[str, Space]) -> None:
        self.spaces = spaces
        self.lines: IO[bytes]
        """The entries of the shard, as lines of a listing."""
        self.entry_count = self.pending_count = 0
        self._place, self._shard, self._at = place, shard, at
        self._next_part = 1
        self._done: dict[int, Failure | None] = {}
        """What became of the images of earlier runs, by the digest of name and version."""
        self._listed: set[int] = set()
        self._old_failures: list[Failure] = []
        self._running: dict[str, str] = {}
        """The versions of the entries that are being encoded, by uri."""
        self._results: list[Result] = []
        self._rows: list[dict[str, npt.NDArray[np.float16]]] = []
        self._thumbnails: dict[str, bytes] = {}
        self._new_failures: list[Failure] = []
        self._begun = time.monotonic()

    # What is done

    def find_done(self, capabilities: Sequence[str]) -> None:
        """Read the parts of earlier runs. A failure counts if it would be the same with these decoders."""
        for name in part_names(self._place, self._shard):
            self._next_part = max(self._next_part, part_number(name) + 1)
            for result in read_results(self._place, name):
                key = digest_of(result.name, result.version)
                failure = result.failure
                if failure is not None and failure.version not in {f"{result.version} {each}" for each in capabilities}:
                    self._done.pop(key, None)  # it is tried again
                else:
                    self._done[key] = failure

    def add_entry(self, name: str, digest: int, entry: Entry) -> bool:
        """Count an entry of the shard; return False if the source has listed its name before."""
        if digest in self._listed:
            return False
        self._listed.add(digest)
        self.entry_count += 1
        key = digest_of(name, entry.version)
        if key not in self._done:
            self.pending_count += 1
        elif (failure := self._done[key]) is not None:
            self._old_failures.append(replace(failure, uri=entry.uri))
        return True

    def has_listed(self, name: str) -> bool:
        """Return whether the source lists an entry of this name."""
        return digest_of(name) in self._listed

    def failures(self) -> list[Failure]:
        """Return the images of the shard that cannot be used."""
        return self._old_failures + self._new_failures

    # What `Stages` needs

    def thumbnail(self, content_hash: str) -> bytes | None:
        """Return None: a shard does not know what other shards have."""
        return None

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        """Return the empty set: each image of a shard is encoded."""
        return set()

    def pending(self, source: str) -> Iterator[Entry]:
        """Yield the entries that are not done."""
        self.lines.seek(0)
        for entry in entries_of_lines(self.lines):
            if digest_of(entry.uri, entry.version) not in self._done:
                here = replace(entry, uri=self._at.uri_of(entry.uri))
                self._running[here.uri] = here.version
                yield here

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        """Add items to the part; write it if it is long or old enough."""
        rows = stored_embeddings(embeddings, self.spaces, len(items))
        self._results += [self._result(item.uri, item=item) for item in items]
        self._rows.append(rows)
        self._thumbnails.update(thumbnails)
        self._write_if_due()
        return StoredItems(added=len(items))

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        """Store no items: no content is known."""
        assert not items
        return StoredItems()

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        """Add failures to the part; write it if it is long or old enough."""
        for failure in failures:
            self._new_failures.append(failure)
            self._results.append(self._result(failure.uri, failure=failure))
        self._write_if_due()
        return 0

    def _result(self, uri: str, *, item: Item | None = None, failure: Failure | None = None) -> Result:
        return Result(self._at.name_of(uri), self._running.pop(uri), item, failure)

    # Parts

    def _write_if_due(self) -> None:
        if len(self._results) >= _PART_ITEMS or time.monotonic() - self._begun > _PART_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the part, unless it is empty, and begin the next one."""
        self._begun = time.monotonic()
        if not self._results:
            return
        import numpy as np

        embeddings = {
            name: np.concatenate([np.empty((0, space.dimension), "<f2"), *(rows[name] for rows in self._rows)])
            for name, space in self.spaces.items()
        }
        # The rows are those of the items, in the order in which they were stored; failures have none.
        write_part(self._place, self._shard, self._next_part, self._results, embeddings, self._thumbnails)
        self._next_part += 1
        self._results, self._rows, self._thumbnails = [], [], {}
