"""Compare: list the entries of all sources, and find those that are new, changed, moved or missing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..collection import Comparison, ComparisonResult, Failure, WritableStore
from ..errors import SourceError
from ..sources import Entry, Source, Unusable
from ..sources.folder import FolderSource
from ._folders import IF_MISSING

_log = logging.getLogger("pixmatcher.indexing")

_MOST_UNUSABLE = 100_000
"""Unusable entries of a source that are listed in the report; further ones are only counted."""


def missing_source(spec: str, error: SourceError) -> Failure:
    """Return the failure of a source of the collection that cannot be opened."""
    return Failure(spec, "missing source", f"{str(error).rstrip('.')}; {IF_MISSING}")


def no_label_names(spec: str, error: SourceError) -> Unusable:
    """Return what to report of a source whose names of labels cannot be read."""
    return Unusable(spec, "no names of labels", str(error))


def compare_sources(
    sources: Mapping[str, Source],
    collection: WritableStore,
    comparison: Comparison,
    *,
    decoder_capabilities: str,
    retry_failed: bool,
) -> tuple[ComparisonResult, list[str]]:
    """List the entries of sources, by spec, and compare them with the collection; store labels and failures.

    Return also the paths of folders and sources that could not be listed.

    Raises `SourceError` if the only source cannot be read.
    """
    started = time.monotonic()
    listings = {spec: Listing() for spec in sources}
    for spec, source in sources.items():
        listing = listings[spec]
        comparison.add_entries(spec, list_entries(source, listing, alone=len(sources) == 1))
        if listing.count == 0 and not _may_be_empty(source, collection) and comparison.item_count(spec):
            if isinstance(source, FolderSource) and not listing.unreadable(spec):
                source.note_absent()  # its images may also have moved to another source
            else:
                listing.note_empty(spec)
        _log.info("%s lists %d entries, %d cannot be used", spec, listing.count, len(listing.unusable))
    unknown = [(spec, u.uri) for spec, listing in listings.items() for u in listing.unusable if u.contents_unknown]
    result = comparison.compare(
        unknown_paths=[uri for _, uri in unknown],
        unknown_sources=[spec for spec, uri in unknown if uri == spec],
        missing=_missing_of_other_sources(sources, comparison),
        decoder_capabilities=decoder_capabilities,
        retry_failed=retry_failed,
    )
    for spec, source in sources.items():
        try:
            if names := source.label_names():
                collection.set_label_names(names)
        except SourceError as error:
            listings[spec].unusable.append(no_label_names(spec, error))
    for spec, listing in listings.items():
        if listing.unusable:
            comparison.record_failures(spec, (Failure(u.uri, u.reason, u.detail) for u in listing.unusable))
    _log.info(
        "Comparison: %d entries to index, %d unchanged, %d updated, %.2f s",
        result.pending,
        result.unchanged,
        result.updated,
        time.monotonic() - started,
    )
    return result, [uri for _, uri in unknown]


@dataclass
class Listing:
    """What a source lists: the number of its entries, and what is unusable."""

    count: int = 0
    unusable: list[Unusable] = field(default_factory=list)

    def unreadable(self, spec: str) -> bool:
        """Return whether nothing is known of what the source of this spec holds, or of a part that is not named."""
        return any(found.contents_unknown and found.uri == spec for found in self.unusable)

    def note_empty(self, spec: str) -> None:
        """Note that a source without entries had images before, unless it is known why it has none."""
        if not self.unreadable(spec):
            self.unusable.append(Unusable(spec, "no images any more", IF_MISSING, contents_unknown=True))


def list_entries(source: Source, listing: Listing, *, alone: bool) -> Iterator[Entry]:
    """Yield the entries of a source and note them in `listing`.

    Raises `SourceError` if the source cannot be read and is the only one.
    """
    uncounted = 0
    try:
        for found in source.scan():
            if not isinstance(found, Unusable):
                listing.count += 1
                yield found
            # A file that is not a list may have millions of bad rows.
            elif len(listing.unusable) < _MOST_UNUSABLE or found.contents_unknown:
                listing.unusable.append(found)
            else:
                uncounted += 1
    except SourceError as error:
        if alone:
            raise
        listing.unusable.append(Unusable(source.spec, "source cannot be read", str(error), contents_unknown=True))
    if uncounted:
        listing.unusable.append(Unusable(source.spec, "more of these", f"{uncounted:,} entries that are not named"))


def _may_be_empty(source: Source, collection: WritableStore) -> bool:
    """Return whether a source without images is believed: an empty folder may be the mount point of a disk.

    A collection inside the folder shows that its disk is mounted, and so does something that is excluded.
    """
    if isinstance(source, FolderSource) and source.leaves_out:
        return True
    return source.folder is not None and collection.path.is_relative_to(source.folder)


def _missing_of_other_sources(sources: Mapping[str, Source], comparison: Comparison) -> list[int]:
    """Return the items of sources outside this run, in the folders of this run, whose files do not exist any more."""
    folders = tuple(os.path.join(source.folder, "") for source in sources.values() if source.folder)
    others = [
        spec
        for spec in comparison.other_sources()
        if (spec.startswith(folders) or any(folder.startswith(os.path.join(spec, "")) for folder in folders))
        and _has_files(spec)
    ]
    if not others:
        return []
    unlisted = comparison.unlisted_items(others)
    return [item_id for item_id, uri in unlisted if uri.startswith(folders) and not os.path.lexists(uri)]


def _has_files(folder: str) -> bool:
    """Return whether a folder is not empty; if it is empty, its disk may not be mounted."""
    try:
        with os.scandir(folder) as listing:
            return any(listing)
    except OSError:
        return False
