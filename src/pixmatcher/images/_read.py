"""Read image files from the disk, which may be missing, unreadable, too large, or no regular files."""

from __future__ import annotations

import errno
import io
import os
import stat
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._limits import MAX_ENCODED_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

_READ_AT_ONCE = 16 << 20
"""Files up to this many bytes are read in one go: faster than the many small reads of the plugins."""


_NEVER_WAITING = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
    _NEVER_WAITING |= getattr(os, _name, 0)


def read_head(path: str, count: int = 512) -> bytes:
    """Return up to `count` first bytes of a file; b"" for anything but a regular file. Raises OSError."""
    descriptor = os.open(path, _NEVER_WAITING)
    try:
        return os.read(descriptor, count) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


@contextmanager
def open_regular_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading without ever waiting for it. Raises InvalidImageError, for a fifo or a device as well."""
    with open_unread_file(path) as file:
        if os.fstat(file.fileno()).st_size > _READ_AT_ONCE:
            yield file
            return
        try:
            content = file.read()
        except OSError as error:
            raise InvalidImageError("cannot be read", os_message(error)) from error
    yield io.BytesIO(content)


def open_unread_file(path: str) -> BufferedReader:
    """Open a file as `open_regular_file` does, but read nothing of it."""
    try:
        descriptor = os.open(path, _NEVER_WAITING)
    except OSError as error:
        raise InvalidImageError(*_open_failure(path, error)) from error
    except ValueError as error:  # a null character in the name
        raise InvalidImageError("missing", str(error)) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise InvalidImageError("not a regular file", _kind_of_file(mode))
    return open(descriptor, "rb")


def read_all(file: IO[bytes]) -> bytes:
    """Return the rest of a binary file. Raises InvalidImageError if it is too large or cannot be read."""
    try:
        content = file.read(MAX_ENCODED_BYTES + 1)
    except OSError as error:
        raise InvalidImageError("cannot be read", os_message(error)) from error
    if not isinstance(content, bytes):
        raise TypeError("the file must be opened in binary mode")
    if len(content) > MAX_ENCODED_BYTES:
        raise InvalidImageError("too large", f"more than {MAX_ENCODED_BYTES:,} bytes")
    return content


def os_message(error: OSError) -> str:
    """Return what the operating system says about an error."""
    return error.strerror or str(error)


def _open_failure(path: str, error: OSError) -> tuple[str, str]:
    """Return the reason and the detail of an InvalidImageError for a file that cannot be opened."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.islink(path):
            return "dangling link", "its target does not exist"
        return "missing", "the file does not exist"
    if error.errno == errno.ELOOP:
        return "symlink loop", "the link points to itself"
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.path.isdir(path):
            return "not a regular file", "a directory"
        return "permission denied", "this user may not read it"
    if error.errno == errno.ENXIO:
        return "not a regular file", "a socket or a device"
    return "cannot be read", os_message(error)


def _kind_of_file(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a fifo" if stat.S_ISFIFO(mode) else "a device"
