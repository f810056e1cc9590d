"""The pipeline of `index`: it compares the sources, then runs the stages for what is new or changed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TypeAlias

from .._cores import usable_cores
from .._progress import ProgressCallback
from ..collection import Collection, Comparison, Failure, WritableStore, delete_collection
from ..encoders import Encoder, Runtime, load_recorded, with_encoders
from ..errors import ClusterError, SourceError
from ..images import DEFAULT_MAX_PIXELS
from ..sources import HoldsEmbeddings, Source, check_source, open_source
from ._compare import compare_sources, missing_source
from ._encode import DecoderCapabilities, EncodeOptions
from ._folders import (
    bring_back,
    choose_options,
    count_passed_over,
    items_of_absent_folders,
    restore_notes,
    save_notes,
)
from ._ray import RayWorkers, check_call
from ._report import IndexReport
from ._stages import Counter, Stages
from ._target import IndexesSources, collection_path, open_target, open_writable_store
from ._workers import ThreadWorkers, Workers

_log = logging.getLogger("pixmatcher.indexing")

AnySource: TypeAlias = "str | os.PathLike[str] | Source"
"""A spec (see `pixmatcher.sources.open_source`), a folder, or a source object."""


def index(
    sources: AnySource | Sequence[AnySource] | None = None,
    collection: str | os.PathLike[str] | WritableStore | IndexesSources | None = None,
    *,
    encoders: Sequence[str | Encoder] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    retry_failed: bool = False,
    thumbnails: bool = True,
    allow_private: bool = False,
    exclude: Sequence[str] | None = None,
    hidden: bool | None = None,
    workers: int | None = None,
    on: str | None = None,
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> IndexReport:
    """Index sources into a collection, or update it: store added, changed and moved images, remove deleted ones.

    Arguments:
        sources: Folders, specs or source objects. By default, all sources of the collection; a source that does not
            exist is reported, and its images stay.
        collection: The folder of the collection, which is created if it does not exist; or a store: NAME:REST of an
            installed package, or an object, which the caller closes. A collection of a service runs a job of its own:
            paths are those of its machine. By default `.pixmatcher` inside the only folder
            that is indexed or, without `sources`, in the current folder or a folder above it.
        encoders: Names or encoder objects, by default `lite`. A collection that was created with an object needs the
            object again in each call.
        max_pixels: Larger images are not decoded and count as failures.
        retry_failed: Whether to try all images again that failed before. Otherwise an image is tried again when it or
            the version of its decoder has changed; remote images are tried again in each run.
        thumbnails: Whether to store thumbnails of images that may not be available later (remote and tar sources).
        allow_private: Whether URLs of private and loopback addresses may be fetched.
        exclude: Patterns in the syntax of .gitignore, relative to each folder that is indexed: what matches is left
            out, and removed from the collection. They are kept for later runs, until others are given; [] keeps none.
        hidden: Whether files and folders whose names begin with a dot are indexed too. It is kept for later runs.
        workers: The number of threads that decode and encode, by default the number of usable cores. With `on`, the
            number of processes, by default as many as the cluster has cores or, for an encoder that uses GPUs, GPUs.
        on: Where images are decoded and encoded, by default in this process. "ray" is the Ray cluster that runs on
            this machine or that RAY_ADDRESS names, or else one that is started for this run; "ray://HOST:PORT" is the
            cluster whose Ray Client answers there.
        runtime: How the encoders run.
        progress: Called with the number of images that are done, then with the rows of an index that is trained.

    Everything that is stored stays stored when the run is interrupted; the next run continues from there. The indexes
    of a large collection are trained at the end.

    Raises `SourceError`, `CollectionError`, `CollectionLockedError` or `StorageError` if the run cannot start or
    continue, and `ClusterError` if the Ray cluster is the reason. An image that cannot be used does not raise; it is
    in the report.
    """
    started = time.monotonic()
    runtime = with_encoders(runtime, [encoder for encoder in encoders or () if not isinstance(encoder, str)])
    missing: list[Failure] = []
    if on is not None:
        check_call(on, runtime.encoders if runtime is not None else ())
    threads = max(1, workers or usable_cores()) if on is None else 1
    with ExitStack() as afterwards:
        if isinstance(collection, (str, os.PathLike)) and (store := open_writable_store(collection)) is not None:
            collection = afterwards.enter_context(closing(store))
        if isinstance(collection, IndexesSources):
            if encoders is not None or max_pixels != DEFAULT_MAX_PIXELS or allow_private or not thumbnails:
                raise SourceError(
                    f"The encoders, limits and thumbnails of {collection.path} are chosen where it is: leave these "
                    "options out."
                )
            if on is not None:
                raise SourceError(f"The images of {collection.path} are encoded where it is: leave out --on.")
            return collection.index_sources(
                _specs(sources), retry_failed=retry_failed, exclude=exclude, hidden=hidden, progress=progress
            )
        opened, collection = _open_sources(sources, collection, missing)
        if not opened and not missing:
            raise SourceError("No source is given: name a folder of images.")
        if on is not None and (saved := [source.spec for source in opened if isinstance(source, HoldsEmbeddings)]):
            raise SourceError(f"{saved[0]} holds saved embeddings, which need no cluster: leave out --on.")
        choose_options(opened, exclude, hidden)
        place = collection if isinstance(collection, WritableStore) else collection_path(opened, collection)
        created = isinstance(place, Path) and Collection.locate(place) is None
        with (
            ThreadPoolExecutor(threads, thread_name_prefix="pixmatcher") as executor,
            open_target(place, encoders, opened, runtime) as target,
            ExitStack() as cluster,
        ):
            target.begin_writing()
            if sources is not None:
                bring_back(opened, target)
            restore_notes(opened, target)
            # Saved embeddings alone need no encoder; it may not be available.
            encoding = not all(isinstance(source, HoldsEmbeddings) for source in opened)
            loaded = load_recorded(target.encoders, runtime) if encoding else []
            report = IndexReport(target.path)
            options = EncodeOptions(max_pixels, thumbnails, allow_private)
            by_spec = {source.spec: source for source in opened}
            comparison = target.compare_sources([*by_spec])
            local = ThreadWorkers(executor, threads, target, comparison, loaded, options)
            used: Workers = local
            if on is not None:
                asks = len(target) > 0
                used = cluster.enter_context(
                    RayWorkers(on, workers, local, target, comparison, loaded, options, runtime, asks=asks)
                )
            run = _Run(by_spec, target, comparison, used, str(DecoderCapabilities(max_pixels)))
            try:
                run.update(report, retry_failed=retry_failed, progress=progress)
            except (ClusterError, SourceError):
                if created and not len(target):
                    afterwards.callback(delete_collection, target.path)  # a wrong call leaves no files
                raise
            report.failures = missing + run.failures()
            report.passed_over = count_passed_over(opened)
            report.notes = [note for holder in (*opened, used) for note in getattr(holder, "notes", ())]
            report.total = len(target)
            cluster.close()
            target.update_indexes(progress=progress)
    report.seconds = time.monotonic() - started
    _log.info("%s", _log_line(report))
    return report


def _specs(sources: AnySource | Sequence[AnySource] | None) -> list[str] | None:
    """Return the sources as texts, which another machine can open. Raises `SourceError` if one is an object."""
    if sources is None:
        return None
    specs = []
    for source in [sources] if isinstance(sources, (str, os.PathLike)) or hasattr(sources, "spec") else sources:
        if not isinstance(source, (str, os.PathLike)):
            raise SourceError("A source that is an object stays on this machine: give its path or its spec.")
        specs.append(os.fspath(source))
    return specs


def _open_sources(
    sources: AnySource | Sequence[AnySource] | None,
    collection: str | os.PathLike[str] | WritableStore | None,
    missing: list[Failure],
) -> tuple[list[Source], str | os.PathLike[str] | WritableStore | None]:
    """Open the given sources or, if None, those of the collection; return them and the collection.

    For each source of the collection that does not exist, a failure is appended to `missing`.
    """
    if sources is not None:
        listed = sources if isinstance(sources, Sequence) and not isinstance(sources, str) else [sources]
        return [open_given_source(source) for source in listed], collection
    if isinstance(collection, WritableStore):
        return list(_open_existing(collection.sources(), missing)), collection
    with Collection.open(collection or Collection.find()) as existing:
        specs, path = existing.sources(), existing.path
    return list(_open_existing(specs, missing)), path


def open_given_source(source: AnySource) -> Source:
    """Return the source of an argument of `index`: a path, a spec or a source object."""
    if isinstance(source, (str, os.PathLike)):
        return open_source(os.fspath(source))
    check_source(source)
    return source


def _open_existing(specs: Sequence[str], missing: list[Failure]) -> Iterator[Source]:
    """Open the sources that exist, and append a failure to `missing` for each other one."""
    for spec in specs:
        try:
            yield open_source(spec)
        except SourceError as error:
            missing.append(missing_source(spec, error))


def _log_line(report: IndexReport) -> str:
    """Return a report as one line of the log."""
    return (
        f"Indexed into {report.collection} in {report.seconds:.2f} s: {report.added} added, {report.changed} changed, "
        f"{report.moved} moved, {report.removed} removed, {report.unchanged} unchanged, {len(report.failures)} failed"
    )


class _Run:
    """One run of `index` over some sources."""

    def __init__(
        self,
        sources: dict[str, Source],
        collection: WritableStore,
        comparison: Comparison,
        workers: Workers,
        decoder_capabilities: str,
    ) -> None:
        self._sources = sources
        self._collection = collection
        self._comparison = comparison
        self._workers = workers
        self._decoder_capabilities = decoder_capabilities
        self._stages = Stages(collection, comparison, workers)

    def update(self, report: IndexReport, *, retry_failed: bool, progress: ProgressCallback | None) -> None:
        """Compare the sources with the collection, and index what has changed."""
        if not len(self._collection):  # all images are new
            self._workers.prepare(None)
        # All sources are listed before any image is encoded, to recognise images that moved from one to another.
        result, unknown_paths = compare_sources(
            self._sources,
            self._collection,
            self._comparison,
            decoder_capabilities=self._decoder_capabilities,
            retry_failed=retry_failed,
        )
        save_notes(self._sources.values(), self._collection)
        report.unchanged += result.unchanged
        report.changed += result.updated
        report.remembered += result.remembered
        counter = Counter(result.pending, progress, "Indexing")
        if result.pending:
            self._workers.prepare(result.pending)
        for source in self._sources.values():
            self._stages.run(source, report, counter)
        kept, failures, found = items_of_absent_folders(self._sources, self._comparison, unknown_paths)
        report.removed += self._collection.remove(
            item_id for item_id in self._comparison.missing() if item_id not in kept
        )
        for spec, absent in failures.items():
            self._comparison.record_failures(spec, absent)
        save_notes(self._sources.values(), self._collection, without_mounts=found)

    def failures(self) -> list[Failure]:
        """Return all images of the sources that cannot be indexed."""
        return self._comparison.failures()
