"""A service that runs in a process of its own, and its jobs, for the tests of jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 120.0
ENDED = ("done", "failed", "stopped")

_PROGRAM = """
import json, sys
from pathlib import Path
import uvicorn
from pixmatcher.server import ServerSettings, create_app

given = json.loads(sys.argv[1])
settings = ServerSettings(
    given["collections"], state_folder=Path(given["state"]), source_folders=tuple(map(Path, given["folders"]))
)
uvicorn.run(create_app(settings), fd=int(sys.argv[2]), log_level="warning", timeout_graceful_shutdown=5)
"""


def wait_until(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.05)


class Service:
    """A service on a port of this machine, which can be killed and started again."""

    def __init__(self, state: Path, folders: list[Path], log: Path, **collections: Path) -> None:
        self.state, self._log = state, log
        self._settings = {
            "collections": {name: str(path) for name, path in collections.items()},
            "state": str(state),
            "folders": [*map(str, folders)],
        }
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self._listener.getsockname()[1]}", timeout=PATIENCE, trust_env=False
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        descriptor = self._listener.fileno()
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps(self._settings), str(descriptor)],
                pass_fds=(descriptor,),
                stdout=log,
                stderr=log,
            )
        # Requests wait in the queue of the socket, which this process keeps open, until the service accepts them.
        assert self.client.get("/healthz").status_code == 200

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop the service in order; return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self.client.close()
        self._listener.close()

    def log(self) -> str:
        return self._log.read_text()

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").json()
        return found

    def index(self, collection: str = "c", **request: Any) -> str:
        response = self.client.post(f"/v1/collections/{collection}/sources", json=request)
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def wait_for(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job has one of these states, by default one of those that end it."""
        wait_until(lambda: self.job(job_id)["state"] in (states or ENDED))
        return self.job(job_id)

    def process_of(self, job_id: str) -> int | None:
        """Return the id of the process of a job, if it has begun."""
        try:
            return int(json.loads((self.state / f"{job_id}.lock").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return None


@contextlib.contextmanager
def running_service(service: Service) -> Iterator[Service]:
    service.start()
    try:
        yield service
    finally:
        service.close()


def is_job_process(pid: int | None) -> bool:
    """Return whether a process is there and is that of a job; another one may have got its number since."""
    try:
        return b"_job_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def kill_process(pid: int | None) -> bool:
    """Kill the process of a job at once; return whether it was there."""
    if pid is None or not is_job_process(pid):
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
