"""Milvus Lite: the database in a folder, which this process alone opens, and serves to itself on a loopback port."""

from __future__ import annotations

import os
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
    users: int = 0


_served: dict[Path, _Served] = {}
_lock = threading.Lock()


def is_database(folder: Path) -> bool:
    """Return whether a folder is a database of Milvus Lite."""
    return (folder / LOCK_NAME).exists()


def start(folder: Path) -> str:
    """Serve the database in a folder, which is created if need be, and return the URL. `stop` must be called once.

    Raises `CollectionLockedError` if another process uses it, `CollectionError` if the folder cannot be used.
    """
    with _lock:
        if folder not in _served:
            _check_folder(folder)
            _served[folder] = _serve(folder)
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
        raise CollectionLockedError(
            f"{folder} is in use by another process, and only one process can use Milvus Lite: try again when it has "
            "ended, or keep the collection in a Milvus server (milvus://HOST:19530/NAME)."
        ) from None
    except OSError as error:
        raise CollectionError(f"{folder} cannot be used ({error.strerror or error}): correct the path.") from error
    except Exception as error:  # a damaged database may raise anything
        raise CollectionError(
            f"The database of Milvus Lite in {folder} is damaged ({type(error).__name__}: {str(error)[:200]}): move it "
            "elsewhere and index again."
        ) from error
    return _Served(server, database, port)
