"""Where the collections are that the app shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..collection import Collection
from ..errors import CollectionError

COLLECTIONS_VARIABLE = "PIXMATCHER_COLLECTIONS"
"""Names the collections where the app is started by Streamlit itself: paths, divided as PATH is."""


def collection_paths() -> list[Path]:
    """The folders of the collections to show: the script's arguments, the environment, or the current folder.

    Raises `CollectionError` if there is none.
    """
    named = sys.argv[1:] or [part for part in os.environ.get(COLLECTIONS_VARIABLE, "").split(os.pathsep) if part]
    if not named:
        return [Collection.find()]
    return locate_all([Path(name) for name in named])


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
