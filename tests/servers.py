"""An HTTP server on loopback that serves images, and fails on request."""

from __future__ import annotations

import atexit
import functools
import os
import ssl
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import trustme


@functools.cache
def certificate() -> Path:
    """Create a file with a key, the certificate of one.example and two.example, and that of its authority."""
    authority = trustme.CA()
    made = authority.issue_cert("one.example", "two.example")
    descriptor, name = tempfile.mkstemp(suffix=".pem")
    atexit.register(os.unlink, name)
    with open(descriptor, "wb") as file:
        file.write(made.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
    return Path(name)


@dataclass
class Server:
    """A server, and the requests it received."""

    url: str
    at_most: int | None = None
    """Requests at once; above that it answers 429."""
    files: dict[str, bytes] = field(default_factory=dict)
    """What else it serves, by path."""
    encoded: dict[str, bytes] = field(default_factory=dict)
    """The bodies below /encoded/, which it serves with these `headers`."""
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    """How often each path, query included, was asked for."""
    hosts: list[list[str]] = field(default_factory=list)
    """For each connection the hosts named in its requests; first the one named to TLS."""
    most_at_once: int = 0
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, path: str) -> bool:
        """Count a request; return whether it may continue."""
        with self._lock:
            self.requests[path] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return self.at_most is None or self._at_once <= self.at_most

    def end(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    image: bytes
    latency: float
    server_seen: Server
    wbufsize = -1  # headers and body in one piece
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.hosts: list[str] = []
        self.server_seen.hosts.append(self.hosts)
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        self.hosts.append(getattr(self.request, "sni", ""))
        super().setup()

    def do_GET(self) -> None:
        self.hosts.append((self.headers["Host"] or "").partition(":")[0])
        welcome = self.server_seen.begin(self.path)
        try:
            time.sleep(self.latency)
            if welcome:
                self._respond()
            else:
                self._answer(429, b"")
        finally:
            self.server_seen.end()

    def _respond(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.server_seen.files:
            self._answer(200, self.server_seen.files[path])
        elif path == "/image.jpg":
            self._answer(200, self.image)
        elif path == "/flaky.jpg":
            self._flaky(**{name: int(values[0]) for name, values in parse_qs(urlsplit(self.path).query).items()})
        elif path == "/kilobytes":
            self._answer(200, bytes(int(urlsplit(self.path).query) << 10))
        elif path == "/empty-page":
            self._answer(200, b"No image here.", **{"Content-Type": "text/html; charset=utf-8"})
        elif path == "/called-a-page.jpg":
            self._answer(200, self.image, **{"Content-Type": "text/html"})
        elif path == "/to-private":
            self._redirect("http://10.0.0.1/image.jpg")
        elif path == "/to-nowhere":
            self._redirect("http://a:b/")
        elif path == "/large":
            self._start(200, 10 << 30)
            self._trickle(bytes(1000))
        elif path == "/close":  # without having said so
            self._answer(200, self.image)
            self.close_connection = True
        elif path == "/hang-up":
            self.close_connection = True
        elif path == "/no-http":
            self.wfile.write(b"220 ready\r\n")
            self.close_connection = True
        elif path == "/authorization":
            self._answer(200, (self.headers["Authorization"] or "").encode())
        elif path == "/page.html":
            self._answer(200, b"<!doctype html><html><body>No image here.</body></html>")
        elif path == "/to-image":
            self._redirect("/image.jpg")
        elif path == "/forever":
            self._redirect("/forever")
        elif path in ("/300", "/301", "/304"):  # redirects that lead nowhere
            self._answer(int(path[1:]), b"")
        elif path == "/to-file":
            self._redirect("file:///etc/hostname")
        elif path == "/trickle":
            self._start(200, len(self.image))
            self._trickle(self.image)
        elif path == "/trickle-header":
            self._trickle(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 2000)
        elif path == "/endless":
            self._start(200, None)
            self._pour()
        elif path == "/cut":
            self._start(200, len(self.image))
            self.wfile.write(self.image[:100])
            self.close_connection = True
        elif path == "/cookie-wall":  # serves only who brings the cookie, and sets it by a redirect to itself
            if "seen=yes" in (self.headers["Cookie"] or ""):
                self._answer(200, self.image)
            else:
                self._answer(302, b"", Location=self.path, **{"Set-Cookie": "seen=yes; Path=/"})
        elif path == "/set-cookie":
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
            self._answer(302, b"", Location=query["to"], **{"Set-Cookie": query["cookie"]})
        elif path == "/cookies":
            self._answer(200, (self.headers["Cookie"] or "none").encode())
        elif path.startswith("/encoded/"):
            self._answer(200, self.server_seen.encoded[path], **self.server_seen.headers[path])
        elif path == "/host":
            self._answer(200, (self.headers["Host"] or "").encode())
        else:
            self._answer(404, b"")

    def _start(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self._start(status, len(body), **headers)
        self.wfile.write(body)

    def _redirect(self, location: str) -> None:
        self._answer(302, b"", Location=location)

    def _flaky(self, times: int, status: int = 503, after: int | None = None, **_: int) -> None:
        """Serve the image, but fail the first few times."""
        if self.server_seen.requests[self.path] > times:
            self._answer(200, self.image)
        else:
            self._answer(status, b"not now", **({} if after is None else {"Retry-After": str(after)}))

    def _trickle(self, data: bytes) -> None:
        for byte in data:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(0.05)

    def _pour(self) -> None:
        while True:
            self.wfile.write(bytes(1 << 16))

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has had enough
            super().handle()

    def finish(self) -> None:
        with suppress(ConnectionError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(image: bytes) -> Iterator[str]:
    """Serve `image` at /image.jpg and other answers at other paths; yield the URL of the server."""
    with serve_watched(image, protocol="HTTP/1.0") as server:
        yield server.url


@contextmanager
def serve_watched(
    image: bytes,
    *,
    latency: float = 0.0,
    at_most: int | None = None,
    tls: bool = False,
    protocol: str = "HTTP/1.1",
) -> Iterator[Server]:
    """The same with persistent connections; each answer comes after `latency` seconds."""
    seen = Server("", at_most)
    members = {"image": image, "latency": latency, "server_seen": seen, "protocol_version": protocol}
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), members))
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate())
        context.sni_callback = lambda opened, name, _: setattr(opened, "sni", name or "")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that trusts no such certificate
