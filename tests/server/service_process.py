"""Run the service as a user does, or an application in a thread, and speak to it byte by byte."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastapi import FastAPI

from pixmatcher.server import Limits
from pixmatcher.server.serve import open_socket, server_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

PATIENCE = 60.0
"""Seconds that anything may take on a machine that is busy with other tests."""


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.02)


@dataclass
class Answer:
    """An answer as it came over the connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """The reason of a problem."""
        assert self.headers["content-type"] == "application/problem+json"
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["detail"]
        return str(problem["reason"])


def parse(received: bytes) -> list[Answer]:
    """Return the answers in the bytes that a server has sent; they have a length or are chunked."""
    answers = []
    while received:
        head, blank, received = received.partition(b"\r\n\r\n")
        assert blank, head
        lines = head.decode("latin-1").split("\r\n")
        status = re.fullmatch(r"HTTP/1\.1 (\d+) [\w '-]+", lines[0])
        assert status, lines[0]
        headers = dict(line.split(": ", 1) for line in lines[1:])
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size, _, received = received.partition(b"\r\n")
                part, received = received[: int(size, 16)], received[int(size, 16) + 2 :]
                body += part
                if not part:
                    break
        else:
            length = int(headers["content-length"])
            assert len(received) >= length, "the answer is cut off"
            body, received = received[:length], received[length:]
        answers.append(Answer(int(status[1]), headers, body))
    return answers


class Client:
    """A connection to a server on loopback."""

    opened: ClassVar[list[Client]] = []

    def __init__(self, port: int, sent: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.opened.append(self)
        self.send(sent)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def end_sending(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def read_until(self, text: bytes) -> bytes:
        """Return what the server sends, up to a piece that has this text in it."""
        received = b""
        while text not in received:
            part = self.socket.recv(65536)
            assert part, received
            received += part
        return received

    def read_answer(self) -> Answer:
        """Return one answer of a connection that stays open; it has a length."""
        head, _, body = self.read_until(b"\r\n\r\n").partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length, head
        while len(body) < int(length[1]):
            part = self.socket.recv(65536)
            assert part, "the answer is cut off"
            body += part
        (answer,) = parse(head + b"\r\n\r\n" + body)
        return answer

    def read_all(self) -> list[Answer]:
        """Return all answers, until the server closes the connection."""
        received = b""
        while True:
            try:
                part = self.socket.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            received += part
        self.socket.close()
        return parse(received)


def request(path: str, *headers: str, method: str = "GET", host: str = "localhost", body: bytes = b"") -> bytes:
    """Return a request as it is sent."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


CLOSE = "Connection: close"


def ask(port: int, path: str, *headers: str, method: str = "GET", host: str = "localhost", body: bytes = b"") -> Answer:
    """Send one request on a connection of its own, and return the answer."""
    (answer,) = Client(port, request(path, *headers, CLOSE, method=method, host=host, body=body)).read_all()
    return answer


@contextmanager
def serving(app: FastAPI, limits: Limits) -> Iterator[int]:
    """Serve an application in a thread of this process, and yield the port."""
    ready = threading.Event()
    server = server_of(app, limits, ready.set, app.state.server.streams)
    with open_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            assert ready.wait(PATIENCE)
            yield port
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextmanager
def closing_clients() -> Iterator[None]:
    """Close all connections that the block opens."""
    yield
    while Client.opened:
        Client.opened.pop().socket.close()


@dataclass
class Service:
    """A service in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    output: str
    log: Path

    def workers(self) -> set[int]:
        """Return the ids of the worker processes."""
        return children_of(self.process.pid)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def children_of(pid: int) -> set[int]:
    """Return the ids of the processes that a process has started and that are still there."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state != "Z":
            found.add(int(status.parent.name))
    return found


@contextmanager
def running_service(arguments: Sequence[str], log: Path) -> Iterator[Service]:
    """Run `pixmatcher serve` with these arguments on a free port; it must end without a traceback in its log."""
    state = str(log.with_name("state"))
    command = [sys.executable, "-m", "pixmatcher", "serve", "--port", "0", "--state", state]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env=os.environ | {"HOME": str(log.parent)},
        )
    assert process.stdout is not None
    try:
        output = ""
        while "Stop with" not in output:
            line = process.stdout.readline()
            assert line, log.read_text()
            output += line
        found = re.search(r"http://127\.0\.0\.1:(\d+)", output)
        assert found
        yield Service(process, int(found[1]), output, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        process.stdout.close()
    assert "Traceback" not in log.read_text(), log.read_text()
