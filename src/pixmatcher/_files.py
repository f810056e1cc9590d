"""Write files so that a killed process loses nothing, hash them, and explain why a file cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from .errors import NO_ROOM, CollectionError, PixMatcherError, StorageError

_BLOCK = 1 << 20


class Writer(Protocol):
    """An object that bytes can be written to, such as an open file."""

    def write(self, data: bytes, /) -> object: ...


def sha256_of(source: Path | IO[bytes]) -> str:
    """Return the SHA-256 in hexadecimal of a file, or of the rest of an open file from its current position on.

    Raises `OSError` if it cannot be read.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return sha256_of(file)
    digest = hashlib.sha256()
    while block := source.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def full_disk(folder: Path, reason: str) -> str:
    """Return the message for a disk that is full."""
    return (
        f"The disk of {folder} is full ({reason}): make room and run the same command again; "
        "what was stored before is kept."
    )


def failing_disk(folder: Path, reason: str) -> str:
    """Return the message for a disk that fails."""
    return (
        f"The disk of {folder} fails ({reason}): check the disk, or choose another collection with -c; "
        "what was stored before is kept."
    )


def write_error(folder: Path, error: OSError) -> CollectionError:
    """Return the error to raise if something in `folder` could not be written.

    It is a `StorageError` only if the disk is full or fails.
    """
    reason = error.strerror or str(error)
    if error.errno in NO_ROOM:
        return StorageError(full_disk(folder, reason))
    if error.errno == errno.EIO:
        return StorageError(failing_disk(folder, reason))
    name = error.filename2 or error.filename
    place = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else folder
    if isinstance(error, (FileExistsError, IsADirectoryError)):
        return CollectionError(
            f"{place} prevents writing ({reason}): move it elsewhere, or choose another collection with -c."
        )
    return CollectionError(
        f"{place} cannot be written ({reason}): check that you may write there, or choose another collection with -c."
    )


def read_error(path: Path, error: OSError) -> CollectionError:
    """Return the error to raise if `path` exists but could not be read."""
    reason = error.strerror or str(error)
    return CollectionError(f"{path} cannot be read ({reason})", "check that you may read it and its folder.")


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Raise each `OSError` of the block as a `PixMatcherError` of one sentence; a `StorageError` for a full disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_ROOM:
            raise StorageError(
                f"The disk of {folder} is full ({reason}): make room and run the same command again; "
                "it continues where it stopped."
            ) from error
        place = folder if error.filename is None else os.fsdecode(error.filename)
        raise PixMatcherError(f"{place} cannot be read or written ({reason}): choose another folder.") from error


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if it exists. Raises `OSError` if that fails."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` in one step if the block succeeds. It is synced to the disk before that.

    Raises `OSError` if it cannot be written; the old file stays then.
    """
    with replacing_both(path) as (file,):
        yield file


@contextlib.contextmanager
def replacing_both(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Open new files in one folder, as `replacing` does, that replace `paths` directly one after the other.

    Only a process killed between two of these steps leaves files that do not belong together.
    """
    temporary = [temporary_path(path) for path in paths]
    try:
        with contextlib.ExitStack() as opened:
            files: list[IO[bytes]] = [opened.enter_context(path.open("wb")) for path in temporary]
            yield files
            for file in files:
                file.flush()
                sync_file(file.fileno())
        for new, path in zip(temporary, paths, strict=True):
            new.replace(path)
        sync_folder(paths[0].parent)
    finally:
        for new in temporary:
            # If this fails, the error that caused it is the one to raise.
            with contextlib.suppress(OSError):
                new.unlink()


def temporary_path(path: Path) -> Path:
    """Return where the new file is until it replaces `path`."""
    return path.with_name(path.name + ".new")


def sync_file(descriptor: int) -> None:
    """Wait until an open file is on the disk, if it offers this. Raises `OSError` if the disk is full or fails."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


_NOT_OFFERED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Error numbers of a file system that lacks a function."""


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in `folder` are on the disk. Windows and some network disks do not offer this.

    Raises `OSError` if the disk is full or fails.
    """
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EIO or error.errno in NO_ROOM:
            raise


def map_file(file: IO[bytes], length: int) -> mmap.mmap | bytes:
    """Return the first `length` bytes of an open file, mapped into memory, or read where the disk cannot map files.

    Raises `OSError` if it cannot be read, `ValueError` if it is empty or shorter.
    """
    try:
        return mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
    except OSError:
        if sys.platform != "win32":
            # Some FUSE and network disks map a file only if writes of others need not be seen.
            with contextlib.suppress(OSError):
                return mmap.mmap(file.fileno(), length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    content = file.read(length)
    if len(content) < length:
        raise ValueError("the file is shorter than expected")
    return content


def check_writable(path: Path) -> None:
    """Raise `PixMatcherError` if a file could not be saved at `path`; for a check before long work."""
    if os.path.isdir(path):
        raise PixMatcherError(f"{path} cannot be written (it is a folder): name a file.")
    if not os.path.isdir(path.parent):
        raise PixMatcherError(
            f"{path} cannot be written (the folder {path.parent} does not exist): create it, or name another file."
        )
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise PixMatcherError(f"{path} cannot be written (permission denied): name another file.")


def save_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Save what `write` writes to a file; if `write` fails, an old file at `path` stays unchanged.

    Raises `PixMatcherError` if the file cannot be written.
    """
    try:
        made = io.BytesIO()
        write(made)
        path.write_bytes(made.getvalue())
    except OSError as error:
        remedy = "make room, or name a file on another disk" if error.errno in NO_ROOM else "name another file"
        raise PixMatcherError(f"{path} cannot be written ({error.strerror or error}): {remedy}.") from error


def file_version(status: os.stat_result) -> str:
    """Return a text that is another one after any change of the content of a file: its length and its times."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"
