"""Locks on files, between processes and between the objects of one process.

The operating system holds a lock as long as the file is open, so it frees the lock of a process that dies, however it
dies. On Unix this is `flock`, on Windows a lock on one byte far beyond the end of the file.

Some network and FUSE disks support no such locks. There, a file beside the locked one, `NAME.pid`, is the lock: it can
be created only where it does not exist. It says which process created it, so that a process of the same machine removes
the file of one that has died.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger("pixmatcher")

PID_ENDING = ".pid"
_LOCKED_BYTE = 0x7FFF0000  # on Windows nobody else can read a locked byte, so it is not one of the file's own
_RETRY_SECONDS = 0.1
_WRITE_SECONDS = 2.0
"""A `.pid` file that is older than this and has no content was left by a process that died while it wrote it."""


class _LocksUnsupportedError(OSError):
    """The file system does not support locks."""


class FileLock:
    """An exclusive lock on a file, which says as JSON text who holds the lock: `pid`, `host` and `since`.

    The file stays after the release: if it were deleted, two processes could lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._has_pid_file = False

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._descriptor is not None

    def acquire(self, *, wait: bool = False) -> bool:
        """Take the lock, unless this object holds it already, and return True.

        If another object or process holds it: wait until it is free with `wait`, otherwise return False at once.

        Raises `OSError` if the file cannot be opened or, on a disk without locks, the file beside it not be created.
        """
        if self.held:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            try:
                locked = _lock(descriptor, wait)
                # A machine that mounts the same disk in another way may have to lock with a file.
                while locked and _is_locked_by_file(self.path):
                    locked = wait
                    time.sleep(_RETRY_SECONDS if wait else 0)
            except _LocksUnsupportedError:
                locked = self._has_pid_file = _create_pid_file(self.path, wait)
        except BaseException:
            os.close(descriptor)
            raise
        if not locked:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _write_holder(descriptor)
        return True

    def release(self) -> None:
        """Free the lock, if this object holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._has_pid_file:
            self._has_pid_file = False
            _remove_pid_file(self.path)

    def holder(self) -> str:
        """Return who took the lock last, such as "process 17 on host since 2026-01-31T12:00:00+00:00".

        Return "another process" if the file does not say so.
        """
        holder = _read_json(_pid_path(self.path)) or _read_json(self.path) or {}
        try:
            return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
        except KeyError:
            return "another process"

    def pid_file_of_another_host(self) -> Path | None:
        """Return the file that locks on a disk without locks if another machine created it; else None.

        Nobody can know whether the process that created it still runs.
        """
        path = _pid_path(self.path)
        holder = _read_json(path)
        return path if holder is not None and holder.get("host") != socket.gethostname() else None


@contextlib.contextmanager
def locked_file(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[IO[bytes]]:
    """Open the file at `path`, which is created if needed, without a buffer, and lock it for the block.

    If another process has it locked, `on_wait` is called, and then this waits. The process that has the lock may rename
    or delete the file: a process that waits for it then locks the next file of that name.

    Raises `OSError` if the file cannot be opened or, on a disk without locks, the file beside it not be created.
    """
    while True:
        # In a folder where every user may write, another user may have made a link with that name.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            has_pid_file = False
            try:
                try:
                    if not _lock(file.fileno(), False):
                        on_wait()
                        _lock(file.fileno(), True)
                except _LocksUnsupportedError:
                    if not _create_pid_file(path, False):
                        on_wait()
                        _create_pid_file(path, True)
                    has_pid_file = True
                if _is_at(path, file):
                    yield file
                    return
            finally:
                if has_pid_file:
                    _remove_pid_file(path)


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Return whether an open file is the one that is at `path` now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":

    def _lock(descriptor: int, wait: bool) -> bool:
        """Lock a file; return False if another process has it locked and `wait` is false."""
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        try:
            while True:
                os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
                try:
                    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                except PermissionError:
                    if not wait:
                        return False
                    time.sleep(_RETRY_SECONDS)
                else:
                    return True
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)

else:

    def _lock(descriptor: int, wait: bool) -> bool:
        """Lock a file; return False if another process has it locked and `wait` is false.

        Raises `_LocksUnsupportedError` if the file system supports no locks.
        """
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            raise _LocksUnsupportedError(error.errno, error.strerror) from error
        return True


def _holder() -> dict[str, Any]:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _write_holder(descriptor: int) -> None:
    # The operating system holds the lock. The text only helps a person, so it does not matter if the disk is full.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(_holder()).encode())


# Disks without locks


def _pid_path(path: Path) -> Path:
    return path.with_name(path.name + PID_ENDING)


def _create_pid_file(path: Path, wait: bool) -> bool:
    """Lock `path` by a file beside it; return False if another process has done so and `wait` is false.

    Raises `OSError` if the file cannot be created.
    """
    place = _pid_path(path)
    text = json.dumps({**_holder(), "started": _state_and_start_of(os.getpid())[1]}).encode()
    while True:
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
        except FileExistsError:
            if not _is_locked_by_file(path):
                continue
            if not wait:
                return False
            time.sleep(_RETRY_SECONDS)
            continue
        try:
            os.write(descriptor, text)
        except OSError:
            _remove_pid_file(path)
            raise
        finally:
            os.close(descriptor)
        logger.debug("The disk of %s supports no locks: %s is the lock", path, place)
        return True


def _remove_pid_file(path: Path) -> None:
    with contextlib.suppress(OSError):
        _pid_path(path).unlink()


def _is_locked_by_file(path: Path) -> bool:
    """Return whether a running process, or one of another machine, locks `path` by a file; remove that of a dead one.

    Raises `OSError` if that file cannot be removed.
    """
    place = _pid_path(path)
    try:
        found, age = place.read_bytes()[:4096], time.time() - place.stat().st_mtime
    except FileNotFoundError:
        return False
    except OSError:
        return True
    if _is_of_running_process(_parsed(found), age):
        return True
    # Two processes may find the same dead one: each takes the file away by renaming it, and only the one that gets the
    # file which it has read may go on. The other puts the file back, which a third process has created meanwhile.
    taken = place.with_name(f"{place.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        place.rename(taken)
    except FileNotFoundError:
        return False
    if taken.read_bytes()[:4096] == found:
        taken.unlink()
        return False
    if not place.exists():
        taken.rename(place)
    return True


def _is_of_running_process(holder: dict[str, Any] | None, age: float) -> bool:
    """Return whether the creator of a `.pid` file may still run, given what the file holds and its age in seconds."""
    if holder is None:
        return age < _WRITE_SECONDS
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or type(pid) is not int or pid < 1 or sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # it runs as another user
    state, started = _state_and_start_of(pid)
    # A dead process is listed until its parent asks for its end. Another process may have got the number since.
    return state not in ("Z", "X") and (started is None or holder.get("started") in (None, started))


def _state_and_start_of(pid: int) -> tuple[str, str | None]:
    """Return the state of a process, and when it started, in units since the start of the system.

    Return ("", None) where that is not known.
    """
    try:
        # The name of the program, in brackets, may contain anything; 3 and 22 are the fields of these in proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", None


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if there is none."""
    try:
        with path.open("rb") as file:
            return _parsed(file.read(4096))
    except OSError:
        return None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
