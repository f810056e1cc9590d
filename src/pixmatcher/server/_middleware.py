"""What is checked before a route gets a request (host, token, limits), and the headers that every answer gets."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._problems import ProblemError, problem_of, problem_response, too_many_values
from ._tokens import CLIENT_KEY, OPEN_PATHS, SCOPE_KEY, TokenFile
from .settings import Limits, ServerSettings

_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
}
"""The headers of every answer that does not set them itself."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BODIES_AT_ONCE = 8
"""How many bodies of the greatest size the requests of a process may have together; they are kept in memory."""
_DRAIN_SECONDS = 2.0
"""How long the rest of a body is read and forgotten after a refusal.

Closing the connection with unread bytes would make the system of the client forget the refusal that it has received.
"""


def add_protection(app: FastAPI, settings: ServerSettings, streams: set[Callable[[], None]]) -> None:
    """Guard an application, and let scripts of the named web sites use it (CORS).

    Raises `PixMatcherError` if the token file cannot be used.
    """
    tokens = None if settings.token_file is None else TokenFile(settings.token_file)
    app.add_middleware(RequestGuard, settings=settings, tokens=tokens, streams=streams)
    if settings.origins:  # around the guard, so that these scripts can read its refusals
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "If-None-Match", "Last-Event-ID", "Range"),
            expose_headers=("ETag", "Content-Range", "Link", "Location", "Retry-After", "WWW-Authenticate"),
        )


class RequestGuard:
    """ASGI middleware around the whole application: it answers itself what must not reach a route."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, tokens: TokenFile | None, streams: set[Callable[[], None]]
    ) -> None:
        """Guard an application.

        `streams` gets a function for each answer that lasts as long as the client listens (server-sent events): it
        ends the answer, for a service that stops.
        """
        self._app = app
        self._limits = settings.limits
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._origins = frozenset(settings.origins)
        self._tokens = tokens
        self._streams = streams
        self._room = _Room(_BODIES_AT_ONCE * settings.limits.body_bytes)
        self._headers = dict(_HEADERS)
        if not settings.origins:
            self._headers[b"cross-origin-resource-policy"] = b"same-origin"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers: dict[bytes, bytes] = dict(scope["headers"])
            exchange = _Exchange(receive, send, self._headers, self._limits, self._room, self._streams)
            exchange.is_form = headers.get(b"content-type", b"").lstrip().lower().startswith(b"multipart/form-data")
            exchange.body_complete = (
                b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
            )
            try:
                self._check(scope, headers)
            except ProblemError as problem:
                await exchange.refuse(scope, problem)
                return
            await self._answer(scope, exchange)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        exchange.start_time(self._limits.seconds)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.is_ended:  # the service stops, and this request has no more time
                exchange.problem = ProblemError(
                    503, "service stops", "The service is being stopped: try again later.", {"retry-after": "10"}
                )
        except (_BodyRefused, ClientDisconnect):
            pass  # who has gone before the body was complete gets no answer
        finally:
            exchange.timer.cancel()
            exchange.free_room()
            self._streams.discard(exchange.end_stream)
        if exchange.problem is not None and not exchange.started:
            await exchange.refuse(scope, exchange.problem)
        elif exchange.is_ended and exchange.started and not exchange.complete:
            await exchange.send_raw({"type": "http.response.body"})  # the end of a stream of events

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Raise `ProblemError` if a request must not be answered, before its body is read."""
        self._check_host(scope, headers)
        if self._tokens is None:
            self._check_origin(scope, headers)
            scope[CLIENT_KEY] = f"address {(scope.get('client') or ('',))[0]}"
        elif scope["path"] not in OPEN_PATHS:
            if _count(scope, b"authorization") > 1:  # a proxy might have checked another one
                raise ProblemError(400, "token not valid", "The request must have one header Authorization.")
            token = self._tokens.authenticate(headers)
            scope[SCOPE_KEY], scope[CLIENT_KEY] = token.scope, f"token {token.name}"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise ProblemError(400, "length not valid", "The header Content-Length is not a number.")
        if int(length) > self._limits.body_bytes:
            raise _too_large(self._limits.body_bytes)

    def _check_host(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Refuse the names of other hosts: a web site may point its own name at this machine (DNS rebinding)."""
        host = headers.get(b"host")
        if host is None and scope["http_version"] == "1.0":
            return
        name = None if host is None or _count(scope, b"host") > 1 else _host_name(host)
        if name is None:
            raise ProblemError(400, "host not valid", "The request must name one host in the header Host.")
        if self._hosts and name not in self._hosts and not ("localhost" in self._hosts and _is_this_machine(name)):
            raise ProblemError(
                421,
                "host not allowed",
                "The service does not answer under this host name: it must be started with --allowed-host for it.",
            )

    def _check_origin(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a change that a script of another web site asks for; with tokens, no site can do that."""
        origin = headers.get(b"origin", b"").decode("latin-1")
        if scope["method"] in _SAFE_METHODS or not origin or origin in self._origins or "*" in self._origins:
            return
        # A proxy with TLS says so in this header, which the script of another site cannot set.
        scheme = headers.get(b"x-forwarded-proto", scope["scheme"].encode())
        if origin.encode("latin-1") != scheme + b"://" + headers.get(b"host", b""):
            raise ProblemError(
                403, "origin not allowed", "The service does not answer scripts of this web site: see --origin."
            )


def _count(scope: Scope, name: bytes) -> int:
    return sum(header == name for header, _ in scope["headers"])


@functools.lru_cache(maxsize=256)
def _host_name(host: bytes) -> str | None:
    """Return the name in a Host header, or None if it is not valid."""
    try:
        parts = urlsplit(f"//{host.decode('ascii')}")
        name, _ = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        return None
    return None if parts.path or parts.query or parts.fragment or "@" in parts.netloc else name or None


def _is_this_machine(name: str) -> bool:
    if name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _BodyRefused(Exception):  # noqa: N818
    """Ends the reading of a body that is too large, has too many values or finds no room."""


def _too_large(limit: int) -> ProblemError:
    return ProblemError(413, "body too large", f"The body may have at most {limit} bytes: send less at once.")


@dataclass
class _Room:
    """The bytes that the bodies of all requests may still have together."""

    left: int


class _Exchange:
    """One request and its answer."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        headers: Mapping[bytes, bytes],
        limits: Limits,
        room: _Room,
        streams: set[Callable[[], None]],
    ) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._limits = limits
        self._bytes_left = limits.body_bytes
        self._commas_left = limits.json_values
        self._room = room
        self._streams = streams
        self.is_form = False
        """Whether the body is a form with files, in which commas mean nothing."""
        self.body_complete = False
        self.started = False
        """Whether the client gets an answer already."""
        self.complete = False
        self.is_ended = False
        """Whether the task was cancelled by this service, and not by the server below it."""
        self.problem: ProblemError | None = None
        """What to answer instead of the answer of the route."""
        self.timer: asyncio.TimerHandle
        self._task: asyncio.Task[Any]

    def start_time(self, seconds: float) -> None:
        """Let the current task be cancelled unless an answer begins in time."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.timer = asyncio.get_running_loop().call_later(seconds, self._end_in_time)

    async def receive(self) -> Message:
        """Return the next part of the request."""
        message = await self._receive()
        if message["type"] == "http.request":
            part = message.get("body", b"")
            self._bytes_left -= len(part)
            self._room.left -= len(part)
            if not self.is_form:
                self._commas_left -= part.count(b",")
            if self._bytes_left < 0 or self._commas_left < 0:
                most = self._limits
                self.problem = _too_large(most.body_bytes) if self._bytes_left < 0 else too_many_values(most)
                raise _BodyRefused
            if self._room.left < 0:
                self.problem = ProblemError(
                    429, "too many requests", "Too many large requests arrive at once: try again.", {"retry-after": "1"}
                )
                raise _BodyRefused
            self.body_complete = not message.get("more_body", False)
        return message

    def free_room(self) -> None:
        """Leave the room of the body to other requests."""
        self._room.left += self._limits.body_bytes - self._bytes_left

    async def send(self, message: Message) -> None:
        """Send a part of the answer of a route, unless another answer was decided."""
        if self.problem is not None and not self.started:
            return
        if message["type"] == "http.response.start":
            self.started = True
            self.timer.cancel()
            headers = message["headers"] = [*message.get("headers", ())]
            present = {name for name, _ in headers}
            headers += [(name, value) for name, value in self._headers.items() if name not in present]
            if any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers):
                self._streams.add(self.end_stream)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        await self._send(message)

    async def send_raw(self, message: Message) -> None:
        """Send a part of an answer as it is."""
        await self._send(message)

    def _end_in_time(self) -> None:
        """Give up: the time for the request is over, and no answer has begun."""
        if self.started or self.problem is not None:
            return
        if self.body_complete:
            self.problem = ProblemError(
                503, "time limit", "The answer took longer than the service allows: try again.", {"retry-after": "1"}
            )
        else:
            self.problem = ProblemError(
                408, "request too slow", "The request did not arrive in time: send it faster, or less at once."
            )
        self._cancel()

    def end_stream(self) -> None:
        """End an answer that lasts as long as the client listens."""
        self._cancel()

    def _cancel(self) -> None:
        self.is_ended = True
        self._task.cancel()

    async def refuse(self, scope: Scope, problem: ProblemError) -> None:
        """Answer with a problem, and forget the rest of the body."""
        response = problem_response(problem_of(problem), problem.headers)
        headers = [*response.raw_headers]
        if not self.body_complete:
            headers.append((b"connection", b"close"))
        headers += [(name, value) for name, value in self._headers.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": problem.status, "headers": headers})
        body = b"" if scope["method"] == "HEAD" else bytes(response.body)
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        if not self.body_complete:
            await self._drain()
        await self._send({"type": "http.response.body"})

    async def _drain(self) -> None:
        end = time.monotonic() + _DRAIN_SECONDS
        while (left := end - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                return
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
