"""What a collection remembers of folder sources, and folders whose disk is away."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..collection import Collection, Comparison, Failure, KeepsFolderNotes, WritableStore
from ..errors import SourceError
from ..sources import Source, open_source
from ..sources.folder import FolderSource

IF_MISSING = "is its disk mounted? its images stay; `pixmatcher forget` removes them"


def choose_options(sources: Iterable[Source], exclude: Sequence[str] | None, hidden: bool | None) -> None:
    """Give the options `exclude` and `hidden` to the folders among sources. Raises `SourceError` if there is none."""
    if exclude is None and hidden is None:
        return
    folders = [source for source in sources if isinstance(source, FolderSource)]
    if not folders:
        raise SourceError("Patterns to exclude and hidden files are options of folders: name a folder of images.")
    for folder in folders:
        folder.set_options(exclude, hidden)


def restore_notes(sources: Iterable[Source], store: WritableStore) -> None:
    """Give folder sources the notes of their last run, if the store keeps notes."""
    if isinstance(store, KeepsFolderNotes):
        for source in sources:
            if isinstance(source, FolderSource):
                source.restore(store.folder_notes(source.spec))


def save_notes(sources: Iterable[Source], store: WritableStore, *, without_mounts: Iterable[str] = ()) -> None:
    """Store the notes of folder sources for the next run, if the store keeps notes.

    `without_mounts` are paths of mount points that need not be remembered any more.
    """
    if not isinstance(store, KeepsFolderNotes):
        return
    for source in sources:
        if isinstance(source, FolderSource):
            notes = source.folder_notes()
            gone = {os.path.relpath(path, source.folder) for path in without_mounts}
            notes = replace(notes, mounts=tuple(path for path in notes.mounts if path not in gone))
            if notes != store.folder_notes(source.spec):
                store.set_folder_notes(source.spec, notes)


def bring_back(sources: Iterable[Source], store: WritableStore) -> None:
    """Let other sources list the folders of these sources again, if they were forgotten: they are indexed by name."""
    if not isinstance(store, KeepsFolderNotes):
        return
    folders = [source.spec for source in sources if isinstance(source, FolderSource)]
    for spec in store.sources():
        inside = [os.path.relpath(folder, spec) for folder in folders if folder.startswith(os.path.join(spec, ""))]
        if not inside:
            continue
        notes = store.folder_notes(spec)
        kept = tuple(p for p in notes.forgotten if not any(p == name or p.startswith(f"{name}/") for name in inside))
        if kept != notes.forgotten:
            store.set_folder_notes(spec, replace(notes, forgotten=kept))


def count_passed_over(sources: Iterable[Source]) -> dict[str, dict[str, int]]:
    """Return how many files the folders among sources passed over: kind -> extension -> number."""
    return add_counts(source.folder_notes().passed_over for source in sources if isinstance(source, FolderSource))


def add_counts(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Return the sum of numbers of files that several sources passed over: kind -> extension -> number."""
    total: dict[str, dict[str, int]] = {}
    for each in counts:
        for kind, by_extension in each.items():
            for extension, count in by_extension.items():
                of_kind = total.setdefault(kind, {})
                of_kind[extension] = of_kind.get(extension, 0) + count
    return total


def list_passed_over(collection: Collection) -> Iterator[tuple[str, str]]:
    """List the folder sources of a collection again; yield kind and path of each file that an index run passes over.

    Raises `SourceError` if a folder is missing.
    """
    for spec in collection.sources():
        if os.path.isabs(spec):
            source = open_source(spec)
            if isinstance(source, FolderSource):
                source.restore(collection.folder_notes(spec))
                yield from source.passed_over()


def absent_folders(sources: Iterable[Source]) -> list[str]:
    """Return places in folder sources where a disk may have been, which is away: see `FolderSource.absent_folders`."""
    return [path for source in sources if isinstance(source, FolderSource) for path in source.absent_folders]


def places_of(uris: Iterable[str], absent: Sequence[str]) -> Iterator[str | None]:
    """Yield for each uri the absent folder, or the dangling link, that it is at or below; None for any other uri."""
    places = {*absent}
    for uri in uris:
        path = uri
        while path not in places and len(path) > 1 and (above := os.path.dirname(path)) != path:
            path = above
        yield path if path in places else None


def items_of_absent_folders(
    sources: Mapping[str, Source], comparison: Comparison, unknown_paths: Sequence[str]
) -> tuple[set[int], dict[str, list[Failure]], list[str]]:
    """Find the missing items whose disk may be away: they were below a folder that is empty now, or a mount point.

    Called when moved images were found at their new place. `unknown_paths` could not be listed, which is reported
    already. Return the ids of the items, a failure for each folder by the spec of its source, and the absent folders
    that have no items.
    """
    absent = absent_folders(sources.values())
    if not absent:
        return set(), {}, []
    folders = [*sources, *(spec for spec in comparison.other_sources() if os.path.isabs(spec))]
    unlisted = [*comparison.unlisted_items(folders)]
    kept, places = set[int](), set[str]()
    for (item_id, uri), place in zip(unlisted, places_of((uri for _, uri in unlisted), absent), strict=True):
        if place is not None:
            kept.add(item_id)
            if place != uri:  # a dangling link to a file is reported as such
                places.add(place)
    reported = [place for place in sorted(places) if not place.startswith(tuple(f"{path}/" for path in unknown_paths))]
    failures = dict[str, list[Failure]]()
    for place in reported:
        spec = next(s for s, source in sources.items() if source.folder and f"{place}/".startswith(f"{source.folder}/"))
        failures.setdefault(spec, []).append(Failure(place, "no images any more", IF_MISSING))
    return kept, failures, [path for path in absent if path not in places]
