"""How the service is run and protected: slow and hostile clients, limits, hosts, paths, workers and its end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from service_process import (
    CLOSE,
    PATIENCE,
    Client,
    Service,
    ask,
    closing_clients,
    request,
    running_service,
    serving,
    wait_until,
)

from pixmatcher import PixMatcherError, QueryError, index
from pixmatcher.cli import complete_app
from pixmatcher.server import Limits, ServerSettings, create_app
from pixmatcher.server.serve import open_socket
from pixmatcher.server.settings import locate_collections
from support import fill_up

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
LIMITS = Limits(
    body_bytes=100_000,
    header_bytes=4096,
    header_seconds=0.5,
    idle_seconds=0.5,
    stall_seconds=0.5,
    seconds=1.0,
    stop_seconds=20.0,
    connections=20,
)
LARGE = bytes(20 << 20)
"""More than the system keeps for a client that does not read."""


class Made:
    """What an application of the tests has seen."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.wait = threading.Event()


def application(settings: ServerSettings, made: Made) -> FastAPI:
    """Return the application of a service with more routes, which do what the tests need."""
    app = create_app(settings)

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/json")
    async def json_length(values: list[int]) -> dict[str, int]:
        return {"values": len(values)}

    @app.post("/unread")
    async def unread() -> dict[str, str]:
        return {"status": "not read"}

    @app.get("/waiting")
    async def waiting() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            made.ended.append("waiting")

    @app.get("/blocked")
    def blocked() -> dict[str, str]:
        made.wait.wait(60)
        return {"status": "late"}

    @app.get("/large")
    async def large() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            try:
                for start in range(0, len(LARGE), 65536):
                    yield LARGE[start : start + 65536]
            finally:
                made.ended.append("large")

        return StreamingResponse(parts(), headers={"content-length": str(len(LARGE))})

    @app.get("/whole")
    def whole() -> StreamingResponse:
        return StreamingResponse(iter([LARGE]), headers={"content-length": str(len(LARGE))})

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def forever() -> AsyncIterator[str]:
            try:
                yield "data: first\n\n"
                while True:
                    await asyncio.sleep(0.05)
                    yield "data: more\n\n"
            finally:
                made.ended.append("events")

        return StreamingResponse(forever(), media_type="text/event-stream")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret detail")

    return app


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    with closing_clients():
        yield


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


@pytest.fixture(scope="module")
def port(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server with small limits, which answers under the names of this machine only."""
    state = tmp_path_factory.mktemp("state")
    settings = ServerSettings({}, limits=LIMITS, hosts=("localhost", "127.0.0.1", "::1"), state_folder=state)
    with serving(application(settings, made), LIMITS) as port:
        yield port
        made.wait.set()


# Slow and silent clients.


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /healthz HTTP/1.1\r\nHost: local"])
def test_headers_that_do_not_arrive_end_the_connection(port: int, sent: bytes) -> None:
    (answer,) = Client(port, sent).read_all()
    assert (answer.status, answer.reason) == (408, "request too slow")
    assert answer.headers["connection"] == "close"


def test_headers_that_trickle_have_the_same_time(port: int) -> None:
    client = Client(port, b"GET /healthz HTTP/1.1\r\n")
    while not select.select([client.socket], [], [], 0.1)[0]:
        client.send(b"X: y\r\n")  # a limit that begins again with each byte would never be reached
    assert client.read_answer().status == 408


def test_an_idle_connection_is_closed_and_a_busy_one_is_kept(port: int) -> None:
    client = Client(port)
    for _ in range(3):
        client.send(request("/healthz"))
        assert client.read_answer().status == 200
    assert client.read_all() == []
    client = Client(port, request("/healthz"))
    assert client.read_answer().status == 200
    client.send(b"GET /heal")  # and then nothing
    assert [answer.status for answer in client.read_all()] == [408]


@pytest.mark.parametrize("path", ["/echo", "/json"])
def test_a_body_that_does_not_arrive_is_refused(port: int, path: str) -> None:
    head = request(path, "Content-Length: 100", "Content-Type: application/json", method="POST")
    (answer,) = Client(port, head + b"[1, ").read_all()
    assert (answer.status, answer.reason) == (408, "request too slow")


def test_an_answer_that_takes_too_long_is_replaced(port: int, made: Made) -> None:
    for path in ("/waiting", "/blocked"):
        answer = ask(port, path)
        assert (answer.status, answer.reason) == (503, "time limit")
        assert answer.headers["retry-after"] == "1"
    wait_until(lambda: "waiting" in made.ended)
    client = Client(port, request("/waiting"))
    assert client.read_answer().status == 503
    client.send(request("/healthz", CLOSE))  # the connection can still be used
    assert [answer.status for answer in client.read_all()] == [200]


@pytest.mark.parametrize("path", ["/large", "/whole"])
def test_a_client_that_does_not_read_is_dropped(port: int, made: Made, path: str) -> None:
    made.ended.clear()
    client = Client(port)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.send(request(path, CLOSE))
    if path == "/large":
        wait_until(lambda: "large" in made.ended)
    else:
        wait_until(lambda: open_connections(port) == 0)
    client.socket.close()


def open_connections(port: int) -> int:
    """Return how many connections a server in this process has."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = f":{port:04X}"
    return sum(fields[1].endswith(local) and fields[3] == "01" for fields in map(str.split, lines))


def test_a_client_that_reads_slowly_gets_all(port: int) -> None:
    """The limit is on silence, not on the time for the whole answer, which here takes some seconds."""
    client = Client(port)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    client.send(request("/whole", CLOSE))
    received = 0
    while part := client.socket.recv(1 << 20):
        received += len(part)
        time.sleep(0.05)
    assert received > len(LARGE)


def test_streams_of_events_have_no_limit_of_time(port: int, made: Made) -> None:
    client = Client(port, request("/events"))
    end = time.monotonic() + 2 * LIMITS.seconds
    received = b""
    while time.monotonic() < end:
        received += client.read_until(b"data")
    assert received.count(b"data: more") > 10
    made.ended.clear()
    client.socket.close()
    wait_until(lambda: "events" in made.ended)


def test_a_client_that_closes_its_side_gets_its_answer(port: int) -> None:
    client = Client(port, request("/healthz") + request("/nothing"))
    client.end_sending()
    assert [answer.status for answer in client.read_all()] == [200, 404]
    client = Client(port, request("/echo", method="POST", body=b"12345"))
    client.end_sending()
    (answer,) = client.read_all()
    assert json.loads(answer.body) == {"bytes": 5}


def test_a_client_that_closes_its_side_too_early_gets_none(port: int) -> None:
    for sent in (b"", b"GET /healthz HT", request("/echo", "Content-Length: 9", method="POST") + b"123"):
        client = Client(port, sent)
        client.end_sending()
        assert client.read_all() == []


def test_connections_above_the_limit_are_refused(port: int) -> None:
    wait_until(lambda: open_connections(port) == 0)
    clients = [Client(port, request("/events")) for _ in range(LIMITS.connections)]
    for client in clients:
        assert client.read_until(b"first").startswith(b"HTTP/1.1 200")
    (answer,) = Client(port).read_all()
    assert (answer.status, answer.reason) == (503, "too many connections")
    for client in clients:
        client.socket.close()
    wait_until(lambda: Client(port, request("/healthz", CLOSE)).read_all()[0].status == 200)


# Sizes.


@pytest.mark.parametrize("path", ["/echo", "/json", "/healthz", "/nothing"])
def test_a_body_that_says_that_it_is_too_large_is_not_read(port: int, path: str) -> None:
    client = Client(port, request(path, f"Content-Length: {10**12}", method="POST"))
    answer = client.read_answer()  # without a byte of the body
    assert (answer.status, answer.reason) == (413, "body too large")


@pytest.mark.parametrize("path", ["/echo", "/json"])
def test_a_body_that_turns_out_too_large_is_refused(port: int, path: str) -> None:
    client = Client(port, request(path, "Transfer-Encoding: chunked", "Content-Type: application/json", method="POST"))
    for _ in range(11):
        client.send(b"2710\r\n" + b"1" * 10_000 + b"\r\n")
    answer = client.read_answer()
    assert (answer.status, answer.reason) == (413, "body too large")


def test_a_body_of_the_largest_size_is_read(port: int) -> None:
    body = b"x" * LIMITS.body_bytes
    assert json.loads(ask(port, "/echo", method="POST", body=body).body) == {"bytes": LIMITS.body_bytes}
    assert ask(port, "/echo", method="POST", body=body + b"x").status == 413


def test_the_bodies_of_all_requests_have_only_so_much_room(port: int) -> None:
    def begin() -> Client:
        head = request("/echo", f"Content-Length: {LIMITS.body_bytes}", CLOSE, method="POST")
        return Client(port, head + bytes(LIMITS.body_bytes - 1))

    answers = [answer for client in [begin() for _ in range(12)] for answer in client.read_all()]
    assert sorted(answer.reason for answer in answers) == ["request too slow"] * 8 + ["too many requests"] * 4
    assert ask(port, "/echo", method="POST", body=bytes(LIMITS.body_bytes)).status == 200, "there is room again"


def test_a_client_that_sends_on_receives_the_refusal(port: int) -> None:
    """Closing a connection with unread bytes resets it, and the client would lose the refusal."""
    client = Client(port, request("/echo", method="POST", body=b"x" * (5 << 20)))
    (answer,) = client.read_all()
    assert answer.status == 413


def test_a_body_that_no_route_reads_does_not_hold_the_connection(port: int) -> None:
    client = Client(port, request("/unread", "Content-Length: 90000", method="POST"))
    assert client.read_answer().status == 200

    def is_closed() -> bool:  # a limit that begins again with each byte would never be reached
        try:
            client.send(b"x")
        except ConnectionError:
            return True
        return False

    wait_until(is_closed)


@pytest.mark.parametrize("piece", [1, 1000, 10**6])
@pytest.mark.parametrize("sort", ["path", "one header", "many headers"])
def test_headers_that_are_too_large_are_refused(port: int, sort: str, piece: int) -> None:
    size = LIMITS.header_bytes + 2000
    if piece == 1:
        size = LIMITS.header_bytes + 200
    sent = {
        "path": f"GET /{'a' * size} HTTP/1.1\r\n",
        "one header": f"GET / HTTP/1.1\r\nHost: localhost\r\nX: {'a' * size}\r\n",
        "many headers": "GET / HTTP/1.1\r\nHost: localhost\r\n" + "X: y\r\n" * (size // 6 + 100),
    }[sort].encode()
    client = Client(port)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        for start in range(0, len(sent), piece):
            client.send(sent[start : start + piece])
        client.send(b"\r\n")
    except ConnectionError:
        pass  # it has been refused already
    (answer,) = client.read_all()
    assert (answer.status, answer.reason) == (431, "headers too large")


def test_a_large_body_before_another_request_is_no_large_header(port: int) -> None:
    body = b"x" * LIMITS.body_bytes
    client = Client(port, request("/echo", method="POST", body=body) + request("/healthz", CLOSE))
    assert [answer.status for answer in client.read_all()] == [200, 200]


# What is not HTTP.


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HELLO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
    ],
)
def test_what_is_not_valid_gets_a_short_answer(port: int, sent: bytes) -> None:
    (answer,) = Client(port, sent).read_all()
    assert answer.status in (400, 421)
    assert answer.reason in ("request not valid", "host not allowed")
    assert "Traceback" not in answer.body.decode()


def test_what_follows_a_request_does_not_spoil_its_answer(port: int) -> None:
    answers = Client(port, request("/healthz") + b"\x00\x01nothing of HTTP\r\n\r\n").read_all()
    assert answers[0].status == 200


def test_only_so_many_requests_of_a_connection_wait(port: int) -> None:
    client = Client(port, request("/waiting") + request("/healthz") * 2000)
    answers = client.read_all()
    assert [answer.status for answer in answers] == [503] + [200] * 32
    client = Client(port, request("/healthz") * 32 + request("/healthz", CLOSE))
    assert [answer.status for answer in client.read_all()] == [200] * 33


def test_another_protocol_is_not_spoken(port: int) -> None:
    headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13")
    assert Client(port, request("/healthz", *headers)).read_answer().status == 200


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")  # as curl --http2


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
def test_a_request_for_another_protocol_keeps_its_body(port: int, pieces: int) -> None:
    sent = request("/echo", *UPGRADE, method="POST", body=b"x" * 10)
    sent += request("/echo", *UPGRADE, "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n0\r\n\r\n"
    sent += request("/healthz", CLOSE)
    client = Client(port)
    for start in range(0, len(sent), pieces):
        client.send(sent[start : start + pieces])
    assert [answer.body for answer in client.read_all()] == [b'{"bytes":10}', b'{"bytes":3}', b'{"status":"ok"}']


@pytest.mark.parametrize(
    ("coding", "status"),
    [
        (("chunked",), 200),
        (("Chunked",), 200),
        (("gzip, chunked",), 501),
        (("gzip", "chunked"), 501),
        (("identity, chunked",), 501),
    ],
)
def test_a_body_of_another_transfer_coding_is_refused(port: int, coding: tuple[str, ...], status: int) -> None:
    headers = [f"Transfer-Encoding: {each}" for each in coding]
    sent = request("/echo", *headers, CLOSE, method="POST") + b"3\r\nabc\r\n0\r\n\r\n"
    (answer,) = Client(port, sent).read_all()
    assert answer.status == status
    if status != 200:
        assert answer.reason == "transfer coding not supported"


def test_a_request_of_the_older_version_has_no_transfer_coding(port: int) -> None:
    sent = b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    (answer,) = Client(port, sent).read_all()
    assert (answer.status, answer.reason) == (400, "request not valid")


def test_a_defect_is_reported_without_details(port: int) -> None:
    answer = ask(port, "/broken")
    assert (answer.status, answer.reason) == (500, "internal error")
    assert b"secret" not in answer.body


# Hosts, origins and paths.


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8600",
        "LOCALHOST",
        "localhost.",
        "127.0.0.1:80",
        "[::1]:8600",
        "app.localhost",
        "127.1.2.3",
    ],
)
def test_names_of_this_machine_are_allowed(port: int, host: str) -> None:
    assert ask(port, "/healthz", host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil-localhost", "10.0.0.1", "127.0.0.1.evil.example", "0x7f.1"]
)
def test_other_names_are_refused(port: int, host: str) -> None:
    answer = ask(port, "/healthz", host=host)
    assert (answer.status, answer.reason) == (421, "host not allowed")


@pytest.mark.parametrize(
    "host", ["", "localhost@evil.example", "evil.example@localhost", "localhost/x", "localhost:x", "[::1", "loc\xe4l"]
)
def test_what_is_no_host_is_refused(port: int, host: str) -> None:
    answer = ask(port, "/healthz", host=host)
    assert (answer.status, answer.reason) == (400, "host not valid")


def test_there_must_be_one_host(port: int) -> None:
    (answer,) = Client(port, f"GET /healthz HTTP/1.1\r\n{CLOSE}\r\n\r\n".encode()).read_all()
    assert answer.status == 400
    assert ask(port, "/healthz", "Host: evil.example").status == 400
    (answer,) = Client(port, b"GET /healthz HTTP/1.0\r\n\r\n").read_all()  # probes of load balancers
    assert answer.status == 200


def test_scripts_of_other_sites_change_nothing(port: int) -> None:
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost", 200),
        ("https://localhost", 403),
        ("http://localhost:80", 403),
    ):
        assert ask(port, "/echo", f"Origin: {origin}", method="POST", body=b"x").status == status
    behind_proxy = ("Origin: https://localhost", "X-Forwarded-Proto: https")
    assert ask(port, "/echo", *behind_proxy, method="POST", body=b"x").status == 200
    answer = ask(port, "/healthz", "Origin: https://evil.example")
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_named_sites_may_use_the_service(made: Made, tmp_path: Path) -> None:
    settings = ServerSettings({}, origins=("https://team.example",), state_folder=tmp_path)
    with serving(application(settings, made), settings.limits) as port:
        preflight = ("Origin: https://team.example", "Access-Control-Request-Method: POST")
        answer = ask(port, "/echo", *preflight, "Access-Control-Request-Headers: authorization", method="OPTIONS")
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == "https://team.example"
        answer = ask(port, "/echo", "Origin: https://team.example", method="POST", body=b"x")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://team.example")
        answer = ask(port, "/echo", "Origin: https://evil.example", method="POST", body=b"x")
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/docs/../../../etc/passwd",
        "/docs/%2e%2e/%2e%2e/etc/passwd",
        "/v1/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "//etc/passwd",
        "//docs",
        "/docs/",
        "/docs%00",
        "/%5c..%5c..",
        "/docs.html",
        "http://evil.example/etc/passwd",
    ],
)
def test_paths_lead_nowhere_else(port: int, path: str) -> None:
    answer = ask(port, path)
    assert (answer.status, answer.reason) == (404, "not found")
    assert "location" not in answer.headers


def test_every_answer_has_the_security_headers(port: int) -> None:
    for path in ("/healthz", "/nothing", "/docs", "/openapi.json"):
        answer = ask(port, path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


# Starting and stopping.


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with a collection."""
    folder = tmp_path_factory.mktemp("served") / "My Pictures"
    folder.mkdir()
    shutil.copy(PHOTOS / "cat.jpg", folder)
    index(folder)
    return folder


SLOW_SERVICE = """
import asyncio, sys
from pathlib import Path
from pixmatcher.server import Limits, ServerSettings, create_app
from pixmatcher.server.serve import open_socket, serve_app

settings = ServerSettings({}, limits=Limits(stop_seconds=float(sys.argv[1])), state_folder=Path(sys.argv[2]))
app = create_app(settings)

@app.get("/slow")
async def slow():
    print("asked", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return "answered"

@app.get("/events")
async def events():
    from fastapi.responses import StreamingResponse
    async def forever():
        yield "data: first\\n\\n"
        await asyncio.sleep(3600)
    return StreamingResponse(forever(), media_type="text/event-stream")

listening = open_socket("127.0.0.1", 0)
address = f"http://127.0.0.1:{listening.getsockname()[1]}"
sys.exit(serve_app(app, settings, listening, lambda: print(address, "Stop with", flush=True)))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_what_is_under_way_is_answered_at_the_end(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_SERVICE, "50", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        port = int(process.stdout.readline().split()[0].rpartition(b":")[2])
        slow, events = Client(port, request("/slow")), Client(port, request("/events"))
        idle = Client(port, request("/healthz"))
        assert idle.read_answer().status == 200
        assert process.stdout.readline() == b"asked\n"
        events.read_until(b"data: first\n\n\r\n")
        process.send_signal(number)
        assert idle.read_all() == []
        assert events.read_until(b"\r\n\r\n") == b"0\r\n\r\n"  # the stream ends as a whole answer

        def is_refused() -> bool:
            try:
                Client(port).socket.close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(is_refused)
        process.stdin.write(b"\n")
        process.stdin.flush()
        (answer,) = slow.read_all()
        assert (answer.status, answer.body) == (200, b'"answered"')
        assert process.wait(50) == 0
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("second", [None, signal.SIGINT])
def test_the_end_does_not_wait_for_ever(second: int | None, tmp_path: Path) -> None:
    """Neither after the limit of time nor after a second signal."""
    command = [sys.executable, "-c", SLOW_SERVICE, "0.5" if second is None else "3600", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split()[0].rpartition(b":")[2])
        idle, slow = Client(port, request("/healthz")), Client(port, request("/slow"))
        assert idle.read_answer().status == 200
        assert process.stdout.readline() == b"asked\n"
        process.send_signal(signal.SIGINT)
        assert idle.read_all() == []  # so the first signal was seen
        if second is not None:
            process.send_signal(second)
        else:
            (answer,) = slow.read_all()
            assert (answer.status, answer.reason) == (503, "service stops")
        assert process.wait(50) == (0 if second is None else 130)
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")


@pytest.fixture(scope="module")
def two_workers(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("workers") / "log"
    with running_service(["-c", str(pictures), "--workers", "2"], log) as service:
        yield service


@needs_proc
@pytest.mark.slow
def test_workers_share_the_connections_and_no_other_service_takes_the_port(two_workers: Service) -> None:
    def open_sockets(pid: int) -> int:
        links = (os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir())
        return sum(link.startswith("socket:") for link in links)

    before = {pid: open_sockets(pid) for pid in two_workers.workers()}
    with ExitStack() as opened:
        for _ in range(64):
            connection = HTTPConnection("127.0.0.1", two_workers.port, timeout=PATIENCE)
            opened.callback(connection.close)
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
        gained = [open_sockets(pid) - count for pid, count in before.items()]
    assert sum(gained) >= 64
    assert min(gained) >= 8
    with pytest.raises(PixMatcherError, match=r"^Port \d+ of 127\.0\.0\.1 cannot be used \(Address already in use\)"):
        open_socket("127.0.0.1", two_workers.port)


@needs_proc
@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(two_workers: Service) -> None:
    assert "My-Pictures" in two_workers.output
    for _ in range(2):
        before = two_workers.workers()
        assert len(before) == 2
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda before=before: len(two_workers.workers() - before) == 1)
        assert ask(two_workers.port, "/readyz").status == 200
    assert two_workers.log.read_text().count("a worker process has ended (status -9) and is replaced") == 2
    workers = two_workers.workers()
    assert two_workers.stop() == 0
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@needs_proc
@pytest.mark.slow
def test_workers_end_with_a_supervisor_that_is_killed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with running_service(["-c", str(pictures), "--workers", "2"], tmp_path / "log") as service:
        workers = service.workers()
        assert len(workers) == 2
        assert [*temporary.iterdir()]
        service.process.kill()
        wait_until(lambda: not [pid for pid in workers if Path(f"/proc/{pid}").exists()])
    assert not [*temporary.iterdir()], "the files of the counts are removed too"


COUNTED = (
    "/healthz",
    "/metrics",
    "/v1/collections",
    "/v1/collections/none",
    "/v1/collections/My-Pictures",
    "/v1/collections/My-Pictures/items",
    "/v1/collections/My-Pictures/items/1",
    "/v1/collections/My-Pictures/labels",
    "/v1/jobs",
    "/nowhere",
)


@needs_proc
@pytest.mark.slow
def test_a_full_disk_of_temporary_files_ends_no_worker(
    pictures: Path, tmp_path: Path, small_disk: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small_disk is None:
        pytest.skip("no small file system can be mounted here")
    monkeypatch.setenv("TMPDIR", str(small_disk))
    with running_service(["-c", str(pictures), "--workers", "2"], tmp_path / "log") as service:
        workers = service.workers()
        fill_up(small_disk)
        asked = [(method, path) for method in ("GET", "POST", "DELETE") for path in COUNTED]
        for _ in range(8):  # each connection may get another worker
            for method, path in asked:
                assert ask(service.port, path, method=method).status < 500, (method, path)
        assert service.workers() == workers
        os.kill(min(workers), signal.SIGKILL)
        wait_until(lambda: len(service.workers() - workers) == 1)
        for _ in range(8):
            assert ask(service.port, "/readyz").status == 200
            assert ask(service.port, "/metrics").status == 200
        assert len(service.workers() & workers) == 1
        assert "a worker counts its metrics for itself" in service.log.read_text()
        assert service.stop() == 0
    assert [file.name for file in small_disk.iterdir()] == ["filler"]


def test_the_service_runs_as_the_command_says(pictures: Path, tmp_path: Path) -> None:
    with running_service(["-c", f"photos={pictures}"], tmp_path / "log") as service:
        assert "photos" in service.output
        assert ask(service.port, "/readyz").status == 200
        assert ask(service.port, "/readyz", host="evil.example").status == 421
        assert service.stop(signal.SIGINT) == 0


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return the one sentence with which the command `serve` fails."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            complete_app()(["serve", "--port", "0", *arguments], standalone_mode=False)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("Error: ")
        return line

    return run


def test_wrong_calls_end_in_one_sentence(
    pictures: Path, tmp_path: Path, failure: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = ("-c", str(pictures))
    with socket.create_server(("127.0.0.1", 0)) as used:
        assert "choose another one with --port" in failure(*collection, "--port", str(used.getsockname()[1]))
    assert "--token-file" in failure(*collection, "--host", "0.0.0.0")
    assert "There is no collection" in failure("-c", str(tmp_path))
    assert "tokens add" in failure(*collection, "--token-file", str(tmp_path / "missing"))
    (tmp_path / "damaged").write_text("website read sha256:123\n")
    assert "Line 1 of the token file" in failure(*collection, "--token-file", str(tmp_path / "damaged"))
    assert "correct --host" in failure(*collection, "--host", "no such host", "--token-file", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    assert "There is no collection" in failure()
    monkeypatch.setattr("pixmatcher.server.serve.find_spec", lambda _: None)
    assert "pip install 'pixmatcher[server]'" in failure(*collection)


def test_collections_have_names_for_urls(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(pictures / ".pixmatcher")
    assert locate_collections([str(pictures)]) == {"My-Pictures": folder}
    assert locate_collections([folder, str(pictures)]) == {"My-Pictures": folder, "My-Pictures-2": folder}
    assert locate_collections([folder, f"My-Pictures={pictures}"]) == {"My-Pictures": folder, "My-Pictures-2": folder}
    with pytest.raises(QueryError, match="Two collections have the name a"):
        locate_collections([f"a={pictures}", f"a={folder}"])
    monkeypatch.chdir(pictures)
    assert locate_collections([]) == {"My-Pictures": folder}


def test_settings_reach_another_process() -> None:
    settings = ServerSettings(
        {"photos": "/data/photos-\udcff"},
        token_file=Path("/etc/tokens"),
        limits=dataclasses.replace(Limits(), seconds=1.5, batch=3),
        origins=("https://team.example",),
        hosts=("a", "b"),
        source_folders=(Path("/data"), Path("/more")),
        state_folder=Path("/state"),
        workers=3,
    )
    assert ServerSettings.from_json(settings.as_json()) == settings
    assert ServerSettings.from_json(ServerSettings({}).as_json()) == ServerSettings({})
