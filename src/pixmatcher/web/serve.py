"""Start the app: Streamlit in a process of its own, with the settings that lie beside `app.py`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..errors import PixMatcherError

ADDRESS = "127.0.0.1"


def check_installed() -> None:
    """Raise `PixMatcherError` if what the app needs is not there."""
    if any(find_spec(name) is None for name in ("streamlit", "plotly", "sklearn")):
        newer = " with Python 3.11 or newer" if sys.version_info < (3, 11) else ""
        raise PixMatcherError(f"The app needs Streamlit: install it with pip install 'pixmatcher[app]'{newer}.")


def check_port(port: int) -> None:
    """Raise `PixMatcherError` if the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise PixMatcherError(
                f"Port {port} cannot be used ({error.strerror}): choose another one with --port."
            ) from error


def run_app(collections: Sequence[Path], *, port: int, browser: bool) -> int:
    """Run the app over these collections until it is stopped; returns its exit status."""
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("app.py"))),
        f"--server.port={port}",
        *(() if browser else ("--server.headless=true",)),
        "--",
        *map(str, collections),
    ]
    process = subprocess.Popen(command, env=dict(os.environ))
    # Ctrl-C reaches both processes; whoever ends this one alone ends the other with it.
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
