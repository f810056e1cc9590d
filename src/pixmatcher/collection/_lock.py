"""The locks of a collection: one process at a time holds each, and an error names the holder."""

from __future__ import annotations

import logging

from .._files import write_error
from .._locks import FileLock, LocksUnsupportedError
from ..errors import CollectionError, CollectionLockedError

logger = logging.getLogger("pixmatcher.collection")


class WriterLock(FileLock):
    """A lock on a file in the folder of a collection."""

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock, and wait for it with `wait`; return True.

        Raises `CollectionLockedError` if another process has it, unless `wait`; `CollectionError` if the file cannot be
        opened or the disk does not support locks.
        """
        folder, held = self.path.parent, self.held
        try:
            locked = super().acquire(wait=wait)
        except LocksUnsupportedError as error:
            raise CollectionError(
                f"The disk of {folder} does not support locks ({error.strerror})",
                "choose another collection with -c.",
            ) from error
        except OSError as error:
            raise write_error(folder, error) from error
        if not locked:
            raise CollectionLockedError(
                f"{folder} is being written by {self.holder()}", "wait until it has finished, or stop it."
            )
        if not held:
            logger.debug("Lock %s taken", self.path)
        return True
