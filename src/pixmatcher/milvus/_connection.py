"""The connection to Milvus: requests with a time limit, and errors in one sentence each."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .._text import printable
from ..errors import CollectionError, StorageError
from . import _lite
from ._address import Address

if TYPE_CHECKING:
    from pymilvus import MilvusClient

TOKEN_VARIABLE = "PIXMATCHER_MILVUS_TOKEN"
"""Environment variable with USER:PASSWORD or the key of a Milvus server."""

CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 60.0
"""A request is repeated for so long, so that an interruption of the server that is shorter does no harm."""
BUILD_SECONDS = 6 * 3600.0
"""The limit for building and loading an index, and for every request to the Milvus Lite of this process."""

_LONGEST_PAUSE = 3.0
_NOT_LOADED = re.compile("not loaded|call load\\(\\)")

_OLDEST = (2, 3)
_OLDEST_WITH_SPACES = (2, 4)
"""The first versions with upserts, and with several vector fields in a collection."""


class Connection:
    """A connection to the Milvus of an address. Its methods may be called from several threads."""

    def __init__(self, address: Address) -> None:
        """Connect. Raises `CollectionError` if Milvus cannot be reached, or is too old."""
        self.address = address
        self._client_class = _client_class()
        self._lite = address.folder is not None
        # Asked before it is opened, as that creates a new one.
        self._read_only = address.folder is not None and not _lite.can_be_written(address.folder)
        self._url = _lite.start(address.folder) if address.folder is not None else address.server
        self.version: tuple[int, ...] | None = None
        try:
            self._client = self._new_client()
            if not self._lite:
                self.version = _version(self.call("get_server_version", timeout=CONNECT_SECONDS))
        except BaseException as error:
            self._release()
            if isinstance(error, Exception) and not isinstance(error, CollectionError):
                raise self._explained(error) from error
            raise
        if self.version is not None and self.version < _OLDEST:
            self.close()
            raise CollectionError(f"The Milvus of {address.path} is version {self._shown}: upgrade it to 2.3 or newer.")

    @property
    def _shown(self) -> str:
        return ".".join(map(str, self.version or ()))

    @property
    def is_lite(self) -> bool:
        """Whether Milvus Lite answers, in this process or as a server; its version is no number."""
        return self.version is None

    def check_spaces(self, count: int) -> None:
        """Raise `CollectionError` if this Milvus cannot keep so many spaces in a collection."""
        if count > 1 and self.version is not None and self.version < _OLDEST_WITH_SPACES:
            raise CollectionError(
                f"The Milvus of {self.address.path} is version {self._shown}, which keeps 1 space in a collection and "
                f"not {count}: upgrade it to 2.4 or newer, or use an encoder with 1 space."
            )

    def _new_client(self) -> MilvusClient:
        token = "" if self._lite else os.environ.get(TOKEN_VARIABLE, "")
        client: MilvusClient = self._client_class(uri=self._url, token=token, timeout=CONNECT_SECONDS)
        return client

    def call(self, method: str, *arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        """Call a method of the client. Raises `CollectionError` if that fails, `StorageError` if the disk is full."""
        return self._repeated(
            lambda seconds: getattr(self._client, method)(*arguments, timeout=seconds, **options), arguments, timeout
        )

    def check_writable(self) -> None:
        """Raise `CollectionError` if the folder of Milvus Lite can only be read."""
        if self._read_only:
            raise CollectionError(
                f"{self.address.path} can only be read: copy it to a folder that you can write to, and name that one."
            )

    def schema(self, name: str) -> Mapping[str, Any]:
        """Return the schema of a collection of Milvus, as `put_columns` needs it."""
        schema: Mapping[str, Any] = self._repeated(
            lambda seconds: self._handler.describe_collection(name, timeout=seconds), (name,)
        )
        return schema

    def put_columns(self, name: str, columns: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> None:
        """Store rows, or replace those of the same ids.

        A column has the `name`, the `type` and the `values` of a field. The client's own `upsert` of rows takes several
        times as long. Milvus Lite replaces rows when they are inserted, and its upsert reads the old ones before.
        """

        def write(seconds: float) -> None:
            method = self._handler.batch_insert if self.is_lite else self._handler.upsert
            method(name, columns, timeout=seconds, schema=schema)

        self._repeated(write, (name,))

    @property
    def _handler(self) -> Any:
        return self._client._get_connection()

    def _repeated(self, request: Callable[[float], Any], arguments: Sequence[Any], timeout: float | None = None) -> Any:
        """Make a request, which gets its time limit in seconds, until it succeeds or cannot succeed."""
        seconds = timeout or (BUILD_SECONDS if self._lite else REQUEST_SECONDS)
        until, pause = time.monotonic() + seconds, 0.1
        while True:
            try:
                return request(seconds)
            except Exception as error:  # pymilvus raises errors of its own, of gRPC and of Python
                if time.monotonic() + pause > until or not self._can_recover(error, arguments):
                    raise self._explained(error) from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _can_recover(self, error: Exception, arguments: Sequence[Any]) -> bool:
        """Return whether a request may succeed when it is repeated, after what that needs was done."""
        if self._lite:
            return False
        text = _message(error)
        with contextlib.suppress(Exception):  # the next try reports what is wrong
            if _NOT_LOADED.search(text):
                # Milvus loads its collections when it is started again, in a while; Milvus Lite does not.
                if self.is_lite and arguments:
                    self._client.load_collection(arguments[0])
                return True
            if _is_unreachable(error, text):
                self._client = self._new_client()
        return _is_unreachable(error, text)

    def call_local(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the client that asks no server."""
        return getattr(self._client, method)(*arguments, **options)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
        self._release()

    def _release(self) -> None:
        if self.address.folder is not None:
            _lite.stop(self.address.folder)

    def _explained(self, error: Exception) -> CollectionError:
        """Return the error of a request as one sentence."""
        path, text = self.address.path, _message(error)
        code = str(getattr(error, "code", ""))
        if re.search(r"no space left|disk quota", text, re.IGNORECASE):
            return StorageError(f"The disk of {path} is full: free some space, then run the same command again.")
        if "DEADLINE" in code or re.search(r"deadline exceeded", text, re.IGNORECASE):
            return CollectionError(f"The Milvus of {path} did not answer in time: try again when it is less busy.")
        if "UNAUTHENTICATED" in code or re.search(r"auth(entication|orization)? check|unauth", text, re.IGNORECASE):
            return CollectionError(
                f"The Milvus of {path} refused the token: set {TOKEN_VARIABLE}=USER:PASSWORD to one that it accepts."
            )
        if _is_unreachable(error, text):
            return CollectionError(
                f"The Milvus of {path} cannot be reached: start it, or correct the address, and try again."
            )
        if _NOT_LOADED.search(text):
            return CollectionError(f"Milvus loads {path}, or builds its index: try again when that is done.")
        if re.search(r"collection not found|can't find collection|not exist", text):
            return CollectionError(f"{path} was deleted meanwhile: index again to create it.")
        if self._lite:
            return CollectionError(f"{path} cannot be read or written ({text}): move it elsewhere and index again.")
        return CollectionError(
            f"The Milvus of {path} refused a request ({text}): check that it is version 2.3 or newer and undamaged."
        )


def _is_unreachable(error: Exception, text: str) -> bool:
    code = str(getattr(error, "code", ""))
    return "UNAVAILABLE" in code or re.search(r"connect|unavailable|closed channel", text, re.IGNORECASE) is not None


def _client_class() -> Any:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC prints errors that are raised too
    try:
        if find_spec("milvus_lite") is None:  # both packages of the extra are there, or neither
            raise ImportError
        from pymilvus import MilvusClient
    except ImportError:
        raise CollectionError(
            "A collection in Milvus needs pymilvus: install it with `pip install 'pixmatcher[milvus]'`."
        ) from None
    # Errors are raised; pymilvus also prints each of them with a traceback.
    for name in ("pymilvus", "pymilvus.milvus_client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("milvus_lite").addHandler(logging.NullHandler())
    return MilvusClient


def _version(text: Any) -> tuple[int, ...] | None:
    """Return the numbers of a version such as v2.4.1; None if it has none, as that of Milvus Lite as a server."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", str(text))
    return tuple(map(int, match.groups())) if match else None


def _message(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error)
    return printable(" ".join(text.split())[:300])
