"""Measure a collection in Milvus beside one in a folder: storing, size, time of a query, recall.

    python benchmarks/milvus.py milvus:bench.milvus --rows 1000000
    python benchmarks/milvus.py milvus://127.0.0.1:19530/bench --rows 1000000 --folder bench-folder

The rows are like embeddings: points around 2,000 centres, of 384 values. A collection that exists is measured as it
is. With `--folder`, the same rows are stored in a collection in that folder, and its times are measured too. Results
are printed as they are measured.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pixmatcher import Collection, Filter, Item
from pixmatcher.milvus import open_milvus
from pixmatcher.records import EncoderRecord, Space

DIMENSION = 384
SPACE = Space("visual", DIMENSION)
BATCH = 2000
QUERIES = 20


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


def queries() -> np.ndarray:
    (_, vectors) = next(batches(BATCH))
    noise = np.random.default_rng(2).standard_normal((QUERIES, DIMENSION)).astype(np.float32)
    found = vectors[:QUERIES] + 0.5 * noise / np.sqrt(np.float32(DIMENSION))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def timed(search: Callable[[np.ndarray], object], vectors: np.ndarray) -> float:
    """Return the median time in milliseconds, after a first search that is not counted."""
    search(vectors[0])
    seconds = []
    for vector in vectors[1:]:
        started = time.perf_counter()
        search(vector)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def measure(store: object, name: str, vectors: np.ndarray, filters: dict[str, Filter]) -> list[set[str]]:
    """Print the times of queries, and return the uris of the exact hits of each."""
    search = store.search  # type: ignore[attr-defined]
    print(f"{name}: query {timed(lambda v: search(v, space='visual', k=10), vectors):.1f} ms", flush=True)
    exact = timed(lambda v: search(v, space="visual", k=10, exact=True), vectors)
    print(f"{name}: exact query {exact:.1f} ms", flush=True)
    for what, filter in filters.items():
        took = timed(lambda v, filter=filter: search(v, space="visual", k=10, filter=filter), vectors)
        print(f"{name}: query with {what} {took:.1f} ms", flush=True)
    found = [{hit.item.uri for hit in search(v, space="visual", k=10)} for v in vectors]
    nearest = [{hit.item.uri for hit in search(v, space="visual", k=10, exact=True)} for v in vectors]
    recall = statistics.mean(len(a & b) / 10 for a, b in zip(found, nearest, strict=True))
    print(f"{name}: recall@10 {recall:.3f}", flush=True)
    return nearest


def fill(add: Callable[[list[Item], np.ndarray], object], rows: int, name: str) -> None:
    started, stored = time.monotonic(), 0
    for items, vectors in batches(rows):
        add(items, vectors)
        stored += len(items)
        if stored % (rows // 10) < BATCH:
            took = time.monotonic() - started
            print(f"{name}: {stored:,} rows, {took:.0f} s, {stored / took:.0f} rows/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="milvus:PATH or milvus://HOST:19530/NAME")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="also measure a collection in this folder, which is deleted first")
    options = parser.parse_args()
    vectors = queries()
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
        found = measure(store, "Milvus", vectors, filters)
        started = time.monotonic()
        print(f"Milvus: {len(store):,} rows, counted in {time.monotonic() - started:.1f} s", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"memory of this process: {memory:.1f} GB", flush=True)
    if options.folder is not None:
        shutil.rmtree(options.folder, ignore_errors=True)
        with Collection.create(options.folder, [record]) as local:
            fill(lambda items, rows: local.add(items, {"visual": rows}, source="bench:rows"), options.rows, "folder")
            started = time.monotonic()
            local.update_indexes()
            print(f"folder: index {time.monotonic() - started:.0f} s: {local.index_descriptions()}", flush=True)
            print(f"folder: {local.size_on_disk() / 1e6:.0f} MB on disk", flush=True)
            nearest = measure(local, "folder", vectors, filters)
            same = statistics.mean(a == b for a, b in zip(found, nearest, strict=True))
            print(f"exact hits of Milvus that are those of the folder: {same:.1%}", flush=True)


if __name__ == "__main__":
    main()
