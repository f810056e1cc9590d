"""The locks of a collection: one process at a time holds each, and an error names the holder."""

from __future__ import annotations

import logging

from .._files import write_error
from .._locks import FileLock
from ..errors import CollectionLockedError

logger = logging.getLogger("pixmatcher.collection")


class WriterLock(FileLock):
    """A lock on a file in the folder of a collection."""

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock, and wait for it with `wait`; return True.

        Raises `CollectionLockedError` if another process has it, unless `wait`; `CollectionError` if the file cannot be
        opened.
        """
        folder, held = self.path.parent, self.held
        try:
            locked = super().acquire(wait=wait)
        except OSError as error:
            raise write_error(folder, error) from error
        if not locked:
            foreign = self.pid_file_of_another_host()
            raise CollectionLockedError(
                f"{folder} is being written by {self.holder()}",
                "wait until it has finished, or stop it."
                if foreign is None
                else f"wait until it has finished; if it does not run any more, delete {foreign}.",
            )
        if not held:
            logger.debug("Lock %s taken", self.path)
        return True
