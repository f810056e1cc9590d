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
_BEGIN = re.compile(r"https?://", re.IGNORECASE)
_CLOSING = {'"': '"', "'": "'", "`": "`", "<": ">", "(": ")", "[": "]", "{": "}"}
_CLOSING |= {"\u201c": "\u201d", "\u201e": "\u201c\u201d", "\u2018": "\u2019", "\u201a": "\u2018\u2019"}
_CLOSING |= {"\u00ab": "\u00bb", "\u2039": "\u203a", "\u00bb": "\u00ab", "\u300c": "\u300d", "\uff08": "\uff09"}
"""The marks that close what another mark opens."""
_LEAD = re.compile(r"\s*(?:(?:[-*+\u2022]|\d{1,9}[.)])\s+)?(?:url:\s*|=)?", re.IGNORECASE)
"""What may be before a URL, besides an opening mark: the bullet or number of a list, `URL:`, `=` of a spreadsheet."""
_LINK = re.compile(r".*[\]=:]\s*|=hyperlink\(", re.IGNORECASE | re.DOTALL)
"""What is before the mark that opens the target of a link: `[text]` in Markdown, `<img src=` in HTML."""
_TRAILERS = frozenset(",;.'\")]}>`") | frozenset("".join(_CLOSING.values()))
_ILLEGAL = frozenset('">`')
"""The trailers that no URL contains (RFC 3986, 2)."""
_IMAGE_ENDING = re.compile(
    r"\.(?:jpe?g|jfif|png|gif|webp|avif|heic|heif|bmp|tiff?|svg|jxl|jp2)(?:\?[^,;)\]}]*)?[)\]}]*\Z", re.IGNORECASE
)
_EDGES = "".join(map(chr, range(33)))
"""The control characters and the space, which are removed from both ends of a URL."""
_UNQUOTED = "!$&'()*+,;=:@/%~[]|"
"""The characters of a path that browsers do not encode, besides letters, digits and `_.-`."""


def written_url(text: str, separator: str = "") -> str:
    """Return the URL in a text in which it is quoted or in brackets; any other text as it is.

    Such as `"URL"`, `<URL>` and `<URL:URL>` (RFC 3986, appendix C), `[text](URL)`, `![text](URL "title")`,
    `[URL](URL)`, `<img src="URL">`, `- URL` and `="URL"`. A bracket that the URL itself opened stays in it.
    Punctuation at the end is removed if the ending of an image file is before it, and so is `separator`, which ends
    every line of the list; otherwise it belongs to the URL, which may end so.
    """
    text = text.strip(_EDGES)
    begin = _BEGIN.search(text, 0, MAX_URL)
    if begin is None or len(text) > 2 * MAX_URL or (begin.start() == 0 and text[-1].isalnum()):
        return text
    before, url = text[: begin.start()], text[begin.start() :]
    if _LEAD.fullmatch(before):
        return _without_trailer(url, separator)
    marks = re.sub(r"url:\s*\Z", "", before, flags=re.IGNORECASE).rstrip()
    opening, around = marks[-1], marks[:-1]
    if opening not in _CLOSING or not (
        _LEAD.fullmatch(around) or _LINK.fullmatch(around) or all(mark in _CLOSING or mark.isspace() for mark in around)
    ):
        return text
    inside, after = _until_closed(url, opening)
    if opening == "[" and after.startswith("(") and _BEGIN.match(after, 1):  # the text of the link is a URL, too
        inside, _ = _until_closed(after[1:], "(")
    return inside


def _until_closed(url: str, opening: str) -> tuple[str, str]:
    """Return a URL up to the mark that closes `opening`, without a title, and the text after that.

    A mark that the URL itself opens and closes belongs to it.
    """
    depth = 1
    for position, character in enumerate(url):
        if character in _CLOSING[opening]:
            depth -= 1
            if depth == 0:
                titled = re.match(r"""(\S+)\s+["'(]""", url[:position])
                return (titled[1] if titled else url[:position]).strip(_EDGES + "<>"), url[position + 1 :]
        elif character == opening:
            depth += 1
    return url, ""


def _without_trailer(url: str, separator: str) -> str:
    """Return a URL without the punctuation after it that does not belong to it."""
    if separator and url.endswith(separator):
        return url[:-1].rstrip(_EDGES)
    shorter = url
    while shorter[-1] in _TRAILERS and not _closes_a_pair(shorter):
        shorter = shorter[:-1].rstrip(_EDGES)
    illegal = any(character in _ILLEGAL for character in url[len(shorter) :])
    return shorter if illegal or _IMAGE_ENDING.search(shorter[-200:]) else url


def _closes_a_pair(url: str) -> bool:
    """Return whether the bracket at the end of a URL closes one that the URL opened."""
    opening = {")": "(", "]": "[", "}": "{"}.get(url[-1])
    return opening is not None and url.count(opening) >= url.count(url[-1])


def separator_of(lines: Sequence[str]) -> str:
    """Return the comma or semicolon that ends all lines of a list, the last perhaps not; empty if there is none."""
    if len(lines) < 3:  # a single URL may end so
        return ""
    ends = {line.rstrip(_EDGES)[-1:] for line in lines[:-1]}
    return ends.pop() if len(ends) == 1 and ends <= {",", ";"} else ""


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
    if "\ufffd" in text:
        raise ValueError(f"{shortened(text)}: it contains bytes that are not in the encoding of the file")
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
