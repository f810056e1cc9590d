"""The connection to the catalog's SQLite database: how it is opened, and its transactions."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._files import failing_disk, full_disk, write_error
from ..errors import StorageError
from ._connections import (
    CREATE,
    READ_ONLY,
    READ_WRITE,
    WITHOUT_LOCKS,
    FileStates,
    connect,
    connect_to_copied_files,
    connect_to_copy,
    file_states,
    log_path,
)
from ._disk import byte_locks_work, is_full, shared_memory_works
from ._migrations import migrate
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
                self._create()
            self._connect()

    def close(self) -> None:
        """Close the connection, after the transaction of another thread: without waiting, SQLite may crash."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._is_only_user = False
            self.connection.close()

    def _create(self) -> None:
        """Create the database if it does not exist, and change its schema to the newest."""
        locks = byte_locks_work(self.path.parent)
        try:
            if locks:
                self._create_by(connect(self.path, CREATE))
                return
        except sqlite3.OperationalError:
            if shared_memory_works(self.path.parent):
                raise
        self._create_by(connect(self.path, CREATE if locks else CREATE + WITHOUT_LOCKS, exclusive=True))

    def _create_by(self, connection: sqlite3.Connection) -> None:
        with contextlib.closing(connection):
            connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection, self.path)

    def _connect(self) -> None:
        """Open the database, or a snapshot of it; `_snapshot_of` then says what the files looked like."""
        self._connections += 1
        self._snapshot_of: FileStates | None = None
        self._is_only_user = False
        if not byte_locks_work(self.path.parent):
            self._copy_files()
        elif os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK):
            self._connect_to_writable()
        elif log_path(self.path).exists():
            try:
                self.connection = connect(self.path, READ_ONLY)
            except sqlite3.OperationalError as error:
                if result_code(error) is not ResultCode.CANTOPEN:
                    raise
                # The shared memory of the log is missing, as in a copy of the files, and may not be made. So no process
                # writes here, and no lock is needed, which SQLite could only get with the right to write.
                self._snapshot_of = file_states(self.path)
                self.connection = connect_to_copy(self.path, READ_ONLY + WITHOUT_LOCKS)
        else:
            # Without a log and without permission to create one, SQLite must open the file as constant.
            self._snapshot_of = file_states(self.path)
            self.connection = connect(self.path, f"{READ_ONLY}&immutable=1")
        if self._snapshot_of is not None:
            logger.debug("%s cannot be opened as usual: a snapshot is read", self.path)

    def _connect_to_writable(self) -> None:
        """Open a database that permissions allow to write, or a snapshot of it if the disk prevents that."""
        folder = self.path.parent
        try:
            self.connection = connect(self.path, READ_WRITE, seconds=0)
            return
        except sqlite3.OperationalError as error:
            code = result_code(error)
            if code is ResultCode.ERROR:
                raise
        if not shared_memory_works(folder):
            # A process that writes has locked all others out, and one that reads would do so.
            self._copy_files()
        elif code in (ResultCode.BUSY, ResultCode.LOCKED, ResultCode.PROTOCOL):
            self.connection = connect(self.path, READ_WRITE)
        else:
            # A full disk has no room for the shared memory of the log: copy the database to memory.
            self._snapshot_of = file_states(self.path)
            self.connection = connect_to_copy(self.path, READ_WRITE)

    def _copy_files(self) -> None:
        self.connection, self._snapshot_of = connect_to_copied_files(self.path)

    def _reconnect(self) -> None:
        self.close()
        self._connect()

    def _refresh(self) -> None:
        """Take a snapshot again if the files have changed."""
        if self._snapshot_of is not None and self._snapshot_of != file_states(self.path):
            self._reconnect()

    def prepare_to_write(self) -> None:
        """Change an older schema to the newest. Raises `StorageError` if the database can only be read.

        Call it with the writer lock. On a disk without locks or shared memory, the database then belongs to this
        process, until `end_writing`; other processes read copies.
        """
        with self._lock, sqlite_errors_explained(self.path):
            if self._snapshot_of is not None:
                self._reconnect()
            if self._snapshot_of is not None:
                self._become_only_user()
            migrate(self.connection, self.path)

    def _become_only_user(self) -> None:
        folder = self.path.parent
        locks = byte_locks_work(folder)
        if locks and shared_memory_works(folder):
            shared = self.path.with_name(self.path.name + "-shm")
            if shared.exists() and not os.access(shared, os.W_OK):
                raise write_error(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(shared)))
            reason = "the log of the catalog cannot be opened"
            raise StorageError((full_disk if is_full(folder) else failing_disk)(folder, reason))
        self.close()
        parameters = READ_WRITE if locks else READ_WRITE + WITHOUT_LOCKS
        self.connection = connect(self.path, parameters, exclusive=True)
        self._snapshot_of, self._is_only_user = None, True
        self._connections += 1
        logger.debug(
            "The disk of %s lacks %s: other processes read copies", folder, "shared memory" if locks else "locks"
        )

    def end_writing(self) -> None:
        """Leave the database to other processes again, before the writer lock is released."""
        with self._lock, sqlite_errors_explained(self.path):
            if self._is_only_user:
                self._reconnect()

    # Transactions

    @contextlib.contextmanager
    def transaction_for_reading(self) -> Iterator[None]:
        """Read one consistent state in the whole block."""
        with self._lock, sqlite_errors_explained(self.path):
            if self.connection.in_transaction:
                yield
                return
            self._refresh()
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
            if not self.connection.in_transaction:
                self._refresh()
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
        with self._lock:
            try:
                return [text for (text,) in self.connection.execute("PRAGMA integrity_check") if text != "ok"]
            except sqlite3.Error as error:
                return [str(error)]
