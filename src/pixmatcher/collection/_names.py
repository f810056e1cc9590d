"""What the names of the files of a collection, and of its sources, say."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from .._files import remove
from .._urls import is_file_url, path_of_file_url
from ..errors import QueryError
from ..records import COLLECTION_NAMES, FOLDER_NAME, MAPS_NAME


def start_again(folder: Path) -> str:
    """Return the advice for a collection that cannot be repaired, as the end of a message."""
    if folder.name == FOLDER_NAME:
        what = f"the folder {folder}"
    else:
        # A folder of another name may also hold files of the user.
        try:
            names = sorted(COLLECTION_NAMES.intersection(os.listdir(folder)))
        except OSError:
            names = sorted(COLLECTION_NAMES)
        what = f"{', '.join(names)} of the folder {folder}"
    return f"move {what} elsewhere and index again; your images are not touched by this."


def size_of_files(folder: Path) -> int:
    """Return the bytes that the files of the collection in a folder take."""
    found = [folder / name for name in COLLECTION_NAMES]
    for name in ("vectors", "index", MAPS_NAME):
        found += (Path(inner, file) for inner, _, files in os.walk(folder / name) for file in files)
    total = 0
    for file in found:
        # Another process may remove a file meanwhile.
        with contextlib.suppress(OSError):
            status = file.stat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def without_file_url(source: str) -> str:
    """Return the path in a source that is the URL of a file on this machine, or else the source as it is."""
    with contextlib.suppress(QueryError):
        return path_of_file_url(source) if is_file_url(source) else source
    return source


def possible_specs(source: str) -> set[str]:
    """Return the specs that the catalog may have for the source that a user names; their paths are absolute."""
    source = without_file_url(source)
    kind, colon, rest = source.partition(":")
    path, mark, options = rest.partition("?")
    return {source, os.path.abspath(source), f"{kind}{colon}{os.path.abspath(path)}{mark}{options}"}


def delete_collection(folder: Path) -> None:
    """Delete the files of a collection, and its folder if nothing else is in it. Raises `OSError` if the disk fails."""
    for name in COLLECTION_NAMES:
        remove(folder / name)
    with contextlib.suppress(OSError):  # it also holds files of the user
        folder.rmdir()
