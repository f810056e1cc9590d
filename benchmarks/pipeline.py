"""Measure the stages of an indexing run, how near it comes to its limit, and the cost of 100,000 files.

Each set is indexed in a new process, stage by stage. Then decoding alone and the network alone are timed on all cores,
with the files in memory. "One after the other" is the speed at which the same cores can do both. Shares are medians of
the rounds, so that other load on the machine affects few of them.

    python benchmarks/pipeline.py [--only photos tiny mixed many] [--data tiny-imagenet-mini.zip] [--repeats 3]

`mixed` leaves out HEIC if pillow-heif is not installed. `many` writes 100,000 files and needs 1 GB of disk.
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
from pixmatcher.collection import FOLDER_NAME, SpaceIndexes
from pixmatcher.indexing import _encode, _pipeline, _store, _workers, reading
from pixmatcher.sources import Source

MIXED = {"PNG": (1920, 1080), "WEBP": (1600, 1200), "HEIF": (4000, 3000)}
"""Width and height of the images of each format: as of a screen, a web page, a phone."""

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
    """The calls, CPU seconds and elapsed seconds of each stage, over all threads."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        cpu, clock = time.thread_time(), time.perf_counter()
        try:
            yield
        finally:
            cpu, clock = time.thread_time() - cpu, time.perf_counter() - clock
            with self._lock:
                sums = self.spent.setdefault(name, [0.0, 0.0, 0.0])
                for position, value in enumerate((1.0, cpu, clock)):
                    sums[position] += value

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def inner(*arguments: Any, **options: Any) -> Any:
            with self.timing(name):
                return function(*arguments, **options)

        return inner

    def watch(self) -> None:
        """Time the stages of all indexing runs of this process. ONNX Runtime and Pillow work in the calling thread."""
        read_entry = reading.read_entry

        @contextmanager
        def timed_read(source: Source, item: reading.WorkItem) -> Iterator[Any]:
            with ExitStack() as stack:
                with self.timing("read, hash"):
                    read = stack.enter_context(read_entry(source, item))
                yield read

        _encode.read_entry = timed_read  # type: ignore[assignment]
        encoder: Any = _encode.BatchEncoder
        for holder, attribute, name in (
            (_encode, "open_image", "decode"),
            (_encode, "fit_image", "preprocess"),
            (_workers, "load_for_run", "open the network"),
            (_pipeline, "compare_sources", "list, compare"),
            (encoder, "_encode", "network"),
            (encoder, "process", "a batch"),
            (_store.ResultStore, "flush", "store"),
            (SpaceIndexes, "save", "save indexes"),
        ):
            setattr(holder, attribute, self.timed(name, getattr(holder, attribute)))


def staged_run(folder: str) -> tuple[float, float, dict[str, list[float]]]:
    """Index a folder in this process; return the elapsed seconds, the CPU seconds, and those of each stage."""
    stages = Stages()
    stages.watch()
    cpu, clock = time.process_time(), time.perf_counter()
    indexing.index(folder)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    spent = stages.spent
    inner = [spent[name] for name in ("read, hash", "decode", "preprocess", "network")]
    batches = spent.pop("a batch")
    spent["rest of the workers"] = [batches[0]] + [batches[n] - sum(part[n] for part in inner) for n in (1, 2)]
    spent["everything else"] = [1.0, cpu - sum(part[1] for part in spent.values()), 0.0]
    return clock, cpu, spent


def in_fresh_process(work: Callable[[], Any]) -> Any:
    """Return the result of a function that runs in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def pipeline(title: str, folder: Path, repeats: int) -> None:
    """Print a table of the stages of an indexing run, and which share of its limits it reaches."""
    count, cores = len(list(folder.iterdir())), usable_cores()
    rounds = []
    for _ in range(repeats):
        clock, cpu, spent = in_fresh_process(partial(staged_run, str(folder)))
        shutil.rmtree(folder / FOLDER_NAME)
        with by_pillow():
            pillow = rate(*decoder(folder))
        rounds.append((clock, cpu, spent, *limits(folder), pillow))
    rounds.sort(key=lambda round: round[0])
    clock, cpu, spent, *_ = rounds[len(rounds) // 2]
    print(f"\n{title}: stages of a run of {clock:.2f} s; the cores are busy {cpu / cores / clock:.0%} of the time\n")
    print("| stage | CPU time | share | for each image | elapsed time of all threads |")
    print("| --- | --- | --- | --- | --- |")
    order = ["list, compare", "open the network", "read, hash", "decode", "preprocess", "network"]
    order += ["rest of the workers", "store", "save indexes", "everything else"]
    for name in order:
        _, used, waited = spent.get(name, [0.0, 0.0, 0.0])
        elapsed = f"{waited:.2f} s" if waited else ""
        print(f"| {name} | {used:.2f} s | {used / cpu:.1%} | {1000 * used / count:.2f} ms | {elapsed} |")
    rates = [count / clock for clock, *_ in rounds]
    decoding, network, pillow = (statistics.median(round[n] for round in rounds) for n in (3, 4, 5))
    slower, of_pillow = (statistics.median(count / r[0] / min(r[n], r[4]) for r in rounds) for n in (3, 5))
    of_both = statistics.median(count / r[0] * (1 / r[3] + 1 / r[4]) for r in rounds)
    print(
        f"\n{count:,} images, {statistics.median(rates):.0f} images/s ({min(rates):.0f} to {max(rates):.0f}); decoding "
        f"alone {decoding:.0f} (with Pillow {pillow:.0f}), network alone {network:.0f}, "
        f"one after the other {1 / (1 / decoding + 1 / network):.0f}\n"
        f"  {slower:.0%} of the slower of the two (target 85 %; {of_pillow:.0%} if Pillow decodes), "
        f"{of_both:.0%} of both one after the other",
        flush=True,
    )


def write_mixed(folder: Path, count: int) -> list[str]:
    """Write `count` images of each format, enlarged from the example photos with added noise; return the formats."""
    formats = [name for name in MIXED if name != "HEIF" or find_spec("pillow_heif")]
    if "HEIF" in formats:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    random = np.random.default_rng(0)
    photos = sorted(PHOTOS.glob("*.jpg"))[:4]
    for name in formats:
        images, quality = list[bytes](), 60 if name == "HEIF" else 80
        for path in photos:
            with Image.open(path) as photo:
                pixels = np.asarray(photo.convert("RGB").resize(MIXED[name], Image.Resampling.BICUBIC), np.float32)
            noisy = pixels + random.normal(0, 1.5, (*pixels.shape[:2], 1)).astype(np.float32)
            buffer = io.BytesIO()
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, name, quality=quality)
            images.append(buffer.getvalue())
        for number in range(count):
            # A free box, which decoders skip, makes each file different; at the end of a PNG or WebP it is ignored.
            own = (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")
            (folder / f"{number:03}.{'heic' if name == 'HEIF' else name.lower()}").write_bytes(images[number % 4] + own)
    return formats


def write_many(archive: Path, folder: Path, count: int) -> None:
    """Write `count` files with the content of 500 small images, in folders of a thousand files."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if "/val/images/" in name and name.endswith(".JPEG")][:500]
        contents = [file.read(name) for name in names]
    for number in range(count):
        if number % 1000 == 0:
            below = folder / f"{number // 1000:03}"
            below.mkdir(parents=True)
        (below / f"{number:06}.jpg").write_bytes(contents[number % len(contents)])


def many(archive: Path, place: Path, repeats: int) -> None:
    """Print the time of indexing and refreshing many files, most of which are copies of 500 images."""
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
        disk = sum(path.stat().st_size for path in (folder / FOLDER_NAME).rglob("*") if path.is_file())
        print(
            f"\n{count:,} files: indexed in {first:.1f} s, {peak:.0f} MB peak memory (target under 700); "
            f"the collection uses {disk / count:,.0f} bytes for each item\n"
            f"  refreshed without changes: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f}; "
            f"target under 3 at 100,000), {max(peaks):.0f} MB; listing the folder {statistics.median(bare):.2f} s",
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
