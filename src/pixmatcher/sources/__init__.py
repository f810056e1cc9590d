"""Sources: where images come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Protocol


@dataclass(frozen=True)
class Entry:
    """An image that a source has now.

    `version` is a token that changes whenever the image may have changed; `modified` is an ISO 8601 date.
    """

    uri: str
    version: str
    modified: str | None = None
    label: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Unusable:
    """Something that looks like an image of the source but cannot be one, or a folder that cannot be looked into.

    With `hides_entries` nobody knows what is at `uri` and below: items there stay.
    """

    uri: str
    reason: str
    detail: str = ""
    hides_entries: bool = False


class Source(Protocol):
    """A place that can list its images and open each."""

    spec: str
    """What names this source in a collection; `open_source(spec)` gives it back."""

    def scan(self) -> Iterator[Entry | Unusable]:
        """List the images without opening them. Raises `SourceError` if the source as a whole cannot be read."""

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        """Open the image for reading, seekable. Raises `InvalidImageError` if that cannot be done."""


def open_source(spec: str) -> Source:
    """The source that `spec` names: the path of a folder. Raises `SourceError` if there is none."""
    from .folder import FolderSource

    return FolderSource(spec)
