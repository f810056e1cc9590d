"""Writing files so that a kill or a full disk leaves the old one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def start_again(folder: Path) -> str:
    """What to tell the user when a collection cannot be mended."""
    return f"delete the folder {folder} and index again; your images are not touched by this."


def full_disk(folder: Path, reason: str) -> str:
    """What to tell the user when `folder` could not be written."""
    return (
        f"The disk of {folder} is full or fails ({reason}): make room and run the same command again; "
        "what was stored before is kept."
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path` in one step when the block ends well, and is on the disk then.

    Raises `OSError` as the disk does; the old file stays in that case.
    """
    temporary = path.with_name(path.name + ".new")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names of the files in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
