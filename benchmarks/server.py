"""Measure the HTTP service on 20,000 images: rate, latency, overload, mixed load, and clip-retrieval beside it.

    python benchmarks/server.py [--only load steady over mixed peer] [--collection FOLDER]
                                [--data tiny-imagenet-mini.zip] [--workers 1 2] [--minutes 30] [--peer PYTHON]

Without --collection, a collection of the train images of the data is created first, which takes minutes. The client
runs on the same cores as the service, in a process of its own, whose processor time is printed. No text is asked twice,
so no cache helps. `mixed` runs for --minutes. `peer` needs the interpreter of an environment of its own with
clip-retrieval 2.45.0. Each result is printed with its target for 2 cores. Needs the extra `server`, Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from http_load import Load, connect, get, json_post, post, run_load
from PIL import Image

from pixmatcher import Collection, Filter, SearchOptions, search
from pixmatcher.searching.pictures import item_picture
from pixmatcher.searching.query import query_from_json

ROOT = Path(__file__).parents[1]
NAME = "bench"
"""The name of the collection in URLs."""
SEARCH = f"/v1/collections/{NAME}/search"
CLIENTS = 32
RESULTS = 12

_COLOURS = """
red blue green white black yellow brown grey orange pink purple golden silver dark bright
"""
_KINDS = """
small large old new wet wooden metal young tall round broken shiny dirty quiet famous
"""
_THINGS = """
dog cat car boat house tree bird fish horse apple bridge bus train chair table lamp clock bottle cup plate
pizza cake flower mountain river lake beach tower castle church statue umbrella bicycle truck plane kite
ball bear cow sheep elephant lion tiger monkey spider bee butterfly snake frog turtle crab shark whale shoe
hat coat dress shirt sofa bed door window road fence barn tent camera phone computer keyboard drum guitar
piano violin book pencil box basket
"""
_PLACES = """
on a beach
in the snow
near a lake
at night
on a street
in a kitchen
under a tree
in the rain
on a hill
by a window
in a garden
at the market
beside a road
in front of a house
on a table
in the forest
at sunset
in an empty room
on grass
with a child
"""


def distinct_texts() -> Iterator[str]:
    """Yield about 300,000 short descriptions of images in a random order, none twice."""
    parts = (_COLOURS.split(), _KINDS.split(), _THINGS.split(), _PLACES.strip().splitlines())
    total = int(np.prod([len(part) for part in parts]))
    for number in random.Random(0).sample(range(total), total):
        words = []
        for part in parts:
            number, place = divmod(number, len(part))
            words.append(part[place])
        yield f"a {words[0]} {words[1]} {words[2]} {words[3]}"


TEXTS = distinct_texts()


def text_requests(count: int) -> list[bytes]:
    """Return requests for searches by text that have not been made before."""
    return [json_post(SEARCH, {"text": text, "k": RESULTS}) for text in itertools.islice(TEXTS, count)]


# The service


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen[bytes]
    port: int

    def json(self, path: str) -> Any:
        """Return the answer to a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())


@contextlib.contextmanager
def running_service(collection: Path, *options: str) -> Iterator[Service]:
    """Start the service for a collection with its command, and wait until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pixmatcher", "serve", "-c", f"{NAME}={collection}", "--port", str(port), *options]
    with tempfile.TemporaryDirectory() as state, open(Path(state) / "log", "w+") as log:
        process = subprocess.Popen([*command, "--state", state], stdout=log, stderr=log)
        service = Service(process, port)
        try:
            for _ in range(600):
                with contextlib.suppress(OSError):
                    service.json("/readyz")
                    break
                if process.poll() is not None:
                    log.seek(0)
                    sys.exit(f"The service stopped during its start: {log.read()[-2000:]}")
                time.sleep(0.1)
            yield service
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def family(process: int) -> list[int]:
    """Return the ids of a process and all processes that it started, without those that run a job."""
    found = [process]
    for each in found:
        for tasks in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in map(int, tasks.read_text().split()):
                    with contextlib.suppress(OSError):
                        if b"_job_" not in Path(f"/proc/{child}/cmdline").read_bytes():
                            found.append(child)
    return found


def resident(processes: Sequence[int]) -> tuple[float, float]:
    """Return the resident memory of processes in MB, and the part of it that is not mapped from files."""
    totals = [0.0, 0.0]
    for process in processes:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process}/status").read_text()
            for place, name in enumerate(("VmRSS", "RssAnon")):
                if match := re.search(rf"{name}:\s+(\d+) kB", status):
                    totals[place] += int(match[1]) * 1024 / 1e6
    return totals[0], totals[1]


# In process


def two_threads(collection: Path, texts: Sequence[str], seconds: float) -> float:
    """Return how many texts a second two threads of one new process search for."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_two_threads, collection, list(texts), seconds).result()


def _two_threads(collection: Path, texts: list[str], seconds: float) -> float:
    with Collection.open(collection) as opened:
        options = SearchOptions(k=RESULTS)
        for text in ("a warm dog", "a warm cat"):
            search(opened, text, options)
        left = iter(texts)
        started = time.perf_counter() + 0.1 * seconds
        end = started + 0.9 * seconds
        answered = [0, 0]

        def work(thread: int) -> None:
            for text in left:
                search(opened, text, options)
                done = time.perf_counter()
                if done > end:
                    return
                answered[thread] += done >= started
            raise RuntimeError("there were too few texts")

        threads = [threading.Thread(target=work, args=(each,)) for each in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return sum(answered) / (0.9 * seconds)


# The measurements


def spread(values: Sequence[float]) -> str:
    """Return the median and the range of values, as text."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def warm_up(service: Service, workers: int) -> None:
    """Make each worker load its encoder and its index."""
    run_load(service.port, text_requests(6000), 3 * workers, clients=CLIENTS)


def measure_load(collection: Path, workers: int, rounds: int, seconds: float) -> None:
    """Print texts a second over HTTP beside two threads in one process, in alternating rounds."""
    inside: list[float] = []
    loads: list[Load] = []
    with running_service(collection, "--workers", str(workers)) as service:
        warm_up(service, workers)
        for _ in range(rounds):
            inside.append(two_threads(collection, list(itertools.islice(TEXTS, int(2000 * seconds))), seconds))
            loads.append(run_load(service.port, text_requests(int(2000 * seconds)), seconds, clients=CLIENTS))
    rates = [load.rate for load in loads]
    ratios = [100 * rate / base for rate, base in zip(rates, inside, strict=True)]
    statuses = sum((load.statuses for load in loads), Counter[int]())
    cost = statistics.median(load.processor / sum(load.statuses.values()) for load in loads)
    p50, p99 = (statistics.median(load.at(share) for load in loads) * 1000 for share in (0.5, 0.99))
    print(
        f"load: {workers} worker(s), {CLIENTS} clients: {spread(rates)} texts/s over HTTP, {spread(inside)} with two "
        f"threads in one process: {spread(ratios)} % (target: 80 %); p50 {p50:.0f} ms, p99 {p99:.0f} ms; statuses "
        f"{dict(statuses)}; the client costs {cost * 1e6:.0f} us of processor time a request"
    )


def highest_rate(service: Service, seconds: float) -> float:
    """Return the answers a second to 32 clients that each ask again when answered."""
    return run_load(service.port, text_requests(int(2000 * seconds)), seconds, clients=CLIENTS).rate


def measure_steady(collection: Path, workers: int, rounds: int, seconds: float) -> None:
    """Print the latency at 70 % of the highest load, at a constant rate, from the planned time of sending."""
    ratios, medians, tails, rates = [], [], [], []
    statuses: Counter[int] = Counter()
    with running_service(collection, "--workers", str(workers)) as service:
        warm_up(service, workers)
        for _ in range(rounds):
            rate = 0.7 * highest_rate(service, seconds / 2)
            load = run_load(service.port, text_requests(int(rate * seconds) + 100), seconds, rate=rate)
            medians.append(1000 * load.at(0.5))
            tails.append(1000 * load.at(0.99))
            ratios.append(tails[-1] / medians[-1])
            rates.append(rate)
            statuses += load.statuses
    print(
        f"steady: {workers} worker(s), {spread(rates)} texts/s planned: p50 {statistics.median(medians):.1f} ms, p99 "
        f"{statistics.median(tails):.1f} ms; p99 / p50 {statistics.median(ratios):.1f} ({min(ratios):.1f} to "
        f"{max(ratios):.1f}; target: 5); statuses {dict(statuses)}"
    )


def measure_over(collection: Path, workers: int, seconds: float) -> None:
    """Print what the service does with ten times the clients, and with twice the rate that it can answer."""
    limit = 30.0
    with running_service(collection, "--workers", str(workers)) as service:
        warm_up(service, workers)
        highest = highest_rate(service, seconds / 2)
        many = run_load(service.port, text_requests(int(20_000 * seconds)), seconds, clients=10 * CLIENTS)
        fast = run_load(service.port, text_requests(int(2 * highest * seconds) + 100), seconds, rate=2 * highest)
        after = highest_rate(service, seconds / 2)
    for name, load in ((f"{10 * CLIENTS} clients", many), (f"{2 * highest:.0f} requests/s", fast)):
        total = sum(load.statuses.values())
        times = [*load.times, *load.refused_times]
        late = sum(each > limit for each in times)
        print(
            f"over load: {workers} worker(s), {name}: {load.rate:.0f} good answers/s ({load.rate / highest:.0%} "
            f"of the highest load), {100 * load.statuses[429] / total:.0f} % refused with 429, other statuses "
            f"{ {status: count for status, count in load.statuses.items() if status not in (200, 429)} }; good answers "
            f"p99 {1000 * load.at(0.99):.0f} ms, refusals p99 {_p99(load.refused_times):.0f} ms, slowest "
            f"{1000 * max(times):.0f} ms, {late} later than {limit:.0f} s (target: 0); {load.unsent} not sent"
        )
    print(f"over load: afterwards {after:.0f} texts/s, before {highest:.0f}")


def _p99(times: Sequence[float]) -> float:
    return 1000 * sorted(times)[int(0.99 * len(times))] if times else 0.0


# Mixed load


@dataclass
class Mixed:
    """What the mixed load has counted."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)

    def check(self, kind: str, status: int, right: bool, what: str = "") -> None:
        """Count an answer; it is wrong if it has the status 200 and another content than in process."""
        self.statuses[status] += 1
        self.answers[kind] += 1
        if status == 200 and not right:
            self.wrong.append(f"{kind}: {what[:300]}")
        elif status not in (200, 202, 429):
            self.wrong.append(f"{kind}: status {status}: {what[:300]}")


def comparable(result: dict[str, Any]) -> Any:
    """Return what must be equal in two answers to the same query."""
    return [(hit["id"], hit["uri"], hit["score"], hit.get("probability")) for hit in result["hits"]]


def data_url(file: Path) -> str:
    """Return an image file as a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()


def multipart(query: object, file: Path) -> bytes:
    """Return a request for a search with an uploaded image."""
    mark = "a-mark-that-no-image-contains"
    body = (
        f'--{mark}\r\ncontent-disposition: form-data; name="query"\r\ncontent-type: application/json\r\n\r\n'
        f'{json.dumps(query)}\r\n--{mark}\r\ncontent-disposition: form-data; name="picture"; filename="{file.name}"\r\n'
        "content-type: image/jpeg\r\n\r\n"
    ).encode()
    body += file.read_bytes() + f"\r\n--{mark}--\r\n".encode()
    return post(SEARCH, body, f"multipart/form-data; boundary={mark}")


def measure_mixed(archive: Path, workers: int, minutes: float, count: int) -> None:
    """Print wrong answers and growth over minutes of mixed load, with a job that adds and removes files meanwhile."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.path.realpath(temporary))
        stable, changing, spare = folder / "photos" / "stable", folder / "photos" / "changing", folder / "spare"
        for each in (stable, changing, spare):
            each.mkdir(parents=True)
        with zipfile.ZipFile(archive) as file:
            names = [name for name in file.namelist() if "/val/images/" in name and name.endswith(".JPEG")]
            for number, name in enumerate(names[: count + 300]):
                place = stable if number < count else spare
                (place / Path(name).name).write_bytes(file.read(name))
        for each in sorted(spare.iterdir())[:100]:
            shutil.copy(each, changing)
        collection, snapshot = folder / "collection", folder / "snapshot"
        command = [sys.executable, "-m", "pixmatcher", "index", str(folder / "photos"), "-c", str(collection)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(collection, snapshot)
        requests = expected_answers(snapshot, stable, sorted(spare.iterdir())[200:])
        counted = Mixed()
        with running_service(collection, "--workers", str(workers)) as service:
            memory: list[tuple[float, float, float]] = []
            began = time.perf_counter()
            stopped = threading.Event()

            def watch() -> None:
                while not stopped.wait(5):
                    memory.append((time.perf_counter() - began, *resident(family(service.process.pid))))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                asyncio.run(_mixed_load(service.port, requests, counted, minutes * 60, changing, spare))
            finally:
                stopped.set()
                watcher.join()
    warm = [each for each in memory if each[0] > min(120.0, minutes * 12)]
    few = max(1, len(warm) // 20)
    first, last = (
        [statistics.median(each[place] for each in part) for place in (1, 2)] for part in (warm[:few], warm[-few:])
    )
    print(
        f"mixed: {workers} worker(s), {minutes:g} minutes: {dict(counted.answers)}; statuses {dict(counted.statuses)}; "
        f"jobs {dict(counted.jobs)}; {len(counted.wrong)} wrong answers (target: 0); memory after warm-up "
        f"{first[0]:.0f} MB, at the end {last[0]:.0f} MB: growth {last[0] - first[0]:+.0f} MB (target: "
        f"50), of it not mapped from files {last[1] - first[1]:+.0f} MB; "
        f"highest {max(each[1] for each in memory):.0f} MB"
    )
    for each in counted.wrong[:10]:
        print("  wrong:", each)


Check = tuple[str, bytes, Callable[[bytes], bool]]
"""The kind of a request, the request, and whether the body of its answer is right."""


def expected_answers(snapshot: Path, stable: Path, pictures: Sequence[Path]) -> list[Check]:
    """Return requests whose answers only changes in the folder `stable` can change, with checks of them."""
    checks: list[Check] = []
    folder_filter = {"folder": str(stable)}
    options = SearchOptions(k=RESULTS, filter=Filter(folder=str(stable)))
    with Collection.open(snapshot) as collection:

        def expected(values: dict[str, Any]) -> Callable[[bytes], bool]:
            right = comparable(search(collection, query_from_json(values), options).as_json())
            return lambda body: comparable(json.loads(body)) == right

        more = {"k": RESULTS, "filter": folder_filter}
        for text in itertools.islice(TEXTS, 400):
            checks.append(("text", json_post(SEARCH, {"text": text} | more), expected({"text": text})))
        for file in pictures:
            uploaded = multipart({"image": "upload:picture"} | more, file)
            checks.append(("upload", uploaded, expected({"image": data_url(file)})))
            checks.append(
                ("data URL", json_post(SEARCH, {"image": data_url(file)} | more), expected({"image": data_url(file)}))
            )
        items = sorted(
            (item for item in collection.items() if item.uri.startswith(str(stable))), key=lambda each: each.id
        )
        ids = [item.id for item in items]
        for item in items[:200]:
            values = {"want": [{"id": item.id}]}
            checks.append(("id", json_post(SEARCH, values | more), expected(values)))
            picture = item_picture(item, collection, 128)
            assert picture is not None
            path = f"/v1/collections/{NAME}/items/{item.id}/thumbnail?size=128"
            checks.append(("thumbnail", get(path), _shows(np.asarray(picture.convert("RGB"), np.float32))))
        for place in range(0, min(len(ids), 1000), 50):
            path = f"/v1/collections/{NAME}/items?limit=50&folder={stable}"
            page = ids[:50]
            checks.append(
                ("items", get(path), lambda body, page=page: [each["id"] for each in json.loads(body)["items"]] == page)
            )
            path = f"/v1/collections/{NAME}/items/{ids[place]}"
            uri = items[place].uri
            checks.append(("item", get(path), lambda body, uri=uri: json.loads(body)["uri"] == uri))
    random.Random(1).shuffle(checks)
    return checks


def _ids(body: bytes) -> list[int]:
    return [each["id"] for each in json.loads(body)["items"]]


def _shows(expected: np.ndarray) -> Callable[[bytes], bool]:
    """Return a check that a body is an image that shows what is expected; JPEG may change it a little."""

    def check(body: bytes) -> bool:
        shown = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"), np.float32)
        return shown.shape == expected.shape and float(np.abs(shown - expected).mean()) < 6

    return check


async def _mixed_load(
    port: int, checks: Sequence[Check], counted: Mixed, seconds: float, changing: Path, spare: Path
) -> None:
    end = time.perf_counter() + seconds

    async def client(first: int) -> None:
        connection = await connect(port)
        for kind, request, is_right in itertools.islice(itertools.cycle(checks), first, None):
            if time.perf_counter() > end:
                break
            status, body = await connection.ask(request)
            right = False
            if status == 200:
                with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                    right = is_right(body)
            counted.check(kind, status, right, body.decode(errors="replace"))
            if connection.closed:
                connection = await connect(port)
            if status == 429:
                await asyncio.sleep(1)
        connection.close()

    async def jobs() -> None:
        files = sorted(spare.iterdir())[:200]
        chance = random.Random(2)
        while time.perf_counter() < end:
            for file in files:
                there = changing / file.name
                if chance.random() < 0.3:
                    if there.exists():
                        there.unlink()
                    else:
                        shutil.copy(file, there)
            status, body = await _once(port, json_post(f"/v1/collections/{NAME}/sources", {}))
            counted.check("job", status, status == 202, body.decode(errors="replace"))
            if status != 202:
                await asyncio.sleep(1)
                continue
            job = json.loads(body)["id"]
            while True:
                status, body = await _once(port, get(f"/v1/jobs/{job}"))
                state = json.loads(body).get("state") if status == 200 else None
                counted.check("state of a job", status, state is not None, body.decode(errors="replace"))
                if state not in ("waiting", "running") or time.perf_counter() > end + 120:
                    counted.jobs[str(state)] += 1
                    break
                await asyncio.sleep(0.5)

    await asyncio.gather(*(client(number * len(checks) // 8) for number in range(8)), jobs())


async def _once(port: int, request: bytes) -> tuple[int, bytes]:
    connection = await connect(port)
    answer = await connection.ask(request)
    connection.close()
    return answer


def create_collection(archive: Path, folder: Path) -> Path:
    """Index the train images of Tiny ImageNet in a folder, and return the collection."""
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder, [name for name in file.namelist() if "/train/" in name])
    images = next(folder.glob("*/train"))
    command = [sys.executable, "-m", "pixmatcher", "index", str(images), "-c", str(folder / "collection")]
    subprocess.run(command, check=True)
    return folder / "collection"


def main() -> None:
    """Run the measurements that the command line names."""
    parts = ("load", "steady", "over", "mixed", "peer")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts[:3])
    parser.add_argument("--collection", type=Path)
    parser.add_argument("--data", type=Path, default=Path("tiny-imagenet-mini.zip"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a round")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the mixed load")
    parser.add_argument("--stable", type=int, default=1500, help="images of the mixed load that do not change")
    parser.add_argument("--peer", type=Path, help="the interpreter of an environment with clip-retrieval")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        collection = arguments.collection
        if collection is None and set(arguments.only) - {"mixed"}:
            collection = create_collection(arguments.data, Path(folder))
        for workers in arguments.workers:
            if "load" in arguments.only:
                measure_load(collection, workers, arguments.rounds, arguments.seconds)
            if "steady" in arguments.only:
                measure_steady(collection, workers, arguments.rounds, arguments.seconds)
            if "over" in arguments.only:
                measure_over(collection, workers, arguments.seconds)
        if "mixed" in arguments.only:
            measure_mixed(arguments.data, arguments.workers[-1], arguments.minutes, arguments.stable)
        if "peer" in arguments.only:
            from server_peer import measure_peer

            measure_peer(collection, arguments.peer, arguments.workers, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
