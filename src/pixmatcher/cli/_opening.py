"""How commands open a collection and run encoders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import QueryError

if TYPE_CHECKING:
    from ..collection import Collection, Store
    from ..encoders import Runtime
    from ._progress import ProgressBars


@contextlib.contextmanager
def open_store(reference: str | None) -> Iterator[Store]:
    """Open the collection that `-c` names, in a folder or in the store of an installed package, and close it again.

    Without a reference, that is the nearest collection in or above the current folder.
    """
    from ..collection import Collection, open_collection

    store = open_collection(reference)
    with store if isinstance(store, Collection) else contextlib.closing(store):
        yield store


@contextlib.contextmanager
def open_folder_collection(reference: str | None) -> Iterator[Collection]:
    """Open the collection in a folder that `-c` names. Raises `QueryError` if it names another store."""
    from ..collection import Collection

    with open_store(reference) as store:
        if not isinstance(store, Collection):
            raise QueryError(f"This command works only with a collection in a folder, which {reference} is not.")
        yield store


def runtime_of(backend: str | None, device: str | None, offline: bool, bars: ProgressBars | None = None) -> Runtime:
    """Return how to run encoders: as the options say, or as the environment says where an option is missing."""
    from ..encoders import Runtime

    given: dict[str, Any] = {"backend": backend, "device": device, "offline": offline or None}
    given["progress"] = bars and bars.callback
    return Runtime(**{name: value for name, value in given.items() if value is not None})
