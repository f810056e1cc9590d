"""Start the app in a new process, and wait until it answers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

REBOUND = "rebound.example"
"""A host name of another site that the browser of the tests resolves to this machine."""
PATIENCE = 45_000
"""Milliseconds that a page may take for a step, on a machine that is busy with other tests."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, "the app has ended"
        assert time.monotonic() < end, "the app does not answer"
        time.sleep(0.1)


@contextmanager
def running_app(arguments: Sequence[str], home: Path) -> Iterator[str]:
    """Start the app as a user does, in an empty home folder, and yield its address; the folder must stay empty."""
    port = free_port()
    command = [sys.executable, "-m", "pixmatcher", "app", "--no-browser", "--port", str(port), *arguments]
    log = home.parent / f"{home.name}.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            command, env=os.environ | {"HOME": str(home)}, cwd=home, stdout=written, stderr=written
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), process)
        yield url
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        status = process.wait(60)
    assert status == 0, log.read_text()
    assert not [path for path in home.rglob("*") if path.is_file()], "the app left files in the user's home"
