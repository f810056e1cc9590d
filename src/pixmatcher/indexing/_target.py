"""The collection that a run writes: where it is, and whether its encoders fit the sources."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from .._progress import ProgressCallback
from .._text import command_to_upgrade
from ..collection import (
    CATALOG_NAME,
    FOLDER_NAME,
    Collection,
    CreatedByIndexing,
    Store,
    WritableStore,
    open_named_store,
)
from ..encoders import DEFAULT_ENCODER, Encoder, Runtime, full_name, load_encoders, load_recorded
from ..errors import CollectionError, EncoderError
from ..records import DescribesEncoder, EncoderRecord
from ..sources import HoldsEmbeddings, Source
from ._report import IndexReport

logger = logging.getLogger("pixmatcher.indexing")


def collection_path(sources: Sequence[Source], collection: str | os.PathLike[str] | None) -> Path:
    """Return the path of the collection, which may not exist yet. Raises `CollectionError` if none can be chosen."""
    if collection is None:
        if len(sources) != 1:
            raise CollectionError("Several sources need the name of a collection: name one with -c FOLDER.")
        if sources[0].folder is None:
            raise CollectionError(
                f"{sources[0].spec} is not a folder, in which a collection could be created: name one with -c FOLDER."
            )
        return Path(sources[0].folder) / FOLDER_NAME
    path = Path(collection)
    if not path.is_dir() or path.name == FOLDER_NAME or Collection.locate(path) is not None:
        return path
    # A folder of the user gets the collection in a folder below it, unless all it holds is an incomplete collection.
    names = set(os.listdir(path)) if os.access(path, os.R_OK) else set()
    incomplete = Collection.FILES.issuperset(names) and not names.isdisjoint({"lock", CATALOG_NAME})
    return path if incomplete else path / FOLDER_NAME


@runtime_checkable
class IndexesSources(Store, Protocol):
    """What a store may have too: it indexes and watches sources itself, such as the client of a service."""

    def index_sources(
        self,
        sources: Sequence[str] | None,
        *,
        retry_failed: bool = False,
        exclude: Sequence[str] | None = None,
        hidden: bool | None = None,
        progress: ProgressCallback | None = None,
    ) -> IndexReport:
        """Do what `index` does with these arguments, and return its report."""

    def watch_sources(
        self,
        *,
        every: float,
        on_report: Callable[[IndexReport], object] = lambda report: None,
        progress: ProgressCallback | None = None,
    ) -> None:
        """Do what `watch` does with these arguments, until an interrupt."""


def open_writable_store(reference: str | os.PathLike[str]) -> WritableStore | IndexesSources | None:
    """Open the store NAME:REST of an installed package; None if the reference is a folder.

    Raises `CollectionError` if the store can only be searched.
    """
    store = open_named_store(reference)
    if store is None or isinstance(store, (WritableStore, IndexesSources)):
        return store
    store.close()
    raise CollectionError(f"{reference} can only be searched: name another collection with -c.")


@contextmanager
def open_target(
    collection: Path | WritableStore,
    encoders: Sequence[str | Encoder] | None,
    sources: Sequence[Source],
    runtime: Runtime | None,
) -> Iterator[WritableStore]:
    """Yield the collection at a path, opened or created, or a store that stays open.

    Raises `CollectionError` if it does not fit the encoders or the saved embeddings.
    """
    if isinstance(collection, Path):
        with _open_or_create(collection, encoders, sources, runtime) as opened:
            yield opened
    else:
        saved = [source for source in sources if isinstance(source, HoldsEmbeddings)]
        if isinstance(collection, CreatedByIndexing) and not collection.encoders:
            collection.create(_chosen_encoders(collection.path, encoders, sources, runtime))
        _check_encoders(collection.path, collection.encoders, encoders, saved)
        yield collection


def _open_or_create(
    path: Path,
    encoders: Sequence[str | Encoder] | None,
    sources: Sequence[Source],
    runtime: Runtime | None,
) -> Collection:
    """Open the collection, or create it for these encoders, or for the encoders of saved embeddings."""
    saved = [source for source in sources if isinstance(source, HoldsEmbeddings)]
    if Collection.locate(path) is None:
        try:
            return Collection.create(path, _chosen_encoders(path, encoders, sources, runtime))
        except CollectionError:
            if Collection.locate(path) is None:
                raise
            # Another process has created the collection since the first look, for example while the encoders loaded.
            logger.debug("Another process has created %s", path)
    existing = Collection.open(path)
    try:
        _check_encoders(existing.path, existing.encoders, encoders, saved, can_upgrade=True)
    except CollectionError:
        existing.close()
        raise
    return existing


def _chosen_encoders(
    path: Path, encoders: Sequence[str | Encoder] | None, sources: Sequence[Source], runtime: Runtime | None
) -> Sequence[DescribesEncoder]:
    """Return what a new collection is created for: these encoders, or the encoders of saved embeddings."""
    saved = [source for source in sources if isinstance(source, HoldsEmbeddings)]
    if not saved:
        return load_encoders(encoders or (DEFAULT_ENCODER,), runtime)
    _check_encoders(path, saved[0].describes, encoders, saved)
    if others := [source.spec for source in sources if not isinstance(source, HoldsEmbeddings)]:
        _check_encoders_available(saved[0], others[0], runtime)
    return saved[0].describes


def _check_encoders(
    path: Path,
    records: Sequence[EncoderRecord],
    encoders: Sequence[str | Encoder] | None,
    saved: Sequence[HoldsEmbeddings],
    *,
    can_upgrade: bool = False,
) -> None:
    """Raise `CollectionError` if a collection with the encoders `records` cannot take the requested sources.

    `can_upgrade` says whether the command `upgrade` can give it others: it is a folder that exists.
    """
    names = [record.name for record in records]
    wanted = [*dict.fromkeys(map(full_name, encoders))] if encoders is not None else names
    if wanted != names:
        remedy = "name another collection with -c"
        if can_upgrade:
            options = " ".join(f"--encoder {shlex.quote(name)}" for name in wanted)
            remedy += f", or change its encoders with `{command_to_upgrade(path)} {options}`"
        raise CollectionError(f"{path} was made with the encoders {', '.join(names)}", f"{remedy}.")
    for source in saved:
        check_offered(path, records, source.spec, source.describes)


def check_offered(path: Path, records: Sequence[EncoderRecord], what: str, offers: Sequence[EncoderRecord]) -> None:
    """Raise `CollectionError` if embeddings of the encoders `offers` do not fit a collection with these `records`.

    `what` names the embeddings in the message.
    """
    offered = {record.name: record for record in offers}
    for record in records:
        offer = offered.get(record.name)
        if offer is None or len({offer.fingerprint, record.fingerprint} - {""}) > 1:
            raise CollectionError(
                f"{what} has no embeddings of the encoder {record.name} ({record.fingerprint or 'any'}), of "
                f"which {path} is made: name another collection with -c."
            )
        if missing := [space.name for space in record.spaces if space not in offer.spaces]:
            raise CollectionError(
                f"{what} has no embeddings of the space {missing[0]}, which {path} has: name another "
                "collection with -c."
            )


def _check_encoders_available(saved: HoldsEmbeddings, other: str, runtime: Runtime | None) -> None:
    """Raise `CollectionError` if the encoders of saved embeddings cannot encode the images of another source."""
    try:
        load_recorded(saved.describes, runtime)
    except EncoderError as error:
        names = ", ".join(record.name for record in saved.describes)
        raise CollectionError(
            f"{saved.spec} is of the encoder {names}, in a version that is not available to encode {other}: name "
            "another collection for one of them with -c."
        ) from error
