"""What shards cost: one run of `index` against shards one after another and `merge`, and the merge of many rows.

    python benchmarks/shards.py --zip tiny-imagenet.zip --images 2000 --shards 4 --turns 3
    python benchmarks/shards.py --rows 100000 --shards 16

Prints the seconds of each turn, of the clock and of the processors; other work on the machine changes the latter less.
Prints also their ratios, whether both collections are the same, and for many rows the seconds and the greatest memory
of a merge, and of a merge of the same shards again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixmatcher import Collection

CLI = [sys.executable, "-m", "pixmatcher"]


def unpack(archive: Path, count: int, folder: Path) -> None:
    """Unpack the first `count` JPEG files of a zip file, evenly chosen, into 20 folders."""
    with zipfile.ZipFile(archive) as opened:
        names = [name for name in opened.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        for number, name in enumerate(names[:: max(1, len(names) // count)][:count]):
            path = folder / f"{number % 20:02}" / f"{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(opened.read(name))


class Seconds(NamedTuple):
    """How long commands took: seconds of the clock, and of the processors."""

    clock: float
    processors: float

    def __str__(self) -> str:
        return f"{self.clock:.1f} s ({self.processors:.1f} s of processors)"


def run(*arguments: object) -> Seconds:
    """Run a command of PixMatcher; return its seconds."""
    started, before = time.perf_counter(), _processor_seconds()
    subprocess.run([*CLI, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return Seconds(time.perf_counter() - started, _processor_seconds() - before)


def total(parts: Iterable[Seconds]) -> Seconds:
    """Return the sum of seconds."""
    return Seconds(*map(sum, zip(*parts, strict=True)))


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def same(one: Path, other: Path) -> bool:
    """Return whether two collections have the same items with the same embeddings."""

    def all_of(path: Path) -> dict[str, tuple[object, ...]]:
        with Collection.open(path) as collection:
            items = [*collection.items()]
            rows = [collection.embeddings([item.id for item in items], space) for space in collection.spaces]
            return {
                item.uri: (dataclasses.replace(item, id=0, added=None), *(values[place].tobytes() for values in rows))
                for place, item in enumerate(items)
            }

    return all_of(one) == all_of(other)


def compare_runs(archive: Path, images: int, shards: int, turns: int, folder: Path) -> None:
    """Compare one run with shards and a merge, in turns."""
    unpack(archive, images, folder / "photos")
    ratios = []
    for turn in range(turns):
        for name in ("one", "shards", "merged"):
            shutil.rmtree(folder / name, ignore_errors=True)
        one = run("index", folder / "photos", "-c", folder / "one")
        parts = total(
            run("index", folder / "photos", "--shard", f"{number}/{shards}", "--to", folder / "shards")
            for number in range(1, shards + 1)
        )
        merge = run("merge", folder / "shards", "-c", folder / "merged")
        both = total([parts, merge])
        ratios.append((both.clock / one.clock, both.processors / one.processors))
        print(
            f"turn {turn + 1}: one run {one}; {shards} shards {parts}; merge {merge}; ratio {ratios[-1][0]:.2f} "
            f"({ratios[-1][1]:.2f} of processors); the same: {same(folder / 'one', folder / 'merged')}",
            flush=True,
        )
    clock, processors = np.median(ratios, axis=0)
    print(f"median ratio {clock:.2f} ({processors:.2f} of processors)")


def merge_many(rows: int, shards: int, folder: Path) -> None:
    """Merge synthetic rows of `lite`'s dimensions."""
    from pixmatcher.collection import Item, records_of
    from pixmatcher.encoders import load_encoders
    from pixmatcher.indexing._shard_files import (
        CommonFacts,
        ListingFacts,
        Result,
        ShardOptions,
        entry_line,
        write_common,
        write_listing,
        write_part,
    )
    from pixmatcher.indexing._shard_places import open_place
    from pixmatcher.indexing._shards import Shard, SourcePlace, digest_of
    from pixmatcher.records import Entry

    place = open_place(folder / "shards")
    records = records_of(load_encoders(["lite"]))
    at = SourcePlace.of("/photos")
    common = CommonFacts(at.source_name, shards, records, ShardOptions(512_000_000, True))
    write_common(place, Shard(1, shards), common)
    names: list[list[str]] = [[] for _ in range(shards)]
    digest = 0
    for number in range(rows):
        name = f"{number % 1000:03}/image-{number:08}.jpg"
        digest = (digest + digest_of(name)) % (1 << 64)
        names[digest_of(name) % shards].append(name)
    random = np.random.default_rng(1)
    for number, own in enumerate(names, start=1):
        shard = Shard(number, shards)
        with tempfile.TemporaryFile() as lines:
            for name in own:
                lines.write(entry_line(Entry(name, "100-1-1", "2026-01-01T00:00:00+00:00")))
            write_listing(place, shard, ListingFacts(common, at, False, rows, digest), lines)
        for first in range(0, len(own), 2048):
            part = own[first : first + 2048]
            results = [
                Result(name, "100-1-1", Item(name, hashlib.sha256(name.encode()).hexdigest(), "", 100, 64, 64, "JPEG"))
                for name in part
            ]
            embeddings = {}
            for record in records:
                for space in record.spaces:
                    values = random.standard_normal((len(part), space.dimension)).astype(np.float32)
                    values /= np.linalg.norm(values, axis=1, keepdims=True)
                    embeddings[space.name] = values.astype(np.float16)
            write_part(place, shard, first // 2048 + 1, results, embeddings, {})
    size = sum(file.stat().st_size for file in (folder / "shards").rglob("*") if file.is_file())
    print(f"{rows:,} rows in {shards} shards, {size / 1e6:,.0f} MB", flush=True)
    for what in ("merge", "merge again"):
        seconds = run("merge", folder / "shards", "-c", folder / "c")
        rate = rows / seconds.clock
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{what}: {seconds}, {rate:,.0f} rows/s, at most {peak:,.0f} MB of memory", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zip", type=Path, help="a zip file with JPEG files")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rows", type=int, help="merge so many synthetic rows instead")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.rows:
            merge_many(arguments.rows, arguments.shards, Path(name))
        elif arguments.zip:
            compare_runs(arguments.zip, arguments.images, arguments.shards, arguments.turns, Path(name))
        else:
            parser.error("give --zip or --rows")


if __name__ == "__main__":
    main()
