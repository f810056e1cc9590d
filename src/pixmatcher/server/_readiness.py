"""Whether the collections of the service can be searched."""

from __future__ import annotations

import threading
import time

import numpy as np

from ..collection import Store
from ..errors import PixMatcherError
from ._collections import ServedCollections

_KEPT_SECONDS = 1.0


class Readiness:
    """Tries one search in each collection, and keeps the outcome for a second, however many clients ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._failing: list[str] = []

    def failing(self, collections: ServedCollections) -> list[str]:
        """Return the names of the collections that cannot be searched now."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._failing = [name for name in collections.names if not _answers(collections, name)]
                self._until = time.monotonic() + _KEPT_SECONDS
            return [*self._failing]


def _answers(collections: ServedCollections, name: str) -> bool:
    """Return whether a collection answers a search."""
    try:
        collections.read(name, _search_anything)
    except PixMatcherError:
        return False
    return True


def _search_anything(store: Store) -> None:
    space = next(iter(store.spaces.values()))
    vector = np.zeros(space.dimension, np.float32)
    vector[0] = 1
    store.search(vector, space=space.name, k=1)
