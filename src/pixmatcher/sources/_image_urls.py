"""What sources of remote images share: their URLs, their version tokens, and the options of their specs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from ipaddress import IPv6Address
from typing import IO
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from ..errors import InvalidImageError, SourceError

MAX_URL = 8192
"""Longest URL in characters; servers refuse longer ones."""
_CLEAN = re.compile(
    r"https?://[a-z0-9][a-z0-9.-]*(?::[0-9]{1,4})?/"
    r"[A-Za-z0-9._~!$&'()*+,;=:@/?-]*(?:%[0-9A-Fa-f]{2}[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)*"
)
"""A URL that is normal already, as nearly all are."""
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_EDGES = "".join(map(chr, range(33)))
"""The control characters and the space: none of them begins or ends a URL."""
_UNQUOTED = "!$&'()*+,;=:@/%~[]|"
"""What browsers leave as it is in paths, beside letters, digits and `_.-`."""


def normal_url(text: str) -> str:
    """The http or https URL that a list means by `text`, in one form for all ways to write it.

    Scheme and host are in lower case, the host of other letters in its ASCII form; what may not stand in a URL
    (spaces, control characters, letters beyond ASCII, a lone %) is percent-encoded; the fragment is left out.
    Raises `ValueError`, whose text says what is wrong, if it is no such URL.
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
        raise ValueError(f"{shown(text)}: {error}") from None
    if scheme not in ("http", "https"):
        what = f"{scheme} URLs are not fetched" if "://" in text else "it has no http:// or https:// in front"
        raise ValueError(f"{shown(text)}: {what}")
    try:
        user = quote(_LONE_PERCENT.sub("%25", parts.netloc.rpartition("@")[0]), safe="!$&'()*+,;=:%~")
        path = quote(_LONE_PERCENT.sub("%25", parts.path), safe=_UNQUOTED) or "/"
        query = quote(_LONE_PERCENT.sub("%25", parts.query), safe=_UNQUOTED + "?")
    except UnicodeEncodeError:
        raise ValueError(f"{shown(text)}: it holds what is no character") from None
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
            raise ValueError(f"{shown(text)}: {error}") from None
    if "\\" in netloc:  # browsers take it for a slash, others for a part of the name of a user
        host = ""
    if not host.isascii() and len(host) < 256:
        import httpx  # whoever fetches it must understand the host in the same way

        try:
            host = httpx.URL(f"http://{host}/").raw_host.decode("ascii")
        except (httpx.InvalidURL, UnicodeError):
            host = ""
    if not _HOST.fullmatch(host) or len(host) > 255:
        raise ValueError(f"{shown(text)}: it names no host")
    return host


def version_of(urls: Sequence[str], rotation: int = 0) -> str:
    """The version token of a remote image: another one when other bytes are to be fetched, or turned otherwise."""
    return hashlib.blake2b("\n".join((*urls, str(rotation))).encode(), digest_size=8).hexdigest()


def shown(text: str, length: int = 80) -> str:
    """A value of a list as an error may show it: short, and without characters that control a terminal."""
    return repr(text if len(text) <= length else text[:length] + "...")


def not_opened(uri: str) -> AbstractContextManager[IO[bytes]]:
    """What opening a remote image comes to. Raises `InvalidImageError`."""
    raise InvalidImageError("missing", f"{uri} is not in a file: it is fetched from its URLs")


def split_options(kind: str, rest: str, names: Sequence[str]) -> tuple[str, dict[str, str], str]:
    """Take the rest of a spec, `PATH?NAME=VALUE&NAME=VALUE`, apart: the absolute path, the options, the whole spec.

    The path may have a ? itself where there is such a file. Raises `SourceError` for options that are none.
    """
    path, query = rest, ""
    if "?" in rest and not os.path.lexists(rest):
        marks = [position for position, character in enumerate(rest) if character == "?"]
        at = next((mark for mark in reversed(marks) if os.path.lexists(rest[:mark])), marks[0])
        path, query = rest[:at], rest[at + 1 :]
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError:
        pairs = [(query, "")]
    options = dict(pairs)
    wrong = [name for name, value in pairs if name not in names or not value]
    if wrong or len(options) < len(pairs):
        allowed = ", ".join(f"{name}=" for name in names)
        raise SourceError(
            f"?{query} is not understood: behind the ? may stand {allowed} each once with a value, & between them."
        )
    path = os.path.abspath(path)
    return path, options, f"{kind}:{path}" + as_query({name: options[name] for name in names if name in options})


def as_query(options: Mapping[str, str]) -> str:
    """The options as they stand behind the path of a spec."""
    return "?" + urlencode(options, quote_via=quote, safe="/:") if options else ""
