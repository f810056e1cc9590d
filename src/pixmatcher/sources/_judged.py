"""What the first bytes of files with unknown names showed, kept from one run to the next."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from hashlib import blake2b

from .._version import __version__
from ..images import ALLOWED_EXTENSIONS

_HEAD = blake2b(f"{__version__} {sys.byteorder} {sorted(ALLOWED_EXTENSIONS)}".encode(), digest_size=8).digest()
"""Begins what is kept. Another version of PixMatcher may know more formats, so it judges again."""


class JudgedFiles:
    """Which files were images when they were opened, by their names and versions.

    A file takes 16 bytes: a hash of its name, and a hash of its version whose lowest bit says whether it is an image.
    Two of a million files have the same hash with a probability of 3e-8.
    """

    def __init__(self, kept: bytes = b"") -> None:
        """Read what an earlier run returned as `kept`."""
        self._keys, self._values = array("Q"), array("Q")
        self._new_keys, self._new_values = array("Q"), array("Q")
        if kept[: len(_HEAD)] == _HEAD and (len(kept) - len(_HEAD)) % 16 == 0:
            middle = len(_HEAD) + (len(kept) - len(_HEAD)) // 2
            self._keys.frombytes(kept[len(_HEAD) : middle])
            self._values.frombytes(kept[middle:])

    def judgement(self, name: str, version: str) -> bool | None:
        """Return whether this version of a file is an image, or None if it was not opened yet."""
        value = self._value(_hash(name))
        return bool(value & 1) if value is not None and value | 1 == _hash(version) | 1 else None

    def was_image(self, name: str) -> bool:
        """Return whether a file was an image when it was last opened, in any version."""
        value = self._value(_hash(name))
        return value is not None and bool(value & 1)

    def add(self, name: str, version: str, image: bool) -> None:
        """Note whether a file is an image, for the next run."""
        self._new_keys.append(_hash(name))
        self._new_values.append(_hash(version) & ~1 | image)

    def kept(self) -> bytes:
        """Return what was added, to be given to the next run."""
        if not self._new_keys:
            return b""
        import numpy as np

        keys, values = np.frombuffer(self._new_keys, np.uint64), np.frombuffer(self._new_values, np.uint64)
        order = np.argsort(keys, kind="stable")
        return _HEAD + keys[order].tobytes() + values[order].tobytes()

    def _value(self, key: int) -> int | None:
        place = bisect_left(self._keys, key)
        return self._values[place] if place < len(self._keys) and self._keys[place] == key else None


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")
