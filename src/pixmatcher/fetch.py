"""Fetch an image from a URL that a user gave, without becoming a way into the private network."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import FetchError

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 25 << 20
TIMEOUT_SECONDS = 10.0
THREAD_NAME = "pixmatcher-fetch"
_MAX_REDIRECTS = 5
_PORTS = {"http": 80, "https": 443}


def is_url(text: str) -> bool:
    """Whether the text is meant as a URL, of whatever scheme."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.replace("+", "").replace("-", "").replace(".", "").isalnum()


def fetch(
    url: str,
    *,
    allow_private: bool = False,
    timeout: float = TIMEOUT_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> bytes:
    """Return what lies at `url`, an http or https URL, within `timeout` seconds in all.

    A host name is resolved once and its checked addresses are those connected to, at every redirect, so that a name
    cannot answer with a public address first and a private one then. Proxies are not used, for the same reason.

    Raises `FetchError` if the URL is refused (other scheme; private, loopback or reserved address unless
    `allow_private`), cannot be reached, answers anything but success, or is longer than `max_bytes`.
    """
    from concurrent.futures import Future
    from concurrent.futures import TimeoutError as FutureTimeoutError

    limit = _Limit(timeout)
    answer: Future[bytes] = Future()

    def work() -> None:
        try:
            answer.set_result(_download(url, allow_private, limit, max_bytes))
        except BaseException as error:  # whatever it is, the caller is the one to get it
            answer.set_exception(error)

    # The resolver knows no time limit, and those of httpx begin anew with each read, so that a server which sends a
    # byte now and then is never late. A daemon thread can be left to itself and does not keep the process from ending.
    threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
    try:
        return answer.result(max(0.0, limit.deadline - time.monotonic()))
    except (TimeoutError, FutureTimeoutError):  # two classes in Python 3.10
        raise FetchError(
            f"{url} took longer than {timeout:g} seconds: try again, or download it and give the file."
        ) from None
    finally:
        limit.shut()


class _Limit:
    """The time a fetch has, and the sockets to be shut when it is over."""

    def __init__(self, timeout: float) -> None:
        self.deadline = time.monotonic() + timeout
        self._sockets: list[socket.socket] = []

    def remaining(self) -> float:
        """The seconds that are left. Raises `TimeoutError` if there are none."""
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpx calls at every step of a request; new sockets are noted."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            if time.monotonic() >= self.deadline:  # the caller is gone and has shut what was noted until then
                self.shut()

    def shut(self) -> None:
        """End every read and write that waits: closing would not wake it, and the thread would stay."""
        for opened in list(self._sockets):
            with suppress(OSError):  # closed by now
                opened.shutdown(socket.SHUT_RDWR)


def _download(url: str, allow_private: bool, limit: _Limit, max_bytes: int) -> bytes:
    """What `fetch` returns. Raises `FetchError` as `fetch` does, and `TimeoutError` where it sees that time is over."""
    import httpx

    try:
        target = httpx.URL(url)
        with httpx.Client(trust_env=False, verify=True, headers={"Accept-Encoding": "identity"}) as client:
            for _ in range(_MAX_REDIRECTS + 1):
                response = _send(client, target, allow_private, limit)
                try:
                    if not response.has_redirect_location:
                        return _body(response, url, limit, max_bytes)
                    target = target.join(response.headers["Location"])
                finally:
                    response.close()
    except httpx.TimeoutException:
        raise TimeoutError from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise FetchError(f"{url} cannot be fetched ({error}): check the URL and the network.") from error
    raise FetchError(f"{url} redirects more than {_MAX_REDIRECTS} times: give the final URL.")


def _send(client: httpx.Client, url: httpx.URL, allow_private: bool, limit: _Limit) -> httpx.Response:
    """The answer, its body not read yet, of the first address of the host that can be connected to."""
    import httpx

    *others, last = _resolve(url, allow_private)
    for left, address in zip(range(len(others) + 1, 1, -1), others, strict=True):
        # An address that does not answer must leave time for those after it.
        request = _pinned_request(client, url, address, limit, limit.remaining() / left)
        with suppress(httpx.ConnectError, httpx.ConnectTimeout):
            return client.send(request, stream=True)
    return client.send(_pinned_request(client, url, last, limit, limit.remaining()), stream=True)


def _pinned_request(
    client: httpx.Client, url: httpx.URL, address: str, limit: _Limit, connect_seconds: float
) -> httpx.Request:
    """A request to an address that was checked, with the host's own name for TLS and for the server."""
    return client.build_request(
        "GET",
        url.copy_with(host=address),
        headers={"Host": url.netloc.decode("ascii")},
        extensions={
            "sni_hostname": url.raw_host.decode("ascii"),
            "timeout": dict.fromkeys(("read", "write", "pool"), limit.remaining()) | {"connect": connect_seconds},
            "trace": limit.trace,
        },
    )


def _resolve(url: httpx.URL, allow_private: bool) -> list[str]:
    """The addresses, one or more and all checked, of the host of a URL that may be fetched."""
    if url.scheme not in _PORTS:
        raise FetchError(f"{url} is refused: only http and https URLs are fetched.")
    if not url.host:
        raise FetchError(f"{url} names no host: give a whole URL.")
    try:
        found = socket.getaddrinfo(url.host, url.port or _PORTS[url.scheme], type=socket.SOCK_STREAM)
    except OSError as error:
        raise FetchError(f"The host {url.host} is not known: check the URL and the network.") from error
    addresses = [str(sockaddr[0]) for *_, sockaddr in found]
    if not allow_private and not all(map(_is_public, addresses)):
        raise FetchError(
            f"{url} is refused: {url.host} is a private or reserved address. Allow it with --allow-private-hosts."
        )
    return addresses


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        # NAT64 carries an IPv4 address in its last 32 bits (RFC 6052).
        if address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


def _body(response: httpx.Response, url: str, limit: _Limit, max_bytes: int) -> bytes:
    if not response.is_success:
        raise FetchError(f"{url} answered {response.status_code} {response.reason_phrase}: check the URL.")
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"{url} is longer than {max_bytes >> 20} MB: download it and give the file.")
        limit.remaining()
    return bytes(body)
