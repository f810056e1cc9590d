"""Folders of model files that appear, or are replaced, in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from .._files import explain_disk_errors
from .._locks import locked_file
from ..errors import EncoderError
from .onnx.card import CARD_NAME


@contextlib.contextmanager
def making_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `target` in one step if the block ends without an error.

    An existing folder with a card is replaced; so is a link to such a folder, but not the folder that it points to. If
    the process is killed, the old or the new folder is complete, and the next call deletes unfinished files. If two
    processes make the same folder, one waits for the other.

    Raises `EncoderError` if something else is at `target`, `StorageError` if the disk is full, and `PixMatcherError` if
    the folder cannot be written.
    """
    with locked_folder(target) as unfinished:
        delete_folder(unfinished)
        unfinished.mkdir()
        try:
            yield unfinished
            put_folder(unfinished, target)
        finally:
            delete_folder(unfinished)


@contextlib.contextmanager
def locked_folder(target: Path) -> Iterator[Path]:
    """Keep other processes from making the same folder during the block, and yield the path of the unfinished folder.

    The unfinished folder may exist: a stopped process may have left it. Raises as `making_folder`.
    """
    target = Path(os.path.abspath(target))
    check_replaceable(target)
    unfinished, old = (target.with_name(f".{target.name}.{word}") for word in ("making", "old"))
    with locked_beside(target):
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)  # a process was killed between the two renames of `put_folder`
        delete_folder(old)
        yield unfinished


@contextlib.contextmanager
def locked_beside(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, a file or folder that may not exist yet, during the block."""
    lock = target.with_name(f".{target.name}.lock")
    with explain_disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)


def check_replaceable(target: Path) -> None:
    """Raise `EncoderError` if `target` exists and is neither an empty folder nor a folder with a card."""
    if not target.name:
        raise EncoderError(f"{target} cannot be replaced: choose another folder.")
    if not os.path.lexists(target) or (target.is_symlink() and not target.exists()):
        return
    if not target.is_dir():
        raise EncoderError(f"{target} exists and is not a folder: choose another folder.")
    if _has_card(target):
        return
    with explain_disk_errors(target):
        if any(target.iterdir()):
            raise EncoderError(
                f"{target} is not empty and was not made by pixmatcher: choose another folder, or delete it."
            )


def _has_card(folder: Path) -> bool:
    """Return whether a folder has a card; the files that it lists may be damaged."""
    try:
        with (folder / CARD_NAME).open("rb") as file:
            card = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(card, dict) and {"fingerprint", "visual", "files"} <= card.keys()


def put_folder(unfinished: Path, target: Path) -> None:
    """Move a finished folder, or a link to one, to `target` in one step, within a block of `locked_folder`."""
    target = Path(os.path.abspath(target))
    check_replaceable(target)
    with explain_disk_errors(target.parent):
        try:
            os.replace(unfinished, target)
            return
        except OSError as error:
            if error.errno not in _TARGET_EXISTS:
                raise
        if not _exchange(unfinished, target):
            old = target.with_name(f".{target.name}.old")
            target.rename(old)
            unfinished.rename(target)
            unfinished = old
        delete_folder(unfinished)  # which is now the old one


_TARGET_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""Errors of `rename` if a folder or a link to a folder would have to be replaced."""


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths of one disk in one step. Return False if this system cannot do that."""
    if sys.platform == "win32":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        rename_swap = 2
        return not libc.renamex_np(first, second, ctypes.c_uint(rename_swap))
    at_fdcwd, rename_exchange = -100, 2
    if not hasattr(libc, "renameat2"):
        return False
    return not libc.renameat2(at_fdcwd, first, at_fdcwd, second, ctypes.c_uint(rename_exchange))


def delete_folder(place: Path) -> None:
    """Delete a folder or a link, if it exists."""
    if place.is_symlink():
        place.unlink()
    elif os.path.lexists(place):
        shutil.rmtree(place)
