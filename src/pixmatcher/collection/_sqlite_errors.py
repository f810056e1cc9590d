"""SQLite's errors: what kind an error is, and the error of PixMatcher that says what to do about it."""

from __future__ import annotations

import contextlib
import enum
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from .._files import failing_disk, full_disk
from ..errors import CollectionError, CollectionLockedError, StorageError
from ._disk import byte_locks_work, free_bytes, is_full, temporary_folder
from ._names import start_again


class ResultCode(enum.IntEnum):
    """SQLite's primary result codes, see https://www.sqlite.org/rescode.html."""

    UNKNOWN = -1
    ERROR = 1
    BUSY = 5
    LOCKED = 6
    READONLY = 8
    IOERR = 10
    FULL = 13
    CANTOPEN = 14
    PROTOCOL = 15


_MESSAGES = {
    "database is locked": ResultCode.BUSY,
    "database table is locked": ResultCode.LOCKED,
    "database schema is locked": ResultCode.LOCKED,
    "attempt to write a readonly database": ResultCode.READONLY,
    "disk I/O error": ResultCode.IOERR,
    "database or disk is full": ResultCode.FULL,
    "unable to open database file": ResultCode.CANTOPEN,
    "locking protocol": ResultCode.PROTOCOL,
    "no such table": ResultCode.ERROR,
    "no such column": ResultCode.ERROR,
}
"""The first words of the messages of `sqlite3_errstr`, which are constants in the source of SQLite."""


def result_code(error: sqlite3.Error) -> ResultCode:
    """Return the primary result code of an error; `UNKNOWN` for any code that is not in `ResultCode`."""
    extended: int | None = getattr(error, "sqlite_errorcode", None)
    if extended is None:
        # Python 3.10 does not give the code, and no Python gives one for errors that SQLite did not report.
        text = str(error)
        return next((code for start, code in _MESSAGES.items() if text.startswith(start)), ResultCode.UNKNOWN)
    try:
        return ResultCode(extended & 0xFF)
    except ValueError:
        return ResultCode.UNKNOWN


@contextlib.contextmanager
def sqlite_errors_explained(path: Path) -> Iterator[None]:
    """Raise a `CollectionError` that says what to do in place of an error of SQLite with the database `path`."""
    try:
        yield
    except sqlite3.ProgrammingError as error:
        raise CollectionError(f"{path.parent} cannot be used ({error})", "open it again if it was closed.") from error
    except sqlite3.Error as error:
        code = result_code(error)
        if code in (ResultCode.FULL, ResultCode.IOERR):
            raise _storage_error(path.parent, code, str(error)) from error
        if code in (ResultCode.BUSY, ResultCode.LOCKED, ResultCode.PROTOCOL):
            raise CollectionLockedError(f"{path.parent} is busy: try again in a moment.") from error
        if code is ResultCode.READONLY:
            raise StorageError(f"{path.parent} cannot be written: choose another collection with -c.") from error
        if code is ResultCode.CANTOPEN:
            raise CollectionError(f"{path} cannot be opened", "check that you may read it and its folder.") from error
        raise CollectionError(f"{path} is damaged ({error})", start_again(path.parent)) from error


def _storage_error(folder: Path, code: ResultCode, reason: str) -> CollectionError:
    """Return the error for a database in `folder` that could not be read or written, with its true cause."""
    temporary, full = temporary_folder(), is_full(folder)
    # What did not fit may be gone by now: then the disk with less room was the full one.
    if not full and (is_full(temporary) or (code is ResultCode.FULL and free_bytes(temporary) < free_bytes(folder))):
        return StorageError(
            f"The folder for temporary files {temporary} is full ({reason}): make room there, or set TMPDIR to another "
            "folder; what was stored before is kept."
        )
    if full or code is ResultCode.FULL:
        return StorageError(full_disk(folder, reason))
    if not byte_locks_work(folder):
        return CollectionError(
            f"The disk of {folder} does not support locks of files any more ({reason})",
            "run the same command again; what was stored before is kept.",
        )
    return StorageError(failing_disk(folder, reason))
