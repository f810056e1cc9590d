"""A query that meets a collection which was upgraded after it was opened is answered by the collection as it is now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..collection import Collection, Store
from ..errors import PixMatcherError

_T = TypeVar("_T")


def on_current(store: Store, work: Callable[[Store], _T]) -> _T:
    """Return `work(store)`, or if that was upgraded meanwhile, the same for the collection opened again."""
    try:
        return work(store)
    except PixMatcherError:
        # The first thing to fail may be an encoder that the collection has no longer.
        if not (isinstance(store, Collection) and store.upgraded):
            raise
        with Collection.open(store.path) as current:
            return work(current)
