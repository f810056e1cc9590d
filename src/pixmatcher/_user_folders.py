"""The folders of the user: home, cache and temporary files; containers and services may have none of them."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from .errors import PixMatcherError, StorageError

NAME = "pixmatcher"
NO_HOME = "/nonexistent"
"""The home folder of users that have none, by the convention of Debian."""


def home_folder() -> Path | None:
    """Return the home folder of the user, or None if neither HOME nor the list of users has one."""
    if not os.environ.get("HOME") and sys.platform != "win32":
        import pwd

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    else:
        home = os.path.expanduser("~")
    return Path(home) if os.path.isabs(home) and home != NO_HOME else None


def user_cache_folder() -> Path:
    """Return the folder for files of PixMatcher that can be downloaded or computed again; it may not exist.

    Raises `PixMatcherError` if the user has no home folder, and no variable names a cache folder.
    """
    return _user_folder("XDG_CACHE_HOME", ".cache", "Caches", "downloaded files: set PIXMATCHER_CACHE or HOME")


def user_state_folder() -> Path:
    """Return the folder for records of PixMatcher that last from one run to the next; it may not exist.

    Raises `PixMatcherError` if the user has no home folder, and no variable names a folder for state.
    """
    return _user_folder("XDG_STATE_HOME", ".local/state", "Application Support", "records: set XDG_STATE_HOME or HOME")


def _user_folder(variable: str, on_unix: str, on_mac: str, remedy: str) -> Path:
    home = home_folder()
    if home is None and not os.path.isabs(os.environ.get(variable, "")):
        raise PixMatcherError(f"This user has no home folder for {remedy} to a folder that you may write.")
    if home is not None and not os.environ.get("HOME") and not os.environ.get(variable):
        # An empty HOME would make the root folder the home folder.
        if sys.platform == "darwin":
            return home / "Library" / on_mac / NAME
        if sys.platform != "win32":
            return home / on_unix / NAME
    import platformdirs

    return platformdirs.user_cache_path(NAME) if variable == "XDG_CACHE_HOME" else platformdirs.user_state_path(NAME)


def expanded(path: str) -> Path:
    """Return a path with the home folder in place of "~". Raises `PixMatcherError` if there is no home folder."""
    if path.split(os.sep)[0] == "~" and home_folder() is None:
        raise PixMatcherError(f"{path} cannot be used, as this user has no home folder: write the path without ~.")
    return Path(os.path.expanduser(path))


def is_writable_place(folder: Path) -> bool:
    """Return whether the user may write in a folder, or may create it."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def private_temporary_folder() -> Path:
    """Return a folder for temporary files that only this user can enter; another run finds the same one.

    Raises `StorageError` if there is no place for one.
    """
    try:
        temporary = Path(tempfile.gettempdir())
        folder = temporary / f"{NAME}-{os.getuid() if hasattr(os, 'getuid') else os.getlogin()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Every user may write in the folder for temporary files, so another one may have made this folder.
        if sys.platform != "win32" and (
            not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077
        ):
            return Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    except OSError as error:
        raise StorageError(
            f"There is no folder for temporary files ({error.strerror or error}): set TMPDIR to a folder that you may "
            "write."
        ) from error
    return folder
