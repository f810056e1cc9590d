"""How commands open a collection and run encoders."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._urls import is_url
from ..errors import QueryError

if TYPE_CHECKING:
    from ..collection import Collection, ForgetsSources, ReadableStore, Store, TunedStore, VerifiesItself
    from ..encoders import Runtime
    from ._progress import ProgressBars


def stop_jobs_on_sigterm(reference: str | None) -> None:
    """Let SIGTERM do the same as Ctrl-C if a service has the collection: its job would go on otherwise."""
    if reference is not None and is_url(reference):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


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

    with _open_here(reference) as store:
        if not isinstance(store, Collection):
            raise _not_supported(reference)
        yield store


@contextlib.contextmanager
def open_readable_store(reference: str | None) -> Iterator[ReadableStore]:
    """Open the collection that `-c` names, in a folder or of a service.

    Raises `QueryError` if it names a store that can only be searched.
    """
    from ..collection import ReadableStore

    with open_store(reference) as store:
        if not isinstance(store, ReadableStore):
            raise _not_supported(reference)
        yield store


@contextlib.contextmanager
def open_store_to_forget(reference: str | None) -> Iterator[ForgetsSources]:
    """Open the collection that `-c` names, in a folder or of a service. Raises as `open_readable_store`."""
    from ..collection import ForgetsSources

    with open_store(reference) as store:
        if not isinstance(store, ForgetsSources):
            raise _not_supported(reference)
        yield store


@contextlib.contextmanager
def open_store_to_verify(reference: str | None) -> Iterator[VerifiesItself]:
    """Open the collection that `-c` names, if it can be verified. Raises as `open_folder_collection`."""
    from ..collection import VerifiesItself

    with _open_here(reference) as store:
        if not isinstance(store, VerifiesItself):
            raise _not_supported(reference)
        yield store


@contextlib.contextmanager
def open_store_to_tune(reference: str | None) -> Iterator[Collection | TunedStore]:
    """Open the collection that `-c` names, if it can be tuned. Raises as `open_folder_collection`."""
    from ..collection import Collection, TunedStore

    with _open_here(reference) as store:
        if not isinstance(store, (Collection, TunedStore)):
            raise _not_supported(reference)
        yield store


@contextlib.contextmanager
def _open_here(reference: str | None) -> Iterator[Store]:
    """Open the collection that `-c` names. Raises `QueryError` if it is one of a service."""
    from ..searching import AnswersQueries

    with open_store(reference) as store:
        if isinstance(store, AnswersQueries):
            raise QueryError(
                f"This command needs the files of the collection: run it on the machine of the service, not for "
                f"{store.path}."
            )
        yield store


def _not_supported(reference: str | None) -> QueryError:
    return QueryError(f"This command works only with a collection in a folder, which {reference} is not.")


def runtime_of(backend: str | None, device: str | None, offline: bool, bars: ProgressBars | None = None) -> Runtime:
    """Return how to run encoders: as the options say, or as the environment says where an option is missing."""
    from ..encoders import Runtime

    given: dict[str, Any] = {"backend": backend, "device": device, "offline": offline or None}
    given["progress"] = bars and bars.callback
    return Runtime(**{name: value for name, value in given.items() if value is not None})
