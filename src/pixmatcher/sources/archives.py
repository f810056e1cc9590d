"""Images in zip and tar files, read without unpacking. Their uri is the path of the file, "/", and the name inside."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO

from ..errors import InvalidImageError
from ..images import open_regular_file
from . import _tar

_MAX_BYTES = 256 << 20
"""Longest image that is unpacked into memory; a small entry may claim any length."""


@contextmanager
def open_member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """Open an image of a zip file for reading; the file is seekable. Raises `InvalidImageError` if that fails."""
    try:
        if archive.getinfo(name).file_size > _MAX_BYTES:
            raise InvalidImageError("too large", f"more than {_MAX_BYTES:,} bytes, unpacked")
        data = archive.read(name)
    except KeyError as error:
        raise InvalidImageError("missing", "the zip file has no such image") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InvalidImageError("damaged", "its data in the zip file is damaged") from error
    except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
        raise InvalidImageError("unsupported format", f"in the zip file: {error}") from error
    except OSError as error:
        raise InvalidImageError("cannot be read", error.strerror or str(error)) from error
    yield io.BytesIO(data)


@contextmanager
def open_path(path: str) -> Iterator[IO[bytes]]:
    """Open an image by its path, which may continue inside a zip or tar file.

    Raises `InvalidImageError` if that fails.
    """
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    inside = os.path.abspath(path)[len(above) + 1 :]
    if os.path.isfile(above) and _tar.is_tar(above):
        with _tar.open_member(above, inside) as file:
            yield file
    elif os.path.isfile(above) and zipfile.is_zipfile(above):
        status = os.stat(above)
        try:
            archive = _archive(above, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except (zipfile.BadZipFile, OSError) as error:
            raise InvalidImageError("damaged", f"the zip file: {error}") from error
        with open_member(archive, inside) as file:
            yield file
    else:
        with open_regular_file(path) as file:
            yield file


@lru_cache(maxsize=2)
def _archive(path: str, *_state: int) -> zipfile.ZipFile:
    """Return a zip file that stays open, because reading its list of names takes longer than reading an image."""
    return zipfile.ZipFile(path)
