"""The example photos of the demo, and the place of its collection."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from .._user_folders import is_writable_place, private_temporary_folder, user_cache_folder
from ..collection import FOLDER_NAME, Collection, delete_collection
from ..encoders import load_recorded
from ..errors import EncoderError, PixMatcherError, SourceError

TEXT_QUERY = "a cat looking at you"
IMAGE_QUERY = "coffee.jpg"


def demo_paths() -> tuple[Path, Path]:
    """Return the folder of the example photos, and the folder of the demo's collection.

    In a checkout both are below `examples`. An installed package contains the photos, and its collection is in the
    cache folder of the user, one for each folder in which the package is installed. If the user may not write there, or
    has no home folder, the collection is below the folder for temporary files.

    Raises `SourceError` if the photos are missing, `StorageError` if there is no folder for temporary files.
    """
    photos = Path(__file__).parents[3] / "examples" / "photos"
    path: Path | None = photos.parent / FOLDER_NAME
    if not photos.is_dir():
        photos, path = Path(__file__).parents[1] / "example_photos", None
        if not photos.is_dir():
            raise SourceError("The example photos are missing: install pixmatcher again.")
    name = f"demo-{hashlib.sha256(os.fsencode(photos)).hexdigest()[:8]}"
    if path is None:
        with contextlib.suppress(PixMatcherError):
            path = user_cache_folder() / name
    if path is None or not is_writable_place(path):
        path = private_temporary_folder() / name
    return photos, path


def clear_outdated(path: Path) -> None:
    """Delete the collection of the demo if another version of the encoder has made it."""
    if Collection.locate(path) is None:
        return
    with Collection.open(path) as collection:
        records = collection.encoders
    try:
        load_recorded(records)
    except EncoderError:
        delete_collection(path)
