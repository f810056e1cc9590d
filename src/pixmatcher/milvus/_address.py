"""Where a collection is kept: in a folder of Milvus Lite, or under a name on a Milvus server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .._urls import UrlPath, without_password
from ..errors import CollectionError

DEFAULT_PORT = 19530
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
"""What Milvus allows as the name of a collection; it is shorter, as endings are added."""
_LITE_NAME = "pixmatcher"


@dataclass(frozen=True)
class Address:
    """`path` names the collection in messages. `folder` is that of Milvus Lite; a server has the URL `server`.

    `name` is the name of the collection in Milvus.
    """

    path: Path
    name: str
    folder: Path | None = None
    server: str = ""

    @property
    def home(self) -> str:
        """The folder to which relative uris of items are relative."""
        return os.getcwd() if self.folder is None else str(self.folder.parent)


def parse_address(rest: str) -> Address:
    """Return the address that `milvus:REST` names. Raises `CollectionError` if it names none."""
    if rest.startswith("//"):
        return _server_address(f"http:{rest}", f"milvus:{rest}")
    if rest.startswith(("http://", "https://")):
        return _server_address(rest, f"milvus:{rest}")
    if not rest:
        raise CollectionError("milvus: names no collection: write milvus:PATH or milvus://HOST:19530/NAME.")
    folder = Path(os.path.abspath(rest))
    return Address(Path(f"milvus:{rest}"), _LITE_NAME, folder)


def _server_address(url: str, text: str) -> Address:
    shown = without_password(text)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host = None
    if not host or parts.query or parts.fragment:
        raise CollectionError(f"{shown} is no address of a Milvus server: write milvus://HOST:19530/NAME.")
    if parts.username is not None:
        raise CollectionError(
            f"The address {shown} must not contain a password: set PIXMATCHER_MILVUS_TOKEN=USER:PASSWORD instead."
        )
    name = parts.path.strip("/")
    if not _NAME.fullmatch(name):
        raise CollectionError(
            f"{shown} names no collection of the Milvus server: write milvus://HOST:19530/NAME, where NAME consists of "
            "letters, digits and _."
        )
    bracketed = f"[{host}]" if ":" in host else host
    return Address(UrlPath(text), name, server=f"{parts.scheme}://{bracketed}:{port}")
