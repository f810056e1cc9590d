"""Thumbnails: small JPEG files of images that may be out of reach when results are shown, in an SQLite file."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._files import remove
from ._sqlite_errors import sqlite_errors_explained

logger = logging.getLogger("pixmatcher.collection")


class Thumbnails:
    """The thumbnails of a collection by the content hash of their images.

    Only the catalog decides what is in the collection. A thumbnail that is missing or damaged is not shown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()

    def get(self, content_hash: str) -> bytes | None:
        """Return the thumbnail of an image, or None if none is stored."""
        with self._lock, contextlib.suppress(sqlite3.Error):
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

    def keep_those_in(self, catalog: Path) -> None:
        """Delete the thumbnails of images that are not in the catalog, nor in an unfinished upgrade."""
        with self._lock, sqlite_errors_explained(self.path):
            if not self._open():
                return
            self._execute("ATTACH ? AS catalog", f"{catalog.as_uri()}?mode=ro")
            try:
                with self._transaction():
                    self._execute(
                        "DELETE FROM thumbnails WHERE NOT EXISTS "
                        "(SELECT 1 FROM catalog.items WHERE items.content_hash = thumbnails.content_hash) "
                        "AND NOT EXISTS (SELECT 1 FROM catalog.reencoded "
                        "WHERE reencoded.content_hash = thumbnails.content_hash)"
                    )
            finally:
                self._execute("DETACH catalog")

    def is_intact(self) -> bool:
        """Return whether the file is undamaged, or does not exist."""
        with self._lock:
            try:
                return not self._open() or self._execute("PRAGMA integrity_check") == [("ok",)]
            except sqlite3.Error:
                return False

    def clear(self) -> None:
        """Delete the file. Raises `OSError` if that is not possible."""
        self.close()
        for ending in ("", "-journal"):
            remove(self.path.with_name(self.path.name + ending))

    def close(self) -> None:
        """Close the file; it is opened again when it is used."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self, *, create: bool = False) -> bool:
        """Connect to the file; return False if it does not exist and `create` is false."""
        if self._connection is None:
            if not create and not self.path.exists():
                return False
            mode = "rwc" if create else "rw" if os.access(self.path, os.W_OK) else "ro"
            self._connection = sqlite3.connect(
                f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
            )
        return True

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
