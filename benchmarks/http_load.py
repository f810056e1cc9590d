"""A client that loads an HTTP service and costs little of the processor: plain asyncio on uvloop.

`run_load` runs it in a process of its own, so that it shares no lock of Python with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import cast

MAX_CONNECTIONS = 1024
"""The most connections of a load with a constant rate."""


class Connection(asyncio.Protocol):
    """A connection that is kept alive, with one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._length = -1
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self._status = 0
        self._transport: asyncio.Transport | None = None
        self.head = b""
        """The status line and the headers of the last answer, in small letters."""
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop is of another class

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send a request; return the future of its status and body. Status 0: the connection was closed instead."""
        assert self._transport is not None
        self._waiter = asyncio.get_running_loop().create_future()
        if self.closed:
            self._waiter.set_result((0, b""))
        else:
            self._transport.write(request)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._buffer += data
        if self._length < 0:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head = bytes(self._buffer[:end]).lower()
            self._status = int(self.head[9:12])
            place = self.head.find(b"\r\ncontent-length:")
            if place >= 0:
                self._length = int(self.head[place + 17 :].split(b"\r\n", 1)[0])
            else:
                self._length = 0
            del self._buffer[: end + 4]
            if self.head.startswith(b"http/1.0") or b"\r\nconnection: close" in self.head:
                self.closed = True
        if len(self._buffer) >= self._length:
            body = bytes(self._buffer[: self._length])
            del self._buffer[: self._length]
            self._length = -1
            self._answer(self._status, body)

    def connection_lost(self, error: Exception | None) -> None:
        """Answer the request under way, if any, with the status 0."""
        self.closed = True
        self._answer(0, b"")

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _answer(self, status: int, body: bytes) -> None:
        if self.closed:
            self.close()
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result((status, body))


async def connect(port: int) -> Connection:
    """Return a new connection to a port of this machine."""
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


def post(path: str, body: bytes, content_type: str = "application/json", token: str = "") -> bytes:
    """Return a POST request."""
    extra = f"authorization: Bearer {token}\r\n" if token else ""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{extra}content-type: {content_type}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, method: str = "GET") -> bytes:
    """Return a request without a body."""
    return f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


@dataclass
class Load:
    """What a load has measured. Times are in seconds."""

    seconds: float
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    """The time of each answer with the status 200; with a constant rate, from the planned time of sending."""
    refused_times: list[float] = field(default_factory=list)
    """The time of each other answer."""
    processor: float = 0.0
    """The processor time of the client."""
    unsent: int = 0
    """Requests that were planned but not sent, since all connections were busy."""

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.statuses[200] / self.seconds

    def at(self, share: float) -> float:
        """Return the time that this share of good answers does not exceed."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def count(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.statuses[status] += 1
        (self.times if status == 200 else self.refused_times).append(seconds)


def run_load(port: int, requests: Sequence[bytes], seconds: float, *, clients: int = 0, rate: float = 0.0) -> Load:
    """Load a service from another process, with `clients` that each ask again when answered, or a constant `rate`.

    The requests are sent in order, each once; there must be enough of them. The first tenth of the time is not counted.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_load, port, requests, seconds, clients, rate).result()


def _load(port: int, requests: Sequence[bytes], seconds: float, clients: int, rate: float) -> Load:
    import uvloop

    before = resource.getrusage(resource.RUSAGE_SELF)
    work = _closed_loop(port, requests, seconds, clients) if clients else _open_loop(port, requests, seconds, rate)
    load = uvloop.run(work)
    after = resource.getrusage(resource.RUSAGE_SELF)
    load.processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return load


async def _closed_loop(port: int, requests: Sequence[bytes], seconds: float, clients: int) -> Load:
    load = Load(seconds * 0.9)
    left = iter(requests)
    started = time.perf_counter() + seconds * 0.1
    end = started + load.seconds

    async def client() -> None:
        connection = await connect(port)
        while time.perf_counter() < end:
            request = next(left, None)
            if request is None:
                raise RuntimeError("the load has too few requests")
            sent = time.perf_counter()
            status, _ = await connection.ask(request)
            done = time.perf_counter()
            if started <= done <= end:
                load.count(status, done - sent)
            if connection.closed:
                connection = await connect(port)
            if status == 429:
                await asyncio.sleep(0.05 + 0.1 * random.random())  # a client that ignores Retry-After: the worst case
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return load


async def _open_loop(port: int, requests: Sequence[bytes], seconds: float, rate: float) -> Load:
    load = Load(seconds * 0.9)
    idle: deque[Connection] = deque()
    opened = 0
    under_way: set[asyncio.Task[None]] = set()
    begin = time.perf_counter()

    async def send(request: bytes, planned: float) -> None:
        nonlocal opened
        connection = None
        while idle and connection is None:
            candidate = idle.pop()
            if candidate.closed:
                opened -= 1
            else:
                connection = candidate
        if connection is None:
            opened += 1
            connection = await connect(port)
        status, _ = await connection.ask(request)
        if planned >= begin + 0.1 * seconds:
            load.count(status, time.perf_counter() - planned)
        idle.append(connection)

    for number, request in enumerate(requests):
        planned = begin + number / rate
        if planned > begin + seconds:
            break
        while (wait := planned - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if not idle and opened >= MAX_CONNECTIONS:
            load.unsent += 1
            continue
        task = asyncio.ensure_future(send(request, planned))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    else:
        raise RuntimeError("the load has too few requests")
    await asyncio.gather(*under_way)
    for connection in idle:
        connection.close()
    return load


def json_post(path: str, values: object) -> bytes:
    """Return a POST request with a JSON body."""
    return post(path, json.dumps(values).encode())
