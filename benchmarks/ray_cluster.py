"""Measure indexing on a Ray cluster: what Ray costs, how it scales from one node to two, and what dead nodes cost.

The nodes are in network namespaces of this machine with addresses of their own, each bound to one core, if root runs
this on Linux; elsewhere they are processes. What is compared runs in turns, so that other load meets both alike; CPU
seconds hardly depend on it at all.

    python benchmarks/ray_cluster.py --data tiny-imagenet-mini.zip [--only overhead scaling kills] [--images 4000]

Needs the extra `ray` and two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pixmatcher import Collection
from ray_nodes import RayCluster, cluster, descendants
from test_ray import contents

DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
INDEX = """
import sys
from pixmatcher import index
count = lambda progress: print(progress.done, flush=True) if progress.unit == "images" else None
index(sys.argv[1], sys.argv[2], on=sys.argv[3] if len(sys.argv) > 3 else None, progress=count)
"""
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


class CpuTime:
    """The CPU time of processes that come and go, read ten times a second."""

    def __init__(self, pids: Callable[[], set[int]]) -> None:
        self._pids = pids
        self._first = {pid: cpu_seconds(pid) for pid in pids()}
        self._last: dict[int, float] = {}

    def look(self) -> None:
        for pid in self._pids():
            self._last[pid] = max(self._last.get(pid, 0.0), cpu_seconds(pid))

    def seconds(self) -> float:
        return sum(last - self._first.get(pid, 0.0) for pid, last in self._last.items())


@contextlib.contextmanager
def measuring(pids: Callable[[], set[int]]) -> Iterator[CpuTime]:
    measured, stop = CpuTime(pids), threading.Event()

    def run() -> None:
        while not stop.wait(0.1):
            measured.look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield measured
    finally:
        measured.look()
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Run:
    """What a run took, all nodes included: in all, and for each image between a fifth and four fifths of them.

    The latter leaves out that processes start and load the network, and the end, when one of them works alone.
    """

    seconds: float
    cpu_seconds: float
    seconds_each: float
    cpu_seconds_each: float
    worker_cpu_seconds_each: float
    """The part of the worker processes on the nodes."""
    busy: float
    """The share of the time in which these had work, also while other programs used their core."""


@dataclass(frozen=True)
class Mark:
    """The state of a run when so many images are done."""

    images: int
    time: float
    cpu_seconds: float
    workers: dict[int, dict[str, tuple[float, float]]]
    """Of each thread of each worker process the seconds that it ran, and that it waited for a core."""


def scheduled(pid: int) -> dict[str, tuple[float, float]]:
    """Return how many seconds each thread of a process ran, and waited for a core (Linux)."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            ran, waited = thread.read_text().split()[:2]
            found[thread.parent.name] = int(ran) / 1e9, int(waited) / 1e9
    return found


def timed_run(command: list[str], made: RayCluster, images: int) -> Run:
    """Run a command that indexes and prints how many images are done."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=made.environment) as process:

        def pids() -> set[int]:
            return descendants(process.pid).union(*(node.pids() for node in [*made.nodes, made.head]))

        marks: list[Mark] = []
        with measuring(pids) as cpu:
            assert process.stdout is not None
            for line in process.stdout:
                if len(marks) < 2 and int(line) >= images * (0.8 if marks else 0.2):
                    cpu.look()
                    workers = {pid: scheduled(pid) for node in made.nodes for pid in node.workers()}
                    marks.append(Mark(int(line), time.perf_counter(), cpu.seconds(), workers))
    if process.returncode:
        raise SystemExit(f"{command} failed.")
    first, last = marks
    count, seconds = last.images - first.images, last.time - first.time
    ran = busy = 0.0
    for pid, threads in last.workers.items():
        spent = [
            (after[0] - before[0], after[1] - before[1])
            for thread, after in threads.items()
            for before in [first.workers.get(pid, {}).get(thread, (0.0, 0.0))]
        ]
        ran += sum(thread[0] for thread in spent)
        busy += sum(max(spent))  # the thread that encodes
    return Run(
        time.perf_counter() - started,
        cpu.seconds(),
        seconds / count,
        (last.cpu_seconds - first.cpu_seconds) / count,
        ran / count,
        busy / (seconds * max(1, len(last.workers))),
    )


def spread(values: list[float], digits: int = 2) -> str:
    """Return the median and the range of values, as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def unpack(archive: Path, folder: Path, count: int) -> None:
    """Write the first `count` images of Tiny ImageNet to a folder."""
    folder.mkdir()
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(".JPEG")]
        for name in names[:count]:
            (folder / Path(name).name).write_bytes(file.read(name))


def index_command(photos: Path, collection: Path, made: RayCluster | None = None) -> list[str]:
    """Return the command that indexes into a new collection, in one process or on a cluster; see `timed_run`."""
    shutil.rmtree(collection, ignore_errors=True)
    command = [sys.executable, "-c", INDEX, str(photos), str(collection)]
    return command if made is None else [*made.on_head(), *command, "ray"]


def overhead(made: RayCluster, photos: Path, folder: Path, images: int, repeats: int) -> None:
    """Compare one process with as many threads as there are cores with as many worker processes, in turns."""
    made.add(cpus=os.cpu_count() or 1)
    here, there = folder / "here", folder / "there"
    runs: list[tuple[Run, Run]] = []
    for turn in range(repeats):
        local = timed_run(index_command(photos, here), made, images)
        remote = timed_run(index_command(photos, there, made), made, images)
        runs.append((local, remote))
        for name, run in (("one process", local), ("Ray", remote)):
            print(
                f"  turn {turn + 1}, {name}: {run.seconds:.1f} s, {run.cpu_seconds:.1f} CPU s; each image "
                f"{1000 * run.seconds_each:.1f} ms, {1000 * run.cpu_seconds_each:.1f} ms CPU",
                flush=True,
            )
        if contents(here) != contents(there):
            raise SystemExit("The collections differ.")
    print(f"one process: {spread([1 / local.seconds_each for local, _ in runs], 0)} images/s")
    for name in ("seconds", "cpu_seconds", "seconds_each", "cpu_seconds_each"):
        ratios = [getattr(remote, name) / getattr(local, name) for local, remote in runs]
        print(f"Ray / one process, {name.replace('_', ' ')}: {spread(ratios)}")
    print("All collections are the same.")


def scaling(made: RayCluster, photos: Path, folder: Path, images: int, repeats: int) -> None:
    """Compare one node with two, each bound to a core of its own, in turns."""
    first = made.add(core=0)
    speedups, free = list[float](), list[float]()
    for turn in range(repeats):
        one = timed_run(index_command(photos, folder / "c", made), made, images)
        second = made.add(core=1)
        two = timed_run(index_command(photos, folder / "c", made), made, images)
        made.kill(second)
        time.sleep(20)  # until Ray has noticed it
        speedups.append(one.seconds_each / two.seconds_each)
        free.append(2 * two.busy / two.worker_cpu_seconds_each / (one.busy / one.worker_cpu_seconds_each))
        for name, run in (("one node", one), ("two nodes", two)):
            print(
                f"  turn {turn + 1}, {name}: {1 / run.seconds_each:.1f} images/s; its processes need "
                f"{1000 * run.worker_cpu_seconds_each:.1f} ms CPU an image and work {100 * run.busy:.0f} % of the time",
                flush=True,
            )
    made.kill(first)
    print(f"two nodes / one node: {spread(speedups)}; on cores that nothing else uses: {spread(free)}")


def kills(made: RayCluster, photos: Path, folder: Path, images: int, count: int) -> None:
    """Kill nodes in the middle of runs, and compare each result with that of one process."""
    here, there = folder / "here", folder / "there"
    subprocess.run(index_command(photos, here), check=True, stdout=subprocess.DEVNULL)
    expected = contents(here)
    for _ in range(2):
        made.add()
    killed = runs = 0
    while killed < count:
        runs += 1
        command = index_command(photos, there, made)
        stored = 0
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=made.environment
        ) as run:
            while run.poll() is None:
                time.sleep(0.2)
                now = count_items(there)
                working = [node for node in made.nodes if node.workers()]
                if now > stored and working and killed < count and now < images:
                    stored = now
                    made.kill(working[killed % len(working)])
                    killed += 1
                    print(f"  node {killed} killed after {now:,} images of run {runs}", flush=True)
                    made.add()
        if run.returncode:
            raise SystemExit(f"Run {runs} failed.")
        found = contents(there)
        print(
            f"  run {runs}: {len(found[0]):,} images, {'the same' if found == expected else 'NOT THE SAME'}", flush=True
        )
        if found != expected:
            raise SystemExit("The collections differ.")
    print(f"{killed} nodes killed in {runs} runs: each collection is that of one process")


def count_items(collection: Path) -> int:
    if Collection.locate(collection) is None:
        return 0
    with Collection.open(collection) as opened:
        return len(opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="*", default=["overhead", "scaling", "kills"])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pm-"))
    try:
        photos = folder / "photos"
        unpack(arguments.data, photos, arguments.images)
        for name in arguments.only:
            print(f"{name}: {arguments.images:,} images, load {os.getloadavg()[0]:.1f}", flush=True)
            with cluster(folder / f"ray-{name[0]}") as made:
                print(f"  nodes with addresses of their own: {'yes' if made.network.exists else 'no'}")
                if name == "overhead":
                    overhead(made, photos, folder, arguments.images, arguments.repeats)
                elif name == "scaling":
                    scaling(made, photos, folder, arguments.images, arguments.repeats)
                else:
                    kills(made, photos, folder, arguments.images, arguments.kills)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
