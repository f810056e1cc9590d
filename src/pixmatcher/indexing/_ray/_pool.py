"""The worker processes on a cluster: started, counted, replaced when they die."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..._version import __version__
from ...errors import ClusterError
from ._worker import RayWorker, Ready, Setup

_log = logging.getLogger("pixmatcher.indexing")

WAIT_SECONDS = 120.0
"""How long a run waits while no worker process is ready."""
_RENEW_SECONDS = 1.0
_MOST_FAILED_STARTS = 20
_CALLS_AHEAD = 2
"""Calls that a worker process has at once, so that it need not wait for the next one."""


@dataclass(frozen=True)
class Share:
    """What one worker process asks Ray for."""

    cpus: int
    gpus: int


@dataclass(eq=False)
class WorkerProcess:
    """A worker process, or one that Ray is to start."""

    actor: Any
    starting: Any
    """The reference of the answer of `prepare`."""
    ready: Ready | None = None
    size: int = 1
    """How many entries its next portion is to have."""
    calls: list[Any] = field(default_factory=list)
    """The references of its calls, oldest first; it does one after the other."""


class WorkerPool:
    """The worker processes of a run."""

    def __init__(self, setup: Setup, share: Share, most: int | None) -> None:
        """Start a process for each `share` of the cluster that exists, or `most` of them."""
        self._setup = setup
        self._share = share
        self._most = most
        self._processes: list[WorkerProcess] = []
        self._renewed = float("-inf")
        self._none_since = float("inf")
        """When it was first seen that no process is ready."""
        self._failed_starts = 0
        self._last_failure = ""
        self.decoders: dict[str, str] = {}
        """By the address of each node, what its processes decode with."""

    def renew(self) -> None:
        """Start processes that are missing, and note which ones are ready.

        Raises `ClusterError` if none can start, or none is ready for too long.
        """
        import ray

        now = time.monotonic()
        if now - self._renewed > _RENEW_SECONDS:
            self._renewed = now
            wanted = self._most or max(1, count_shares(ray.nodes(), self._share))
            waiting = [process for process in self._processes if process.ready is None]
            for process in waiting[: max(0, len(self._processes) - wanted)]:  # their node is gone
                self.end(process)
            while len(self._processes) < wanted:
                self._start()
        for process in [*self._processes]:
            if process.ready is None and ray.wait([process.starting], timeout=0)[0]:
                self._note_start(process)
        self._none_since = float("inf") if self.ready_count() else min(self._none_since, now)
        if now - self._none_since > WAIT_SECONDS:
            raise ClusterError(
                f"No worker process could start on the Ray cluster for {WAIT_SECONDS:.0f} s"
                f"{f' ({self._last_failure})' if self._last_failure else ''}: `ray status` shows what uses its "
                "processors; run the same command again when some are free."
            )

    def ready_count(self) -> int:
        """Return how many processes are ready."""
        return sum(process.ready is not None for process in self._processes)

    def next_free(self) -> WorkerProcess | None:
        """Return the ready process with the fewest calls; None if all have enough."""
        ready = [process for process in self._processes if process.ready is not None]
        free = min(ready, key=lambda process: len(process.calls), default=None)
        return free if free is not None and len(free.calls) < _CALLS_AHEAD else None

    def wait(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        """Wait until a call is answered or a process is ready; return the calls that are answered."""
        import ray

        starting = [process.starting for process in self._processes if process.ready is None]
        waiting = [*calls, *starting]
        if not waiting:
            time.sleep(min(seconds, 0.1))
            return []
        answered, _ = ray.wait(waiting, num_returns=1, timeout=seconds)
        if answered and len(calls) > 1:
            answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        starts = set(starting)
        return [reference for reference in answered if reference not in starts]

    def end(self, process: WorkerProcess) -> None:
        """End a process, if it lives; another one takes its place."""
        import ray

        if process in self._processes:
            self._processes.remove(process)
            self._renewed = float("-inf")
        if ray.is_initialized():  # if the connection is lost, Ray would start a cluster here
            with contextlib.suppress(Exception):  # it ends without that when the connection does
                ray.kill(process.actor)

    def close(self) -> None:
        """End all processes."""
        for process in [*self._processes]:
            self.end(process)

    def _start(self) -> None:
        import ray

        options: dict[str, Any] = {"num_cpus": self._share.cpus, "max_restarts": 0, "max_task_retries": 0}
        if self._share.gpus:
            options["num_gpus"] = self._share.gpus
        try:
            actor = ray.remote(**options)(RayWorker).remote()
            self._processes.append(WorkerProcess(actor, actor.prepare.remote(__version__, self._setup)))
        except ImportError as error:  # Ray Client imports the class on the head node first
            raise ClusterError(f"The head of the cluster cannot run PixMatcher ({error}): {_INSTALL}") from error

    def _note_start(self, process: WorkerProcess) -> None:
        """Note how the start of a process ended. Raises `ClusterError` if all others would fail as well."""
        import ray

        try:
            ready: Ready = ray.get(process.starting)
        except Exception as error:  # Ray raises errors of many kinds
            text = str(error)
            if not isinstance(error, ray.exceptions.RayActorError) or "creation task" in text:
                node = re.search(r"\bip=([0-9A-Fa-f.:]+)", text)
                raise ClusterError(
                    f"The node {node[1] if node else '?'} of the cluster cannot run PixMatcher ({last_line(text)}): "
                    f"{_INSTALL}"
                ) from error
            if "never ran" in text:  # there was no room, or its node went away: it says nothing of why others fail
                self.end(process)
                return
            self._failed_starts += 1
            self._last_failure = last_line(text)
            _log.info("a worker process did not start: %s", self._last_failure)
            if self._failed_starts > _MOST_FAILED_STARTS:
                raise ClusterError(
                    f"Worker processes end while they start ({self._last_failure}): look at the log of Ray."
                ) from error
            self.end(process)
            return
        if ready.problem:
            raise ClusterError(ready.problem)
        self._failed_starts = 0
        process.ready, process.size = ready, ready.batch_size
        self.decoders[ready.node] = ready.decoders
        _log.info("A worker process on %s is ready", ready.node)


_INSTALL = "install the same versions of PixMatcher and of Python on all nodes."


def count_shares(nodes: Iterable[dict[str, Any]], share: Share) -> int:
    """Return how many worker processes the living nodes have room for, whatever else runs there."""
    count = 0
    for node in nodes:
        if node.get("Alive"):
            of_node = node.get("Resources", {})
            fitting = int(of_node.get("CPU", 0) // share.cpus)
            count += min(fitting, int(of_node.get("GPU", 0) // share.gpus)) if share.gpus else fitting
    return count


def share_with_gpu(nodes: Iterable[dict[str, Any]]) -> Share | None:
    """Return the share of a process that uses a GPU, with the cores that each GPU has; None if there is no GPU."""
    cores = [
        int(node["Resources"].get("CPU", 0) // node["Resources"]["GPU"])
        for node in nodes
        if node.get("Alive") and node.get("Resources", {}).get("GPU", 0) >= 1
    ]
    return Share(max(1, min(cores)), 1) if cores else None


def last_line(text: str) -> str:
    """Return the last line of a message of Ray, which says what happened, without colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", text).splitlines() if line.strip()]
    return lines[-1][:300].rstrip(".") if lines else "no message"
