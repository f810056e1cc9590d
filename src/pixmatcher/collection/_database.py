"""The connection to the catalog's SQLite database: how it is opened, and its transactions."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import full_disk
from ..errors import StorageError
from ._migrations import migrate, schema_version
from ._sqlite_errors import ResultCode, result_code, sqlite_errors_explained

logger = logging.getLogger("pixmatcher.collection")


class Database:
    """A database that one connection serves, in any number of threads.

    Where the files do not allow a usual connection, it is a snapshot: a copy in memory, or a connection to a file that
    is taken for constant. A snapshot can only be read, and is taken again when the files have changed.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open the database, or create it if need be with `create`. Raises `CollectionError` if that is impossible."""
        self.path = path
        # One connection serves several threads; the lock keeps their transactions apart.
        self._lock = threading.RLock()
        self._connections = 0
        with sqlite_errors_explained(path):
            if create:
                with contextlib.closing(_connect(path, "mode=rwc")) as connection:
                    connection.execute("PRAGMA journal_mode = WAL")
                    migrate(connection, path)
            self._connect()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(sqlite3.Error):
            self.connection.close()

    def _connect(self) -> None:
        """Open the database, or a snapshot of it; `_snapshot_of` then says what the files looked like."""
        self._connections += 1
        self._snapshot_of: tuple[object, ...] | None = None
        if os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK):
            try:
                self.connection = _connect(self.path, "mode=rw")
            except sqlite3.OperationalError as error:
                if result_code(error) in (ResultCode.ERROR, ResultCode.BUSY, ResultCode.LOCKED):
                    raise
                # A full disk has no room for the shared memory of the log: copy the database to memory.
                self._snapshot_of = self._file_states()
                self.connection = _connect_to_copy(self.path, "mode=rw")
        elif self._log_path.exists():
            try:
                self.connection = _connect(self.path, "mode=ro")
            except sqlite3.OperationalError as error:
                if result_code(error) is not ResultCode.CANTOPEN:
                    raise
                # The shared memory of the log is missing, as in a copy of the files, and may not be made. So no process
                # writes here, and no lock is needed, which SQLite could only get with the right to write.
                self._snapshot_of = self._file_states()
                self.connection = _connect_to_copy(self.path, "mode=ro&vfs=unix-none")
        else:
            # Without a log and without permission to create one, SQLite must open the file as constant.
            self._snapshot_of = self._file_states()
            self.connection = _connect(self.path, "mode=ro&immutable=1")
        if self._snapshot_of is not None:
            logger.debug("%s cannot be opened for writing: a snapshot is read", self.path)

    @property
    def _log_path(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _file_states(self) -> tuple[object, ...]:
        """Return values that change when the database or its log is replaced or changed."""
        states = [path.stat() if path.exists() else None for path in (self.path, self._log_path)]
        return tuple(state and (state.st_ino, state.st_size, state.st_mtime_ns) for state in states)

    def _reconnect(self) -> None:
        self.close()
        self._connect()

    def prepare_to_write(self) -> None:
        """Change an older schema to the newest. Raises `StorageError` if the database can only be read."""
        with self._lock, sqlite_errors_explained(self.path):
            if self._snapshot_of is not None:
                self._reconnect()
            if self._snapshot_of is not None:
                raise StorageError(full_disk(self.path.parent, "database or disk is full"))
            migrate(self.connection, self.path)

    # Transactions

    @contextlib.contextmanager
    def transaction_for_reading(self) -> Iterator[None]:
        """Read one consistent state in the whole block."""
        with self._lock, sqlite_errors_explained(self.path):
            if self.connection.in_transaction:
                yield
                return
            if self._snapshot_of is not None and self._snapshot_of != self._file_states():
                self._reconnect()
            try:
                self.connection.execute("BEGIN")  # in the block: an interrupt may come right after it
                yield
            finally:
                self.connection.rollback()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Run the block as one transaction: its writes are committed, or undone if it raises."""
        with self._lock, sqlite_errors_explained(self.path):
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield
                self.connection.commit()
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.rollback()
                raise

    def query(self, sql: str, *values: object) -> list[Any]:
        """Run a statement, and return all rows of its result."""
        with self._lock, sqlite_errors_explained(self.path):
            return self.connection.execute(sql, values).fetchall()

    def numbers(self, sql: str, *values: object) -> npt.NDArray[np.int64]:
        """Run a query with one column, and return it (N,) int64."""
        with self._lock, sqlite_errors_explained(self.path):
            cursor = self.connection.execute(sql, values)
            return np.fromiter((value for (value,) in cursor), dtype=np.int64)

    def number(self, sql: str, *values: object) -> int:
        """Run a query with one number as its result, and return that number."""
        return int(self.query(sql, *values)[0][0])

    def write_count(self) -> tuple[int, int, int]:
        """Return numbers that differ after each write of any process, and after each new connection."""
        # SQLite counts the writes of others and those of this connection in two places.
        return self._connections, self.number("PRAGMA data_version"), self.connection.total_changes

    def integrity_errors(self) -> list[str]:
        """Return what SQLite's own check finds wrong with the file."""
        try:
            return [text for (text,) in self.connection.execute("PRAGMA integrity_check") if text != "ok"]
        except sqlite3.Error as error:
            return [str(error)]


def _connect(path: Path, parameters: str, *, exclusive: bool = False) -> sqlite3.Connection:
    """Return a connection that works. An exclusive one needs no shared memory on the disk."""
    connection = sqlite3.connect(
        f"{path.as_uri()}?{parameters}", uri=True, timeout=30, isolation_level=None, check_same_thread=False
    )
    try:
        if exclusive:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if parameters != "mode=rwc":
            schema_version(connection, path)
            connection.execute("SELECT generation FROM state")
    except BaseException:
        connection.close()
        raise
    return connection


def _connect_to_copy(path: Path, parameters: str) -> sqlite3.Connection:
    """Return a connection to a copy of the database in memory, which can only be read."""
    with contextlib.closing(_connect(path, parameters, exclusive=True)) as source:
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        source.backup(copy)
    copy.execute("PRAGMA query_only = 1")
    return copy
