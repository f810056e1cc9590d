"""Read a large file from a URL in pieces, also across cut connections, slow servers and new versions of the file."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._urls import without_password
from .._version import __version__
from ..errors import FetchError
from ._addresses import is_public

if TYPE_CHECKING:
    import httpx

STALL_SECONDS = 30.0
_MIN_BYTES_PER_SECOND = 1000  # a server that is slower than this for STALL_SECONDS is given up
_RETRIES = 5
_BACKOFF_SECONDS = 0.5

logger = logging.getLogger(__package__)


@dataclass(frozen=True)
class Version:
    """What identifies one content of a URL: the validators that the server sent, and the length in bytes."""

    url: str
    etag: str | None
    modified: str | None
    length: int | None

    @property
    def validator(self) -> str | None:
        """The value for `If-Range`; None if the server guarantees no identical bytes (RFC 9110, 13.1.5)."""
        found = self.etag if self.etag and not self.etag.startswith("W/") else self.modified
        return found if found and found.isascii() else None  # other characters cannot be sent


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file and their position in it. A piece without bytes at position 0 means: begin again."""

    version: Version
    position: int
    data: bytes


class WrongContentError(FetchError):
    """The received bytes are not those of the requested file: they must be deleted."""


class _TemporaryError(Exception):
    """A failure after which the same request may succeed."""


def stream(
    url: str,
    *,
    known: Version | None = None,
    offset: int = 0,
    size: int | None = None,
    max_bytes: int | None = None,
    stall_seconds: float = STALL_SECONDS,
    content_is_checked: bool = False,
    token: str | None = None,
    on_response: Callable[[Mapping[str, str]], None] | None = None,
) -> Generator[Piece, None, None]:
    """Read an http or https URL in pieces, from `offset` on if the file there still is the version `known`.

    Cut connections, time-outs and temporary statuses are retried with growing pauses, as long as more bytes arrive. A
    retry continues at the last byte if the server supports that and guarantees the same bytes, or if
    `content_is_checked`, that is, if the caller would notice wrong bytes; otherwise it begins again. A server that
    sends less than 1 KB/s for `stall_seconds` is given up.

    Certificates are checked and the proxies of the environment are used. Up to five redirects are followed, but none
    from https to http, and none from a public address to a private one; a private address in `url` itself is allowed.
    Web pages, compressed answers, another length than `size`, and more than `max_bytes` are refused.
    A bearer `token` is sent to the scheme, host and port of `url`, and not to other ones after a redirect.
    `on_response` is called with the headers of every answer that is not a redirect, their names in lower case.

    Raises `FetchError` if the URL cannot be read. It is `transient` if the network is the cause; its `reason` is for
    example `HTTP 404` if the server refused.
    """
    import httpx

    request = _Request(url, known, offset, size, max_bytes, content_is_checked, token, on_response)
    with _client(stall_seconds) as client, _StallWatch(stall_seconds) as watch:
        while True:
            try:
                yield from request.send(client, watch)
                if not watch.stalled and request.is_complete():
                    if request.offset == 0:
                        assert request.known is not None
                        yield Piece(request.known, 0, b"")  # an empty file
                    return
                reason = "the connection was cut"
            except _TemporaryError as error:
                reason = str(error)
            except httpx.TimeoutException:
                reason = "it does not answer"
            except httpx.TransportError as error:
                reason = str(error) or "the connection was cut"
                if not request.was_answered and isinstance(error, (httpx.ConnectError, httpx.ProxyError)):
                    request.failures = _RETRIES  # a wrong name or port is not temporary
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                raise FetchError(f"{without_password(url)} cannot be downloaded ({error}): check the URL.") from error
            request.failures += 1
            if watch.stalled:
                reason = f"it sent next to nothing for {stall_seconds:g} seconds"
            elif request.failures <= _RETRIES:
                pause = _BACKOFF_SECONDS * 2 ** (request.failures - 1)
                logger.info("retry %s in %.1f s: %s", without_password(url), pause, reason)
                time.sleep(pause)
                continue
            raise FetchError(
                f"{without_password(url)} cannot be downloaded ({reason}): check the URL and the network, and run the "
                "same command again; what was received is kept.",
                "cannot be downloaded",
                reason,
                transient=True,
            )


@dataclass
class _Request:
    """What `stream` was asked for, and how far it has come after one or more attempts."""

    url: str
    known: Version | None
    offset: int
    size: int | None
    max_bytes: int | None
    content_is_checked: bool
    token: str | None
    on_response: Callable[[Mapping[str, str]], None] | None
    failures: int = 0
    """Failed attempts since the last new byte."""
    was_answered: bool = False

    def __post_init__(self) -> None:
        self._furthest = self.offset
        self._longest = min((limit for limit in (self.size, self.max_bytes) if limit is not None), default=sys.maxsize)

    def is_complete(self) -> bool:
        """Return whether all bytes were received, as far as the length is known."""
        assert self.known is not None
        return (self.size if self.known.length is None else self.known.length) in (None, self.offset)

    def send(self, client: httpx.Client, watch: _StallWatch) -> Iterator[Piece]:
        """Send one request from `offset` on, and yield what is received.

        Raises `_TemporaryError`, the errors of httpx, and `FetchError`.
        """
        headers = _range_headers(self.known, self.offset, self.content_is_checked)
        started = time.monotonic()
        with contextlib.closing(_response(client, self.url, headers, watch, self.token)) as response:
            self.was_answered = True
            if logger.isEnabledFor(logging.DEBUG):
                shown, seconds = without_password(self.url), time.monotonic() - started
                logger.debug("GET %s from byte %d: %d, %.2f s", shown, self.offset, response.status_code, seconds)
            known = self._check_response(response, headers)
            for data in response.iter_raw():
                if self.offset == 0:
                    self._check_beginning(response, data)  # before the caller discards what it has
                    yield Piece(known, 0, b"")
                if self.offset + len(data) > self._longest:
                    problem = length_problem(self.offset + len(data), self.size, self.max_bytes)
                    raise WrongContentError(f"{without_password(self.url)} {problem}.")
                yield Piece(known, self.offset, data)
                self.offset += len(data)
                watch.received += len(data)
                if self.offset > self._furthest:
                    self._furthest, self.failures = self.offset, 0

    def _check_response(self, response: httpx.Response, headers: Mapping[str, str]) -> Version:
        """Return the version of the file that the answer sends, and set `offset` to 0 if it begins again."""
        from ._connections import TEMPORARY_STATUSES

        if self.on_response is not None:
            self.on_response(response.headers)
        if response.status_code in TEMPORARY_STATUSES:
            raise _TemporaryError(f"it answered {response.status_code} {response.reason_phrase}")
        if self.known is None or not headers or not _continues(response, self.known, self.offset):
            self.offset = 0
            if headers and response.status_code in (206, 416):
                raise _TemporaryError("it has another file now")
            self.known = _new_version(response, self.url, self.size, self.max_bytes)
        return self.known

    def _check_beginning(self, response: httpx.Response, data: bytes) -> None:
        """Raise `FetchError` if the server sends a web page, such as the login page of a hotel's network."""
        from ._connections import is_web_page

        if is_web_page(response.headers.get("Content-Type", ""), data):
            raise FetchError(
                f"{without_password(self.url)} returns a web page instead of a file: check the URL and the network."
            )


def length_problem(length: int, size: int | None, max_bytes: int | None) -> str | None:
    """Return what is wrong with the length of a file, as the end of a sentence; None if it is right."""
    if size is not None and length != size:
        return f"returns {length:,} bytes instead of {size:,}, so it is not the requested file: give another URL"
    if max_bytes is not None and length > max_bytes:
        return f"returns more than {max_bytes:,} bytes, so it is not the requested file: give another URL"
    return None


class _StallWatch:
    """Ends the connections of a download that is too slow: the time limits of httpx allow a server that trickles."""

    _TICKS = 5  # so many slow intervals in a row end it: a process that was suspended has only one

    def __init__(self, seconds: float) -> None:
        self.received = 0
        self.stalled = False
        self._tick = seconds / self._TICKS
        self._sockets: list[socket.socket] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _StallWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember new sockets, to close them after a stall; httpx calls this at every step of a request."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self.stalled:
                self._shut_down()

    def _watch(self) -> None:
        """Shut the sockets down when too few bytes arrive for too long."""
        slow = before = 0
        while not self._over.wait(self._tick):
            slow = slow + 1 if self.received - before < _MIN_BYTES_PER_SECOND * self._tick else 0
            before = self.received
            if slow == self._TICKS:
                self.stalled = True
                self._shut_down()
                return

    def _shut_down(self) -> None:
        for opened in list(self._sockets):
            with contextlib.suppress(OSError):  # already closed
                opened.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _client(seconds: float) -> Iterator[httpx.Client]:
    """Yield a client that checks certificates and uses the proxies of the environment."""
    import httpx

    timeout = httpx.Timeout(seconds, connect=min(10.0, seconds))
    headers = {"User-Agent": f"pixmatcher/{__version__}", "Accept-Encoding": "identity"}
    try:
        client = httpx.Client(trust_env=True, verify=True, timeout=timeout, headers=headers)
    except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, an invalid URL, a missing file
        raise FetchError(
            f"The proxy or the certificates named in the environment cannot be used ({error}): correct them."
        ) from error
    with client:
        yield client


def _response(
    client: httpx.Client, url: str, headers: Mapping[str, str], watch: _StallWatch, token: str | None
) -> httpx.Response:
    """Follow the redirects and return the last answer, whose body is not read yet."""
    from ._connections import MAX_REDIRECTS, parse_url

    first = target = parse_url(url)
    for _ in range(MAX_REDIRECTS + 1):
        own = {"Authorization": f"Bearer {token}"} if token and _origin(target) == _origin(first) else {}
        request = client.build_request("GET", target, headers={**headers, **own}, extensions={"trace": watch.trace})
        response = client.send(request, stream=True)
        if not response.has_redirect_location:
            return response
        response.close()
        before, target = target, parse_url(str(target.join(response.headers["Location"])))
        shown, shown_target = without_password(url), without_password(str(target))
        logger.debug("%s redirects to %s", shown, shown_target)
        if before.scheme == "https" and target.scheme == "http":
            raise FetchError(f"{shown} redirects to {shown_target}, which is not encrypted: give another URL.")
        if _is_private(target) and not _is_private(first):
            raise FetchError(
                f"{shown} redirects to {shown_target}, a private or reserved address, which is refused: give that URL "
                "itself if it is the right one."
            )
    raise FetchError(f"{without_password(url)} redirects more than {MAX_REDIRECTS} times: give the final URL.")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL."""
    return url.scheme, url.host, url.port  # the port is None if it is the default of the scheme


def _is_private(url: httpx.URL) -> bool:
    try:
        found = socket.getaddrinfo(url.host, None, type=socket.SOCK_STREAM)
    except OSError:  # a name that only the proxy can resolve, or an unknown name
        return False
    return not all(is_public(str(sockaddr[0])) for *_, sockaddr in found)


def _range_headers(known: Version | None, offset: int, content_is_checked: bool) -> dict[str, str]:
    """Return the headers that request the bytes from `offset` on; none if these may be of another version."""
    if known is None or offset == 0 or not (known.validator or content_is_checked):
        return {}
    return {"Range": f"bytes={offset}-"} | ({"If-Range": known.validator} if known.validator else {})


def _continues(response: httpx.Response, known: Version, offset: int) -> bool:
    """Return whether the answer is the rest of the version `known`, from `offset` on."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (
        response.status_code == 206
        and content_range is not None
        and int(content_range[1]) == offset
        and (content_range[2] == "*" or known.length in (None, int(content_range[2])))
        # Some servers support Range but not If-Range.
        and response.headers.get("ETag", known.etag) == known.etag
        and response.headers.get("Last-Modified", known.modified) == known.modified
    )


def _new_version(response: httpx.Response, url: str, size: int | None, max_bytes: int | None) -> Version:
    """Return the version of the file that the answer sends. Raises `FetchError` if it sends none, or a wrong one."""
    shown = without_password(url)
    if response.status_code != 200:
        status = response.status_code
        raise FetchError(f"{shown} answered {status} {response.reason_phrase}: check the URL.", f"HTTP {status}")
    headers = response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError(f"{shown} returns the file only in compressed form: give another URL.")
    content_length = headers.get("Content-Length", "")
    length = int(content_length) if content_length.isdecimal() and "Transfer-Encoding" not in headers else None
    if length is not None and (problem := length_problem(length, size, max_bytes)):
        raise FetchError(f"{shown} {problem}.")
    return Version(shown, headers.get("ETag"), headers.get("Last-Modified"), length)
