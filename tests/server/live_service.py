"""A service that answers on loopback, in a thread of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from pixmatcher.server import Limits, ServerSettings, create_app


@contextlib.contextmanager
def live_app(app: Any) -> Iterator[str]:
    """Run an ASGI application; yield its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="auto", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@contextlib.contextmanager
def live_service(collections: dict[str, Path], limits: Limits | None = None, **settings: Any) -> Iterator[str]:
    """Serve collections; yield the URL of the service."""
    references = {name: str(path) for name, path in collections.items()}
    with live_app(create_app(ServerSettings(references, limits=limits or Limits(), **settings))) as url:
        yield url
