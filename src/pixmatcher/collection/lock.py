"""The writer lock of a collection: one writer at a time, and the next one is told who holds it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

from ..errors import CollectionLockedError, StorageError


class WriterLock:
    """An advisory lock on a file, freed by the kernel when its process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock, or raise `CollectionLockedError` at once if another process has it."""
        if self.held:
            return
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"{self._path.parent} cannot be written ({error.strerror}): choose another collection with -c."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                os.close(descriptor)
                raise StorageError(
                    f"The disk of {self._path.parent} knows no locks ({error.strerror}): choose another collection "
                    "with -c."
                ) from error
            holder = self._holder(descriptor)
            os.close(descriptor)
            raise CollectionLockedError(
                f"{self._path.parent} is being written by {holder}: wait until it has finished, or stop it."
            ) from None
        self._descriptor = descriptor
        self._write_holder(descriptor)

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

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
