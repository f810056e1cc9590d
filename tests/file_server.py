"""An HTTP server on loopback for downloads, with ranges, validators, failures on request, and a list of requests."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servers import certificate


@dataclass
class File:
    """A file and how it is served. Each request uses the next element of a list."""

    body: bytes
    etag: str | None = '"1"'
    modified: str | None = None
    type: str = "application/octet-stream"
    ranges: bool = True
    if_range: bool = True
    """Whether `If-Range` is heeded."""
    length: bool = True
    """Whether the length is sent; if not, the end of the connection is the end of the file."""
    more_length: int = 0
    """The number of bytes by which the sent length is too large."""
    encoding: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Further headers, which are also sent with an error status and with a redirect."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next requests, in place of the file."""
    cuts: list[int] = field(default_factory=list)
    """After so many bytes the next answers are cut."""
    etags: list[str] = field(default_factory=list)
    """ETags that the file has after the next requests, one after the other."""
    redirect: str | None = None
    hold_after: int | None = None
    """The position in the file at which nothing more is sent until `held` is set, once."""
    held: threading.Event = field(default_factory=threading.Event)
    pause: float = 0
    """Seconds between single bytes."""
    silent: bool = False
    """Accept the request and answer nothing."""
    trickling_headers: bool = False
    wrong_range: bool = False
    """Answer a range with another one."""


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None
    encodings: str | None
    authorization: str | None
    sent: int = 0


class FileServer:
    """The files by their paths, and the requests so far."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()

    def sent(self, path: str) -> int:
        """Return how many bytes of the file were sent in total."""
        return sum(request.sent for request in self.requests if request.path == path)

    def ranges(self, path: str) -> list[str | None]:
        return [request.range for request in self.requests if request.path == path]

    def wait_for(self, path: str, count: int) -> None:
        """Wait until `count` bytes of the file were sent."""
        while self.sent(path) < count:
            time.sleep(0.002)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def do_GET(self) -> None:
        # As a proxy, it receives complete URLs.
        path = self.path
        headers = self.headers
        asked = (headers[name] for name in ("Range", "If-Range", "Accept-Encoding", "Authorization"))
        request = Request(path, *asked)
        self.files.requests.append(request)
        file = self.files.files.get(path)
        if file is None:
            self._answer(404)
        elif file.statuses:
            self._answer(file.statuses.pop(0), file.headers)
        elif file.redirect is not None:
            self._answer(302, {"Location": file.redirect} | file.headers)
        elif file.silent:
            self.close_connection = True
            self.files.closing.wait()
        elif file.trickling_headers:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.files.closing.wait(0.05):
                self.wfile.write(b"x")
        else:
            self._send_file(file, request)

    def _send_file(self, file: File, request: Request) -> None:
        if file.etags:
            file.etag = file.etags.pop(0)
        start = 0
        same = not file.if_range or request.if_range in (None, file.etag, file.modified)
        if request.range is not None and file.ranges and same:
            start = int(request.range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(file.body):
                self._answer(416, {"Content-Range": f"bytes */{len(file.body)}"})
                return
            if file.wrong_range:
                start -= 1
        headers = {"Content-Type": file.type} | file.headers
        headers |= {"ETag": file.etag} if file.etag else {}
        headers |= {"Last-Modified": file.modified} if file.modified else {}
        headers |= {"Content-Encoding": file.encoding} if file.encoding else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(file.body) - 1}/{len(file.body)}"
        length = len(file.body) - start + file.more_length if file.length else None
        self._start(206 if start else 200, headers, length)
        self._send_body(file, request, start)

    def _send_body(self, file: File, request: Request, position: int) -> None:
        end = position + file.cuts.pop(0) if file.cuts else len(file.body)
        if end < len(file.body) or file.more_length or not file.length:
            self.close_connection = True
        end = min(end, len(file.body))
        while position < end:
            upto = min(end, position + (1 if file.pause else 8192))
            if file.hold_after is not None and upto > file.hold_after:
                upto = file.hold_after
                if position >= upto:
                    while not file.held.wait(0.05) and not self.files.closing.is_set():
                        pass
                    file.hold_after = None
                    continue
            self.wfile.write(file.body[position:upto])
            self.wfile.flush()
            request.sent += upto - position
            position = upto
            if file.pause:
                time.sleep(file.pause)

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._start(status, headers or {}, 0)

    def _start(self, status: int, headers: dict[str, str], length: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):  # the client has had enough, or was killed
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_files(tls: bool = False, host: str = "127.0.0.1") -> Iterator[FileServer]:
    """Serve the `files` of the yielded server; with `tls` the host name of the server is one.example."""
    files = FileServer()
    handler = type("Handler", (_Handler,), {"files": files})
    server = ThreadingHTTPServer((host, 0), handler)
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate())
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    files.url = f"https://one.example:{server.server_port}" if tls else f"http://{host}:{server.server_port}"
    try:
        yield files
    finally:
        files.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
