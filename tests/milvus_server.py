"""A Milvus server on the loopback address: Milvus Lite in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class MilvusServer:
    """A server with its data in a folder; `address` is HOST:PORT, and stays the same when it is started again."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self.host = host
        self.port = free_port()
        self.address = f"{host}:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it accepts connections."""
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self.folder / "data")]
        self.process = subprocess.Popen(
            [*command, "--host", self.host, "--port", str(self.port)], stdout=subprocess.DEVNULL
        )
        while True:
            assert self.process.poll() is None, "the server ended"
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the process, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> MilvusServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
