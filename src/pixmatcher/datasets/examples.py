"""The example photos of the demo, and the place of its collection."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from ..collection import FOLDER_NAME, Collection, delete_collection
from ..encoders import load_recorded
from ..errors import EncoderError, SourceError

TEXT_QUERY = "a cat looking at you"
IMAGE_QUERY = "coffee.jpg"


def demo_paths() -> tuple[Path, Path]:
    """Return the folder of the example photos, and the folder of the demo's collection.

    In a checkout both are below `examples`. An installed package contains the photos, and its collection is in the
    cache folder of the user, one for each folder in which the package is installed.

    Raises `SourceError` if the photos are missing.
    """
    checkout = Path(__file__).parents[3] / "examples" / "photos"
    if checkout.is_dir():
        return checkout, checkout.parent / FOLDER_NAME
    installed = Path(__file__).parents[1] / "example_photos"
    if installed.is_dir():
        place = hashlib.sha256(os.fsencode(installed)).hexdigest()[:8]
        return installed, platformdirs.user_cache_path("pixmatcher") / f"demo-{place}"
    raise SourceError("The example photos are missing: install pixmatcher again.")


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
