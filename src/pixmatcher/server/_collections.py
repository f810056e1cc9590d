"""The collections of the service. Each is opened once, and used from many threads."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from .._urls import is_url
from ..collection import CATALOG_NAME, Collection, Store, open_collection
from ..errors import CollectionError, NoItemError
from ._advice import text_for_clients
from ._problems import ProblemError

_T = TypeVar("_T")

_log = logging.getLogger("pixmatcher.server")


@dataclass
class _Opened:
    store: Store
    identity: tuple[int, int] | None
    """Device and inode of the catalog of a folder: a collection that was deleted and created again is another one."""


class ServedCollections:
    """The collections by name. They are opened when they are first asked for, and again when they were replaced."""

    def __init__(self, references: Mapping[str, str]) -> None:
        self._references = dict(references)
        self._opened: dict[str, _Opened] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The names of the collections, in the order in which they were given."""
        return [*self._references]

    def reference(self, name: str) -> str:
        """Return the folder or NAME:REST of a collection. Raises `ProblemError` if no collection has this name."""
        try:
            return self._references[name]
        except KeyError:
            raise ProblemError(
                404, "no such collection", "No collection has this name: /v1/collections lists them."
            ) from None

    def get(self, name: str) -> Store:
        """Return the open collection of this name.

        Raises `ProblemError` if no collection has this name, or it cannot be opened now.
        """
        reference = self.reference(name)
        with self._lock:
            opened = self._opened.get(name)
            if opened is not None and not _is_replaced(opened):
                return opened.store
            if opened is not None:
                del self._opened[name]
                # Searches that still use it get an error and are answered again by the new one.
                with contextlib.suppress(Exception):
                    opened.store.close()
            try:
                store = open_collection(reference)
            except (CollectionError, OSError) as error:
                raise _not_available(name, error) from error
            self._opened[name] = _Opened(store, _identity(store))
            return store

    def use(self, name: str, work: Callable[[Store], _T]) -> _T:
        """Return `work(store)` for the collection of this name; once more if it was replaced meanwhile.

        Raises as `get` and `work` do.
        """
        store = self.get(name)
        try:
            return work(store)
        except Exception:
            current = self.get(name)
            if current is store:
                raise
            return work(current)

    def read(self, name: str, work: Callable[[Store], _T]) -> _T:
        """Return what `use` returns, for work that only fails where the collection cannot be read.

        Raises `ProblemError` if no collection has this name, or it cannot be read now, and `NoItemError` as `work`.
        """
        try:
            return self.use(name, work)
        except (ProblemError, NoItemError):
            raise
        except (CollectionError, OSError) as error:
            raise _not_available(name, error) from error

    def without_paths(self, message: str) -> str:
        """Return a message with the names of the collections instead of their folders, which clients need not know.

        The folder of the images stays, also if the collection is inside it: the uris of items have it too.
        """
        folders = {_folder_of(reference): name for name, reference in self._references.items()}
        folders |= {str(opened.store.path): name for name, opened in [*self._opened.items()]}
        for folder in sorted(folders, key=len, reverse=True):
            message = message.replace(folder, folders[folder])
        return message

    def note_for_clients(self, note: str) -> str:
        """Return a note of a result, which may quote an error, without paths and with advice for clients."""
        return text_for_clients(self.without_paths(note))

    def close(self) -> None:
        """Close all collections."""
        with self._lock:
            for opened in self._opened.values():
                opened.store.close()
            self._opened.clear()


def _folder_of(reference: str) -> str:
    with contextlib.suppress(CollectionError, OSError):
        if (folder := Collection.locate(reference)) is not None:
            return str(folder)
    return os.path.abspath(reference)


def _not_available(name: str, error: Exception) -> ProblemError:
    """Return the problem of a collection that cannot be read. The error names folders of this machine: it is logged."""
    _log.warning("the collection %s cannot be read: %s", name, error)
    return ProblemError(
        503,
        "collection not available",
        f"The collection {name} cannot be read now: try again later; the log of the service says why.",
        {"Retry-After": "5"},
    )


def _identity(store: Store) -> tuple[int, int] | None:
    if not isinstance(store, Collection) or is_url(str(store.path)):
        return None
    try:
        status = (store.path / CATALOG_NAME).stat()
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


def _is_replaced(opened: _Opened) -> bool:
    if opened.identity is None:
        return False
    assert isinstance(opened.store, Collection)
    return opened.identity != _identity(opened.store) or opened.store.upgraded
