"""Run the service: in this process, or in several worker processes that share its port."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from .._cores import share_cores
from .._logging import VARIABLE as LOG_VARIABLE
from .._logging import show_log
from ..errors import PixMatcherError
from ._metrics_files import close_files, create_files
from .settings import METRICS_VARIABLE, Limits, ServerSettings
from .tokens import read_tokens

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from starlette.types import ASGIApp

_log = logging.getLogger("pixmatcher.server")

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
"""The host names of this machine, for a service that only this machine can reach."""

_STOPPED_AT_ONCE = 130
"""The exit status after a second signal."""
_BACKLOG = 1024
"""How many connections the system keeps that no worker has accepted yet."""
_UNSENT_BYTES = 128 << 10
"""How much of an answer the system keeps for a client that reads slowly; the rest is counted as waiting."""
_START_SECONDS = 120.0
"""How long a worker may take to start."""
_RESTART_SECONDS = 1.0
"""The shortest time between two starts of a worker."""
_MEMORY = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""Settings of glibc: it returns the memory of images to the system instead of keeping it for each of many threads."""


def check_installed() -> None:
    """Raise `PixMatcherError` if a package that the service needs is not installed."""
    needed = ("fastapi", "httptools", "multipart", "prometheus_client", "uvicorn")
    if any(find_spec(name) is None for name in needed):
        raise PixMatcherError("The service needs more packages: install them with pip install 'pixmatcher[server]'.")


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 chooses a free one. Raises `PixMatcherError` if that is not possible."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PixMatcherError(
            f"The host {host} is not an address of this machine ({reason}): correct --host."
        ) from error
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _limit_unsent(listening)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise PixMatcherError(
            f"Port {port} of {host} cannot be used ({error.strerror}): choose another one with --port, or correct "
            "--host."
        ) from error
    return listening


def _sockets_of_workers(listening: socket.socket, count: int) -> list[socket.socket]:
    """Return a socket for each of `count` workers, the first of which is `listening`.

    Of several sockets of one port, Linux chooses one for each connection by a hash. One socket would not do: the worker
    that wakes up first would take nearly all connections. Elsewhere, all workers share the socket.
    """
    sockets = [listening]
    if sys.platform != "linux":
        return sockets * count
    # Not before the port was bound: a second service could then use the same one.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for _ in range(count - 1):
        another = socket.socket(listening.family, listening.type, listening.proto)
        another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _limit_unsent(another)
        another.bind(listening.getsockname())
        another.listen(_BACKLOG)
        sockets.append(another)
    return sockets


def _limit_unsent(listening: socket.socket) -> None:
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is only reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_service(settings: ServerSettings, listening: socket.socket, ready: Callable[[], object]) -> int:
    """Serve until a signal stops the service; return the exit status.

    `ready` is called when it answers. SIGTERM or Ctrl-C ends it: what is under way is answered first, but a second
    signal ends it at once. Raises `PixMatcherError` if the service cannot start.
    """
    show_log()
    if settings.token_file is not None:
        read_tokens(settings.token_file)
    if settings.workers > 1:
        return _Supervisor(settings, listening, ready).run()
    os.environ.update(_MEMORY | os.environ)  # for processes that run jobs
    from .app import create_app

    return serve_app(create_app(settings), settings, listening, ready)


def serve_app(app: FastAPI, settings: ServerSettings, listening: socket.socket, ready: Callable[[], object]) -> int:
    """Serve an application of `create_app` in this process, as `run_service` does."""
    return run_server(server_of(app, settings.limits, ready, app.state.server.streams), listening)


def run_server(server: uvicorn.Server, listening: socket.socket) -> int:
    """Run a server of `server_of` until a signal stops it; return the exit status, and raise as `run_service`."""
    _show_server_log()
    try:
        server.run([listening])
    except SystemExit:  # uvicorn's way to say that the start has failed, which it has logged
        raise PixMatcherError("The service could not start: the message above says why.") from None
    return 0


def server_of(
    app: ASGIApp, limits: Limits, ready: Callable[[], object], streams: Iterable[Callable[[], None]] = ()
) -> uvicorn.Server:
    """Return a server that runs an application within limits, and calls `ready` when it answers.

    When it stops, it calls each of `streams`, which ends an answer that lasts as long as its client listens.
    """
    import uvicorn

    from ._protocol import limited_protocol

    class Server(uvicorn.Server):
        """A server that reports when it answers, ends streams of events when it stops, and stops in any case."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for end_stream in [*streams]:
                end_stream()
            await super().shutdown(sockets)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(_STOPPED_AT_ONCE)
            self.should_exit = True
            # Threads that are still at work would keep the process alive.
            end = threading.Timer(limits.stop_seconds + 5, os._exit, [0])
            end.daemon = True
            end.start()

    return Server(
        uvicorn.Config(
            app,
            http=limited_protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.idle_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=limits.stop_seconds,  # type: ignore[arg-type]
        )
    )


class _OurLog(logging.Handler):
    """Passes on what uvicorn logs to the log of this package."""

    def emit(self, record: logging.LogRecord) -> None:
        if _log.isEnabledFor(record.levelno):
            _log.handle(record)


def _show_server_log() -> None:
    logger = logging.getLogger("uvicorn.error")
    logger.propagate = False
    logger.handlers = [_OurLog()]


class _Worker:
    """A worker process. Its standard input is a pipe from the supervisor: it ends when the supervisor ends."""

    def __init__(self, settings: ServerSettings, listening: socket.socket, metrics_folder: str) -> None:
        self.started = time.monotonic()
        self.is_ready = False
        environment = _MEMORY | os.environ | {METRICS_VARIABLE: metrics_folder}
        if (level := logging.getLogger("pixmatcher").level) in (logging.DEBUG, logging.INFO):  # by the option -v
            environment[LOG_VARIABLE] = f"{environment.get(LOG_VARIABLE, '')},{logging.getLevelName(level).lower()}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the supervisor, which tells the workers
        )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(settings.as_json().encode() + b"\n")
            self.process.stdin.flush()

    def check_ready(self) -> bool:
        """Return whether the worker answers requests."""
        output = self.process.stdout
        assert output is not None
        if not self.is_ready and select.select([output], [], [], 0)[0]:
            self.is_ready = os.read(output.fileno(), 1) == b"R"
        return self.is_ready

    def close(self) -> None:
        """Free the pipes of a process that has ended."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


class _Supervisor:
    """Runs worker processes that accept connections of one port, and replaces those that end."""

    def __init__(self, settings: ServerSettings, listening: socket.socket, ready: Callable[[], object]) -> None:
        self._settings = settings
        self._sockets = _sockets_of_workers(listening, settings.workers)
        """The socket of each worker. They stay open here, so that connections wait for a worker that is replaced."""
        self._ready = ready
        self._stop = threading.Event()
        self._signals: list[int] = []
        self._workers: list[_Worker] = []

    def run(self) -> int:
        """Run the workers until a signal stops the service; return the exit status."""
        with tempfile.TemporaryDirectory(prefix="pixmatcher-metrics-", ignore_cleanup_errors=True) as folder:
            self._metrics_folder = folder
            return self._run()

    def _run(self) -> int:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        wake, woken = os.pipe()
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken)
        self._workers = [self._start(place) for place in range(self._settings.workers)]
        is_ready = False
        while not self._signals:
            select.select([wake], [], [], 0.2)
            if not is_ready and all(worker.check_ready() for worker in self._workers):
                is_ready = True
                self._ready()
            self._replace_ended(is_ready)
        return self._end()

    def _start(self, place: int) -> _Worker:
        return _Worker(self._settings, self._sockets[place], self._metrics_folder)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _replace_ended(self, is_ready: bool) -> None:
        for place, worker in enumerate(self._workers):
            worker.check_ready()
            status = worker.process.poll()
            age = time.monotonic() - worker.started
            if status is None and not worker.is_ready and age > _START_SECONDS:
                worker.process.kill()
            if status is None or age < _RESTART_SECONDS:
                continue
            if not is_ready and not self._signals:
                self._kill()
                raise PixMatcherError("The service could not start: the message above says why.")
            _log.error("a worker process has ended (status %s) and is replaced", status)
            worker.close()
            close_files(Path(self._metrics_folder), worker.process.pid)
            self._workers[place] = self._start(place)

    def _end(self) -> int:
        """Let the workers answer what is under way, unless a second signal comes."""
        for listening in self._sockets:
            listening.close()
        for worker in self._workers:
            worker.process.terminate()
        end = time.monotonic() + self._settings.limits.stop_seconds + 10
        while any(worker.process.poll() is None for worker in self._workers):
            if len(self._signals) > 1 or time.monotonic() > end:
                self._kill()
            time.sleep(0.02)
        for worker in self._workers:
            worker.close()
        return _STOPPED_AT_ONCE if len(self._signals) > 1 else 0

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()


def _run_worker() -> None:
    """Serve in this process with the settings on standard input, until the signal of the supervisor or its end."""
    show_log()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = ServerSettings.from_json(sys.stdin.readline())
    share_cores(settings.workers)
    metrics_folder = Path(os.environ[METRICS_VARIABLE])
    try:
        create_files(metrics_folder)
    except OSError as error:
        del os.environ[METRICS_VARIABLE]
        _log.warning("a worker counts its metrics for itself, as %s cannot be written: %s", metrics_folder, error)

    def end_with_supervisor() -> None:
        os.read(sys.stdin.fileno(), 1)
        shutil.rmtree(metrics_folder, ignore_errors=True)  # it was killed, else it would have waited for this process
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_supervisor, daemon=True).start()
    listening = socket.socket(fileno=int(sys.argv[1]))
    try:
        from .app import create_app

        sys.exit(serve_app(create_app(settings), settings, listening, lambda: os.write(sys.stdout.fileno(), b"R")))
    except PixMatcherError as error:
        _log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    _run_worker()
