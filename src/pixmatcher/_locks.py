"""Locks on files, between processes and between the objects of one process.

The operating system holds a lock as long as the file is open, so it frees the lock of a process that dies, however it
dies. On Unix this is `flock`, on Windows a lock on one byte far beyond the end of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

_LOCKED_BYTE = 0x7FFF0000  # on Windows nobody else can read a locked byte, so it is not one of the file's own
_RETRY_SECONDS = 0.1


class LocksUnsupportedError(OSError):
    """The file system does not support locks."""


class FileLock:
    """An exclusive lock on a file, which says as JSON text who holds the lock: `pid`, `host` and `since`.

    The file stays after the release: if it were deleted, two processes could lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock, unless this object holds it already, and return True.

        If another object or process holds it: wait until it is free with `wait`, otherwise return False at once.

        Raises `LocksUnsupportedError` if the file system supports no locks, and `OSError` if the file cannot be opened.
        """
        if self.held:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            locked = lock_descriptor(descriptor, wait=wait)
        except BaseException:
            os.close(descriptor)
            raise
        if not locked:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _write_holder(descriptor)
        return True

    def release(self) -> None:
        """Free the lock, if this object holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """Return who took the lock last, such as "process 17 on host since 2026-01-31T12:00:00+00:00".

        Return "another process" if the file does not say so.
        """
        try:
            holder = json.loads(self.path.read_bytes()[:4096])
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def lock_descriptor(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file until it is closed; return False if somebody else has it locked and `wait` is false.

    Raises `LocksUnsupportedError` if the file system supports no locks.
    """
    try:
        return _lock(descriptor, wait)
    except OSError as error:
        raise LocksUnsupportedError(error.errno, error.strerror) from error


@contextlib.contextmanager
def locked_file(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[IO[bytes]]:
    """Open the file at `path`, which is created if needed, without a buffer, and lock it for the block.

    If another process has it locked, `on_wait` is called, and then this waits. The process that has the lock may rename
    or delete the file: a process that waits for it then locks the next file of that name.

    Raises `LocksUnsupportedError` if the file system supports no locks, and `OSError` if the file cannot be opened.
    """
    while True:
        # In a folder where every user may write, another user may have made a link with that name.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            if not lock_descriptor(file.fileno(), wait=False):
                on_wait()
                lock_descriptor(file.fileno(), wait=True)
            if _is_at(path, file):
                yield file
                return


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Return whether an open file is the one that is at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock(descriptor: int, wait: bool) -> bool:
        """Lock a file; return False if another process has it locked and `wait` is false."""
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            while True:
                os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
                try:
                    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                except PermissionError:
                    if not wait:
                        return False
                    time.sleep(_RETRY_SECONDS)
                else:
                    return True
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)

else:

    def _lock(descriptor: int, wait: bool) -> bool:
        """Lock a file; return False if another process has it locked and `wait` is false."""
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


def _write_holder(descriptor: int) -> None:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    # The operating system holds the lock. The text only helps a person, so it does not matter if the disk is full.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode())
