"""Where the collections are that the app shows."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from ..collection import Collection
from ..errors import CollectionError, NoCollectionError

COLLECTIONS_VARIABLE = "PIXMATCHER_COLLECTIONS"
"""Names the collections where the app is started by Streamlit itself: paths, divided as PATH is."""


class Shelf:
    """The collections that the app shows, which become more while it runs. Used from several threads."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._lock = threading.Lock()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Their folders. One that disappears stays: that is told when it is chosen."""
        return self._paths

    def add(self, path: Path) -> None:
        """Show the collection in a folder from now on, unless it is shown already."""
        with self._lock:
            if path not in self._paths:
                self._paths += (path,)


def collection_paths() -> list[Path]:
    """The folders of the collections to show: the script's arguments, the environment, or the current folder.

    There may be none. Raises `CollectionError` if one that is named is missing.
    """
    named = sys.argv[1:] or [part for part in os.environ.get(COLLECTIONS_VARIABLE, "").split(os.pathsep) if part]
    return locate_all([Path(name) for name in named]) if named else collection_here()


def collection_here() -> list[Path]:
    """The folder of the collection at or above the current folder, if there is one."""
    try:
        return [Collection.find()]
    except NoCollectionError:
        return []


def locate_all(named: Sequence[Path]) -> list[Path]:
    """The folders of the collections that are named.

    Raises `CollectionError` if one is missing or named twice.
    """
    found: list[Path] = []
    for path in named:
        folder = Collection.locate(path)
        if folder is None:
            raise CollectionError(f"There is no collection in {path}: make one with `pixmatcher index FOLDER`.")
        if any(os.path.samefile(folder, other) for other in found):
            raise CollectionError(f"The collection {path} is named twice: name each once.")
        found.append(folder)
    return found


def display_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What to call each collection: the folder it is of, with those above where two have the same name."""
    homes = {path: path.parent if path.name.startswith(".") else path for path in paths}
    names = {}
    for path, home in homes.items():
        alike = [other for other in homes.values() if other.name == home.name]
        names[path] = home.name if len(alike) == 1 else str(home)
    return names
