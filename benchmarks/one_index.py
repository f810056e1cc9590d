"""Build or search one index in a process of its own; benchmarks/peers_index.py starts it and reads its JSON output.

    python benchmarks/one_index.py build NAME FOLDER SECONDS
    python benchmarks/one_index.py search NAME FOLDER

FOLDER has `vectors.f16`, `queries.npy` and `truth.npy`. Only NumPy and the library of the index are needed. `build`
uses the cores that this process may run on, and stops after SECONDS. `search` runs one query after the other through
the Python interface of the library, and measures CPU time; run it on one core. Linux only.
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
"""Search parameters: a number for HNSW, lists and candidates for PixMatcher, None for a scan."""

DIMENSION = 384
K = 10
THREADS = len(os.sched_getaffinity(0))
AT_ONCE = 20_000
LINKS, BUILD_EFFORT = 16, 100
"""Parameters of each HNSW: links of a row (M; twice as many in the lowest layer), and efConstruction."""
SEARCH_EFFORTS = [round(10 * 2 ** (n / 2)) for n in range(16)]
MAX_RECALL = 0.993
"""No more settings are measured above this recall."""
ROUNDS = 3
RECALL_TARGETS = (0.90, 0.95, 0.99)


class Index(Protocol):
    library: str

    def build(self, folder: Path, rows: Any, until: float) -> int:
        """Add the rows; return how many were added until the time was over."""

    def save(self, folder: Path) -> list[Path]:
        """Save the index and return its files."""

    def load(self, folder: Path) -> list[Setting]:
        """Load the index and return the settings to search with, the cheapest first."""

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        """Return the K nearest rows of a query."""


class AddsRows:
    """An index to which float32 rows are added in blocks."""

    def start(self, count: int) -> None:
        """Prepare for so many rows."""

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
        self.index.init_index(max_elements=count, M=LINKS, ef_construction=BUILD_EFFORT)

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        self.index.add_items(rows, np.arange(first, first + len(rows)), num_threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        self.index.save_index(str(folder / "hnswlib"))
        return [folder / "hnswlib"]

    def load(self, folder: Path) -> list[Setting]:
        self.index.load_index(str(folder / "hnswlib"))
        return SEARCH_EFFORTS

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        self.index.set_ef(setting)
        return self.index.knn_query(query, k=K, num_threads=1)[0][0]


class Usearch(AddsRows):
    library = "usearch"

    def __init__(self) -> None:
        from usearch.index import Index

        self.index = Index(ndim=DIMENSION, metric="ip", connectivity=LINKS, expansion_add=BUILD_EFFORT)

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        self.index.add(np.arange(first, first + len(rows)), rows, threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        self.index.save(folder / "usearch")
        return [folder / "usearch"]

    def load(self, folder: Path) -> list[Setting]:
        self.index.load(folder / "usearch")
        return SEARCH_EFFORTS

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
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

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        if setting is not None:
            self.index.hnsw.efSearch = setting
        return self.index.search(query[None], K)[1][0]


class FaissHnsw(Faiss):
    def __init__(self) -> None:
        import faiss

        self.index = faiss.IndexHNSWFlat(DIMENSION, LINKS, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = BUILD_EFFORT

    def load(self, folder: Path) -> list[Setting]:
        super().load(folder)
        return SEARCH_EFFORTS


class FaissFlat(Faiss):
    def __init__(self) -> None:
        import faiss

        self.index = faiss.IndexFlatIP(DIMENSION)


class PixMatcherTrained:
    library = "pixmatcher"

    def __init__(self) -> None:
        import pixmatcher.vector_index._exact
        import pixmatcher.vector_index.trained  # noqa: F401  # their memory is not that of the index

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
        self.save_settings(folder)
        return [folder / "index.faiss"]

    def save_settings(self, folder: Path) -> None:
        """Save the operating points that find more than all cheaper ones, and those chosen for a target recall."""
        from pixmatcher.vector_index import IndexTarget
        from pixmatcher.vector_index._measuring import MeasuringQueries, exact_nearest, measure_points

        queries, rows = np.load(folder / "queries.npy"), np.sort(self.index.rows)
        own = np.full(len(queries), -1)
        truth = exact_nearest(self.vectors, rows, queries, own, K)
        measured = MeasuringQueries(queries, own)
        points = measure_points(self.index.lists, self.vectors, measured, truth)
        best, settings = 0.8, []
        for point in sorted(points, key=lambda p: p.cost):
            if point.recall > best:
                best = point.recall
                settings.append(point.as_json())
        for recall in RECALL_TARGETS:
            self.index.calibrate(IndexTarget(recall=recall))
            settings.append({**self.index.calibration.images.as_json(), "target": recall})
        (folder / "settings.json").write_text(json.dumps(settings))

    def load(self, folder: Path) -> list[Setting]:
        from pixmatcher.vector_index import load_index
        from pixmatcher.vector_index.vectors import VectorFile

        self.index, _ = load_index(folder / "index.faiss", 1, VectorFile(folder / "vectors.f16", DIMENSION))
        return self.settings(folder)

    def settings(self, folder: Path) -> list[Setting]:
        settings: list[Setting] = json.loads((folder / "settings.json").read_text())
        return settings

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        from pixmatcher.vector_index import OperatingPoint

        return self.index.search_at(query, OperatingPoint.from_json(setting))[1]


class PixMatcherExact(PixMatcherTrained):
    def build(self, folder: Path, rows: Any, until: float) -> int:
        from pixmatcher.vector_index._exact import ExactIndex
        from pixmatcher.vector_index.vectors import VectorFile

        self.index = ExactIndex(VectorFile(folder / "vectors.f16", DIMENSION))
        self.index.update(np.arange(len(rows)))
        return len(rows)

    def save_settings(self, folder: Path) -> None:
        """Do nothing: an exact index has no settings."""

    def settings(self, folder: Path) -> list[Setting]:
        return [None]

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
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
    """Return the bytes of private memory and of memory-mapped files of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def build(index: Index, folder: Path, seconds: float) -> dict[str, Any]:
    """Build and save an index; return its rows, times and size."""
    rows = np.memmap(folder / "vectors.f16", "<f2", mode="r").reshape(-1, DIMENSION)
    cpu, started = time.process_time(), time.perf_counter()
    done = index.build(folder, rows, started + seconds)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    files = index.save(folder) if done == len(rows) else []
    result = {"rows": done, "seconds": took, "cpu": cpu, "bytes": sum(path.stat().st_size for path in files)}
    return {**result, "version": importlib.metadata.version(index.library)}


def search(index: Index, folder: Path) -> dict[str, Any]:
    """Load an index and search with each setting; return recall, queries per second and memory."""
    queries, truth = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    before = resident()
    started = time.perf_counter()
    settings = index.load(folder)
    index.search(queries[0], settings[0])
    opened = time.perf_counter() - started
    points: list[dict[str, Any]] = []
    for setting in settings:
        if points and points[-1]["recall"] > MAX_RECALL and not (isinstance(setting, dict) and "target" in setting):
            continue
        started = time.perf_counter()
        for query in queries[:10]:
            index.search(query, setting)
        each = (time.perf_counter() - started) / 10
        few = min(len(queries), max(10, int(10 / each)))  # 10 s for the recall, 2 s for each round
        hits = sum(len(np.intersect1d(index.search(query, setting), truth[n])) for n, query in enumerate(queries[:few]))
        rates = []
        timed = queries[: max(10, int(2 / each))]
        for _ in range(ROUNDS):
            # CPU time, because other processes may use the core too.
            started = time.process_time()
            for query in timed:
                index.search(query, setting)
            rates.append(len(timed) / (time.process_time() - started))
        points.append({"setting": setting, "recall": hits / (K * few), "rates": rates})
    own, mapped = (after - start for after, start in zip(resident(), before, strict=True))
    return {"opened": opened, "own": own, "mapped": mapped, "points": points}


def main() -> None:
    task, name, folder, *rest = sys.argv[1:]
    index = INDEXES[name]()
    result = build(index, Path(folder), float(rest[0])) if task == "build" else search(index, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
