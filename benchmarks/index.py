"""The index of a space: time of a query, recall@10, memory, build and open time, by the number of rows.

    python benchmarks/index.py [--size 100000 1000000] [--data tiny-imagenet-mini.zip | --collection FOLDER]

The rows are made of real embeddings, those of the 20,000 train images of the Tiny ImageNet mini set by `lite`: each
lies at a random place between an image and one of its 100 nearest, with noise of 0.6 times its length, and all have the
length 1. The queries are the embeddings of the val images, which no row is made of. Rows between any two images would
not do: they lie far from all images, and are nothing like the queries that find them.

A size of 10,000,000 takes 8 GB of disk, some 4 GB of memory and half an hour. Timings are of one query after another in
one thread; those of a busy machine say little.
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
from pixmatcher.vector_index.vectors import Float32, RowMask, VectorFile

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
K = 10
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
SPACE = "visual"


def embeddings(collection: Path) -> Float32:
    with Collection.open(collection) as opened:
        return opened.embeddings(opened.ids().tolist(), SPACE)


def make_rows(images: Float32, count: int, noise: float = 0.6) -> Iterator[npt.NDArray[np.float16]]:
    """The rows, in blocks."""
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


def nearest(vectors: VectorFile, count: int, queries: Float32, among: RowMask | None = None) -> npt.NDArray[np.int64]:
    """The true K nearest rows of each query."""
    rows = np.arange(count) if among is None else np.flatnonzero(among)
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


MEMORY_OF = """
import sys
from pathlib import Path
import numpy as np
from pixmatcher.vector_index import load_index
from pixmatcher.vector_index.vectors import VectorFile
from pixmatcher.collection import exact, trained
def private():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = private()
index, _ = load_index(Path(sys.argv[1]), 1, VectorFile(Path(sys.argv[2]), int(sys.argv[3])))
index.search(np.ones(int(sys.argv[3]), np.float32), 10)
print((private() - before) * 1024)
"""


def memory_of(path: Path, vectors: VectorFile) -> int:
    """Bytes that a process takes for itself when it opens an index; what is mapped belongs to all."""
    command = [sys.executable, "-c", MEMORY_OF, str(path), str(vectors.path), str(vectors.dimension)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def timed(found: VectorIndex, queries: Float32, truth: npt.NDArray[np.int64], among: RowMask | None = None) -> str:
    seconds, hits = [], 0
    for query, expected in zip(queries, truth, strict=True):
        started = time.perf_counter()
        _, rows = found.search(query, K, among)
        seconds.append(time.perf_counter() - started)
        hits += len(np.intersect1d(rows, expected))
    median, slowest = np.percentile(seconds, [50, 99]) * 1000
    return f"p50 {median:7.2f} ms   p99 {slowest:7.2f} ms   recall@{K} {hits / truth.size:.3f}"


def write_rows(folder: Path, images: Float32, count: int) -> VectorFile:
    vectors = VectorFile(folder / "vectors.f16", images.shape[1])
    with vectors.path.open("wb") as file:
        for rows in make_rows(images, count):
            file.write(rows.tobytes())
    return vectors


def prepare(data: Path, collection: Path | None, folder: Path) -> tuple[Float32, Float32]:
    """The embeddings of the train images and of the val images; indexes what is not indexed already."""
    train = collection or folder / "train"
    if not collection:
        index(f"tiny-imagenet:{data}", train)
    index(f"tiny-imagenet:{data}?split=val", folder / "val")
    return embeddings(train), embeddings(folder / "val")


def measure(folder: Path, images: Float32, queries: Float32, count: int) -> None:
    vectors = write_rows(folder, images, count)
    everything = np.arange(count)
    truth = nearest(vectors, count, queries)
    kind = index_kind(count, vectors.dimension)
    print(f"\n{count:,} x {vectors.dimension}: {kind}", flush=True)
    path = folder / "index" / "visual.faiss"

    def exact() -> SavableIndex:
        made = ExactIndex(vectors)
        made.update(everything)
        return made

    def trained() -> SavableIndex:
        return TrainedIndex.train(vectors, everything, IndexTarget())

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
        print(f"{name}: built in {built_in:.1f} s ({cpu:.1f} s of processor), opened and asked in {opened_in:.2f} s")
        print(f"  {size:.0f} bytes a row on disk, {memory_of(path, vectors) / count:.0f} of memory a row")
        if isinstance(opened, TrainedIndex):
            print(f"  {opened.calibration}")
        some = slice(None if name == "trained" else 100)
        print(f"  all rows       {timed(opened, queries[some], truth[some])}", flush=True)
        if name == "trained":
            for share in SELECTIVITIES:
                among = np.random.default_rng(3).random(count) < share
                few = queries[:300]
                print(f"  {share:6.1%} of them {timed(opened, few, nearest(vectors, count, few, among), among)}")
        del opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if platform.system() == "Darwin" else 2**20)
    print(f"peak of this process, with the rows that were mapped: {peak:.1f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--collection", type=Path, help="its train part, where that is indexed already")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where the rows go for a while")
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
