"""The folder of a data set: locked during a download, with a note that says what it holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from .._files import explain_disk_errors, replacing
from .._locks import locked_file
from .._progress import Progress, ProgressCallback


@contextlib.contextmanager
def locked_folder(folder: Path, progress: ProgressCallback | None) -> Iterator[None]:
    """Create the folder, and lock it against other processes that download into it.

    Raises `PixMatcherError` or `StorageError` if the folder cannot be written.
    """

    def report_waiting() -> None:
        if progress is not None:
            progress(Progress("Waiting for another process", 0, None, "steps"))

    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = folder / ".pixmatcher.lock"
        with locked_file(lock, report_waiting):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)


def read_note(path: Path) -> dict[str, object] | None:
    """Return the note at a path: which data set a folder holds. None if it does not exist or is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_note(path: Path, note: Mapping[str, object]) -> None:
    """Replace the note at a path. Raises `OSError` if that fails."""
    with replacing(path) as file:
        file.write(json.dumps(note).encode())
