"""Build or search one index in a process of its own; benchmarks/peers_index.py starts it and reads its JSON output.

    python benchmarks/one_index.py build NAME FOLDER SECONDS
    python benchmarks/one_index.py search NAME FOLDER

FOLDER has `vectors.f16`, `queries.npy` and `truth.npy`. Only NumPy and the library of the index are needed. `build`
uses the cores that this process may run on, and stops after SECONDS. `search` runs one query after the other through
the Python interface of the library, and measures CPU time; run it on one core. Linux only.

The parameters of each index are those that its own documents recommend or show. Some libraries cannot do all:
- ScaNN, SVS, VSAG, NGT and rabitqlib take all rows in one call, so their builds cannot be stopped after SECONDS.
- SVS compresses rows (LVQ, LeanVec) on Intel processors only, and ends the process on others. So its rows are float16.
- NGT builds its quantized graph (QG) by a command that the wheel lacks. So this is its ANNG, of float32 rows.
- turbovec scores codes only, of 4 bits at most, and scans all of them. Above K candidates, NumPy compares them with the
  rows of `vectors.f16`, as PixMatcher does.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Setting = Any
"""Search parameters: a number for a graph, lists and candidates for PixMatcher and ScaNN, None for a scan."""

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


class TakesAllRows:
    """An index that takes all float32 rows in one call."""

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        raise NotImplementedError

    def build(self, folder: Path, rows: Any, until: float) -> int:
        self.create(folder, rows.astype(np.float32))
        return len(rows)


class Scann(TakesAllRows):
    """As docs/algorithms.md of ScaNN says: of the order of sqrt(N) leaves, codes of 2 dimensions, reordering.

    With SOAR and AVQ, which here find more in as many leaves.
    """

    library = "scann"

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        import scann

        builder = scann.scann_ops_pybind.builder(rows, K, "dot_product").set_n_training_threads(THREADS)
        leaves = round(2 * math.sqrt(len(rows)))
        builder = builder.tree(leaves, leaves // 10, avq=2.5, soar_lambda=1.5)
        self.index = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()

    def save(self, folder: Path) -> list[Path]:
        (folder / "scann").mkdir(exist_ok=True)
        self.index.serialize(str(folder / "scann"))
        return files_under(folder / "scann")

    def load(self, folder: Path) -> list[Setting]:
        import scann

        self.index = scann.scann_ops_pybind.load_searcher(str(folder / "scann"))
        leaves = [round(2 * 2 ** (n / 2)) for n in range(19)]
        return [(few, candidates) for few in leaves for candidates in (20, 40, 80, 160)]

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        leaves, candidates = setting
        return self.index.search(query, leaves_to_search=leaves, pre_reorder_num_neighbors=candidates)[0]


class Svs(TakesAllRows):
    """Vamana with the parameters of the first example in the documents of SVS; 0.95 is its alpha for inner products."""

    library = "scalable-vs"
    PARTS = ("config", "graph", "data")

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        import svs

        parameters = svs.VamanaBuildParameters(graph_max_degree=64, window_size=128, alpha=0.95)
        self.index = svs.Vamana.build(parameters, rows.astype(np.float16), svs.DistanceType.MIP, num_threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        (folder / "svs").mkdir(exist_ok=True)
        self.index.save(*(str(folder / "svs" / part) for part in self.PARTS))
        return files_under(folder / "svs")

    def load(self, folder: Path) -> list[Setting]:
        import svs

        config, graph, data = (str(folder / "svs" / part) for part in self.PARTS)
        stored = svs.VectorDataLoader(data, svs.DataType.float16, dims=DIMENSION)
        self.index = svs.Vamana(config, svs.GraphLoader(graph), stored, svs.DistanceType.MIP, num_threads=1)
        return SEARCH_EFFORTS

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        self.index.search_window_size = setting
        return self.index.search(query[None], K)[0][0].astype(np.int64)


class Vsag(TakesAllRows):
    """HGraph with the parameters of VSAG's example 103_index_hgraph.py, 8-bit codes, and float32 rows to reorder."""

    library = "pyvsag"

    def __init__(self) -> None:
        import pyvsag

        pyvsag.set_logger_off()
        codes = {"base_quantization_type": "sq8_uniform", "use_reorder": True, "precise_quantization_type": "fp32"}
        graph = {"max_degree": 26, "ef_construction": 100, "alpha": 1.2, "build_thread_count": THREADS}
        parameters = {"dtype": "float32", "metric_type": "ip", "dim": DIMENSION, "index_param": codes | graph}
        self.index = pyvsag.Index("hgraph", json.dumps(parameters))

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        self.index.build(rows.ravel(), np.arange(len(rows)), len(rows), DIMENSION)

    def save(self, folder: Path) -> list[Path]:
        self.index.save(str(folder / "vsag"))
        return [folder / "vsag"]

    def load(self, folder: Path) -> list[Setting]:
        self.index.load(str(folder / "vsag"))
        return [json.dumps({"hgraph": {"ef_search": effort}}) for effort in SEARCH_EFFORTS]

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        return self.index.knn_search(query, K, setting)[0]


class Ngt(TakesAllRows):
    """ANNG with twice the default edges, which here find more in the same time; ONNG, made of it, does not."""

    library = "ngt"

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        import ngtpy

        path = str(folder / "ngt")
        ngtpy.create(path, DIMENSION, edge_size_for_creation=20, distance_type="Normalized Cosine")
        self.index = ngtpy.Index(path, log_disabled=True)
        self.index.batch_insert(rows, num_threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        self.index.save()
        return files_under(folder / "ngt")

    def load(self, folder: Path) -> list[Setting]:
        import ngtpy

        self.index = ngtpy.Index(str(folder / "ngt"), read_only=True, log_disabled=True)
        return [round(-0.02 + 0.02 * n, 2) for n in range(20)]

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        return np.asarray(self.index.search(query, K, epsilon=setting, with_distance=False))


class RabitqGraph(TakesAllRows):
    """SymphonyQG of rabitqlib with the parameters of its docs/index/qg.md."""

    library = "rabitqlib"
    file = "rabitqlib-graph"

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        from rabitqlib import SymqgIndex

        self.index = SymqgIndex(dim=DIMENSION, max_degree=32, metric="ip")
        self.index.build(rows, ef_construction=200, num_threads=THREADS)

    def save(self, folder: Path) -> list[Path]:
        self.index.save(str(folder / self.file))
        return [folder / self.file]

    def load(self, folder: Path) -> list[Setting]:
        from rabitqlib import SymqgIndex

        self.index = SymqgIndex.load(str(folder / self.file))
        return SEARCH_EFFORTS

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        return self.index.search(query[None], K, setting)[0][0].astype(np.int64)


class RabitqLists(RabitqGraph):
    """IVF of rabitqlib with 7-bit codes, and centers by its docs/index/ivf.md."""

    file = "rabitqlib-lists"

    def create(self, folder: Path, rows: npt.NDArray[np.float32]) -> None:
        from rabitqlib import FinalAssignmentMode, IvfIndex, RaBitQKMeans

        count = round(2 * math.sqrt(len(rows)))
        centers = RaBitQKMeans(DIMENSION, count, num_threads=THREADS, final_assignment=FinalAssignmentMode.Exact)
        centers.train(rows)
        self.index = IvfIndex(dim=DIMENSION, max_elements=len(rows), num_clusters=count, nbits=7, metric="ip")
        self.index.build(rows, centers.centroids, centers.assignments, num_threads=THREADS)

    def load(self, folder: Path) -> list[Setting]:
        from rabitqlib import IvfIndex

        self.index = IvfIndex.load(str(folder / self.file))
        return [min(round(2 * 2 ** (n / 2)), self.index.num_clusters) for n in range(21)]


class Turbovec(AddsRows):
    library = "turbovec"

    def __init__(self) -> None:
        from turbovec import TurboQuantIndex

        self.index = TurboQuantIndex(dim=DIMENSION, bit_width=4)

    def add(self, first: int, rows: npt.NDArray[np.float32]) -> None:
        self.index.add(rows)

    def save(self, folder: Path) -> list[Path]:
        self.index.write(str(folder / "turbovec"))
        return [folder / "turbovec"]

    def load(self, folder: Path) -> list[Setting]:
        from turbovec import TurboQuantIndex

        self.index = TurboQuantIndex.load(str(folder / "turbovec"))
        self.rows = np.memmap(folder / "vectors.f16", "<f2", mode="r").reshape(-1, DIMENSION)
        return [K, 12, 14, 16, 20, 40]

    def search(self, query: npt.NDArray[np.float32], setting: Setting) -> Rows:
        found = self.index.search(query[None], setting)[1][0]
        if setting == K:
            return found
        scores = self.rows[found].astype(np.float32) @ query
        return found[np.argsort(-scores)[:K]]


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
    "ScaNN": Scann,
    "SVS Vamana": Svs,
    "VSAG HGraph": Vsag,
    "NGT ANNG": Ngt,
    "rabitqlib SymphonyQG": RabitqGraph,
    "rabitqlib IVF": RabitqLists,
    "turbovec": Turbovec,
}


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


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
