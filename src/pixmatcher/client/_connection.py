"""Requests to a service: its address, the token, time limits, retries, and answers of a bounded size."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from .._text import printable
from .._urls import without_password
from .._version import __version__
from ..errors import CollectionError
from ._errors import error_of

TOKEN_VARIABLE = "PIXMATCHER_TOKEN"
"""The environment variable with the token, if none is given."""
MAX_ANSWER_BYTES = 256 << 20
"""The most bytes of an answer."""
_MAX_LIST_BYTES = 2 << 30
"""The most bytes of all pages of a list. The largest one has the ids of all items: 11 bytes each."""
_MAX_PROBLEM_BYTES = 1 << 16
_ADDRESS = re.compile(r"(?P<prefix>.*)/c/(?P<name>[^/]+)/?")
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 90.0
_TRIES = 4
_MAX_WAIT_SECONDS = 20.0
"""The longest wait before another try. A service that asks for more gets no other try."""
_BUSY = (429, 503)
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Address:
    """Where a collection of a service is."""

    base: str
    """The URL of the service, with the prefix of a proxy."""
    name: str
    """The name of the collection."""

    @property
    def url(self) -> str:
        """The URL of the collection, as users write it."""
        return f"{self.base}/c/{quote(self.name)}"

    @property
    def route(self) -> str:
        """The URL below which the routes of the collection are."""
        return f"{self.base}/v1/collections/{quote(self.name, safe='')}"


def parse_address(url: str) -> Address:
    """Return the address that a URL such as http://HOST:8600/c/NAME names. Raises `CollectionError` if it is none."""
    shown = printable(without_password(url))
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (raises ValueError if it is no number)
    except ValueError as error:
        raise CollectionError(
            f"{shown} is not a valid URL ({error})", "write it like http://HOST:8600/c/NAME."
        ) from None
    match = _ADDRESS.fullmatch(parts.path)
    if parts.scheme not in ("http", "https") or not parts.hostname or match is None:
        raise CollectionError(
            f"{shown} does not name a collection of a service", "write it like http://HOST:8600/c/NAME."
        )
    if "@" in parts.netloc:
        raise CollectionError(
            f"The URL {shown} has a user name or password", f"give a token in the variable {TOKEN_VARIABLE} instead."
        )
    if parts.query or parts.fragment:
        raise CollectionError(f"The URL {shown} goes on after the name", "write it like http://HOST:8600/c/NAME.")
    name = unquote(match["name"])
    if name in (".", "..") or "/" in name or not name.isprintable():
        raise CollectionError(
            f"{shown} does not name a collection of a service", "write it like http://HOST:8600/c/NAME."
        )
    return Address(f"{parts.scheme}://{parts.netloc}{match['prefix']}", name)


@dataclass(frozen=True)
class Answer:
    """An answer of the service."""

    status: int
    headers: httpx.Headers
    content: bytes


class Connection:
    """A pool of connections to one service. Any thread may use it.

    The token is sent to this service alone: redirects are not followed, and no message has it.
    """

    def __init__(self, address: Address, token: str | None) -> None:
        """Raise `CollectionError` if the token, or a proxy or certificates of the environment, cannot be used."""
        self.address = address
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        headers = {"User-Agent": f"pixmatcher/{__version__}", "Accept-Encoding": "identity"}
        if token:
            if not _TOKEN.fullmatch(token):
                raise CollectionError(
                    "The token has spaces or characters that no token has", f"copy it again to {TOKEN_VARIABLE}."
                )
            headers["Authorization"] = f"Bearer {token}"
        self._has_token = bool(token)
        parts = urlsplit(address.base)
        try:
            self._http = httpx.Client(
                headers=headers,
                timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=16),
                follow_redirects=False,
                verify=httpx.create_ssl_context() if parts.scheme == "https" else True,
                # A proxy cannot reach this machine. The certificates of the environment count there too.
                trust_env=_LOOPBACK.fullmatch(parts.hostname or "") is None,
            )
        except (ImportError, ValueError, OSError) as error:  # SOCKS without its package, an invalid URL, a missing file
            raise CollectionError(
                f"The proxy or the certificates named in the environment cannot be used ({printable(str(error))})",
                "correct them.",
            ) from error

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def get(self, route: str, *, headers: Mapping[str, str] | None = None, missing: bool = False) -> Answer:
        """Return the answer to GET; with `missing`, also one of the status 404. Raises as `request`."""
        return self.request("GET", route, headers=headers, missing=missing)

    def json(self, method: str, route: str, values: Any = None) -> Any:
        """Return the JSON of an answer. Raises `CollectionError` if it is none, and as `request`."""
        answer = self.request(method, route, values)
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise self._not_a_service("its answer is not JSON") from None

    def pages(self, route: str) -> Iterator[dict[str, Any]]:
        """Yield the pages of a list, each with its `values`. Raises as `json`."""
        cursor, size = "", 0
        while True:
            content = self.get(f"{route}?cursor={cursor}" if cursor else route).content
            size += len(content)
            try:
                page = json.loads(content)
                following = page["next"]
                if following is not None and not int(following) > int(cursor or 0):
                    raise ValueError("a cursor does not lead on")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise self.not_valid(error) from error
            if size > _MAX_LIST_BYTES:
                raise self._not_a_service(f"its answer has more than {_MAX_LIST_BYTES:,} bytes")
            yield page
            if following is None:
                return
            cursor = str(int(following))

    def request(
        self,
        method: str,
        route: str,
        values: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        missing: bool = False,
    ) -> Answer:
        """Return the answer to a request with `values` as JSON. `route` begins below the collection, or with `/v1`.

        A service that is busy (429, 503) is asked again after the time that it names, and GET also after a broken
        connection. Raises the error of the library that the service had, and `CollectionError` if it cannot be
        reached, refuses the token or is no service.
        """
        for attempt in range(1, _TRIES + 1):
            last = attempt == _TRIES
            try:
                with self.stream(method, route, values, headers=headers) as response:
                    limit = MAX_ANSWER_BYTES if response.is_success else _MAX_PROBLEM_BYTES
                    answer = Answer(response.status_code, response.headers, self._content(response, limit))
            except httpx.TransportError as error:
                # A connection that was refused was not used; of other methods than GET, nobody knows what was done.
                if (
                    last
                    or isinstance(error, httpx.TimeoutException)
                    or not (method == "GET" or isinstance(error, httpx.ConnectError))
                ):
                    raise self._unreachable(error) from error
                if isinstance(error, httpx.ConnectError) and attempt > 1:
                    raise self._unreachable(error) from error
                time.sleep(0.2 * attempt)
                continue
            if answer.status in _BUSY and not last:
                wait = _seconds_to_wait(answer.headers.get("retry-after"))
                if wait is not None:
                    time.sleep(wait)
                    continue
            if 200 <= answer.status < 300 or (missing and answer.status == 404):
                return answer
            raise self._error(answer)
        raise AssertionError  # the last attempt returns or raises

    @contextlib.contextmanager
    def stream(
        self, method: str, route: str, values: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Yield a response whose content is not read yet. Raises `httpx.TransportError` if there is none."""
        url = f"{self.address.base}{route}" if route.startswith("/v1/") else f"{self.address.route}{route}"
        content = None if values is None else json.dumps(values).encode("ascii")
        sent = {**(headers or {}), **({} if content is None else {"Content-Type": "application/json"})}
        try:
            with self._http.stream(method, url, content=content, headers=sent) as response:
                yield response
        except (httpx.InvalidURL, httpx.DecodingError, httpx.TooManyRedirects) as error:
            raise self._not_a_service(str(error)) from error
        except RuntimeError as error:
            if not self._http.is_closed:
                raise
            raise CollectionError(f"The client of {self.address.url} is closed", "open it again.") from error

    def raise_for(self, response: httpx.Response) -> None:
        """Raise the error that a streamed response is, if it is one."""
        if not response.is_success:
            content = self._content(response, _MAX_PROBLEM_BYTES)
            raise self._error(Answer(response.status_code, response.headers, content))

    def _content(self, response: httpx.Response, limit: int) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._not_a_service("its answer is compressed, which was not asked for")
        parts, size = [], 0
        for part in response.iter_raw():
            size += len(part)
            if size > limit:
                raise self._not_a_service(f"its answer has more than {limit:,} bytes")
            parts.append(part)
        return b"".join(parts)

    def _error(self, answer: Answer) -> Exception:
        url, status = self.address.url, answer.status
        if 300 <= status < 400:
            place = printable(without_password(answer.headers.get("location", "another place")[:200]))
            return CollectionError(f"{url} redirects to {place}", "give the address of the service itself.")
        problem = _problem(answer)
        if status == 401:
            if self._has_token:
                return CollectionError(
                    f"The service refuses the token for {url}", f"set {TOKEN_VARIABLE} to a valid one."
                )
            return CollectionError(f"The service wants a token for {url}", f"set {TOKEN_VARIABLE} to one.")
        if status == 403 and "error" not in problem:
            return CollectionError(f"The service does not allow this for {url}", _detail(problem, "ask who runs it."))
        if not problem:
            return self._not_a_service(f"it answers with the status {status}")
        if status == 404 and problem.get("reason") == "not found":
            return CollectionError(
                f"The service at {self.address.base} does not have what this version of PixMatcher asks for",
                "update the service.",
            )
        if status == 404 and problem.get("reason") == "no such collection":
            return CollectionError(
                f"The service at {self.address.base} has no collection {printable(self.address.name)!r}",
                f"{self.address.base}/v1/collections lists them.",
            )
        return error_of(problem, url)

    def _unreachable(self, error: httpx.TransportError) -> CollectionError:
        if isinstance(error, httpx.TimeoutException):
            why = "it did not answer in time"
        elif isinstance(error, httpx.ConnectError):
            why = printable(str(error)) or "no connection"
        elif isinstance(error, httpx.ProtocolError):
            why = "the connection broke"
        else:
            why = printable(str(error)) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in why:
            return CollectionError(
                f"The certificate of {self.address.base} is not valid for this machine ({why})",
                "check the address; for an authority of your own, name its certificate in the variable SSL_CERT_FILE.",
            )
        return CollectionError(
            f"The service at {self.address.base} cannot be reached ({why})",
            "check the address and that `pixmatcher serve` runs there.",
        )

    def not_valid(self, error: Exception) -> CollectionError:
        """Return the error for an answer that is not what this version of the client understands."""
        return CollectionError(
            f"The answer of {self.address.url} is not valid ({type(error).__name__}: {printable(str(error))[:100]})",
            "use the same version of PixMatcher on both machines.",
        )

    def _not_a_service(self, why: str) -> CollectionError:
        return CollectionError(
            f"{self.address.base} is not a PixMatcher service ({why})", "check the address, or ask who runs it."
        )


def _problem(answer: Answer) -> dict[str, Any]:
    """Return the problem that an answer is, or {} if it is none."""
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return {}
    try:
        values = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _detail(problem: Mapping[str, Any], otherwise: str) -> str:
    detail = problem.get("detail")
    return printable(detail) if isinstance(detail, str) and detail else otherwise


def _seconds_to_wait(retry_after: str | None) -> float | None:
    """Return the seconds that a header asks to wait; None if it has none, or too many."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _MAX_WAIT_SECONDS else None
