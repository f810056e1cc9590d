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
from pathlib import Path

from speed import pixmatcher

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pixmatcher import Collection
from ray_nodes import RayCluster, cluster, descendants
from test_ray import contents

DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
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


def timed_run(command: list[str], made: RayCluster) -> tuple[float, float]:
    """Run a command that indexes; return the seconds and the CPU seconds that it took, those of the nodes included."""
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=made.environment) as process:

        def pids() -> set[int]:
            return descendants(process.pid).union(*(node.pids() for node in [*made.nodes, made.head]))

        with measuring(pids) as cpu:
            output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command} failed: {output.decode()}{errors.decode()}")
    return time.perf_counter() - before, cpu.seconds()


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
    """Return the command that indexes into a new collection, in one process or on a cluster."""
    shutil.rmtree(collection, ignore_errors=True)
    arguments = photos, "-c", collection
    return pixmatcher("index", *arguments) if made is None else made.index_command(*arguments)


def overhead(made: RayCluster, photos: Path, folder: Path, images: int, repeats: int) -> None:
    """Compare one process with as many threads as there are cores with as many worker processes, in turns."""
    made.add(cpus=os.cpu_count() or 1)
    here, there = folder / "here", folder / "there"
    walls, cpus, rates = list[float](), list[float](), list[float]()
    for turn in range(repeats):
        local = timed_run(index_command(photos, here), made)
        remote = timed_run(index_command(photos, there, made), made)
        walls.append(remote[0] / local[0])
        cpus.append(remote[1] / local[1])
        rates.append(images / local[0])
        print(
            f"  turn {turn + 1}: one process {local[0]:.1f} s, {local[1]:.1f} CPU s; Ray {remote[0]:.1f} s, "
            f"{remote[1]:.1f} CPU s"
        )
        if contents(here) != contents(there):
            raise SystemExit("The collections differ.")
    print(f"one process: {spread(rates, 0)} images/s")
    print(f"Ray / one process, seconds: {spread(walls)}")
    print(f"Ray / one process, CPU seconds: {spread(cpus)}")
    print("All collections are the same.")


def scaling(made: RayCluster, photos: Path, folder: Path, images: int, repeats: int) -> None:
    """Compare one node with two, each bound to a core of its own, in turns."""
    first = made.add(core=0)
    speedups = []
    for turn in range(repeats):
        one, _ = timed_run(index_command(photos, folder / "c", made), made)
        second = made.add(core=1)
        two, _ = timed_run(index_command(photos, folder / "c", made), made)
        made.kill(second)
        time.sleep(20)  # until Ray has noticed it
        speedups.append(one / two)
        print(f"  turn {turn + 1}: one node {images / one:.1f} images/s, two nodes {images / two:.1f} images/s")
    made.kill(first)
    print(f"two nodes / one node: {spread(speedups)}")


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
