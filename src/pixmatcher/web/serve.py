"""Start the app: Streamlit in its own process, with the settings of the folder `.streamlit` beside `app.py`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from .._logging import VARIABLE as LOG_VARIABLE
from .._user_folders import NO_HOME, home_folder
from ..errors import PixMatcherError
from .share import SHARED_VARIABLE, Tunnel

ADDRESS = "127.0.0.1"
_CHECK_TUNNEL_SECONDS = 1.0
"""Time between two checks of the tunnel."""

_MEMORY = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "1048576"}
"""Settings of glibc: it returns the memory of images to the system instead of keeping it for each of many threads."""


def check_installed() -> None:
    """Raise `PixMatcherError` if a package that the app needs is not installed."""
    if any(find_spec(name) is None for name in ("streamlit", "plotly", "sklearn")):
        newer = " with Python 3.11 or newer" if sys.version_info < (3, 11) else ""
        raise PixMatcherError(f"The app needs Streamlit: install it with pip install 'pixmatcher[app]'{newer}.")


def check_port(port: int) -> None:
    """Raise `PixMatcherError` if the port is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise PixMatcherError(
                f"Port {port} cannot be used ({error.strerror}): choose another one with --port."
            ) from error


def run_app(
    collections: Sequence[Path], *, port: int, browser: bool, tunnel: Tunnel | None = None, password: str = ""
) -> int:
    """Run the app with these collections until it is stopped. Return its exit status.

    With a tunnel, visitors come through it and need the password. When the tunnel closes, the app is stopped and
    `PixMatcherError` is raised. Raises `FileNotFoundError` if the current folder, where Streamlit looks for settings,
    was deleted.
    """
    os.getcwd()
    environment = _MEMORY | os.environ
    home = os.environ.get("HOME") or home_folder()
    # Streamlit looks for settings there, and fails if it is a file: services have /dev/null.
    environment["HOME"] = str(home) if home and os.path.isdir(home) else NO_HOME
    environment.pop(SHARED_VARIABLE, None)
    if (level := logging.getLogger("pixmatcher").level) in (logging.DEBUG, logging.INFO):  # by the option -v
        environment[LOG_VARIABLE] = f"{environment.get(LOG_VARIABLE, '')},{logging.getLevelName(level).lower()}"
    shared = []
    if tunnel is not None:
        environment[SHARED_VARIABLE] = password
        # The address of the app in the browsers of visitors.
        shared = [f"--server.corsAllowedOrigins={tunnel.url}"]
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("app.py"))),
        f"--server.port={port}",
        *(() if browser else ("--server.headless=true",)),
        *shared,
        "--",
        *map(str, collections),
    ]
    # Ctrl-C reaches both processes. Streamlit's process ignores it until it is ready; it would print a traceback.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, env=environment)
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    # A signal that ends only this process also ends the process of Streamlit.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    stopped = False
    while True:
        try:
            status = process.wait(None if tunnel is None or stopped else _CHECK_TUNNEL_SECONDS)
            return 0 if stopped or status == -signal.SIGTERM else status
        except KeyboardInterrupt:
            stopped = True
            process.terminate()
        except subprocess.TimeoutExpired:
            if tunnel is not None and not tunnel.is_open():
                process.terminate()
                process.wait()
                raise PixMatcherError(
                    "The tunnel has closed, because Ngrok's agent has ended: run the command again to share the app."
                ) from None
