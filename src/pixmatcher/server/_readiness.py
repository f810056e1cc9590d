"""Whether the collections of the service can be searched."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np

from ..collection import Store
from ..encoders import DEFAULT_ENCODER
from ..errors import PixMatcherError
from ..searching import search
from ._collections import ServedCollections

_log = logging.getLogger("pixmatcher.server")

_KEPT_SECONDS = 1.0
_WARM_UP_SECONDS = 10.0
"""How long readiness and the end of the service wait for the first queries."""


class Readiness:
    """Tries one search in each collection, and keeps the outcome for a second, however many clients ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0
        self._failing: list[str] = []
        self._warm_up: threading.Thread | None = None

    def start(self, collections: ServedCollections) -> None:
        """Begin to load what the first query of a text would load, in a thread. `failing` waits for it."""
        self._warm_up = threading.Thread(target=_load, args=(collections,), name="pixmatcher-warm-up", daemon=True)
        self._warm_up.start()

    def close(self) -> None:
        """Wait for the end of the loading."""
        if self._warm_up is not None:
            self._warm_up.join(_WARM_UP_SECONDS)

    def failing(self, collections: ServedCollections) -> list[str]:
        """Return the names of the collections that cannot be searched now."""
        self.close()
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


def _load(collections: ServedCollections) -> None:
    """Load the bundled encoder, which takes a quarter of a second, and the indexes of the collections that it made.

    Other encoders are loaded by their first query: they take more time and memory, and perhaps a download.
    """
    for name in collections.names:
        try:
            store = collections.get(name)
            if DEFAULT_ENCODER in [record.name for record in store.encoders]:
                search(store, "warm up", k=1)
        except Exception as error:  # the first query gets it too
            _log.debug("the collection %s was not loaded at the start: %s", name, error)
