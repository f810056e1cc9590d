"""Download a file so that the download can be interrupted at any time and continues the next time.

The file appears at its path in one step, when it is complete and correct. Until then it is beside that path, in
`NAME.part`, and `NAME.part.json` says which version of the file this is the beginning of.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

from .._files import explain_disk_errors, sha256_of, sync_file
from .._locks import locked_file
from .._progress import Progress, ProgressCallback
from .._urls import without_password
from ..errors import FetchError, PixMatcherError
from .stream import STALL_SECONDS, Version, WrongContentError, length_problem, stream

logger = logging.getLogger(__package__)


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    max_bytes: int | None = None,
    check: Callable[[Path], None] | None = None,
    check_is_exact: bool = False,
    progress: ProgressCallback | None = None,
    stall_seconds: float = STALL_SECONDS,
    token: str | None = None,
) -> bool:
    """Download `url` to `path` and return True; return False if the file exists already.

    An interrupted download continues where it stopped. Two processes that download the same file wait for each other.

    The file must have the `size` in bytes and the `sha256` in hexadecimal, if they are given, and pass `check`, which
    is called with the path of the received file and raises a `PixMatcherError`; a wrong file is deleted. A file that
    is already at `path` must have that size and hash too, and is not changed.
    `check_is_exact` says that `check` finds every wrong byte, as a hash does: then a download also continues if the
    server does not guarantee the same bytes. See `stream` for retries, refusals, proxies, and `token`.

    Raises `FetchError` if the URL does not give the file, `StorageError` if the disk is full, and `PixMatcherError` if
    something is in the way or cannot be written. Received bytes are kept, unless they are wrong.
    """
    part, note = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    with explain_disk_errors(path.parent):
        if _is_downloaded(path, size, sha256):
            return False
        with locked_file(part) as file:
            try:
                if _is_downloaded(path, size, sha256):
                    return False
                logger.info("download %s to %s", without_password(url), path)
                content_is_checked = sha256 is not None or check_is_exact
                _receive(url, file, note, size, max_bytes, progress, stall_seconds, content_is_checked, token)
                try:
                    _verify(url, file, size, sha256)
                    if check is not None:
                        check(part)
                except PixMatcherError:
                    file.truncate(0)
                    raise
                sync_file(file.fileno())
                part.replace(path)
                note.unlink(missing_ok=True)
                logger.info("downloaded %s, %d bytes", path, os.fstat(file.fileno()).st_size)
                return True
            finally:
                if not os.fstat(file.fileno()).st_size:
                    part.unlink(missing_ok=True)
                    note.unlink(missing_ok=True)


def _is_downloaded(path: Path, size: int | None, sha256: str | None) -> bool:
    """Return whether the file was downloaded before. Raises `PixMatcherError` if something else is at `path`."""
    if not os.path.lexists(path):
        return False
    wrong = None
    if not path.is_file():
        wrong = "is not a file"
    elif size is not None and path.stat().st_size != size:
        wrong = f"has {path.stat().st_size:,} bytes instead of {size:,}"
    elif sha256 is not None and sha256_of(path) != sha256:
        wrong = "has another SHA-256 than expected"
    if wrong:
        raise PixMatcherError(f"{path} already exists but {wrong}: delete it, or choose another folder.")
    return True


def _receive(
    url: str,
    file: IO[bytes],
    note: Path,
    size: int | None,
    max_bytes: int | None,
    progress: ProgressCallback | None,
    stall_seconds: float,
    content_is_checked: bool,
    token: str | None,
) -> None:
    """Write to `file` until it has its full length."""
    offset = os.fstat(file.fileno()).st_size
    known = _read_note(note)
    if known is None or known.url != without_password(url) or (known.length is not None and offset > known.length):
        known, offset = None, 0
    elif offset and offset == known.length:
        return  # the download before was interrupted after the last byte
    pieces = stream(
        url,
        known=known,
        offset=offset,
        size=size,
        max_bytes=max_bytes,
        stall_seconds=stall_seconds,
        content_is_checked=content_is_checked,
        token=token,
    )
    file.seek(offset)
    with contextlib.closing(pieces):
        try:
            for piece in pieces:
                if piece.position == 0 and not piece.data:
                    file.seek(0)
                    file.truncate()
                    note.write_text(json.dumps(asdict(piece.version)), encoding="utf-8")
                rest = memoryview(piece.data)
                while rest:  # the file has no buffer: after an error, it holds exactly what the disk took
                    rest = rest[file.write(rest) :]
                if progress is not None:
                    length = size if piece.version.length is None else piece.version.length
                    progress(Progress("Downloading", piece.position + len(piece.data), length, "bytes"))
        except WrongContentError:
            file.truncate(0)
            raise


def _read_note(note: Path) -> Version | None:
    """Return the version that the received part belongs to, None if that is not known."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        version = Version(**found)
    except (OSError, ValueError, TypeError):
        return None
    texts = (version.etag, version.modified)
    is_valid = isinstance(version.url, str) and all(text is None or isinstance(text, str) for text in texts)
    return version if is_valid and (version.length is None or isinstance(version.length, int)) else None


def _verify(url: str, file: IO[bytes], size: int | None, sha256: str | None) -> None:
    """Raise `FetchError` if the received file has a wrong length or hash."""
    if problem := length_problem(os.fstat(file.fileno()).st_size, size, None):
        raise FetchError(f"{without_password(url)} {problem}.")
    file.seek(0)
    if sha256 is not None and sha256_of(file) != sha256:
        raise FetchError(
            f"The file from {without_password(url)} has another SHA-256 than expected and was deleted: try again, "
            "or give another URL."
        )
