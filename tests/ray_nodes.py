"""A Ray cluster of several nodes on this machine.

Where the tests may, each node is in a network namespace with an address of its own, so that nodes share nothing but
the disk. Elsewhere nodes are processes with the address of this machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_RAY = Path(sys.executable).with_name("ray")


def _ip(*arguments: str) -> bool:
    """Run the command `ip`; return whether it succeeded."""
    try:
        return subprocess.run(["ip", *arguments], capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False


class Network:
    """Network namespaces that are joined by a bridge, 10.N.0.0/24; N depends on the process, so that tests can meet."""

    def __init__(self) -> None:
        number = os.getpid() % 120 + 120
        self._name = f"pm{os.getpid() % 1_000_000}"
        self._prefix = f"10.{number}.0."
        self._namespaces: list[str] = []
        self.exists = sys.platform == "linux" and os.geteuid() == 0 and self._make_bridge()

    def _make_bridge(self) -> bool:
        if _ip("link", "add", self._name, "type", "bridge"):
            if all(
                (
                    _ip("addr", "add", f"{self._prefix}1/24", "dev", self._name),
                    _ip("link", "set", self._name, "up"),
                    self.add("0") is not None,
                )
            ):
                return True
            self.remove()
        return False

    def add(self, name: str) -> tuple[str, str] | None:
        """Add a namespace; return its name and its address, or None if that is not possible."""
        namespace, address = f"{self._name}-{name}", f"{self._prefix}{len(self._namespaces) + 2}"
        outer = f"{self._name}v{len(self._namespaces)}"
        if not _ip("netns", "add", namespace):
            return None
        self._namespaces.append(namespace)
        made = all(
            (
                _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", namespace),
                _ip("link", "set", outer, "master", self._name, "up"),
                _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0"),
                _ip("-n", namespace, "link", "set", "eth0", "up"),
                _ip("-n", namespace, "link", "set", "lo", "up"),
                _ip("-n", namespace, "route", "add", "default", "via", f"{self._prefix}1"),
            )
        )
        return (namespace, address) if made else None

    @property
    def outside(self) -> str:
        """The address of this process for the namespaces."""
        return f"{self._prefix}1" if self.exists else "127.0.0.1"

    def remove(self) -> None:
        for namespace in self._namespaces:
            _ip("netns", "del", namespace)
        _ip("link", "del", self._name)


@dataclass(eq=False)
class Node:
    """A node that runs: its namespace, its address, and the process that started it."""

    namespace: str | None
    address: str
    process: subprocess.Popen[bytes]

    def prefix(self) -> list[str]:
        """The beginning of a command that runs on this node."""
        return _inside(self.namespace)

    def pids(self) -> set[int]:
        """The processes of the node."""
        if self.namespace is not None:
            listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, timeout=20)
            return {int(pid) for pid in listed.stdout.split()}
        return descendants(self.process.pid)

    def kill(self) -> None:
        """End all processes of the node at once, as when its power fails."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait()

    def workers(self) -> list[int]:
        """The worker processes of PixMatcher on the node that are ready to work or do so."""
        return [pid for pid in self.pids() if b"RayWorker" in _command(pid)]


class RayCluster:
    """A head without processors of its own, and nodes that are added and killed."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        """Use `folder` for what Ray writes; its path must be short, as that of a socket has at most 107 bytes."""
        self.network = Network()
        self._folder = folder
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "200",  # tests run on busy machines
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
            **(environment or {}),
        }
        self.nodes: list[Node] = []
        self._count = 0
        try:
            self._port, client_port = (6379, 10001) if self.network.exists else (_free_port(), _free_port())
            ports = f"--port={self._port}", f"--ray-client-server-port={client_port}"
            self.head = self._start("--head", *ports, "--include-dashboard=false", f"--temp-dir={folder}", cpus=0)
            self.url = f"ray://{self.head.address}:{client_port}"
            """What `--on` takes."""
        except BaseException:
            self.close()
            raise

    def add(
        self,
        *,
        cpus: int = 1,
        gpus: int = 0,
        core: int | None = None,
        hide: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Node:
        """Start a node. It uses only the processor `core`, and sees an empty folder instead of `hide`."""
        node = self._start(
            f"--address={self.address}", cpus=cpus, gpus=gpus, core=core, hide=hide, environment=environment
        )
        self.nodes.append(node)
        return node

    @property
    def address(self) -> str:
        """What RAY_ADDRESS is for a process that runs on a node."""
        return f"{self.head.address}:{self._port}"

    def on_head(self) -> list[str]:
        """The beginning of a command that runs on the head and uses the cluster."""
        return [*self.head.prefix(), "env", f"RAY_ADDRESS={self.address}"]

    def index_command(self, *arguments: str | Path) -> list[str]:
        """The command that indexes on the cluster, from its head."""
        return self.command("index", *arguments)

    def command(self, *arguments: str | Path) -> list[str]:
        """A command of PixMatcher that encodes on the cluster, from its head."""
        return [*self.on_head(), sys.executable, "-m", "pixmatcher", *map(str, arguments), "--on", "ray"]

    def kill(self, node: Node) -> None:
        """End a node at once."""
        node.kill()
        self.nodes.remove(node)

    def close(self) -> None:
        """End all nodes."""
        for node in [*self.nodes, *([self.head] if hasattr(self, "head") else [])]:
            node.kill()
        self.network.remove()

    def _start(
        self,
        *options: str,
        cpus: int,
        gpus: int = 0,
        core: int | None = None,
        hide: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> Node:
        self._count += 1
        place = self.network.add(str(self._count)) if self.network.exists else None
        namespace, address = place or (None, "127.0.0.1")
        command = [str(_RAY), "start", *options, f"--node-ip-address={address}", "--block", "--disable-usage-stats"]
        command += [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=100000000"]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        if hide is not None:  # the mounts of a namespace are its own
            command = ["sh", "-c", f"mount -t tmpfs tmpfs '{hide}' && exec \"$@\"", "sh", *command]
        log = self._folder.with_name(f"{self._folder.name}-{self._count}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_inside(namespace), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self.environment, **(environment or {})},
            )
        node = Node(namespace, address, process)
        while b"--block" not in log.read_bytes():  # printed when the node runs
            if process.poll() is not None:
                raise RuntimeError(log.read_text(errors="replace"))
            time.sleep(0.1)
        return node


@contextlib.contextmanager
def cluster(folder: Path, environment: dict[str, str] | None = None) -> Iterator[RayCluster]:
    """A cluster that ends with the block."""
    made = RayCluster(folder, environment)
    try:
        yield made
    finally:
        made.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _inside(namespace: str | None) -> list[str]:
    return [] if namespace is None else ["ip", "netns", "exec", namespace]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(pid: int) -> set[int]:
    """The process and all that it has started, as far as they live."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    waiting: Sequence[int] = [pid] if pid in parents else []
    while waiting:
        found |= {*waiting}
        waiting = [child for child, parent in parents.items() if parent in waiting and child not in found]
    return found
