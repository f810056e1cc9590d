"""Where the time of an indexing run goes, how near it comes to its limit, and what 100,000 files cost.

Each set is indexed by a fresh process, stage by stage, and right after it decoding alone and the network alone are
timed on all cores, files being in memory. Both need the same cores: "in turns" is what they allow one after the other.
The shares are medians of rounds, so that a busy machine spoils few of them.

    python benchmarks/pipeline.py [--only photos tiny mixed many] [--data tiny-imagenet-mini.zip] [--repeats 3]

`mixed` leaves out HEIC where pillow-heif is not installed. `many` writes 100,000 files and needs 1 GB of disk.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from decode import by_pillow
from PIL import Image
from speed import PHOTOS, ROOT, decoder, limits, make_large_photos, pixmatcher, rate, run_measured, unpack_small_images

from pixmatcher import indexing
from pixmatcher._cores import usable_cores
from pixmatcher.collection import SpaceIndexes
from pixmatcher.sources import Source

MIXED = {"PNG": (1920, 1080), "WEBP": (1600, 1200), "HEIF": (4000, 3000)}
"""Pixels of the pictures of each format: a screen, a page of the web, a telephone."""

BARE_LISTING = """
import os, sys
folders, count = [sys.argv[1]], 0
while folders:
    with os.scandir(folders.pop()) as listing:
        for child in listing:
            if child.is_dir(follow_symlinks=False):
                folders.append(child.path)
            else:
                count += child.stat().st_size > 0
"""


class Stages:
    """Calls, seconds of processor time and seconds on the clock of each stage, over all threads."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        processor, clock = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            processor, clock = time.thread_time() - processor, time.perf_counter() - clock
            with self._lock:
                sums = self.spent.setdefault(name, [0.0, 0.0, 0.0])
                for position, value in enumerate((1.0, processor, clock)):
                    sums[position] += value

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def inner(*arguments: Any, **options: Any) -> Any:
            with self.timing(name):
                return function(*arguments, **options)

        return inner

    def watch(self) -> None:
        """Time the stages of the runs of this process. ONNX Runtime and Pillow work on the thread that calls them."""
        read_entry = indexing.read_entry

        @contextmanager
        def timed_read(source: Source, turn: indexing.Turn) -> Iterator[Any]:
            with ExitStack() as stack:
                with self.timing("read, hash"):
                    read = stack.enter_context(read_entry(source, turn))
                yield read

        indexing.read_entry = timed_read  # type: ignore[assignment]
        run: Any = indexing._Run
        for holder, attribute, name in (
            (indexing, "open_image", "decode"),
            (indexing, "fit_image", "preprocess"),
            (indexing, "_load", "open the network"),
            (run, "_compare", "list, compare"),
            (run, "_encode", "network"),
            (run, "_process", "a batch"),
            (run, "_flush", "store"),
            (SpaceIndexes, "save", "save indexes"),
        ):
            setattr(holder, attribute, self.timed(name, getattr(holder, attribute)))


def staged_run(folder: str) -> tuple[float, float, dict[str, list[float]]]:
    """Index a folder in this process: seconds on the clock, of processor time, and of each stage."""
    stages = Stages()
    stages.watch()
    processor, clock = time.process_time(), time.perf_counter()
    indexing.index(folder)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    spent = stages.spent
    inner = [spent[name] for name in ("read, hash", "decode", "preprocess", "network")]
    whole = spent.pop("a batch")
    spent["the rest of a worker"] = [whole[0]] + [whole[n] - sum(part[n] for part in inner) for n in (1, 2)]
    spent["all else"] = [1.0, processor - sum(part[1] for part in spent.values()), 0.0]
    return clock, processor, spent


def in_fresh_process(work: Callable[[], Any]) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def pipeline(title: str, folder: Path, repeats: int) -> None:
    """Print a table of the stages of an indexing run, and what share of its limits it reaches."""
    count, cores = len(list(folder.iterdir())), usable_cores()
    rounds = []
    for _ in range(repeats):
        clock, processor, spent = in_fresh_process(partial(staged_run, str(folder)))
        shutil.rmtree(folder / indexing.FOLDER_NAME)
        with by_pillow():
            pillow = rate(*decoder(folder))
        rounds.append((clock, processor, spent, *limits(folder), pillow))
    rounds.sort(key=lambda round: round[0])
    clock, processor, spent, *_ = rounds[len(rounds) // 2]
    print(
        f"\n{title}: the stages of one run of {clock:.2f} s; the cores are busy {processor / cores / clock:.0%} of it\n"
    )
    print("| stage | processor | share | an image | all threads on the clock |")
    print("| --- | --- | --- | --- | --- |")
    order = ["list, compare", "open the network", "read, hash", "decode", "preprocess", "network"]
    order += ["the rest of a worker", "store", "save indexes", "all else"]
    for name in order:
        _, used, waited = spent.get(name, [0.0, 0.0, 0.0])
        told = f"{waited:.2f} s" if waited else ""
        print(f"| {name} | {used:.2f} s | {used / processor:.1%} | {1000 * used / count:.2f} ms | {told} |")
    rates = [count / clock for clock, *_ in rounds]
    decoding, network, pillow = (statistics.median(round[n] for round in rounds) for n in (3, 4, 5))
    slower, of_pillow = (statistics.median(count / r[0] / min(r[n], r[4]) for r in rounds) for n in (3, 5))
    in_turns = statistics.median(count / r[0] * (1 / r[3] + 1 / r[4]) for r in rounds)
    print(
        f"\n{count:,} images, {statistics.median(rates):.0f} a second ({min(rates):.0f} to {max(rates):.0f}); decoding "
        f"alone {decoding:.0f} (by Pillow {pillow:.0f}), the network alone {network:.0f}, "
        f"in turns {1 / (1 / decoding + 1 / network):.0f}\n"
        f"  {slower:.0%} of the slower of the two (asked 85 %; {of_pillow:.0%} where Pillow decodes), "
        f"{in_turns:.0%} of both in turns",
        flush=True,
    )


def write_mixed(folder: Path, count: int) -> list[str]:
    """Write so many pictures of each format, enlarged from the example photos with grain; returns the formats."""
    formats = [name for name in MIXED if name != "HEIF" or find_spec("pillow_heif")]
    if "HEIF" in formats:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    random = np.random.default_rng(0)
    photos = sorted(PHOTOS.glob("*.jpg"))[:4]
    for name in formats:
        made, quality = list[bytes](), 60 if name == "HEIF" else 80
        for path in photos:
            with Image.open(path) as photo:
                pixels = np.asarray(photo.convert("RGB").resize(MIXED[name], Image.Resampling.BICUBIC), np.float32)
            noisy = pixels + random.normal(0, 1.5, (*pixels.shape[:2], 1)).astype(np.float32)
            buffer = io.BytesIO()
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, name, quality=quality)
            made.append(buffer.getvalue())
        for number in range(count):
            # A box that says to be passed over makes each file one of its own; behind a PNG or WebP it is just bytes.
            own = (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
            (folder / f"{number:03}.{'heic' if name == 'HEIF' else name.lower()}").write_bytes(made[number % 4] + own)
    return formats


def write_many(archive: Path, folder: Path, count: int) -> None:
    """Write `count` files, a thousand a folder, with the content of 500 small images."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if "/val/images/" in name and name.endswith(".JPEG")][:500]
        contents = [file.read(name) for name in names]
    for number in range(count):
        if number % 1000 == 0:
            below = folder / f"{number // 1000:03}"
            below.mkdir(parents=True)
        (below / f"{number:06}.jpg").write_bytes(contents[number % len(contents)])


def many(archive: Path, place: Path, repeats: int) -> None:
    """Print what indexing and refreshing many files takes, of which all but 500 are copies of others."""
    for count in (10_000, 100_000):
        folder = place / f"many-{count}"
        write_many(archive, folder, count)
        first, peak = run_measured(pixmatcher("index", folder))
        times, peaks, bare = [], [], []
        for _ in range(repeats):
            bare.append(run_measured([sys.executable, "-c", BARE_LISTING, str(folder)])[0])
            seconds, megabytes = run_measured(pixmatcher("index", folder))
            times.append(seconds)
            peaks.append(megabytes)
        disk = sum(path.stat().st_size for path in (folder / indexing.FOLDER_NAME).rglob("*") if path.is_file())
        print(
            f"\n{count:,} files: indexed in {first:.1f} s, {peak:.0f} MB at most (asked under 700); "
            f"the collection has {disk / count:,.0f} bytes an item\n"
            f"  refreshed, nothing changed: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f}; "
            f"asked under 3 at 100,000), {max(peaks):.0f} MB; listing the folder alone {statistics.median(bare):.2f} s",
            flush=True,
        )
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("photos", "tiny", "mixed", "many")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{usable_cores()} of {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        for part in arguments.only:
            folder = Path(name, part)
            folder.mkdir()
            if part == "photos":
                megabytes = make_large_photos(folder, 120, 6)
                pipeline(f"120 JPEGs of 12 megapixels, {megabytes:.1f} MB each", folder, arguments.repeats)
            elif part == "tiny":
                unpack_small_images(arguments.data, folder, 2000)
                pipeline("2,000 Tiny ImageNet images", folder, arguments.repeats)
            elif part == "mixed":
                formats = write_mixed(folder, 40)
                pipeline(f"40 each of {', '.join(formats)}", folder, arguments.repeats)
            else:
                many(arguments.data, folder, arguments.repeats)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
