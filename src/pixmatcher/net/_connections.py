"""HTTP over kept connections, each to an address that was checked, within limits of time and length.

This uses httpcore, the basis of httpx, without its pool, because that is faster. A request costs 0.4 ms of processor
time here; with the pool of httpcore 0.6 ms (16 connections) or 1.2 ms (64), with a client of httpx 0.8 or 2.3 ms, and
with their asynchronous variants 1.8 ms and more. 0.3 ms of that is h11, the HTTP parser.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx

from .._urls import without_password
from .._version import __version__
from ..errors import FetchError
from ._addresses import Resolver, is_public
from ._content_codings import CodingError, decoded_body

MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}
"""Statuses after which the same request may succeed later."""
_KEEP_SECONDS = 15.0
_SHORT = 64 << 10
"""The body of an error answer is read if it has at most so many bytes, so that the connection can be kept."""
_HEAD = 1024
"""The bytes of a decoded body that are looked at to recognise a web page."""
_LONGEST_COOKIE_HEADER = 8192
_WEB_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body|title|script)\b", re.I)
_NUMBER = re.compile(r"[0-9]{1,20}")
_TCP = httpcore.SyncBackend()

logger = logging.getLogger(__package__)


def parse_url(text: str) -> httpx.URL:
    """Parse a text as a URL. Raises `FetchError` if it is not a valid http or https URL."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise FetchError(
            f"{text} cannot be fetched ({error}): check the URL and the network.", "not a URL", str(error)
        ) from error
    if url.scheme not in ("http", "https"):
        raise FetchError(f"{url} is refused: only http and https URLs are fetched.", "not an http URL")
    if not url.host:
        raise FetchError(f"{url} has no host: give a complete URL.", "not a URL", "it has no host")
    if url.port is not None and url.port > 65535:
        raise FetchError(f"{url} has an invalid port: check the URL.", "not a URL", "it has an invalid port")
    return url


class Limits:
    """The limits of one fetch: seconds in all, bytes of the body, and seconds for each attempt to connect."""

    def __init__(self, url: str, seconds: float, max_bytes: int, connect_seconds: float = math.inf) -> None:
        self.url = url
        self.seconds = seconds
        self.max_bytes = max_bytes
        self.connect_seconds = connect_seconds
        self.deadline = time.monotonic() + seconds
        self.redirects = 0
        self._cookies: httpx.Cookies | None = None

    def remaining(self) -> float:
        """Return the seconds that are left. Raises `TimeoutError` if none are left."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def redirected(self) -> None:
        """Count a redirect. Raises `FetchError` if there are too many."""
        self.redirects += 1
        if self.redirects > MAX_REDIRECTS:
            raise FetchError(
                f"{self.url} redirects more than {MAX_REDIRECTS} times: give the final URL.", "too many redirects"
            )

    def keep_cookies(self, url: httpx.URL, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep the cookies that an answer sets, for the redirects of this fetch."""
        if any(name.lower() == b"set-cookie" for name, _ in headers):
            if self._cookies is None:
                # A cookie without a domain is for its host alone, and none is for a domain such as co.uk.
                strict = DefaultCookiePolicy.DomainStrictNonDomain
                policy = DefaultCookiePolicy(strict_domain=True, strict_ns_domain=strict)
                self._cookies = httpx.Cookies(CookieJar(policy))
            answer = httpx.Response(302, headers=list(headers), request=httpx.Request("GET", url))
            self._cookies.extract_cookies(answer)

    def forget_cookies(self) -> None:
        self._cookies = None

    def cookie_header(self, url: httpx.URL) -> bytes:
        """Return the cookies for a URL (RFC 6265); empty if there are none, or too many."""
        if self._cookies is None:
            return b""
        request = httpx.Request("GET", url)
        self._cookies.set_cookie_header(request)
        header = request.headers.get("Cookie", "").encode("latin-1", "ignore")
        return header if len(header) <= _LONGEST_COOKIE_HEADER else b""

    def received(self, count: int) -> None:
        """Called before `count` bytes more of a body are stored."""


class Connections:
    """A set of connections that threads may share. Up to `max_idle` are kept open for later requests."""

    def __init__(self, *, allow_private: bool, max_idle: int = 1) -> None:
        self._allow_private = allow_private
        self._max_idle = max_idle
        self._resolver = Resolver()
        self._lock = threading.Lock()
        self._closed = False
        self._active: set[_Connection] = set()
        self._idle: list[_Connection] = []
        """The connections that are not used now, sorted by their last use."""

    def get(self, url: httpx.URL, limits: Limits) -> bytes | httpx.URL:
        """Send one GET request; return the body of the answer, or the URL that it redirects to.

        `url` is from `parse_url`. Raises `FetchError` as `fetch.fetch` does.
        """
        if not logger.isEnabledFor(logging.DEBUG):
            return self._get_or_explain(url, limits)
        started, result = time.monotonic(), "failed"
        try:
            answer = self._get_or_explain(url, limits)
            result = f"{len(answer)} bytes" if isinstance(answer, bytes) else f"redirect to {_shown(answer)}"
        except FetchError as error:
            result = error.reason
            raise
        finally:
            logger.debug("GET %s: %s, %.2f s", _shown(url), result, time.monotonic() - started)
        return answer

    def _get_or_explain(self, url: httpx.URL, limits: Limits) -> bytes | httpx.URL:
        try:
            return self._get_once(url, limits)
        except (TimeoutError, httpcore.TimeoutException):
            seconds = f"longer than {limits.seconds:g} seconds"
            raise FetchError(
                f"{limits.url} took {seconds}: try again, or download it and give the file.", "took too long", seconds
            ) from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise FetchError(
                f"{limits.url} cannot be fetched ({error}): check the URL and the network.",
                "cannot be fetched",
                str(error),
                transient=not isinstance(error.__cause__, ssl.SSLCertVerificationError),
            ) from error

    def close(self) -> None:
        """End all requests and close all connections."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            active = list(self._active)
        for connection in idle:
            connection.close()
        for connection in active:
            connection.shut_down()

    def _get_once(self, url: httpx.URL, limits: Limits) -> bytes | httpx.URL:
        """Send a request on a free connection; return the body, or the URL of a redirect."""
        request = _request_for(url, limits.cookie_header(url))
        while True:
            connection = self._take(request.url.origin, limits)
            try:
                try:
                    response = connection.http.handle_request(request)
                except (httpcore.ReadError, httpcore.WriteError, httpcore.RemoteProtocolError):
                    if connection.is_reused:  # the server may close a connection just when it is used again
                        continue
                    raise
                try:
                    return _outcome(url, response, limits)
                finally:
                    response.close()
            finally:
                self._give_back(connection)

    def _take(self, origin: httpcore.Origin, limits: Limits) -> _Connection:
        """Return an idle connection to this origin (scheme, host and port), or a new one."""
        expired = []
        with self._lock:
            if self._closed:
                raise TimeoutError
            for position in range(len(self._idle) - 1, -1, -1):
                if self._idle[position].origin == origin:
                    taken = self._idle.pop(position)
                    if not taken.http.has_expired():
                        break
                    expired.append(taken)
            else:
                taken = _Connection(origin, self._addresses)
            taken.limits = limits
            self._active.add(taken)
        for connection in expired:
            connection.close()
        return taken

    def _give_back(self, connection: _Connection) -> None:
        surplus = [connection]
        with self._lock:
            self._active.discard(connection)
            if connection.http.is_idle() and not self._closed:
                connection.is_reused = True
                self._idle.append(connection)
                surplus = self._idle[: -self._max_idle]
                del self._idle[: -self._max_idle]
        for unused in surplus:
            unused.close()

    def _addresses(self, host: str, port: int, limits: Limits) -> list[str]:
        """Return the addresses of a host, one or more, after the check that all of them are allowed."""
        try:
            addresses = self._resolver.addresses(host, port, limits.remaining())
        except TimeoutError:
            raise
        except OSError as error:
            raise FetchError(
                f"The host {host} is unknown: check the URL and the network.",
                "host not known",
                error.strerror or host,
                transient=error.errno == socket.EAI_AGAIN,
            ) from error
        if not self._allow_private and not all(map(is_public, addresses)):
            raise FetchError(
                f"{limits.url} is refused: {host} is a private or reserved address. "
                "Allow it with --allow-private-hosts.",
                "private address",
                f"{host}; --allow-private-hosts allows it",
            )
        return addresses


class _Connection(httpcore.NetworkBackend, httpcore.NetworkStream):
    """A connection to one origin. httpcore sends and receives its bytes through this object, within `limits`."""

    limits: Limits
    """The limits of the current request."""

    def __init__(self, origin: httpcore.Origin, addresses: Callable[[str, int, Limits], list[str]]) -> None:
        self.origin = origin
        self.is_reused = False
        """Whether it was opened for an earlier request."""
        self._addresses = addresses
        self._stream: httpcore.NetworkStream | None = None
        self.http = httpcore.HTTPConnection(
            origin,
            ssl_context=_ssl_context() if origin.scheme == b"https" else None,
            keepalive_expiry=_KEEP_SECONDS,
            network_backend=self,
        )

    def shut_down(self) -> None:
        """End the current request of another thread. Closing the socket would not wake that thread."""
        self.limits.deadline = 0.0
        if self._stream is not None:
            with suppress(OSError):  # already closed
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the checked addresses of the host that answers."""
        failure = ""
        addresses = self._addresses(host, port, self.limits)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            # An address that does not answer must leave time for the next ones.
            seconds = min(self.limits.remaining() / left, self.limits.connect_seconds)
            try:
                self._stream = _TCP.connect_tcp(address, port, seconds, socket_options=socket_options)
                return self
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = str(error)
        raise _no_answer(self.limits, host, failure)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        assert self._stream is not None
        seconds = min(self.limits.remaining(), self.limits.connect_seconds)
        try:
            self._stream = self._stream.start_tls(ssl_context, server_hostname, seconds)
        except httpcore.ConnectTimeout as error:
            raise _no_answer(self.limits, self.origin.host.decode("ascii"), str(error)) from error
        return self

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        assert self._stream is not None
        return self._stream.read(max_bytes, self.limits.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        assert self._stream is not None
        self._stream.write(buffer, self.limits.remaining())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return None if self._stream is None else self._stream.get_extra_info(info)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Return one context for all connections: loading the certificates takes longer than a request."""
    return httpx.create_ssl_context(trust_env=False)


def _no_answer(limits: Limits, host: str, failure: str) -> FetchError:
    return FetchError(
        f"{limits.url} cannot be fetched ({host} does not answer: {failure}): check the URL and the network.",
        "host does not answer",
        failure,
        transient=True,
    )


def _request_for(url: httpx.URL, cookies: bytes) -> httpcore.Request:
    """Return the GET request for a URL, with the value of the header `Cookie` if it is not empty."""
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", b"pixmatcher/" + __version__.encode("ascii")),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"identity"),
    ]
    if url.userinfo:
        name_and_password = f"{url.username}:{url.password}".encode()
        headers.append((b"Authorization", b"Basic " + b64encode(name_and_password)))
    if cookies:
        headers.append((b"Cookie", cookies))
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    return httpcore.Request(b"GET", target, headers=headers)


def _outcome(url: httpx.URL, response: httpcore.Response, limits: Limits) -> bytes | httpx.URL:
    """Return what `Connections.get` returns, for an answer whose body is not read yet."""
    status = response.status
    if 200 <= status < 300:
        return _read_body(response, limits)
    _drain(response)
    location = _header(response, b"location")
    if status in _REDIRECTS and location:
        limits.redirected()
        limits.keep_cookies(url, response.headers)
        try:
            return parse_url(str(url.join(location)))
        except (httpx.InvalidURL, ValueError) as error:
            raise FetchError(
                f"{limits.url} cannot be fetched (it redirects to an invalid URL): check the URL and the network.",
                "not a URL",
                f"it redirects to an invalid URL: {error}",
            ) from error
    phrase = HTTPStatus(status).phrase if status in list(HTTPStatus) else ""
    raise FetchError(
        f"{limits.url} answered {f'{status} {phrase}'.rstrip()}: check the URL.",
        f"HTTP {status}",
        phrase,
        transient=status in TEMPORARY_STATUSES,
        retry_after=_retry_after(response),
    )


def _read_body(response: httpcore.Response, limits: Limits) -> bytes:
    """Read the body of an answer, and decode it if it is compressed.

    Raises `FetchError` if it is too large, also decoded, a web page, or cannot be decoded.
    """
    too_large = FetchError(
        f"{limits.url} is longer than {limits.max_bytes >> 20} MB: download it and give the file.",
        "too large",
        f"longer than {limits.max_bytes >> 20} MB",
    )
    if _length(response) > limits.max_bytes:
        raise too_large
    web_page = FetchError(
        f"{limits.url} is a web page, not an image: give the URL of the image itself.",
        "not an image",
        "the server answered a web page",
    )
    body = bytearray()
    for chunk in response.iter_stream():
        if not body and is_web_page(_header(response, b"content-type"), chunk):
            raise web_page
        if len(body) + len(chunk) > limits.max_bytes:
            raise too_large
        limits.received(len(chunk))
        body += chunk
        limits.remaining()
    decoded_bytes = 0

    def store(count: int) -> None:
        nonlocal decoded_bytes
        decoded_bytes += count
        if decoded_bytes > limits.max_bytes:
            raise too_large
        limits.received(count)
        limits.remaining()

    try:
        decoded = decoded_body(bytes(body), _header(response, b"content-encoding"), store)
    except CodingError as error:
        raise FetchError(
            f"{limits.url} cannot be fetched ({error}): download it and give the file.", "damaged", str(error)
        ) from None
    if decoded_bytes and is_web_page(_header(response, b"content-type"), decoded[:_HEAD]):
        raise web_page
    return decoded


def is_web_page(kind: str, beginning: bytes) -> bool:
    """Return whether an answer is a web page, by its Content-Type (empty if it has none) and its first bytes."""
    if _WEB_PAGE.match(beginning):
        return True
    # Some servers call every file HTML. Text has no zero byte, but nearly all images have one at their beginning.
    return kind.strip().lower().startswith(("text/html", "application/xhtml+xml")) and b"\0" not in beginning


def _drain(response: httpcore.Response) -> None:
    """Read and discard the body of an answer if it is short, so that the connection can be kept."""
    if 0 <= _length(response) <= _SHORT:
        with suppress(TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
            for _ in response.iter_stream():
                pass


def _length(response: httpcore.Response) -> int:
    """Return the length of the body that the server reports; -1 if it reports none."""
    text = _header(response, b"content-length")
    return int(text) if _NUMBER.fullmatch(text) else -1


def _retry_after(response: httpcore.Response) -> float | None:
    """Return how many seconds the server asks to wait (RFC 9110, 10.2.3), or None."""
    text = _header(response, b"retry-after").strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _header(response: httpcore.Response, name: bytes) -> str:
    """Return the first header of a name, given in lower case; empty without one."""
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("utf-8", "replace")
    return ""


def _shown(url: httpx.URL) -> str:
    return without_password(str(url))
