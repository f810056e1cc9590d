"""Thumbnails of the service, kept in memory as long as there is room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from hashlib import sha256

_ROOM = 32 << 20
_OVERHEAD = 512
"""What an entry takes besides its JPEG, about, in bytes."""


class ThumbnailCache:
    """JPEG files with their entity tags; those that were not asked for longest are dropped first."""

    def __init__(self, room: int = _ROOM) -> None:
        """Keep up to `room` bytes."""
        self._room = room
        self._used = 0
        self._kept: OrderedDict[Hashable, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> tuple[bytes, str] | None:
        """Return the JPEG and the entity tag of a key, or None."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, jpeg: bytes) -> tuple[bytes, str]:
        """Keep a JPEG, and return it with its entity tag."""
        entry = (jpeg, f'"{sha256(jpeg).hexdigest()[:32]}"')
        with self._lock:
            former = self._kept.pop(key, None)
            self._used -= len(former[0]) + _OVERHEAD if former else 0
            self._kept[key] = entry
            self._used += len(jpeg) + _OVERHEAD
            while self._used > self._room:
                _, (dropped, _) = self._kept.popitem(last=False)
                self._used -= len(dropped) + _OVERHEAD
        return entry
