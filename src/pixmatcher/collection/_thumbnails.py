"""Thumbnails: small JPEG files of images that may be out of reach when results are shown, in an SQLite file."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .._files import remove
from ._connections import BUSY_SECONDS, CREATE, READ_ONLY, READ_WRITE, WITHOUT_LOCKS
from ._disk import byte_locks_work
from ._sqlite_errors import sqlite_errors_explained

logger = logging.getLogger("pixmatcher.collection")

_BLOCK = 500


class Thumbnails:
    """The thumbnails of a collection by the content hash of their images.

    Only the catalog decides what is in the collection. A thumbnail that is missing or damaged is not shown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._is_constant = False
        self._lock = threading.RLock()

    def get(self, content_hash: str) -> bytes | None:
        """Return the thumbnail of an image, or None if none is stored."""
        with self._lock, self._reading(), contextlib.suppress(sqlite3.Error):
            if self._open():
                found: list[tuple[bytes]] = self._execute(
                    "SELECT jpeg FROM thumbnails WHERE content_hash = ?", content_hash
                )
                return found[0][0] if found else None
        return None

    def put(self, thumbnails: Mapping[str, bytes]) -> None:
        """Store thumbnails by content hash. A damaged file is replaced. Raises `StorageError` if the disk is full."""
        if not thumbnails:
            return
        with self._lock, sqlite_errors_explained(self.path):
            try:
                self._insert(thumbnails)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                logger.info("%s is damaged and is replaced", self.path)
                self.clear()
                self._insert(thumbnails)

    def _insert(self, thumbnails: Mapping[str, bytes]) -> None:
        self._open(create=True)
        assert self._connection is not None
        self._execute("CREATE TABLE IF NOT EXISTS thumbnails (content_hash TEXT PRIMARY KEY, jpeg BLOB)")
        with self._transaction():
            self._connection.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", thumbnails.items())

    def keep(self, needed: Callable[[Sequence[str]], set[str]]) -> None:
        """Delete the thumbnails of all images but those whose content hashes `needed` returns, given some of them."""
        with self._lock, sqlite_errors_explained(self.path):
            if not self._open(write=True):
                return
            hashes = iter([content_hash for (content_hash,) in self._execute("SELECT content_hash FROM thumbnails")])
            unneeded = list[str]()
            while block := list(islice(hashes, _BLOCK)):
                known = needed(block)
                unneeded += (content_hash for content_hash in block if content_hash not in known)
            if unneeded:
                assert self._connection is not None
                with self._transaction():
                    self._connection.executemany(
                        "DELETE FROM thumbnails WHERE content_hash = ?", ((value,) for value in unneeded)
                    )

    def is_intact(self) -> bool:
        """Return whether the file is undamaged, or does not exist."""
        with self._lock, self._reading():
            try:
                return not self._open() or self._execute("PRAGMA integrity_check") == [("ok",)]
            except sqlite3.Error:
                return False

    def clear(self) -> None:
        """Delete the file. Raises `OSError` if that is not possible."""
        self.close()
        for path in (self.path, self._journal_path):
            remove(path)

    def close(self) -> None:
        """Close the file; it is opened again when it is used."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Close a connection that takes the file for constant after the block, as the next one may find changes."""
        try:
            yield
        finally:
            if self._is_constant:
                self.close()

    def _open(self, *, create: bool = False, write: bool = False) -> bool:
        """Connect to the file; return False if it does not exist and `create` is false.

        Only the process with the writer lock may `create` or `write`.
        """
        if self._connection is not None and self._is_constant and (create or write):
            self.close()
        if self._connection is None:
            if not create and not self.path.exists():
                return False
            parameters = CREATE if create else READ_WRITE if os.access(self.path, os.W_OK) else READ_ONLY
            self._is_constant = False
            if not byte_locks_work(self.path.parent):
                if create or write:
                    parameters += WITHOUT_LOCKS
                elif _has_content(self._journal_path):
                    return False  # a writer changes the file, or was killed while it did
                else:
                    # Without locks, a reader that may write would undo what a writer is doing.
                    parameters, self._is_constant = f"{READ_ONLY}&immutable=1", True
            self._connection = sqlite3.connect(
                f"{self.path.as_uri()}?{parameters}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        return True

    @property
    def _journal_path(self) -> Path:
        return self.path.with_name(self.path.name + "-journal")

    def _execute(self, sql: str, *values: object) -> list[Any]:
        """Run an SQL statement and return the rows of its result."""
        assert self._connection is not None
        return self._connection.execute(sql, values).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what the block writes, or nothing if it raises."""
        try:
            self._execute("BEGIN IMMEDIATE")
            yield
            self._execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._execute("ROLLBACK")
            raise


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
