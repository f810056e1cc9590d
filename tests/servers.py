"""A real HTTP server on loopback that serves images and misbehaves on request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    image: bytes

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/image.jpg":
            self._answer(200, self.image)
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
            for byte in self.image:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        elif path == "/trickle-header":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif path == "/endless":
            self._start(200, None)
            while True:
                self.wfile.write(bytes(1 << 16))
        elif path == "/cut":
            self._start(200, len(self.image))
            self.wfile.write(self.image[:100])
        elif path == "/host":
            self._answer(200, (self.headers["Host"] or "").encode())
        else:
            self._answer(404, b"")

    def _start(self, status: int, length: int | None) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, status: int, body: bytes) -> None:
        self._start(status, len(body))
        self.wfile.write(body)

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve(image: bytes) -> Iterator[str]:
    """Serve `image` under /image.jpg and other things under other names; gives the server's URL."""
    handler = type("Handler", (_Handler,), {"image": image})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
