"""The list of collections that the app shows."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from .._plugins import STORES, plugin_names
from ..collection import Collection, ReadableStore, open_collection
from ..errors import CollectionError, NoCollectionError

COLLECTIONS_VARIABLE = "PIXMATCHER_COLLECTIONS"
"""Environment variable with the paths of the collections, separated as in PATH, for `streamlit run`."""


class CollectionList:
    """The folders of the collections that the app shows. Visitors can add to it. Thread-safe."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._lock = threading.Lock()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folders. A folder that was deleted stays in the list; opening it reports the error."""
        return self._paths

    def add(self, path: Path) -> None:
        """Add the folder of a collection, unless the list has it."""
        with self._lock:
            if path not in self._paths:
                self._paths += (path,)


def collection_paths() -> list[Path]:
    """Return the folders of the collections to show.

    They come from the script's arguments, the environment or the current folder. The list may be empty. Raises
    `CollectionError` if a named collection is missing.
    """
    named = sys.argv[1:] or split_names(os.environ.get(COLLECTIONS_VARIABLE, ""))
    return locate_all(named) if named else collection_here()


def split_names(text: str) -> list[str]:
    """Return the names of collections in a text that separates them as in PATH.

    The colons in the names of stores, such as milvus:PATH and milvus://HOST:19530/NAME, separate nothing.
    """
    if os.pathsep != ":":
        return [part for part in text.split(os.pathsep) if part]
    stores = "|".join(map(re.escape, plugin_names(STORES)))
    host = r"//(?:\[[^\]]*\]|[^:/]*)(?::[0-9]+)?(?=/)"
    return re.findall(rf"(?:(?:{stores}):(?:(?:https?:)?{host})?)?[^:]+", text)


def collection_here() -> list[Path]:
    """Return the folder of the collection at or above the current folder, or an empty list."""
    try:
        return [Collection.find()]
    except NoCollectionError:
        return []


def locate_all(named: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the folders of the named collections; of one in a store that is no folder, the path of the store.

    Raises `CollectionError` if a collection is missing or named twice.
    """
    found: list[Path] = []
    for name in named:
        if os.fspath(name).startswith(("http:", "https:")):
            raise CollectionError(
                "The web app shows collections in folders: run it on the machine of the service, and name the folder."
            )
        place = Collection.locate(name) or _path_of_store(os.fspath(name))
        if place is None:
            raise CollectionError(f"There is no collection in {name}: create one with `pixmatcher index FOLDER`.")
        if any(place == other or _is_same_folder(place, other) for other in found):
            raise CollectionError(f"The collection {name} is named twice: name each collection once.")
        found.append(place)
    return found


def _path_of_store(name: str) -> Path | None:
    """Return the path of the store that a name names; None if it names a folder."""
    if is_folder(Path(name)):
        return None
    with contextlib.closing(open_collection(name)) as store:
        if not isinstance(store, ReadableStore):
            raise CollectionError(f"The web app cannot list {name}: name a collection in a folder.")
        return store.path


def is_folder(path: Path) -> bool:
    """Return whether a path of the list is that of a folder, and not one that names a store."""
    return re.match(r"[a-z][a-z0-9_-]+:", str(path)) is None or os.path.lexists(path)


def _is_same_folder(one: Path, other: Path) -> bool:
    return is_folder(one) and is_folder(other) and os.path.samefile(one, other)


def display_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return a name for each collection: the name of its image folder, or the full path where two names are equal."""
    folders = {path: path.parent if path.name.startswith(".") else path for path in paths}
    names = {}
    for path, folder in folders.items():
        same_name = [other for other in folders.values() if other.name == folder.name]
        names[path] = folder.name if len(same_name) == 1 else str(folder)
    return names
