"""The pipeline of `upgrade`: all images of a collection are encoded by other encoders, with the stages of `index`."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from .._cores import usable_cores
from .._progress import ProgressCallback
from ..collection import Collection, Failure, Reencoding
from ..encoders import Encoder, Runtime, load_encoders, load_recorded, with_encoders
from ..errors import (
    CollectionLockedError,
    CollectionUpgradedError,
    EncoderError,
    OutdatedCollectionError,
    SourceError,
)
from ..images import DEFAULT_MAX_PIXELS
from ..records import EncoderRecord, Space
from ..sources import HoldsEmbeddings, Source, open_source
from ._compare import Listing, list_entries, missing_source
from ._encode import EncodeOptions, begin_to_load
from ._folders import absent_folders, places_of, restore_notes
from ._ray import RayWorkers, check_call
from ._report import IndexReport
from ._stages import Counter, Stages
from ._workers import ThreadWorkers, Workers

_log = logging.getLogger("pixmatcher.indexing")


@dataclass
class UpgradeReport:
    """The result of `upgrade`."""

    collection: Path
    encoders: tuple[EncoderRecord, ...] = ()
    """The encoders that the collection has after the upgrade, also if that is not finished yet."""
    needed: bool = True
    """Whether there was anything to do."""
    finished: bool = False
    """Whether the collection answers with the new embeddings."""
    total: int = 0
    """The number of items in the collection."""
    encoded: int = 0
    """How many items got a new embedding in this run."""
    continued: int = 0
    """How many items had one from an earlier run."""
    removed: int = 0
    """How many items were removed, because their images are missing."""
    missing: list[Failure] = field(default_factory=list)
    """The images that could not be read or encoded, each with the reason."""
    missing_sources: list[str] = field(default_factory=list)
    """Sources with missing images, and folders in sources, that are empty or cannot be read.

    For example, they are on a disk that is not connected.
    """
    notes: list[str] = field(default_factory=list)
    """What was found out about the nodes of a cluster: sentences."""
    seconds: float = 0.0


def upgrade(
    collection: str | os.PathLike[str] | None = None,
    *,
    encoders: Sequence[str | Encoder] | None = None,
    sources: Sequence[Source] = (),
    without_missing: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    allow_private: bool = False,
    workers: int | None = None,
    on: str | None = None,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> UpgradeReport:
    """Replace all embeddings of a collection by those of other encoders, or of another version of its encoders.

    Searches can use the old embeddings until all images are encoded. Then the new ones replace them in one step.
    Ids, labels, captions, dates, failures, thumbnails and maps stay. Everything that is encoded stays when the run is
    interrupted; the next call with the same encoders continues from there. An image whose file has changed is encoded
    as it is now, and its item gets the new content at the end; if the collection has an unchanged copy of it, the next
    `index` run does that. New files are not added. Embeddings of an encoder that stays are copied.

    Arguments:
        collection: The folder of the collection, by default the nearest one at or above the current folder.
        encoders: Names or encoder objects, by default those of an upgrade that is not finished, else those that the
            collection has, in the version that is available here.
        sources: The source objects that were given to `index`; sources that have a spec are opened by it.
        without_missing: Whether to finish also if images cannot be read, and remove them from the collection. Otherwise
            the upgrade stays unfinished, and continues when it is called again. It also stays unfinished if no image
            can be read, or if a source with missing images is empty or cannot be read: `Collection.forget` removes it.
        max_pixels: Larger images are not decoded and count as missing.
        allow_private: Whether URLs of private and loopback addresses may be fetched.
        workers: The number of threads that decode and encode, or of processes with `on`; as for `index`.
        on: Where images are decoded and encoded, by default in this process; "ray" or "ray://HOST:PORT" as for `index`.
        runtime: How the encoders run.
        progress: Called with the number of images that are done, then with the rows of an index that is trained.

    Raises `CollectionError`, `CollectionLockedError`, `StorageError` or `EncoderError` if the upgrade cannot start or
    continue, `ClusterError` if the Ray cluster is the reason; `SourceError` if the collection has saved embeddings,
    which cannot be encoded.
    """
    started = time.monotonic()
    runtime = with_encoders(runtime, [encoder for encoder in encoders or () if not isinstance(encoder, str)])
    if on is not None:
        check_call(on, runtime.encoders if runtime is not None else ())
    threads = max(1, workers or usable_cores()) if on is None else 1
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="pixmatcher") as executor,
        Collection.open(collection or Collection.find()) as target,
    ):
        target.begin_writing()
        report = UpgradeReport(target.path, target.encoders, total=len(target))
        loaded = _encoders_to_use(target, encoders, runtime)
        opened, lost = _open_sources(target, sources, loaded) if loaded else ([], [])
        restore_notes(opened, target)
        reencoding = target.begin_upgrade(loaded) if loaded else None
        if reencoding is None:
            report.needed, report.finished = False, True
            target.update_indexes(progress=progress)  # a run may have been stopped before its end
            report.seconds = time.monotonic() - started
            return report
        report.encoders = reencoding.encoders
        report.continued = reencoding.done_count()
        options = EncodeOptions(max_pixels, reencoding.has_thumbnails, allow_private)
        run = _Run(
            report=report,
            reencoding=reencoding,
            sources=opened,
            options=options,
            executor=executor,
            threads=threads,
            on=on,
            processes=workers,
            runtime=runtime,
            progress=progress,
        )
        new = [encoder for encoder in loaded if any(space.name in reencoding.new_spaces for space in encoder.spaces)]
        if on is None:
            begin_to_load(executor, new, report.total - report.continued)
        unreadable = run.list_sources(lost)
        if new:
            run.encode(reencoding.begin_round, new, reencoding.new_spaces)
        else:
            reencoding.copy_all()
        run.encode(reencoding.begin_last_round, loaded, reencoding.spaces)
        done = reencoding.done_count()
        report.encoded = done - report.continued
        report.missing = reencoding.missing()
        report.missing_sources = [spec for spec in reencoding.sources_of_missing() if spec in unreadable]
        absent = places_of((failure.uri for failure in report.missing), absent_folders(run.sources))
        report.missing_sources += sorted({place for place in absent if place is not None})
        if not report.missing or (without_missing and done and not report.missing_sources):
            report.removed = reencoding.finish(remove_missing=without_missing)
            report.finished, report.total = True, len(target)
    if report.finished:
        _build_indexes(report.collection, progress)
    report.seconds = time.monotonic() - started
    _log.info(
        "Upgrade of %s in %.2f s: %d encoded, %d before, %d missing, finished: %s",
        report.collection,
        report.seconds,
        report.encoded,
        report.continued,
        len(report.missing),
        report.finished,
    )
    return report


def _encoders_to_use(
    collection: Collection, encoders: Sequence[str | Encoder] | None, runtime: Runtime | None
) -> list[Encoder]:
    """Return the encoders of the upgrade, loaded; [] if none are named and the collection needs no others."""
    if encoders:
        return load_encoders(encoders, runtime)
    unfinished = collection.unfinished_encoders()
    records = unfinished or collection.encoders
    if not unfinished:
        try:
            load_recorded(records, runtime)
        except OutdatedCollectionError:
            pass
        else:
            return []
    given = {encoder.name: encoder for encoder in (runtime.encoders if runtime is not None else ())}
    try:
        return load_encoders([given.get(record.name, record.name) for record in records], runtime)
    except EncoderError as error:
        if not unfinished:
            raise
        names = ", ".join(record.name for record in unfinished)
        raise EncoderError(f"The collection has an unfinished upgrade to the encoders {names}. {error}") from error


def _open_sources(
    collection: Collection, given: Sequence[Source], encoders: Sequence[Encoder]
) -> tuple[list[Source], list[Failure]]:
    """Open the sources of images that exist, unless they are `given`; return them, and a failure for each other one.

    Raises `SourceError` if one holds saved embeddings, and the collection does not have all of these encoders.
    """
    opened, lost = list[Source](), list[Failure]()
    records = [EncoderRecord(encoder.name, encoder.fingerprint, tuple(encoder.spaces)) for encoder in encoders]
    known = all(record in collection.encoders for record in records)
    objects = {source.spec: source for source in given}
    for spec in collection.sources():
        try:
            source = objects[spec] if spec in objects else open_source(spec)
        except SourceError as error:
            lost.append(missing_source(spec, error))
            continue
        if isinstance(source, HoldsEmbeddings):
            if known:
                continue
            raise SourceError(
                f"{spec} holds saved embeddings, which cannot be encoded: remove it with `pixmatcher forget`, or index "
                "the images into another collection."
            )
        opened.append(source)
    return opened, lost


@dataclass(frozen=True)
class _Place:
    """Where a round stores: the spaces whose embeddings it makes, and the thumbnails."""

    spaces: Mapping[str, Space]
    reencoding: Reencoding

    def thumbnail(self, content_hash: str) -> bytes | None:
        return self.reencoding.thumbnail(content_hash)


@dataclass(frozen=True)
class _Run:
    """The encoding of the images of some sources in one call of `upgrade`."""

    report: UpgradeReport
    reencoding: Reencoding
    sources: Sequence[Source]
    options: EncodeOptions
    executor: ThreadPoolExecutor
    threads: int
    on: str | None
    processes: int | None
    """How many processes of a cluster encode; None for as many as it has room for."""
    runtime: Runtime | None
    progress: ProgressCallback | None

    def list_sources(self, lost: Sequence[Failure]) -> set[str]:
        """Give the entries of the sources to `reencoding`, and what cannot be read: `lost` sources and more.

        Return the specs of the sources that are empty or cannot be read at all.
        """
        failures, unreadable = [*lost], {failure.uri for failure in lost}
        for source in self.sources:
            listing, spec = Listing(), source.spec
            self.reencoding.add_entries(spec, list_entries(source, listing, alone=False))
            if not listing.count:
                listing.note_empty(spec)
            if listing.unreadable(spec):
                unreadable.add(spec)
            failures += [Failure(found.uri, found.reason, found.detail) for found in listing.unusable]
        self.reencoding.record_failures("", failures)
        return unreadable

    def encode(self, begin_round: Callable[[], int], encoders: Sequence[Encoder], spaces: Mapping[str, Space]) -> None:
        """Encode the images of a round, and of further ones until `begin_round` returns 0."""
        if not (pending := begin_round()):
            return
        place = _Place(spaces, self.reencoding)
        report = IndexReport(self.reencoding.path)
        counter = Counter(pending, self.progress, "Upgrading")
        with ExitStack() as cluster:
            local = ThreadWorkers(self.executor, self.threads, place, self.reencoding, encoders, self.options)
            workers: Workers = local
            if self.on is not None:
                ray = RayWorkers(
                    self.on,
                    self.processes,
                    local,
                    place,
                    self.reencoding,
                    encoders,
                    self.options,
                    self.runtime,
                    asks=False,
                )
                workers = cluster.enter_context(ray)
            stages = Stages(place, self.reencoding, workers)
            while pending:
                for source in self.sources:
                    stages.run(source, report, counter)
                counter.grow(pending := begin_round())
            self.report.notes += getattr(workers, "notes", ())


def _build_indexes(path: Path, progress: ProgressCallback | None) -> None:
    """Delete the files of the former embeddings and build the indexes, unless another process writes: that one will."""
    with (
        contextlib.suppress(CollectionLockedError, CollectionUpgradedError),
        Collection.open(path) as collection,
    ):
        collection.begin_writing()
        collection.update_indexes(progress=progress)
