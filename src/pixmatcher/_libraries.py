"""Libraries in C that are compiled when the package is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes


def load_library(path: Path, *functions: str) -> ctypes.CDLL | None:
    """Return the library in `path`; None if it was not compiled, or if it lacks one of the functions."""
    try:
        import ctypes

        library = ctypes.CDLL(str(path))
    except (ImportError, OSError):
        return None
    return library if all(hasattr(library, name) for name in functions) else None
