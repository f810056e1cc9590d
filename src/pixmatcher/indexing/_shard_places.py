"""Where the files of shards are kept: in a folder, or in a bucket of an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from secrets import token_hex
from shutil import copyfileobj
from typing import IO, Protocol

from .._files import explain_disk_errors, sync_file, sync_folder
from .._locks import FileLock
from .._urls import is_url
from ..errors import FetchError, ShardError
from ..net.object_store import ObjectStore, is_object_url

_LOCK_NAME = "lock"
_NEW = ".new"
"""Ends the name of a file that is not complete yet."""


class Place(Protocol):
    """Keeps files in folders. A file appears when it is whole, and replaces one of the same name in one step.

    Every method raises a `PixMatcherError` of one sentence if the place cannot be read or written.
    """

    name: str
    """The path or URL, for messages and commands."""

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files and folders in a folder of the place, sorted; [] if it does not exist."""

    def read(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Open a file to be read; it is seekable."""

    def write(self, name: str, content: IO[bytes], *, unfinished_in: str = "") -> None:
        """Write the rest of an open file under a name, and wait until it is kept.

        `unfinished_in` is the folder of the place where a file is until it is whole, by default its own. What a killed
        process leaves there is deleted when the folder is `locked` again.
        """

    def locked(self, folder: str, what: str) -> AbstractContextManager[None]:
        """Prevent other processes from writing to a folder during the block, where the place offers locks.

        Raises `ShardError` if another process writes to it; `what` names the folder in the message.
        """


class FolderPlace:
    """A folder on this machine, or on a disk that several machines share. It is created when it is written to."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._path = Path(os.path.abspath(path))

    def names(self, folder: str = "") -> list[str]:
        with explain_disk_errors(self._path):
            try:
                return sorted(os.listdir(self._path / folder))
            except FileNotFoundError:
                return []

    @contextmanager
    def read(self, name: str) -> Iterator[IO[bytes]]:
        with explain_disk_errors(self._path), (self._path / name).open("rb") as file:
            yield file

    def write(self, name: str, content: IO[bytes], *, unfinished_in: str = "") -> None:
        path = self._path / name
        # Several processes may write the same file at the same time.
        folder = self._path / unfinished_in if unfinished_in else path.parent
        temporary = folder / f"{path.name}.{token_hex(4)}{_NEW}"
        with explain_disk_errors(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    copyfileobj(content, file, 1 << 20)
                    file.flush()
                    sync_file(file.fileno())
                temporary.replace(path)
                sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def locked(self, folder: str, what: str) -> Iterator[None]:
        path = self._path / folder
        with explain_disk_errors(self._path):
            path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / _LOCK_NAME)
            locked = lock.acquire()
        if not locked:
            raise ShardError(f"{what} is being written by {lock.holder()}: wait until it has finished, or stop it.")
        try:
            with explain_disk_errors(self._path):
                for left in path.glob(f"*{_NEW}"):  # of a process that was killed
                    left.unlink()
            yield
        finally:
            lock.release()


class BucketPlace:
    """A folder in a bucket of an object store. It offers no locks, and needs none.

    Processes that write the same shard at the same time write parts of different names; all of them count.
    """

    def __init__(self, url: str) -> None:
        with _refusals_as_shard_errors():
            self._store = ObjectStore(url)
        self.name = self._store.url

    def names(self, folder: str = "") -> list[str]:
        with _refusals_as_shard_errors():
            return self._store.names(folder)

    @contextmanager
    def read(self, name: str) -> Iterator[IO[bytes]]:
        with _refusals_as_shard_errors(), self._store.open(name) as file:
            yield file

    def write(self, name: str, content: IO[bytes], *, unfinished_in: str = "") -> None:
        with _refusals_as_shard_errors():
            self._store.write(name, content)

    def locked(self, folder: str, what: str) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def _refusals_as_shard_errors() -> Iterator[None]:
    """Raise the `FetchError` of a store that cannot be used as a `ShardError`."""
    try:
        yield
    except FetchError as error:
        raise ShardError(str(error)) from error


def open_place(path: str | os.PathLike[str]) -> Place:
    """Return the place of shards that a path or the URL of a bucket names. Raises `ShardError` if it names none."""
    text = os.fspath(path)
    if is_object_url(text):
        return BucketPlace(text)
    if not text or is_url(text):
        raise ShardError(
            f"{text!r} is no place for shards: name a folder, or s3://BUCKET/FOLDER or gs://BUCKET/FOLDER."
        )
    return FolderPlace(text)
