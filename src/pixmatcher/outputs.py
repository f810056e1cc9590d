"""Files that a user asks for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .errors import PixMatcherError


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


def printable(text: str) -> str:
    """Text for one line: control characters, and bytes that are no Unicode, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
