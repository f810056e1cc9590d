"""The locks of a collection: one process at a time holds each, and the next one is told who."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

from .._files import write_error
from ..errors import CollectionError, CollectionLockedError


class WriterLock:
    """An advisory lock on a file, freed by the kernel when its process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock. If another process has it, wait until it is free, or raise `CollectionLockedError` at once."""
        if self.held:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise write_error(self._path.parent, error) from error
        try:
            self._lock(descriptor, wait)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._write_holder(descriptor)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int, wait: bool) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise CollectionLockedError(
                f"{self._path.parent} is being written by {self._holder(descriptor)}: wait until it has finished, or "
                "stop it."
            ) from None
        except OSError as error:
            raise CollectionError(
                f"The disk of {self._path.parent} knows no locks ({error.strerror}): choose another collection with -c."
            ) from error

    @staticmethod
    def _write_holder(descriptor: int) -> None:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        # The kernel holds the lock; the text only helps a person, so a full disk may lose it.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    @staticmethod
    def _holder(descriptor: int) -> str:
        try:
            holder = json.loads(os.pread(descriptor, 4096, 0))
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
