"""Milvus Lite: the database in a folder, which this process alone opens, and serves to itself on a loopback port.

Milvus Lite writes to its folder when it opens it. A folder that can only be read is opened through a temporary one,
whose files are links to its own; several processes can do that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CollectionError, CollectionLockedError

LOCK_NAME = "LOCK"
"""The file that Milvus Lite locks; it shows that a folder is one of its databases."""


@dataclass
class _Served:
    server: Any
    database: Any
    port: int
    links: _Links | None = None
    users: int = 0


@dataclass
class _Links:
    """A temporary folder of links to the files of a database, and its open lock file."""

    folder: Path
    lock: int

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self.lock)


_served: dict[Path, _Served] = {}
_lock = threading.Lock()


def is_database(folder: Path) -> bool:
    """Return whether a folder is a database of Milvus Lite."""
    return (folder / LOCK_NAME).exists()


def can_be_written(folder: Path) -> bool:
    """Return whether this process can write to a database, or create it."""
    places = (folder, folder / LOCK_NAME)
    return not is_database(folder) or all(os.access(place, os.W_OK) for place in places)


def start(folder: Path) -> str:
    """Serve the database in a folder, which is created if need be, and return the URL. `stop` must be called once.

    Raises `CollectionLockedError` if another process uses it, `CollectionError` if the folder cannot be used.
    """
    with _lock:
        if folder not in _served:
            _check_folder(folder)
            _served[folder] = _serve(folder) if can_be_written(folder) else _serve_links(folder)
        _served[folder].users += 1
        return f"http://127.0.0.1:{_served[folder].port}"


def stop(folder: Path) -> None:
    """End the use of a database; the last user closes it."""
    with _lock:
        served = _served[folder]
        served.users -= 1
        if not served.users:
            del _served[folder]
            served.server.stop(grace=2).wait()
            served.database.close()
            if served.links is not None:
                served.links.remove()


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise CollectionError(
            f"{folder} is a file and not a database of Milvus Lite 3: name another path with -c milvus:PATH."
        )
    if folder.is_dir() and not is_database(folder) and os.listdir(folder):
        raise CollectionError(f"{folder} holds other files: name a new folder with -c milvus:PATH.")


def _serve(folder: Path) -> _Served:
    from milvus_lite.adapter.grpc.server import start_server_in_thread
    from milvus_lite.exceptions import DataDirLockedError

    try:
        server, database, port = start_server_in_thread(str(folder), host="127.0.0.1", port=0)
    except DataDirLockedError:
        raise _locked(folder) from None
    except OSError as error:
        raise CollectionError(f"{folder} cannot be used ({error.strerror or error}): correct the path.") from error
    except Exception as error:  # a damaged database may raise anything
        raise CollectionError(
            f"The database of Milvus Lite in {folder} is damaged ({type(error).__name__}: {str(error)[:200]}): move it "
            "elsewhere and index again."
        ) from error
    return _Served(server, database, port)


def _serve_links(folder: Path) -> _Served:
    links = _link(folder)
    try:
        served = _serve(links.folder)
    except BaseException:
        links.remove()
        raise
    served.links = links
    return served


def _link(folder: Path) -> _Links:
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError as error:
        raise CollectionError(f"{folder} cannot be used ({error.strerror}): correct its permissions.") from error
    links = _Links(Path(tempfile.mkdtemp(prefix="pixmatcher-")), lock)
    try:
        _lock_shared(lock)
        for place, _, files in os.walk(folder):
            inner = links.folder / os.path.relpath(place, folder)
            inner.mkdir(exist_ok=True)
            for name in files:
                if name != LOCK_NAME:
                    os.symlink(os.path.join(place, name), inner / name)
    except BlockingIOError:
        links.remove()
        raise _locked(folder) from None
    except OSError as error:
        links.remove()
        raise CollectionError(
            f"{folder} can only be read, which Milvus Lite cannot do here ({error.strerror}): copy it to a folder that "
            "you can write to."
        ) from error
    return links


def _lock_shared(descriptor: int) -> None:
    """Keep processes away that write to the database. Raises `BlockingIOError` if there is one."""
    with contextlib.suppress(ImportError):  # Windows has other locks
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _locked(folder: Path) -> CollectionLockedError:
    return CollectionLockedError(
        f"{folder} is in use by another process, and only one process can use Milvus Lite: try again when it has "
        "ended, or keep the collection in a Milvus server (milvus://HOST:19530/NAME)."
    )
