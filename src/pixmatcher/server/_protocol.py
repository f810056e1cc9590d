"""HTTP/1.1 on one connection: uvicorn's protocol, with limits for clients that are slow or do not speak HTTP."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ._problems import MEDIA_TYPE, ProblemError, problem_of
from .settings import Limits

_LEAST_BYTES = 16 << 10
"""How many bytes of an answer a client must take in `Limits.stall_seconds`."""

_MOST_PIPELINED = 32
"""How many requests of a connection wait for the answer before them; each takes some kilobytes of memory."""


class LimitedProtocol(HttpToolsProtocol):
    """A connection with limits. A subclass has them: `limited_protocol` makes it."""

    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._in_headers = False
        """Whether a part of the headers of a request has arrived."""
        self._in_body = False
        self._header_bytes = 0
        """The bytes of the headers that are parsed."""
        self._waiting_bytes = 0
        """The bytes that have arrived since the headers began, without those that arrived together with their begin."""
        self._refusal: ProblemError | None = None
        """Why the request that is being parsed is refused."""

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, or refuse a connection above the limit."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            busy = "The service has too many connections: try again later."
            self._refuse(ProblemError(503, "too many connections", busy, {"retry-after": "5"}))
        else:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        self._stop_header_timer()
        self._stop_stall_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a complete request also if the client has closed its side; what is not complete ends here."""
        if not self._is_answering():
            return False
        self.cycle.keep_alive = False
        return True

    def shutdown(self) -> None:
        """Close the connection as soon as its requests are answered."""
        if self._is_answering() or (self.cycle is not None and not self.cycle.response_complete):
            self.cycle.keep_alive = False
        else:
            self._close()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for too long."""
        self._close()

    def on_response_complete(self) -> None:
        """Begin the next request of a pipeline, or wait for one."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()

    def pause_writing(self) -> None:
        """Give a client that does not read some time."""
        super().pause_writing()
        self._start_stall_timer()

    def resume_writing(self) -> None:
        """Continue: the client has read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_stall_timer()

    def _is_answering(self) -> bool:
        """Return whether a request that has arrived completely is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _close(self) -> None:
        """Close the connection when it has sent what it has; a client that does not read cannot hold it open."""
        if not self.transport.is_closing():
            self.transport.close()
        self._start_stall_timer()

    def _start_stall_timer(self) -> None:
        if self._stall_timer is None:
            waiting = self.transport.get_write_buffer_size()
            self._stall_timer = self.loop.call_later(self.limits.stall_seconds, self._check_progress, waiting)

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _check_progress(self, before: int) -> None:
        self._stall_timer = None
        if self.transport.get_write_buffer_size() > before - _LEAST_BYTES:
            self.transport.abort()
        else:
            self._start_stall_timer()

    # Requests.

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        if not self._in_body or not self.cycle.response_complete:  # else it is a body that nobody waits for
            self._unset_keepalive_if_required()
        if not self._in_body and self._header_timer is None:
            self._start_header_timer()
        was_in_headers = self._in_headers
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("")
            return
        if was_in_headers and self._in_headers:
            self._waiting_bytes += len(data)
            if self._waiting_bytes > self.limits.header_bytes:
                self._refuse(self._headers_too_large())

    def _parse(self, data: bytes) -> None:
        """Parse data as HTTP/1.1. A request that asks for another protocol is parsed as if it did not.

        The parser cannot ignore the header Upgrade: it ends behind the headers and forgets the body. So another one
        gets the same request without this header.
        """
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    return
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Begin a request, or end the connection after the answers that are under way if too many wait for them."""
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._refusal = ProblemError(
                429, "too many requests", "Too many requests wait for the answers before them."
            )
            raise self._refusal  # ends the parsing
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = self._waiting_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Add a part of the URL."""
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        self._count_header(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer."""
        self._check_transfer_encoding()
        if self._asks_for_another_protocol():
            return  # it is parsed once more
        self._in_headers, self._in_body = False, True
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        if self._asks_for_another_protocol():
            return
        super().on_message_complete()
        self._in_body = False

    def _asks_for_another_protocol(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _check_transfer_encoding(self) -> None:
        """Refuse a body in a form that would be passed on as it is: compressed, for instance (RFC 9112, 6.1)."""
        values = [value for name, value in self.headers if name == b"transfer-encoding"]
        if not values:
            return
        if self.parser.get_http_version() != "1.1":
            self._refusal = ProblemError(
                400, "request not valid", "Only requests of HTTP/1.1 may have the header Transfer-Encoding."
            )
        elif [part.strip().lower() for part in b",".join(values).split(b",")] != [b"chunked"]:
            self._refusal = ProblemError(
                501,
                "transfer coding not supported",
                "The body may only have the transfer coding chunked: send it without compression.",
            )
        if self._refusal is not None:
            raise self._refusal  # ends the parsing

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        invalid = ProblemError(400, "request not valid", "This is not a valid request of HTTP/1.1.")
        self._refuse(self._refusal or invalid)

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > self.limits.header_bytes:
            self._refusal = self._headers_too_large()
            raise self._refusal  # ends the parsing

    def _headers_too_large(self) -> ProblemError:
        detail = f"The headers may have at most {self.limits.header_bytes} bytes."
        return ProblemError(431, "headers too large", detail)

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_seconds, self._headers_too_slow)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_too_slow(self) -> None:
        self._header_timer = None
        if self._is_answering():
            self._start_header_timer()  # the answer before it comes first
        else:
            self._refuse(ProblemError(408, "request too slow", "The headers of the request did not arrive in time."))

    def _refuse(self, problem: ProblemError) -> None:
        """Answer with a problem and close the connection, after the answers that are under way."""
        self._stop_header_timer()
        if self._is_answering():
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not self.transport.is_closing() and (self.cycle is None or self._is_between_answers()):
            self.transport.write(_as_response(problem))
        self._close()

    def _is_between_answers(self) -> bool:
        return self.cycle.response_complete or not self.cycle.response_started


def _as_response(problem: ProblemError) -> bytes:
    body = problem_of(problem).model_dump_json().encode()
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in problem.headers.items()),
        "connection: close",
    ]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def limited_protocol(limits: Limits) -> type[LimitedProtocol]:
    """Return the protocol with these limits."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
