"""Measure a collection in Milvus beside one in a folder: storing, size, time of a query, recall.

    python benchmarks/milvus.py milvus:bench.milvus --rows 1000000
    python benchmarks/milvus.py milvus://127.0.0.1:19530/bench --server-pid 123 --server-data FOLDER
    python benchmarks/milvus.py milvus://127.0.0.1:19530/bench --rows 1000000 --lists 1024 4096

The rows are like embeddings: points around 2,000 centres, of 384 values. A collection that exists is measured as it
is, and must have these rows. Recall is measured against a comparison of all rows by NumPy. With `--lists`, inverted
lists of these numbers are built and measured by the lists that a query visits. With `--folder`, the same rows are
stored in a collection in that folder, and its times are measured too. Results are printed as they are measured.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pixmatcher import Collection, Filter, Item
from pixmatcher.milvus import MilvusCollection, open_milvus
from pixmatcher.milvus._indexes import LISTS, SpaceIndex
from pixmatcher.records import EncoderRecord, Space

DIMENSION = 384
SPACE = Space("visual", DIMENSION)
BATCH = 2000


def batches(rows: int) -> Iterator[tuple[list[Item], np.ndarray]]:
    random = np.random.default_rng(1)
    centres = random.standard_normal((2000, DIMENSION), np.float32)
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        vectors = centres[random.integers(0, len(centres), count)]
        vectors += 0.7 * random.standard_normal((count, DIMENSION), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield [item(number) for number in range(start, start + count)], vectors


def item(number: int) -> Item:
    return Item(
        uri=f"/photos/{number // 1000:04}/{number:07}.jpg",
        content_hash=f"{number:064x}",
        version="1",
        bytes=100_000,
        width=800,
        height=600,
        format="JPEG",
        label=f"label {number % 500}",
        modified="2024-05-17T12:00:00",
    )


def queries(count: int) -> np.ndarray:
    """Return queries: rows with noise, and as many points between three rows."""
    (_, rows) = next(batches(BATCH))
    random = np.random.default_rng(2)
    noisy = rows[: count // 2].copy()
    noisy += 0.5 * random.standard_normal(noisy.shape, np.float32) / np.sqrt(np.float32(DIMENSION))
    between = sum(rows[random.permutation(len(rows))[: count - len(noisy)]] for _ in range(3))
    found = np.concatenate([noisy, between])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def nearest_by_numpy(rows: int, vectors: np.ndarray) -> list[set[str]]:
    """Return the uris of the 10 nearest of all rows, as they are stored (float16), for each query."""
    scores, numbers = np.full((len(vectors), 0), 0, np.float32), np.full((len(vectors), 0), 0)
    start = 0
    for items, batch in batches(rows):
        new = vectors.astype(np.float32) @ batch.astype(np.float16).astype(np.float32).T
        scores = np.hstack([scores, new])
        numbers = np.hstack([numbers, np.tile(np.arange(start, start + len(items)), (len(vectors), 1))])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        scores, numbers = np.take_along_axis(scores, best, 1), np.take_along_axis(numbers, best, 1)
        start += len(items)
    return [{item(number).uri for number in row} for row in numbers.tolist()]


def recall(store: object, vectors: np.ndarray, nearest: list[set[str]], **options: bool) -> float:
    search = store.search  # type: ignore[attr-defined]
    found = [{hit.item.uri for hit in search(v, space="visual", k=10, **options)} for v in vectors]
    return statistics.mean(len(a & b) / 10 for a, b in zip(found, nearest, strict=True))


def timed(search: Callable[[np.ndarray], object], vectors: np.ndarray) -> float:
    """Return the median time in milliseconds, after a first search that is not counted."""
    search(vectors[0])
    seconds = []
    for vector in vectors[1:]:
        started = time.perf_counter()
        search(vector)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def measure(store: object, name: str, vectors: np.ndarray, filters: dict[str, Filter], nearest: list[set[str]]) -> None:
    """Print the times of queries, and the recall of those without and with `exact`."""
    search = store.search  # type: ignore[attr-defined]
    print(f"{name}: query {timed(lambda v: search(v, space='visual', k=10), vectors):.1f} ms", flush=True)
    exact = timed(lambda v: search(v, space="visual", k=10, exact=True), vectors)
    print(f"{name}: exact query {exact:.1f} ms", flush=True)
    for what, filter in filters.items():
        took = timed(lambda v, filter=filter: search(v, space="visual", k=10, filter=filter), vectors)
        print(f"{name}: query with {what} {took:.1f} ms", flush=True)
    found = recall(store, vectors, nearest), recall(store, vectors, nearest, exact=True)
    print(f"{name}: recall@10 {found[0]:.3f}, exact {found[1]:.3f}", flush=True)


def measure_lists(store: MilvusCollection, lists: int, vectors: np.ndarray, nearest: list[set[str]]) -> None:
    """Build inverted lists, and print recall and time by the lists that a query visits, then what `tune` stores."""
    indexes = store._indexes
    started = time.monotonic()
    if indexes.of("visual").lists != lists:
        indexes.build("visual", SpaceIndex(LISTS, lists=lists, visited=1, recall=0.0, rows=len(store)))
        print(f"{lists} lists: built in {time.monotonic() - started:.0f} s", flush=True)
    visited = 1
    while visited <= lists:
        indexes.save("visual", replace(indexes.of("visual"), visited=visited))
        found = recall(store, vectors, nearest)
        took = timed(lambda v: store.search(v, space="visual", k=10), vectors)
        print(f"{lists} lists, {visited} visited: recall@10 {found:.3f}, {took:.1f} ms", flush=True)
        if found > 0.995:
            break
        visited *= 2
    tuning = store.tune_index("visual")
    print(f"{lists} lists, tuned: {tuning}", flush=True)
    index = indexes.of("visual")
    print(f"{lists} lists, {index.visited} stored: recall@10 {recall(store, vectors, nearest):.3f}", flush=True)


def fill(add: Callable[[list[Item], np.ndarray], object], rows: int, name: str) -> None:
    started, stored = time.monotonic(), 0
    for items, vectors in batches(rows):
        add(items, vectors)
        stored += len(items)
        if stored % (rows // 10) < BATCH:
            took = time.monotonic() - started
            print(f"{name}: {stored:,} rows, {took:.0f} s, {stored / took:.0f} rows/s", flush=True)


def most_memory(process: int | str) -> float:
    """Return the most memory that a process has had, in GB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="milvus:PATH or milvus://HOST:19530/NAME")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--lists", type=int, nargs="+", default=[], help="also measure inverted lists of these numbers")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--server-pid", type=int, help="also print the memory of this process")
    parser.add_argument("--server-data", type=Path, help="also print the size of this folder")
    parser.add_argument("--folder", type=Path, help="also measure a collection in this folder, which is deleted first")
    options = parser.parse_args()
    vectors = queries(options.queries)
    nearest = nearest_by_numpy(options.rows, vectors)
    filters = {"a label": Filter(labels=("label 7",)), "a folder": Filter(folder="/photos/0001")}
    record = EncoderRecord("bench", "1", (SPACE,))
    with open_milvus(options.address.removeprefix("milvus:")) as store:
        if not store.encoders:
            store.create([record])
            fill(lambda items, rows: store.add(items, {"visual": rows}, source="bench:rows"), options.rows, "Milvus")
        started = time.monotonic()
        store.update_indexes()
        print(f"Milvus: indexes {time.monotonic() - started:.0f} s: {store.index_descriptions()}", flush=True)
        if (size := store.size_on_disk()) is not None:
            print(f"Milvus: {size / 1e6:.0f} MB on disk", flush=True)
        measure(store, "Milvus", vectors, filters, nearest)
        started = time.monotonic()
        print(f"Milvus: {len(store):,} rows, counted in {time.monotonic() - started:.1f} s", flush=True)
        for lists in options.lists:
            measure_lists(store, lists, vectors, nearest)
    print(f"most memory of this process: {most_memory('self'):.1f} GB", flush=True)
    if options.server_pid is not None:
        print(f"most memory of the server: {most_memory(options.server_pid):.1f} GB", flush=True)
    if options.server_data is not None:
        size = sum(file.stat().st_size for file in options.server_data.rglob("*") if file.is_file())
        print(f"data of the server: {size / 1e6:.0f} MB", flush=True)
    if options.folder is not None:
        shutil.rmtree(options.folder, ignore_errors=True)
        with Collection.create(options.folder, [record]) as local:
            fill(lambda items, rows: local.add(items, {"visual": rows}, source="bench:rows"), options.rows, "folder")
            started = time.monotonic()
            local.update_indexes()
            print(f"folder: index {time.monotonic() - started:.0f} s: {local.index_descriptions()}", flush=True)
            print(f"folder: {local.size_on_disk() / 1e6:.0f} MB on disk", flush=True)
            measure(local, "folder", vectors, filters, nearest)


if __name__ == "__main__":
    main()
