"""What a text has to look like to be a URL, how a URL may be shown, and the file or the data that some URLs contain."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import QueryError

_HERE: type[Path] = type(Path())

if TYPE_CHECKING:
    _LocalPath = Path
else:
    _LocalPath = _HERE


class UrlPath(_LocalPath):
    """A URL as the path of a collection, for messages: a path alone would join the slashes of http://."""

    def __str__(self) -> str:
        return super().__str__().replace("\\", "/").replace(":/", "://", 1)


_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_FILE = re.compile(r"file:(?=/)", re.IGNORECASE)
_DATA = re.compile(r"data:(?:[a-z]+/[a-z0-9.+*-]+\s*(?:[;,]|$)|;|,)", re.IGNORECASE)
"""Matches the beginning of a data URL, also of one that is cut short; no text with words after "data:"."""
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_SHOWN_CHARACTERS = 40


def is_url(text: str) -> bool:
    """Return whether the text begins as a URL of any scheme (RFC 3986, 3.1), followed by `//`."""
    return _SCHEME.match(text) is not None


def without_password(url: str) -> str:
    """Return the URL as it may be shown, logged and stored: without user name and password."""
    before, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{before}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def is_file_url(text: str) -> bool:
    """Return whether the text is a URL of a file (RFC 8089): `file:///PATH`, `file://HOST/PATH` or `file:/PATH`."""
    return _FILE.match(text) is not None


def file_url(path: str | os.PathLike[str]) -> str:
    """Return the URL of a file (RFC 8089), which consists of ASCII characters also if the path is not valid Unicode.

    A relative path is below the current folder. `path_of_file_url` returns the path again. Raises `UnicodeEncodeError`
    if no bytes have this path.
    """
    from urllib.parse import quote  # most names need no URL

    slashes = os.path.abspath(path).replace(os.sep, "/")
    return "file://" + ("" if slashes.startswith("/") else "/") + quote(os.fsencode(slashes), safe="/:!$&'()*+,;=@~")


def path_of_file_url(url: str) -> str:
    """Return the path in a URL of a file, %XX decoded; bytes that are not UTF-8 as `os.fsdecode` returns them.

    Raises `QueryError` if it is the URL of a file on another machine, or names no file.
    """
    from urllib.parse import unquote  # most queries need none of it

    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost", "127.0.0.1"):
            raise QueryError(f"{url} is on another machine, {host}: copy the file to this one, or give its path here.")
        rest = slash + path
    # A question mark or # that is not encoded can only be part of the name: a file has no query and no fragment.
    path = unquote(rest, errors="surrogateescape")
    if not path or "\0" in path:
        raise QueryError(f"{url} names no file: write it like file:///home/me/photo.jpg.")
    if os.name == "nt" and re.match(r"/[a-zA-Z]:", path):
        path = path[1:]
    return path


def local_path(text: str) -> str:
    """Return the path in a URL of a file, and any other text as it is. Raises as `path_of_file_url`."""
    return path_of_file_url(text) if is_file_url(text) else text


def is_data_url(text: str) -> bool:
    """Return whether the text begins as a data URL (RFC 2397), such as `data:image/png;base64,`."""
    return _DATA.match(text) is not None


def shown_data_url(url: str) -> str:
    """Return the beginning of a data URL, as messages and results show it."""
    return url if len(url) <= _SHOWN_CHARACTERS else f"{url[:_SHOWN_CHARACTERS]}..."


def bytes_of_data_url(url: str, max_bytes: int) -> bytes:
    """Return the data in a data URL (RFC 2397), at most `max_bytes`.

    Padding may be missing, base64 may contain spaces and line ends, and may be in the alphabet for URLs.
    Raises `QueryError` if there is no valid data, or more.
    """
    import binascii
    from urllib.parse import unquote_to_bytes

    shown = shown_data_url(url)
    head, comma, data = url.partition(",")
    if not comma or not data.strip():
        raise QueryError(
            f"The data URL {shown} has no data: copy all of it, it looks like data:image/png;base64,iVBO..."
        )
    too_large = QueryError(f"The data URL {shown} is larger than {max_bytes >> 20} MB: save the image as a file.")
    is_base64 = head.lower().rstrip().endswith(";base64")
    # What a byte takes: one character, or three as %XX; in base64 a third more, and there may be line ends. This comes
    # first, as decoding takes seconds.
    if len(data) - 2 * data.count("%") > (max_bytes * 1.5 + 1024 if is_base64 else max_bytes):
        raise too_large
    content = unquote_to_bytes(data.encode("utf-8", "surrogatepass"))
    if is_base64:
        content = b"".join(content.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        if _NOT_BASE64.search(content) or len(content) % 4 == 1:
            raise QueryError(f"The data URL {shown} is not valid base64: copy all of it again.")
        content = binascii.a2b_base64(content + b"=" * (-len(content) % 4))
    if len(content) > max_bytes:
        raise too_large
    return content
