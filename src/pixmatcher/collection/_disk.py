"""What the disk of a collection supports: locks on bytes of files, shared memory, room to write.

Network shares and FUSE disks may lack the first two, which SQLite needs where several processes use one database.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ..errors import NO_ROOM
from ..records import LOCK_NAME, MANIFEST_NAME

_ROOM_BYTES = 1 << 20
"""A disk that cannot take a file of this size is called full."""


def byte_locks_work(folder: Path) -> bool:
    """Return whether SQLite can lock its files in the folder of a collection."""
    if sys.platform == "win32":
        return True
    import fcntl

    # Not a file of SQLite: closing it would free all locks of this process on that file, see fcntl(2).
    for name in (MANIFEST_NAME, LOCK_NAME):
        try:
            descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True  # another process has a lock
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True
    return True


def shared_memory_works(folder: Path) -> bool:
    """Return whether processes can share the memory of a file in this folder, as SQLite's write-ahead log needs it."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(mmap.PAGESIZE))
            mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
    except OSError as error:
        return error.errno in NO_ROOM  # a full disk says nothing about it
    return True


def is_full(folder: Path) -> bool:
    """Return whether a new file in this folder finds no room: the disk is full, or a quota or a limit is reached."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            rest = memoryview(bytes(_ROOM_BYTES))
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in NO_ROOM
    return False


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk of a folder in bytes; 0 if it is not known."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def temporary_folder() -> Path:
    """Return the folder where SQLite keeps what does not fit in memory (https://www.sqlite.org/tempfiles.html)."""
    if sys.platform == "win32":
        return Path(tempfile.gettempdir())
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")
    usable = (Path(name) for name in named if name and os.path.isdir(name) and os.access(name, os.W_OK | os.X_OK))
    return next(usable, Path(os.curdir))
