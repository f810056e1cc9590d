"""Connections to the catalog's SQLite database, and copies of it in memory where a connection is impossible."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

from ..errors import CollectionLockedError, StorageError
from ._migrations import schema_version

BUSY_SECONDS = 30.0
"""How long a statement waits for another process."""

CREATE = "mode=rwc"
READ_WRITE = "mode=rw"
READ_ONLY = "mode=ro"
WITHOUT_LOCKS = "&vfs=win32-none" if sys.platform == "win32" else "&vfs=unix-none"
"""Only for a process that nothing else can disturb: the only writer, or a reader of a copy."""

_COPY_TRIES = 50
_TICK_SECONDS = 0.02
"""Longer than the steps in which the time of change of a file is counted."""

FileStates = tuple[tuple[int, int, int] | None, ...]


def connect(
    path: Path, parameters: str, *, exclusive: bool = False, seconds: float = BUSY_SECONDS
) -> sqlite3.Connection:
    """Return a connection that works. An exclusive one needs no shared memory on the disk.

    `seconds` is how long it waits for another process until it is made; later, each statement waits `BUSY_SECONDS`.
    Raises `sqlite3.Error`.
    """
    connection = sqlite3.connect(
        f"{path.as_uri()}?{parameters}", uri=True, timeout=seconds, isolation_level=None, check_same_thread=False
    )
    try:
        if exclusive:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if CREATE not in parameters:
            schema_version(connection, path)
            connection.execute("SELECT generation FROM state")
        if seconds != BUSY_SECONDS:
            connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_copy(path: Path, parameters: str) -> sqlite3.Connection:
    """Return a connection to a copy of the database in memory, which can only be read. Raises `sqlite3.Error`."""
    with contextlib.closing(connect(path, parameters, exclusive=True, seconds=0)) as source:
        copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        source.backup(copy)
    copy.execute("PRAGMA query_only = 1")
    return copy


def connect_to_copied_files(path: Path) -> tuple[sqlite3.Connection, FileStates]:
    """Return a connection to a copy of the database in memory, and the states of the files that were copied.

    Nothing is locked, and nothing is written beside the database. A writer may append to the log meanwhile. If it
    changes the database, which it does when it moves the log to it, the copy is made again.

    Raises `sqlite3.Error`, `StorageError` if the folder for temporary files cannot be used, and `CollectionLockedError`
    if the database changes all the time.
    """
    log = log_path(path)
    for _ in range(_COPY_TRIES):
        before = file_states(path)
        time.sleep(_TICK_SECONDS)  # a change from now on changes the states
        database, size_of_log = before[0], _log_size(before)
        try:
            if size_of_log:
                copy = _copy_in_temporary_folder(path, log)
            else:
                copy = connect_to_copy(path, f"{READ_ONLY}&immutable=1")
        except sqlite3.Error:
            if file_states(path)[0] == database:
                raise
            continue
        except FileNotFoundError:
            continue
        after = file_states(path)
        same_log = after[1] is not None and before[1] is not None and after[1][0] == before[1][0]
        if after[0] == database and (not size_of_log or (same_log and _log_size(after) >= size_of_log)):
            return copy, before
        copy.close()
    raise CollectionLockedError(f"{path.parent} is being changed all the time: try again in a moment.")


def _copy_in_temporary_folder(path: Path, log: Path) -> sqlite3.Connection:
    """Copy the database and its log to a temporary folder, where SQLite joins them, and return a copy in memory.

    Opened where they are, without locks, SQLite would delete a log that another process writes. Raises `sqlite3.Error`,
    `FileNotFoundError` if one of the files does not exist any more, `StorageError` as `connect_to_copied_files`.
    """
    with path.open("rb") as database, log.open("rb") as log_file:
        try:
            with tempfile.TemporaryDirectory(prefix="pixmatcher-") as folder:
                copied = Path(folder) / path.name
                for source, target in ((database, copied), (log_file, log_path(copied))):
                    with target.open("wb") as file:
                        shutil.copyfileobj(source, file, 1 << 20)
                return connect_to_copy(copied, READ_WRITE + WITHOUT_LOCKS)
        except OSError as error:
            raise StorageError(
                f"The catalog of {path.parent} cannot be copied to the folder for temporary files "
                f"({error.strerror or error}): set TMPDIR to a folder with enough room."
            ) from error


def log_path(path: Path) -> Path:
    """Return the file of the write-ahead log of a database."""
    return path.with_name(path.name + "-wal")


def _log_size(states: FileStates) -> int:
    """Return the size of the log in bytes; 0 if it does not exist."""
    return states[1][1] if states[1] is not None else 0


def file_states(path: Path) -> FileStates:
    """Return inode, size and time of change of a database and of its log, or None for a file that does not exist."""
    states: list[tuple[int, int, int] | None] = []
    for file in (path, log_path(path)):
        try:
            status = os.stat(file)
        except FileNotFoundError:
            states.append(None)
        else:
            states.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(states)
