"""Build one index, or ask it, in a process of its own; benchmarks/peers_index.py starts these and reads their JSON.

    python benchmarks/one_index.py build NAME FOLDER SECONDS
    python benchmarks/one_index.py ask NAME FOLDER

FOLDER has `vectors.f16`, `queries.npy` and `truth.npy`. Needs NumPy and the library of that index, no more. `build`
uses the cores that this process may run on, and gives up after SECONDS. `ask` puts one query after another through the
Python interface of each, and counts processor time; it wants to be run on one core. For Linux.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Setting = Any
"""What a query may cost: a number for HNSW, two for PixMatcher, nothing for a scan."""

DIMENSION = 384
K = 10
THREADS = len(os.sched_getaffinity(0))
AT_ONCE = 20_000
LINKS, EFFORT = 16, 100
"""Of each HNSW: links of a row (twice as many at the bottom), and candidates when a row is added."""
EFFORTS = [round(10 * 2 ** (n / 2)) for n in range(16)]
ENOUGH = 0.993
ROUNDS = 3
AIMS = (0.90, 0.95, 0.99)


class Index(Protocol):
    library: str

    def build(self, folder: Path, rows: Any, until: float) -> int:
        """Take in the rows; returns how many, fewer where the time is over."""

    def save(self, folder: Path) -> list[Path]:
        """Returns the files."""

    def load(self, folder: Path) -> list[Setting]:
        """Returns the settings to ask with, the cheapest first."""

    def ask(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows: ...


class AddsRows:
    """Takes float32 rows, some at a time."""

    def start(self, count: int) -> None:
        """Make room."""

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        raise NotImplementedError

    def build(self, folder: Path, rows: Any, until: float) -> int:
        self.start(len(rows))
        for first in range(0, len(rows), AT_ONCE):
            if time.perf_counter() > until:
                return first
            self.add(first, rows[first : first + AT_ONCE].astype(np.float32))
        return len(rows)


class Hnswlib(AddsRows):
    library = "hnswlib"

    def __init__(self) -> None:
        import hnswlib

        self.index = hnswlib.Index(space="ip", dim=DIMENSION)

    def start(self, count: int) -> None:
        self.index.init_index(max_elements=count, M=LINKS, ef_construction=EFFORT)

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        self.index.add_items(rows, np.arange(first, first + len(rows)), num_threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        self.index.save_index(str(folder / "hnswlib"))
        return [folder / "hnswlib"]

    def load(self, folder: Path) -> list[Setting]:
        self.index.load_index(str(folder / "hnswlib"))
        return EFFORTS

    def ask(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        self.index.set_ef(setting)
        return self.index.knn_query(query, k=K, num_threads=1)[0][0]


class Usearch(AddsRows):
    library = "usearch"

    def __init__(self) -> None:
        from usearch.index import Index

        self.index = Index(ndim=DIMENSION, metric="ip", connectivity=LINKS, expansion_add=EFFORT)

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        self.index.add(np.arange(first, first + len(rows)), rows, threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        self.index.save(folder / "usearch")
        return [folder / "usearch"]

    def load(self, folder: Path) -> list[Setting]:
        self.index.load(folder / "usearch")
        return EFFORTS

    def ask(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        self.index.expansion_search = setting
        return self.index.search(query, K, threads=1).keys.astype(np.int64)


class Faiss(AddsRows):
    library = "faiss-cpu"
    index: Any

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        self.index.add(rows)

    def save(self, folder: Path) -> list[Path]:
        import faiss

        faiss.write_index(self.index, str(folder / "faiss"))
        return [folder / "faiss"]

    def load(self, folder: Path) -> list[Setting]:
        import faiss

        self.index = faiss.read_index(str(folder / "faiss"))
        return [None]

    def ask(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        if setting is not None:
            self.index.hnsw.efSearch = setting
        return self.index.search(query[None], K)[1][0]


class FaissHnsw(Faiss):
    def __init__(self) -> None:
        import faiss

        self.index = faiss.IndexHNSWFlat(DIMENSION, LINKS, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = EFFORT

    def load(self, folder: Path) -> list[Setting]:
        super().load(folder)
        return EFFORTS


class FaissFlat(Faiss):
    def __init__(self) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(DIMENSION)


class PixMatcherTrained:
    library = "pixmatcher"

    def __init__(self) -> None:
        from pixmatcher import vector_index as index  # noqa: F401  # so that their memory is not the index's

    def build(self, folder: Path, rows: Any, until: float) -> int:
        from pixmatcher.vector_index import IndexTarget
        from pixmatcher.vector_index.trained import TrainedIndex
        from pixmatcher.vector_index.vectors import VectorFile

        self.vectors = VectorFile(folder / "vectors.f16", DIMENSION)
        self.index: Any = TrainedIndex.train(self.vectors, np.arange(len(rows)), IndexTarget())
        return len(rows)

    def save(self, folder: Path) -> list[Path]:
        from pixmatcher.vector_index import save_index

        save_index(self.index, folder / "index.faiss", 1, DIMENSION)
        self.note_settings(folder)
        return [folder / "index.faiss"]

    def note_settings(self, folder: Path) -> None:
        """Note the operating points of least cost for the recall they have, and those that an aim would choose."""
        from pixmatcher.vector_index import IndexTarget
        from pixmatcher.vector_index._measuring import MeasuringQueries, exact_nearest, measure_points

        queries, rows = np.load(folder / "queries.npy"), np.sort(self.index.rows)
        own = np.full(len(queries), -1)
        truth = exact_nearest(self.vectors, rows, queries, own, K)
        measured = MeasuringQueries(queries, own, [np.arange(len(queries))])
        points = measure_points(self.index.lists, self.vectors, measured, truth)
        best, settings = 0.8, []
        for point in sorted(points, key=lambda p: p.cost):
            if point.recall > best:
                best = point.recall
                settings.append({"lists": point.lists, "candidates": point.candidates})
        for recall in AIMS:
            self.index.calibrate(IndexTarget(recall=recall))
            chosen = self.index.calibration
            settings.append({"lists": chosen.lists, "candidates": chosen.candidates, "aim": recall})
        (folder / "settings.json").write_text(json.dumps(settings))

    def load(self, folder: Path) -> list[Setting]:
        from pixmatcher.vector_index import load_index
        from pixmatcher.vector_index.vectors import VectorFile

        self.index, _ = load_index(folder / "index.faiss", 1, VectorFile(folder / "vectors.f16", DIMENSION))
        return self.settings(folder)

    def settings(self, folder: Path) -> list[Setting]:
        settings: list[Setting] = json.loads((folder / "settings.json").read_text())
        return settings

    def ask(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        return self.index.search_at(query, setting["lists"], setting["candidates"])[1]


class PixMatcherExact(PixMatcherTrained):
    def build(self, folder: Path, rows: Any, until: float) -> int:
        from pixmatcher.vector_index._exact import ExactIndex
        from pixmatcher.vector_index.vectors import VectorFile

        self.index = ExactIndex(VectorFile(folder / "vectors.f16", DIMENSION))
        self.index.update(np.arange(len(rows)))
        return len(rows)

    def note_settings(self, folder: Path) -> None:
        """There is nothing to set."""

    def settings(self, folder: Path) -> list[Setting]:
        return [None]

    def ask(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        return self.index.search(query, K)[1]


INDEXES: dict[str, type[Index]] = {
    "PixMatcher, trained": PixMatcherTrained,
    "PixMatcher, exact": PixMatcherExact,
    "faiss flat": FaissFlat,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "faiss HNSW": FaissHnsw,
}


def resident() -> tuple[int, int]:
    """Bytes that this process has in memory for itself, and of mapped files."""
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(told[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def build(index: Index, folder: Path, seconds: float) -> dict[str, Any]:
    rows = np.memmap(folder / "vectors.f16", "<f2", mode="r").reshape(-1, DIMENSION)
    cpu, started = time.process_time(), time.perf_counter()
    done = index.build(folder, rows, started + seconds)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    files = index.save(folder) if done == len(rows) else []
    told = {"rows": done, "seconds": took, "cpu": cpu, "bytes": sum(path.stat().st_size for path in files)}
    return {**told, "version": importlib.metadata.version(index.library)}


def ask(index: Index, folder: Path) -> dict[str, Any]:
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    before = resident()
    started = time.perf_counter()
    settings = index.load(folder)
    index.ask(queries[0], settings[0])
    opened = time.perf_counter() - started
    points: list[dict[str, Any]] = []
    for setting in settings:
        if points and points[-1]["recall"] > ENOUGH and not (isinstance(setting, dict) and "aim" in setting):
            continue
        started = time.perf_counter()
        for query in queries[:10]:
            index.ask(query, setting)
        each = (time.perf_counter() - started) / 10
        few = min(len(queries), max(10, int(10 / each)))  # 10 s for recall, 2 s for a round
        hits = sum(len(np.intersect1d(index.ask(query, setting), truth[n])) for n, query in enumerate(queries[:few]))
        rates = []
        timed = queries[: max(10, int(2 / each))]
        for _ in range(ROUNDS):
            # On one core the two are the same, but for what other processes take of it.
            started = time.process_time()
            for query in timed:
                index.ask(query, setting)
            rates.append(len(timed) / (time.process_time() - started))
        points.append({"setting": setting, "recall": hits / (K * few), "rates": rates})
    own, mapped = (after - start for after, start in zip(resident(), before, strict=True))
    return {"opened": opened, "own": own, "mapped": mapped, "points": points}


def main() -> None:
    task, name, folder, *rest = sys.argv[1:]
    index = INDEXES[name]()
    told = build(index, Path(folder), float(rest[0])) if task == "build" else ask(index, Path(folder))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
