"""Where a collection is: in a folder that is named, in `.pixmatcher` inside it, or at or above the current folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .._files import read_error
from ..errors import CollectionError, NoCollectionError
from ..records import CATALOG_NAME, FOLDER_NAME, MANIFEST_NAME


def locate_collection(path: str | os.PathLike[str]) -> Path | None:
    """Return the folder of the collection in the folder `path` or in `.pixmatcher` inside it, or None.

    Raises `CollectionError` if one of these folders cannot be read, so that the answer is not known.
    """
    folder = Path(os.path.abspath(path))
    # Other programs use a collection.json too: where the name of the folder does not decide, the other files do.
    if _is_file(folder / MANIFEST_NAME) and (
        folder.name == FOLDER_NAME or any(os.path.exists(folder / name) for name in (CATALOG_NAME, "vectors"))
    ):
        return folder
    folder = folder / FOLDER_NAME
    return folder if _is_file(folder / MANIFEST_NAME) else None


def find_collection(start: str | os.PathLike[str] = ".") -> Path:
    """Return the folder of the nearest collection at or above `start`, as git finds a repository.

    Raises `NoCollectionError` if no folder there is a collection.
    """
    origin = Path(os.path.abspath(start))
    for folder in (origin, *origin.parents):
        if (found := locate_collection(folder)) is not None:
            return found
    raise NoCollectionError(
        f"There is no collection in {origin} or above it: run `pixmatcher index FOLDER` first, or name one with -c."
    )


def advice_without_collection(path: str | os.PathLike[str]) -> str:
    """Return what to do if the folder `path` is no collection, as the end of a message."""
    try:
        above = find_collection(path)
    except CollectionError:
        return "create one with `pixmatcher index FOLDER`."
    return (
        f"the collection {above} is above it. Name that one with -c, or leave -c out, and search a part of it with "
        "--folder."
    )


def _is_file(path: Path) -> bool:
    """As `os.path.isfile`, but raises `CollectionError` if that cannot be known."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise read_error(path.parent, error) from error
