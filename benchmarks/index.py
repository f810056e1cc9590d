"""Measure the index of a space: query time, recall@10, memory, build time and loading time, by the number of rows.

    python benchmarks/index.py [--size 100000 1000000] [--data tiny-imagenet-mini.zip | --collection FOLDER]

The rows are made from real embeddings, those of the 20,000 train images of the Tiny ImageNet mini set by `lite`. Each
row is at a random position between an image and one of its 100 nearest images, plus noise of 0.6 times its length, and
is normalized to the length 1. The queries are the embeddings of the val images, from which no row is made. Rows between
two random images would be useless: they are far from all images, and so from the queries.

10,000,000 rows need 8 GB of disk, about 4 GB of memory, and half an hour. Queries are timed one after the other in one
thread. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from pixmatcher import Collection, index
from pixmatcher._cores import usable_cores
from pixmatcher.vector_index import IndexTarget, SavableIndex, VectorIndex, index_kind, load_index, save_index
from pixmatcher.vector_index._exact import ExactIndex
from pixmatcher.vector_index.trained import TrainedIndex
from pixmatcher.vector_index.vectors import Float32, RowMask, Rows, VectorFile

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
K = 10
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
SPACE = "visual"


def embeddings(collection: Path) -> Float32:
    """Return all embeddings (N, D) of a collection."""
    with Collection.open(collection) as opened:
        return opened.embeddings(opened.ids().tolist(), SPACE)


def make_rows(images: Float32, count: int, noise: float = 0.6) -> Iterator[npt.NDArray[np.float16]]:
    """Yield the rows in blocks."""
    random = np.random.default_rng(0)
    _, near = faiss.knn(images, images, 101, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        first = random.integers(0, len(images), size)
        second = near[first, random.integers(1, 101, size)]
        share = random.random((size, 1), np.float32)
        rows = share * images[first] + (1 - share) * images[second]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        rows += random.standard_normal(rows.shape, np.float32) * np.float32(noise / np.sqrt(images.shape[1]))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield rows.astype("<f2")


def true_nearest(vectors: VectorFile, count: int, queries: Float32, allowed: RowMask | None = None) -> Rows:
    """Return the true K nearest rows of each query (Q, K)."""
    rows = np.arange(count) if allowed is None else np.flatnonzero(allowed)
    best_scores, best_rows = np.full((len(queries), 0), 0, np.float32), np.full((len(queries), 0), 0, np.int64)
    for block, stored in vectors.stream(rows, 65_536):
        scores, places = faiss.knn(
            queries, stored.astype(np.float32), min(2 * K, len(block)), faiss.METRIC_INNER_PRODUCT
        )
        best_scores = np.concatenate([best_scores, scores], axis=1)
        best_rows = np.concatenate([best_rows, block[places]], axis=1)
        order = np.argsort(-best_scores, axis=1)[:, : 2 * K]
        best_scores, best_rows = np.take_along_axis(best_scores, order, 1), np.take_along_axis(best_rows, order, 1)
    return best_rows[:, :K]


PRIVATE_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from pixmatcher.vector_index import load_index
from pixmatcher.vector_index.vectors import VectorFile
import pixmatcher.vector_index._exact, pixmatcher.vector_index.trained  # their memory is not counted
def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = private()
index, _ = load_index(Path(sys.argv[1]), 1, VectorFile(Path(sys.argv[2]), int(sys.argv[3])))
index.search(np.ones(int(sys.argv[3]), np.float32), 10)
print((private() - before) * 1024)
"""


def private_memory(path: Path, vectors: VectorFile) -> int:
    """Return the bytes of private memory that a process needs to load an index; memory-mapped files do not count."""
    command = [sys.executable, "-c", PRIVATE_MEMORY, str(path), str(vectors.path), str(vectors.dimension)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def measure_queries(index: VectorIndex, queries: Float32, truth: Rows, allowed: RowMask | None = None) -> str:
    """Return the times and the recall of a search for each query, as text."""
    seconds, hits = [], 0
    for query, expected in zip(queries, truth, strict=True):
        started = time.perf_counter()
        _, rows = index.search(query, K, allowed)
        seconds.append(time.perf_counter() - started)
        hits += len(np.intersect1d(rows, expected))
    median, slowest = np.percentile(seconds, [50, 99]) * 1000
    return f"p50 {median:7.2f} ms   p99 {slowest:7.2f} ms   recall@{K} {hits / truth.size:.3f}"


def write_rows(folder: Path, images: Float32, count: int) -> VectorFile:
    """Write `count` rows that are made from the embeddings of images (N, D)."""
    vectors = VectorFile(folder / "vectors.f16", images.shape[1])
    with vectors.path.open("wb") as file:
        for rows in make_rows(images, count):
            file.write(rows.tobytes())
    return vectors


def prepare(data: Path, collection: Path | None, folder: Path) -> tuple[Float32, Float32]:
    """Return the embeddings of the train images and of the val images; index them first if necessary."""
    train = collection or folder / "train"
    if not collection:
        index(f"tiny-imagenet:{data}", train)
    index(f"tiny-imagenet:{data}?split=val", folder / "val")
    return embeddings(train), embeddings(folder / "val")


def measure(folder: Path, images: Float32, queries: Float32, count: int) -> None:
    """Build each kind of index of `count` rows, and print its build time, size, query time and recall."""
    vectors = write_rows(folder, images, count)
    all_rows = np.arange(count)
    truth = true_nearest(vectors, count, queries)
    kind = index_kind(count, vectors.dimension)
    print(f"\n{count:,} x {vectors.dimension}: {kind}", flush=True)
    path = folder / "index" / "visual.faiss"

    def exact() -> SavableIndex:
        index = ExactIndex(vectors)
        index.update(all_rows)
        return index

    def trained() -> SavableIndex:
        return TrainedIndex.train(vectors, all_rows, IndexTarget())

    builders: dict[str, Callable[[], SavableIndex]] = {"exact": exact, "trained": trained}
    if count > 2_000_000:
        del builders["exact"]
    for name, build in builders.items():
        cpu, started = time.process_time(), time.perf_counter()
        built = build()
        built_in, cpu = time.perf_counter() - started, time.process_time() - cpu
        save_index(built, path, 1, vectors.dimension)
        del built
        started = time.perf_counter()
        opened, _ = load_index(path, 1, vectors)
        assert opened is not None
        opened.search(queries[0], K)
        opened_in = time.perf_counter() - started
        size = path.stat().st_size / count
        print(f"{name}: built in {built_in:.1f} s ({cpu:.1f} s CPU time), first query after {opened_in:.2f} s")
        print(f"  bytes for each row: {size:.0f} on disk, {private_memory(path, vectors) / count:.0f} in memory")
        if isinstance(opened, TrainedIndex):
            print(f"  {opened.calibration}")
        some = slice(None if name == "trained" else 100)
        print(f"  all rows       {measure_queries(opened, queries[some], truth[some])}", flush=True)
        if name == "trained":
            for share in SELECTIVITIES:
                allowed = np.random.default_rng(3).random(count) < share
                few = queries[:300]
                truth_of_few = true_nearest(vectors, count, few, allowed)
                print(f"  {share:6.1%} of rows {measure_queries(opened, few, truth_of_few, allowed)}")
        del opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if platform.system() == "Darwin" else 2**20)
    print(f"peak memory of this process, with memory-mapped rows: {peak:.1f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--collection", type=Path, help="a collection of its train part, if there is one")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="folder for temporary files")
    arguments = parser.parse_args()
    print(
        f"{usable_cores()} cores, FAISS {faiss.__version__}, NumPy {np.__version__}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        images, queries = prepare(arguments.data, arguments.collection, folder)
        for count in arguments.size:
            measure(folder, images, queries[: arguments.queries], count)


if __name__ == "__main__":
    main()
