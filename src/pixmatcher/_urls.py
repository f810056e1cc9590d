"""What a text has to look like to be a URL, how a URL may be shown, and the URLs of files on this machine."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote_to_bytes

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_FILE_SCHEME = re.compile(r"file:(?=/)", re.IGNORECASE)
_LOCAL = re.compile(r"//(?:localhost|127\.0\.0\.1)?(?=/)", re.IGNORECASE)
_DRIVE = re.compile(r"/[a-zA-Z][:|](?=/|$)")


def is_url(text: str) -> bool:
    """Return whether the text begins as a URL of any scheme (RFC 3986, 3.1), followed by `//`."""
    return _SCHEME.match(text) is not None


def without_password(url: str) -> str:
    """Return the URL as it may be shown, logged and stored: without user name and password."""
    before, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{before}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def is_file_url(text: str) -> bool:
    """Return whether the text begins as the URL of a file (RFC 8089): `file:/` in upper or lower case."""
    return _FILE_SCHEME.match(text) is not None


def file_url(path: str | os.PathLike[str]) -> str:
    """Return the URL of a file (RFC 8089), which consists of ASCII characters also if the path is not valid Unicode.

    A relative path is below the current folder. `path_of_file_url` returns the path again.
    """
    absolute = os.path.abspath(path)
    slashes = absolute.replace(os.sep, "/")
    return "file://" + ("" if slashes.startswith("/") else "/") + quote(os.fsencode(slashes), safe="/:!$&'()*+,;=@~")


def path_of_file_url(url: str) -> str:
    """Return the path of the file that a URL names (RFC 8089): `file:///path`, `file://localhost/path`, `file:/path`.

    Escapes such as %20 are bytes of the path. `?` and `#` are part of it: a file has neither query nor fragment.
    Raises `ValueError` if it names a file of another machine, or no path; the message does not contain the URL.
    """
    scheme = _FILE_SCHEME.match(url)
    if scheme is None:
        raise ValueError("it does not begin with file:/")
    rest = url[scheme.end() :]
    if rest.startswith("//"):
        host = _LOCAL.match(rest)
        if host is None:
            raise ValueError("it names a file of another machine: write file:/// and the path")
        rest = rest[host.end() :]
    path = os.fsdecode(unquote_to_bytes(rest.encode("utf-8", "surrogateescape")))
    if "\0" in path:
        raise ValueError("it contains a zero byte")
    if os.name == "nt" and _DRIVE.match(path):
        path = path[1] + ":" + path[3:]
    return path
