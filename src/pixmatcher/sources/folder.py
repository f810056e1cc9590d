"""A folder of image files, with the folders below it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from stat import S_ISDIR, S_ISREG
from typing import IO

from ..errors import SourceError
from ..images import ALLOWED_EXTENSIONS, open_regular_file
from ..records import Entry
from .protocol import Unusable

# Folders with copies that other programs made: the thumbnails of Synology.
_SKIPPED = {"@eaDir"}
_COLLECTION_FILES = {"collection.json", "catalog.sqlite"}
_COLLECTION_FOLDERS = {"vectors", "index"}


class FolderSource:
    """All files below a folder that have the extension of an image; names that begin with a dot are skipped.

    Links to files and folders are followed, each folder once. A link to a folder above itself is reported as a loop,
    and is not followed.
    """

    remote = thumbnails = False

    def __init__(self, path: str) -> None:
        if not path:
            raise SourceError("The name of the source is empty: name a folder of images.")
        self.spec = os.path.abspath(path)
        self.folder: str | None = self.spec
        if not os.path.isdir(self.spec):
            what = "is not a folder" if os.path.lexists(self.spec) else "does not exist"
            raise SourceError(f"{path} {what}: name a folder of images.")

    def scan(self) -> Iterator[Entry | Unusable]:
        try:
            os.scandir(self.spec).close()
        except OSError as error:
            raise SourceError(f"{self.spec} cannot be read ({error.strerror}): check its permissions.") from error
        visited: set[tuple[int, int]] = set()
        links: list[str] = []
        yield from self._walk(self.spec, visited, links)
        # Links come last, so that an image is listed in its real folder if the source contains that folder.
        for link in links:
            yield from self._walk(link, visited, links)

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return open_regular_file(uri)

    def label_names(self) -> Mapping[str, str]:
        return {}

    def _walk(self, top: str, visited: set[tuple[int, int]], links: list[str]) -> Iterator[Entry | Unusable]:
        """Yield the images below a folder; links to folders are added to `links`."""
        folders = [top]
        while folders:
            folder = folders.pop()
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listing:
                    children = sorted(listing, key=lambda child: child.name)
            except OSError as error:
                yield Unusable(folder, "folder cannot be read", _message(error), contents_unknown=True)
                continue
            skipped = _SKIPPED
            if _COLLECTION_FILES.issubset(child.name for child in children):
                skipped = _SKIPPED | _COLLECTION_FOLDERS
            below = []
            for child in children:
                if child.name.startswith(".") or child.name in skipped:
                    continue
                try:
                    if child.is_dir(follow_symlinks=False):
                        below.append(child.path)
                        continue
                    found = self._check_file(child, links)
                except OSError as error:
                    found = Unusable(child.path, "cannot be read", _message(error), contents_unknown=True)
                if found is not None:
                    yield found
            folders.extend(reversed(below))

    def _check_file(self, child: os.DirEntry[str], links: list[str]) -> Entry | Unusable | None:
        try:
            status = child.stat()
        except FileNotFoundError:
            if not _may_be_image(child.name):
                return None
            if child.is_symlink():
                return Unusable(child.path, "dangling link", "its target does not exist")
            return Unusable(child.path, "missing", "it was deleted during the scan")
        except OSError as error:
            # The target of a link may be a folder, so the link is reported whatever its extension.
            if error.errno == errno.ELOOP:
                return Unusable(child.path, "symlink loop", _message(error))
            if child.is_symlink() or _may_be_image(child.name):
                raise
            return None
        if S_ISDIR(status.st_mode):
            if _is_above(status, child.path):
                return Unusable(child.path, "symlink loop", "it points to a folder above itself")
            links.append(child.path)
            return None
        if not _may_be_image(child.name):
            return None
        if not S_ISREG(status.st_mode):
            return Unusable(child.path, "not a regular file")
        return Entry(
            child.path, f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}", as_date(status.st_mtime)
        )


def _is_above(folder: os.stat_result, path: str) -> bool:
    """Return whether `folder` is one of the folders above `path`."""
    above = os.path.dirname(path)
    while True:
        if os.path.samestat(os.stat(above), folder):
            return True
        parent = os.path.dirname(above)
        if parent == above:
            return False
        above = parent


def _may_be_image(name: str) -> bool:
    # Same as `is_allowed_extension`, at a sixth of its cost: a run without changes does little else.
    return os.path.splitext(name)[1].lower() in ALLOWED_EXTENSIONS


def as_date(seconds: float) -> str | None:
    """Return a time in seconds since 1970 as an ISO 8601 date, or None for a year outside its range."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _message(error: OSError) -> str:
    """Return the message of an error of the system."""
    return error.strerror or str(error)
