"""What all exports share: the spaces to export, the items in blocks, and files that are replaced together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .._files import replacing_both
from ..collection import Item, ReadableStore
from ..errors import NO_ROOM, CollectionError, PixMatcherError, StorageError
from ..indexing.reading import in_batches
from ..sources.embedding_card import EMBEDDINGS, SavedSpace

_ROWS_AT_ONCE = 2048


def saved_spaces(collection: ReadableStore, space: str | None) -> list[SavedSpace]:
    """Return the file of each space, or of the space `space`; a space without text support comes first.

    Raises `CollectionError` if the collection has no such space.
    """
    pairs = [(record, one) for record in collection.encoders for one in record.spaces if space in (None, one.name)]
    if not pairs:
        raise CollectionError(
            f"The space {space!r} does not exist in this collection: choose one of {', '.join(collection.spaces)}."
        )
    pairs.sort(key=lambda pair: pair[1].text)  # the order in which image queries choose
    files = [EMBEDDINGS, *(f"embeddings_{one.name}.npy" for _, one in pairs[1:])]
    return [SavedSpace(file, r.name, r.fingerprint, one) for file, (r, one) in zip(files, pairs, strict=True)]


def item_blocks(collection: ReadableStore) -> Iterator[list[Item]]:
    """Yield the items of a collection in blocks, in the order of their ids."""
    return in_batches(collection.items(), _ROWS_AT_ONCE)


@contextmanager
def replaced_files(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """Open new files in one folder, which is created if it does not exist; they replace the old ones after the block.

    If the block raises, the old files stay. Raises `StorageError` if the disk is full, `PixMatcherError` if the files
    cannot be written.
    """
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with replacing_both(*paths) as files:
            yield files
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM:
            raise StorageError(
                f"{paths[0].parent} cannot be written ({reason}): make room and export again."
            ) from error
        raise PixMatcherError(
            f"{paths[0].parent} cannot be written ({reason}): name another folder with --to."
        ) from error
