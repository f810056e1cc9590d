"""Tar files, read by their headers only: the names and positions of their files, without unpacking.

The formats are ustar and pax (POSIX.1-2001) and that of GNU tar. Python's tarfile is not used because it trusts
headers: it reads an extended header of any length into memory, and keeps all headers.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

from ..errors import InvalidImageError
from ..images import ALLOWED_EXTENSIONS

_BLOCK = 512
_MAX_EXTENDED_BYTES = 1 << 20
"""Longest name or extended header that is read."""
_MAX_IMAGE_BYTES = 256 << 20
"""Longest image that is read into memory."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LINK, _SPARSE, _FOLDER = "a link", "a sparse file", "a folder"
_KINDS = {
    b"1": _LINK, b"2": _LINK, b"3": "a device", b"4": "a device", b"5": _FOLDER, b"6": "a fifo", b"S": _SPARSE,
}  # fmt: skip
"""The types in a header that are not plain files. All but the last have no content, whatever length they state."""
_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", (b"x", b"X"), b"g"


@dataclass(frozen=True)
class Member:
    """A file in a tar file, the position of its content, and why it is not a plain file with a usable name, or "".

    A usable name is relative, without `.` and `..`; `modified` are seconds since 1970.
    """

    name: str
    offset: int
    size: int
    modified: int
    problem: str = ""


@dataclass
class _ExtendedHeader:
    """The information of extended headers about the next file."""

    name: str | None = None
    size: int | None = None
    problem: str = ""


@contextmanager
def open_tar(path: str) -> Iterator[int]:
    """Open a file and yield its descriptor. Raises `InvalidImageError` if it is not a file that can be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError))
        reason = error.strerror if isinstance(error, OSError) else None
        raise InvalidImageError("missing" if missing else "cannot be read", reason or str(error)) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidImageError("not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def members(descriptor: int) -> Iterator[Member]:
    """Yield the files of an open tar file in their order, without the folders.

    Raises `InvalidImageError` where it is damaged or cut short, or at once if it is not a tar file.
    """
    length = os.fstat(descriptor).st_size
    offset = 0
    ahead = _ExtendedHeader()
    while True:
        block = read_at(descriptor, _BLOCK, offset)
        if not _may_be_header(block):
            _raise_missing_header(block, offset, length)
        if not any(block):
            return
        kind, size = block[156:157], _number(block[124:136])
        name = ahead.name if ahead.name is not None else _name_in(block)
        start = offset + _BLOCK
        more = kind == b"S" and block[482]
        while more:  # blocks of the map of a sparse file
            block = read_at(descriptor, _BLOCK, start).ljust(_BLOCK, b"\0")
            more, start = block[504], start + _BLOCK
        extends = kind in (_GNU_NAME, _GNU_LINK, _PAX_GLOBAL, *_PAX)
        if kind in _KINDS and kind != b"S":
            size = 0
        elif not extends and ahead.size is not None:
            size = ahead.size
        if start + size > length:
            raise InvalidImageError(
                "cut short", f"it has {length:,} of {start + size:,} bytes, the last in {name[:200]}"
            )
        if extends:
            if kind == _GNU_NAME or kind in _PAX:
                _read_extended(ahead, kind, size, read_at(descriptor, min(size, _MAX_EXTENDED_BYTES), start))
        else:
            problem = ahead.problem or _KINDS.get(kind, "")
            if problem != _FOLDER and not name.endswith("/"):
                yield _member(name, start, size, _number(block[136:148]), problem)
            ahead = _ExtendedHeader()
        offset = start + -(-size // _BLOCK) * _BLOCK


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at an offset, fewer at the end of the file. Raises `InvalidImageError` if that fails."""
    parts = []
    try:
        while size and (part := os.pread(descriptor, min(size, 1 << 30), offset)):
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InvalidImageError("cannot be read", reason or "its position is out of range") from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def is_tar(path: str) -> bool:
    """Return whether the file begins like a tar file."""
    try:
        with open_tar(path) as descriptor:
            block = read_at(descriptor, _BLOCK, 0)
    except InvalidImageError:
        return False
    return any(block) and _may_be_header(block)


@contextmanager
def open_member(path: str, name: str) -> Iterator[IO[bytes]]:
    """Open an image of a tar file for reading; the file is seekable. Raises `InvalidImageError` if that fails."""
    with open_tar(path) as descriptor:
        status = os.fstat(descriptor)
        with _places_lock:
            places = _places(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if name not in places:
            raise InvalidImageError("missing", "the tar file has no such image")
        offset, size = places[name]
        if size > _MAX_IMAGE_BYTES:
            raise InvalidImageError("too large", f"more than {_MAX_IMAGE_BYTES:,} bytes")
        data = read_at(descriptor, size, offset)
    if len(data) < size:
        raise InvalidImageError("damaged", "the tar file is cut short")
    yield io.BytesIO(data)


def may_be_image(name: str) -> bool:
    """Return whether the name has the extension of an image."""
    return os.path.splitext(name)[1].lower() in ALLOWED_EXTENSIONS


_places_lock = threading.Lock()


@lru_cache(maxsize=4)
def _places(path: str, *_state: int) -> dict[str, tuple[int, int]]:
    """Return offset and size of each image of a tar file; of several with the same name, the first."""
    places: dict[str, tuple[int, int]] = {}
    with open_tar(path) as descriptor:
        try:
            for member in members(descriptor):
                if not member.problem and may_be_image(member.name):
                    places.setdefault(member.name, (member.offset, member.size))
        except InvalidImageError:  # the files before the damage can be opened
            pass
    return places


def _may_be_header(block: bytes) -> bool:
    """Return whether these are the 512 bytes of a header, or of the end of a tar file."""
    if len(block) < _BLOCK:
        return False
    if not any(block):
        return True
    stated, blank = _number(block[148:156]), 8 * ord(" ")
    return stated == sum(block) - sum(block[148:156]) + blank and _number(block[124:136]) >= 0


def _raise_missing_header(block: bytes, offset: int, length: int) -> None:
    """Raise `InvalidImageError` with the reason why there is no header at `offset`."""
    if not length:
        raise InvalidImageError("not a tar file", "it is empty")
    compressed = [name for magic, name in _COMPRESSED.items() if block.startswith(magic)]
    if not offset and compressed:
        raise InvalidImageError(
            "compressed tar file", f"with {compressed[0]}: decompress it, because its images are read one by one"
        )
    if not offset:
        raise InvalidImageError("not a tar file")
    if len(block) < _BLOCK:
        raise InvalidImageError("cut short", f"it ends after {length:,} bytes without an end mark")
    raise InvalidImageError("damaged", f"no header at byte {offset:,}")


def _number(field: bytes) -> int:
    """Return a number of a header, in octal digits or, if the first bit is set, in binary; -1 if it is not a number."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1)) if field[0] == 0x80 else -1
    digits = field.split(b"\0", 1)[0].strip()
    if digits.translate(None, b"01234567"):
        return -1
    return int(digits or b"0", 8)


def _name_in(block: bytes) -> str:
    """Return the name in a header, with its prefix if it has one."""
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return os.fsdecode(name)


def _member(name: str, offset: int, size: int, modified: int, problem: str) -> Member:
    """Return a member; an unsafe name is a problem too."""
    parts = name.split("/")
    if not problem and (not name or name.startswith("/") or ".." in parts or "\0" in name):
        problem = "an unsafe name"
    return Member(name if problem else posixpath.normpath(name), offset, size, modified, problem)


def _read_extended(ahead: _ExtendedHeader, kind: bytes, size: int, data: bytes) -> None:
    """Store the information of an extended header in `ahead`."""
    if size > _MAX_EXTENDED_BYTES:
        ahead.problem = "an extended header that is too long"
    elif kind == _GNU_NAME:
        ahead.name = os.fsdecode(data.split(b"\0", 1)[0])
    else:
        fields = _pax_fields(data)
        if any(key.startswith(b"GNU.sparse.") for key in fields):
            ahead.problem = _SPARSE
        name = fields.get(b"GNU.sparse.name", fields.get(b"path"))
        if name is not None:
            ahead.name = os.fsdecode(name)
        digits = fields.get(b"size", b"")
        if digits.isdigit() and len(digits) < 20:
            ahead.size = int(digits)


def _pax_fields(data: bytes) -> dict[bytes, bytes]:
    """Return the records `LENGTH KEY=VALUE` of an extended header, up to the first invalid one."""
    fields: dict[bytes, bytes] = {}
    start = 0
    while start < len(data):
        digits = data[start : start + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[start + len(digits) + 1 : start + length]
        if not record.endswith(b"\n"):
            break
        key, _, value = record[:-1].partition(b"=")
        fields[key] = value
        start += length
    return fields
