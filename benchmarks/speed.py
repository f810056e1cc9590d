"""Measure the speed of the complete tool: indexing, a cold text query, a query on 100,000 items, memory.

Each result is printed with its target for 2 cores without a GPU. Run it on an idle machine, repeat it, and compare only
results of the same run.

    python benchmarks/speed.py [--only small|large|cold|search|whole ...] [--data tiny-imagenet-mini.zip]

`whole` takes about ten minutes and runs only if it is named.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pixmatcher import Collection, Item, Query, classify, load_encoder, open_image, search
from pixmatcher.encoders.lite import BATCH_SIZE
from pixmatcher.images import fit_image

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"
BARE_IMPORT = "import numpy, onnxruntime, faiss, tokenizers"


# A new process inherits the peak memory of its parent, so the parent must be a small process.
LAUNCHER = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run_measured(command: list[str]) -> tuple[float, float]:
    """Run a command that must succeed; return its seconds and its peak resident memory in MB."""
    launcher = [sys.executable, "-c", LAUNCHER, *command]
    seconds, peak = subprocess.run(launcher, stdout=subprocess.PIPE, check=True).stdout.split()
    return float(seconds), float(peak) * (1 if sys.platform == "darwin" else 1024) / 1e6


def spread(values: list[float]) -> str:
    """Return the median and the range of values, as text."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def pixmatcher(*arguments: str | Path) -> list[str]:
    """Return the command that runs `pixmatcher` with these arguments."""
    return [sys.executable, "-m", "pixmatcher", *map(str, arguments)]


def unpack_small_images(archive: Path, folder: Path, count: int) -> None:
    """Write the first `count` validation images of Tiny ImageNet to a folder."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if "/val/images/" in name and name.endswith(".JPEG")]
        for name in names[:count]:
            (folder / Path(name).name).write_bytes(file.read(name))


def make_large_photos(folder: Path, count: int, grain: float) -> float:
    """Write JPEGs of 4000 x 3000 pixels, enlarged from the example photos; return their mean size in MB.

    `grain` is the standard deviation of the added noise: more noise makes a file larger and slower to decode.
    """
    noise = np.random.default_rng(0).normal(0, grain, (3000, 4000, 1)).astype(np.float32)
    photos: list[bytes] = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(path) as photo:
            if photo.mode != "RGB":
                continue
            enlarged = photo.resize((4000, 3000), Image.Resampling.BICUBIC)
        pixels = np.clip(np.asarray(enlarged, dtype=np.float32) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        photos.append(buffer.getvalue())
    for number in range(count):
        # Bytes after the end of the image make each file different.
        (folder / f"{number:03}.jpg").write_bytes(photos[number % len(photos)] + number.to_bytes(4, "little"))
    return sum(map(len, photos)) / len(photos) / 1e6


def rate(work: Callable[[int], object], count: int) -> float:
    """Return the images per second of `work`, the best of three rounds on all cores.

    `work` is called with the number of the first image of each batch.
    """
    seconds = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(work, range(0, count, BATCH_SIZE)))
            seconds.append(time.perf_counter() - started)
    return count / min(seconds)


def decoder(folder: Path) -> tuple[Callable[[int], npt.NDArray[np.uint8]], int]:
    """Return a function that decodes the batch that begins at a number, and the number of images in the folder.

    The files are read into memory before.
    """
    recipe = load_encoder().recipe
    files = [path.read_bytes() for path in sorted(folder.iterdir())[:200]]

    def decode(start: int) -> npt.NDArray[np.uint8]:
        images = [open_image(data, min_side=recipe.min_side) for data in files[start : start + BATCH_SIZE]]
        return np.stack([fit_image(opened.image, recipe) for opened in images])

    return decode, len(files)


def limits(folder: Path) -> tuple[float, float]:
    """Return the images per second of decoding alone and of the network alone, on all cores."""
    encoder = load_encoder()
    decode, count = decoder(folder)
    pixels = [decode(start) for start in range(0, count, BATCH_SIZE)]
    return rate(decode, count), rate(lambda start: encoder.encode_images(pixels[start // BATCH_SIZE]), count)


def index_speed(title: str, folder: Path, target: float, repeats: int) -> None:
    """Print the images per second of a new `pixmatcher index`, including the start of the process."""
    count = len(list(folder.iterdir()))
    decoding, network = limits(folder)
    rates, peaks = [], []
    for _ in range(repeats):
        shutil.rmtree(folder / ".pixmatcher", ignore_errors=True)
        seconds, megabytes = run_measured(pixmatcher("index", folder))
        rates.append(count / seconds)
        peaks.append(megabytes)
    shutil.rmtree(folder / ".pixmatcher")
    print(
        f"{title}: {statistics.median(rates):.0f} images/s (runs {min(rates):.0f} to {max(rates):.0f}; "
        f"target {target:.0f}), peak {max(peaks):.0f} MB (target under 700)\n"
        f"  decoding alone {decoding:.0f} images/s, network alone {network:.0f}, "
        f"one after the other {1 / (1 / decoding + 1 / network):.0f}, without the start of the process"
    )


def cold_query(folder: Path, repeats: int) -> None:
    """Print the time of a text query in a new process, and of the import of its libraries alone."""
    bare, query = [], []
    for _ in range(repeats):
        bare.append(run_measured([sys.executable, "-c", BARE_IMPORT])[0])
        query.append(run_measured(pixmatcher("search", "a cat", "--json", "-c", folder))[0])
    with Collection.open(folder) as collection:
        count = len(collection)
    ratio = statistics.median(query) / statistics.median(bare)
    print(
        f"cold text query, {count:,} items: {spread([1000 * each for each in query])} ms, import alone "
        f"{spread([1000 * each for each in bare])} ms: {ratio:.2f} times (target at most 2)"
    )


def make_many(folder: Path, items: int) -> None:
    """Create a collection of many items, whose vectors are those of the example photos plus noise."""
    encoder = load_encoder()
    random = np.random.default_rng(0)
    photos = sorted(PHOTOS.glob("*.jpg"))
    pixels = np.stack([fit_image(open_image(path).image, encoder.recipe) for path in photos])
    base = encoder.encode_images(pixels)
    with Collection.create(folder, [encoder]) as collection:
        for start in range(0, items, 10_000):
            picks = random.integers(0, len(photos), 10_000)
            noise = {name: random.normal(0, 0.02, (10_000, v.shape[1])).astype(np.float32) for name, v in base.items()}
            collection.add(
                [Item(f"/photos/{start + n}.jpg", label=f"{pick}.{n % 11}") for n, pick in enumerate(picks)],
                {name: v[picks] + noise[name] for name, v in base.items()},
            )
        collection.indexes.save()


def open_query(folder: Path, repeats: int) -> None:
    """Print the times of text queries, image queries and categories on a collection that is open."""
    with Collection.open(folder) as collection:
        image = Query(image=min(PHOTOS.glob("*.jpg")))
        for title, run, query in (
            ("text", search, Query("a cat asleep")),
            ("image", search, image),
            ("categories", classify, image),
        ):
            run(collection, query)
            times = [run(collection, query).took_ms for _ in range(repeats)]
            print(
                f"{title} query, {len(collection):,} items, open: median {statistics.median(times):.1f} ms, "
                f"fastest {min(times):.1f} ms (target under 20)"
            )


def write_copies(archive: Path, path: Path, copies: int) -> int:
    """Write a Tiny ImageNet zip with several copies of each train image; return the number of images."""
    count = 0
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if name.endswith(("wnids.txt", "words.txt")):
                target.writestr(name, source.read(name))
            if "/train/" not in name or not name.endswith(".JPEG"):
                continue
            data = source.read(name)
            for copy in range(copies):
                # A byte after the end of the image makes each copy different.
                target.writestr(f"{name.removesuffix('.JPEG')}_{copy}.JPEG", data + bytes([copy]))
                count += 1
    return count


def whole_data_set(archive: Path, folder: Path) -> None:
    """Print how long indexing 100,000 Tiny ImageNet images takes, from a zip with five copies of the mini set."""
    data, collection = folder / "tiny-imagenet-200.zip", folder / "whole"
    count = write_copies(archive, data, 5)
    small = folder / "some"
    small.mkdir()
    unpack_small_images(archive, small, 200)
    before = limits(small)
    seconds, megabytes = run_measured(pixmatcher("index", f"tiny-imagenet:{data}", "-c", collection))
    decoding, network = (max(pair) for pair in zip(before, limits(small), strict=True))
    print(
        f"{count:,} Tiny ImageNet images: {seconds / 60:.1f} minutes (target under 7), {count / seconds:.0f} images/s, "
        f"peak {megabytes:.0f} MB\n"
        f"  decoding alone {decoding:.0f} images/s, network alone {network:.0f}, "
        f"one after the other {1 / (1 / decoding + 1 / network):.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("small", "large", "cold", "search")
    parser.add_argument("--only", choices=(*parts, "whole"), nargs="+", default=parts)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        small = Path(name, "small")
        small.mkdir()
        if {"small", "cold"} & set(arguments.only):
            unpack_small_images(arguments.data, small, 2000)
        if "small" in arguments.only:
            index_speed("2,000 Tiny ImageNet images", small, 260, arguments.repeats)
        if "large" in arguments.only:
            for grain in (0, 6):
                large = Path(name, f"large-{grain}")
                large.mkdir()
                megabytes = make_large_photos(large, 100, grain)
                index_speed(f"100 JPEGs of 12 megapixels, {megabytes:.1f} MB each", large, 100, arguments.repeats)
        many = Path(name, "many")
        if {"cold", "search"} & set(arguments.only):
            make_many(many, 100_000)
        if "cold" in arguments.only:
            run_measured(pixmatcher("index", small))
            for folder in (small, many):
                cold_query(folder, 5 * arguments.repeats)
        if "search" in arguments.only:
            open_query(many, 30)
        if "whole" in arguments.only:
            whole_data_set(arguments.data, Path(name))


if __name__ == "__main__":
    main()
