"""The URLs of remote images: one normal form for each URL, and the version token of an image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv6Address
from typing import IO
from urllib.parse import quote, urlsplit

from ..errors import InvalidImageError

MAX_URL = 8192
"""Longest URL in characters; servers refuse longer ones."""
_CLEAN = re.compile(
    r"https?://[a-z0-9][a-z0-9.-]*(?::[0-9]{1,4})?/"
    r"[A-Za-z0-9._~!$&'()*+,;=:@/?-]*(?:%[0-9A-Fa-f]{2}[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)*"
)
"""Matches a URL that is in normal form already, as most are."""
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_EDGES = "".join(map(chr, range(33)))
"""The control characters and the space, which are removed from both ends of a URL."""
_UNQUOTED = "!$&'()*+,;=:@/%~[]|"
"""The characters of a path that browsers do not encode, besides letters, digits and `_.-`."""


def normal_url(text: str) -> str:
    """Return the http or https URL in `text` in a normal form, the same for all ways to write it.

    Scheme and host are in lower case, an international host in its ASCII form (punycode). Characters that a URL cannot
    contain (spaces, control characters, non-ASCII letters, a single %) are percent-encoded. The fragment is removed.
    Raises `ValueError`, whose text says what is wrong, if `text` is not such a URL.
    """
    if len(text) <= MAX_URL and _CLEAN.fullmatch(text):
        return text
    # As browsers do: https://url.spec.whatwg.org/#url-parsing
    text = re.sub(r"[\t\n\r]", "", text.strip(_EDGES))
    if not text:
        raise ValueError("it is empty")
    if len(text) > MAX_URL:
        raise ValueError(f"it is longer than {MAX_URL:,} characters")
    try:
        parts = urlsplit(text)
        port = parts.port
        scheme = parts.scheme
    except ValueError as error:
        raise ValueError(f"{shortened(text)}: {error}") from None
    if scheme not in ("http", "https"):
        what = f"{scheme} URLs are not fetched" if "://" in text else "it does not begin with http:// or https://"
        raise ValueError(f"{shortened(text)}: {what}")
    try:
        user = quote(_LONE_PERCENT.sub("%25", parts.netloc.rpartition("@")[0]), safe="!$&'()*+,;=:%~")
        path = quote(_LONE_PERCENT.sub("%25", parts.path), safe=_UNQUOTED) or "/"
        query = quote(_LONE_PERCENT.sub("%25", parts.query), safe=_UNQUOTED + "?")
    except UnicodeEncodeError:
        raise ValueError(f"{shortened(text)}: it contains an invalid character") from None
    host = _normal_host(parts.netloc, parts.hostname or "", text)
    return (
        f"{scheme}://{user + '@' if user else ''}{host}{'' if port is None else f':{port}'}{path}"
        f"{'?' if query else ''}{query}"
    )


def _normal_host(netloc: str, host: str, text: str) -> str:
    if "[" in netloc:
        try:
            return f"[{IPv6Address(host).compressed}]"
        except ValueError as error:
            raise ValueError(f"{shortened(text)}: {error}") from None
    if "\\" in netloc:  # browsers read it as a slash, other programs as a part of the user name
        host = ""
    if not host.isascii() and len(host) < 256:
        import httpx  # the client that fetches the URL must read the host in the same way

        try:
            host = httpx.URL(f"http://{host}/").raw_host.decode("ascii")
        except (httpx.InvalidURL, UnicodeError):
            host = ""
    if not _HOST.fullmatch(host) or len(host) > 255:
        raise ValueError(f"{shortened(text)}: it has no host")
    return host


def version_of(urls: Sequence[str], rotation: int = 0) -> str:
    """Return the version token of a remote image, which changes with its URLs and its rotation."""
    return hashlib.blake2b("\n".join((*urls, str(rotation))).encode(), digest_size=8).hexdigest()


def shortened(text: str, length: int = 80) -> str:
    """Return a value of a list for an error message: short, and without control characters."""
    return repr(text if len(text) <= length else text[:length] + "...")


def cannot_open(uri: str) -> AbstractContextManager[IO[bytes]]:
    """Raise `InvalidImageError`: a remote image has no file to open."""
    raise InvalidImageError("missing", f"{uri} is not in a file: it is fetched from its URLs")
