"""The images in a bucket of an object store: `s3://BUCKET/FOLDER` and `gs://BUCKET/FOLDER`."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from ..errors import FetchError, InvalidImageError, SourceError
from ..images import is_allowed_extension
from ..net.object_store import ObjectStore, fetch_objects
from ..records import Entry
from .protocol import Unusable

_MOST_BYTES = 512 << 20
"""Larger objects are not read into memory."""


class BucketSource:
    """All objects below a place in a bucket whose names have the extension of an image.

    As in folders, names that begin with a dot are skipped. The version of an entry is the length and the tag (ETag)
    that the store lists, so that no object is opened to find out whether it has changed.
    """

    remote = False
    thumbnails = True
    folder: str | None = None

    def __init__(self, url: str) -> None:
        """Raises `SourceError` if the URL names no bucket, or a package is missing."""
        try:
            self._store = ObjectStore(url)
        except FetchError as error:
            raise SourceError(str(error)) from error
        self.spec = self._store.url
        self._passed_over = 0

    @property
    def notes(self) -> list[str]:
        """What the last scan found out about the bucket: sentences."""
        if not self._passed_over:
            return []
        return [
            f"{self._passed_over:,} objects were passed over, as their names do not have the extension of an image."
        ]

    def scan(self) -> Iterator[Entry | Unusable]:
        self._passed_over = 0
        try:
            for found in self._store.objects():
                names = found.key.split("/")
                if any(name.startswith(".") for name in names):
                    continue
                if not is_allowed_extension(names[-1]):
                    self._passed_over += found.size > 0  # some tools make an object of size 0 for a folder
                elif found.size > _MOST_BYTES:
                    yield Unusable(self._uri(found.key), "too large", f"more than {_MOST_BYTES >> 20} MB")
                else:
                    modified = found.modified.isoformat(timespec="seconds")
                    yield Entry(self._uri(found.key), f"{found.size}-{found.tag}", modified)
        except FetchError as error:
            raise SourceError(str(error)) from error

    def fetch_ahead(
        self, entries: Iterable[tuple[int, Entry]], batch_size: int
    ) -> Generator[list[tuple[tuple[int, Entry], bytes | FetchError]], None, None]:
        """Read the objects of numbered entries; see `FetchesAhead`."""
        requests = (((number, entry), self._key(entry.uri), _size_of(entry)) for number, entry in entries)
        return fetch_objects(self._store, requests, batch_size=batch_size)

    @contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        try:
            content = self._store.read(self._key(uri))
        except FetchError as error:
            raise InvalidImageError(error.reason, error.detail) from error
        yield io.BytesIO(content)

    def label_names(self) -> Mapping[str, str]:
        return {}

    def _uri(self, key: str) -> str:
        return f"{self.spec}/{key}"

    def _key(self, uri: str) -> str:
        return uri[len(self.spec) + 1 :]


def _size_of(entry: Entry) -> int:
    """Return the length in bytes that the version of an entry begins with."""
    return int(entry.version.partition("-")[0])
