"""The creation of a collection: its folder, catalog and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from os.path import lexists
from pathlib import Path

from .._files import replacing, write_error
from ..errors import CollectionError
from ..records import CATALOG_NAME, LOCK_NAME, MANIFEST_NAME, DescribesEncoder
from ._catalog import Catalog
from ._lock import WriterLock
from ._manifest import Manifest
from ._names import start_again


def create_files(folder: Path, encoders: Sequence[DescribesEncoder]) -> None:
    """Create the files of a collection for the spaces of these encoders.

    Raises `CollectionError` if the folder is a collection already or cannot be written, `StorageError` if the disk is
    full.
    """
    manifest = Manifest.of(encoders)
    lock = WriterLock(folder / LOCK_NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if lexists(folder / MANIFEST_NAME):
            raise CollectionError(f"{folder} is a collection already", "open it, or choose another folder.")
        catalog = Catalog(folder / CATALOG_NAME, folder.parent, create=True)
        known_rows = catalog.row_count()
        catalog.close()
        if known_rows:
            raise CollectionError(f"The file {MANIFEST_NAME} of {folder} is missing", start_again(folder))
        # The manifest comes last: with it, the collection exists.
        with replacing(folder / MANIFEST_NAME) as file:
            file.write(manifest.text().encode())
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        lock.release()
