"""Writing files so that a killed process loses nothing, and the errors to raise where one cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

from .errors import NO_ROOM, CollectionError, PixMatcherError, StorageError


class Writer(Protocol):
    """What takes bytes, as an open file does."""

    def write(self, data: bytes, /) -> object: ...


def full_disk(folder: Path, reason: str) -> str:
    """What to tell the user when the disk of `folder` has no room, or fails in a way that SQLite does not tell."""
    return (
        f"The disk of {folder} is full or fails ({reason}): make room and run the same command again; "
        "what was stored before is kept."
    )


def write_error(folder: Path, error: OSError) -> CollectionError:
    """What to raise when something in `folder` could not be written: `StorageError` only where the disk is to blame."""
    reason = error.strerror or str(error)
    if error.errno in NO_ROOM:
        return StorageError(full_disk(folder, reason))
    if error.errno == errno.EIO:
        return StorageError(
            f"The disk of {folder} fails ({reason}): check the disk, or choose another collection with -c; "
            "what was stored before is kept."
        )
    name = error.filename2 or error.filename
    place = os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else folder
    if isinstance(error, (FileExistsError, IsADirectoryError)):
        return CollectionError(
            f"{place} is in the way ({reason}): move it elsewhere, or choose another collection with -c."
        )
    return CollectionError(
        f"{place} cannot be written ({reason}): check that you may write there, or choose another collection with -c."
    )


def read_error(path: Path, error: OSError) -> CollectionError:
    """What to raise when `path` is there but could not be read."""
    reason = error.strerror or str(error)
    return CollectionError(f"{path} cannot be read ({reason}): check that you may read it and its folder.")


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it, if there is one. Raises `OSError` as the disk does."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` in one step when the block ends well, and is on the disk then.

    Raises `OSError` as the disk does; the old file stays in that case.
    """
    with replacing_both(path) as (file,):
        yield file


@contextlib.contextmanager
def replacing_both(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """New files in one folder, as of `replacing`, which take their places one right after the other.

    Only a kill between the two steps leaves files that do not belong together.
    """
    temporary = [temporary_path(path) for path in paths]
    try:
        with contextlib.ExitStack() as opened:
            files: list[IO[bytes]] = [opened.enter_context(path.open("wb")) for path in temporary]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for new, path in zip(temporary, paths, strict=True):
            new.replace(path)
        sync_folder(paths[0].parent)
    finally:
        for new in temporary:
            # What is in the way there is told by the error that it caused.
            with contextlib.suppress(OSError):
                new.unlink()


def temporary_path(path: Path) -> Path:
    """Where the new file lies until it takes the place of `path`."""
    return path.with_name(path.name + ".new")


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names of the files in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(path: Path) -> None:
    """Find out, before the work is done, whether a file could be saved there. Raises `PixMatcherError` if not."""
    if os.path.isdir(path):
        raise PixMatcherError(f"{path} cannot be written (it is a folder).")
    if not os.path.isdir(path.parent):
        raise PixMatcherError(f"{path} cannot be written (there is no folder {path.parent}).")
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK):
        raise PixMatcherError(f"{path} cannot be written (permission denied).")


def save_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Save what `write` writes; what cannot be made leaves an old file as it was.

    Raises `PixMatcherError` if the file cannot be written.
    """
    try:
        made = io.BytesIO()
        write(made)
        path.write_bytes(made.getvalue())
    except OSError as error:
        raise PixMatcherError(f"{path} cannot be written ({error.strerror or error}).") from error
