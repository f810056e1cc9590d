"""Measure how fast images are opened and prepared for an encoder: with one thread, two threads and two processes.

    python benchmarks/decode.py [--photo FILE] [--tiny tiny-imagenet-mini.zip]

The large photo is a smaller photo enlarged to 4000 x 3000, with the noise of a camera sensor, because an enlarged image
alone compresses far better than a photo. It is decoded by the decoder of PixMatcher and by Pillow. Each result is the
best of some rounds. The files are sent to the processes, which costs some time for small images.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pixmatcher.images import Recipe, _open, fit_image, open_image

RECIPE = Recipe(size=260, interpolation="bicubic")
PHOTOS = Path(__file__).parent.parent / "examples" / "photos"


def large_photo(path: Path | None) -> Image.Image:
    """Return an image of 4000 x 3000 with the noise of a photo, from the photo at `path` or from random spots."""
    random = np.random.default_rng(0)
    if path is not None:
        with Image.open(path) as small:
            image = small.convert("RGB").resize((4000, 3000), Image.Resampling.LANCZOS)
    else:
        spots = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        image = spots.resize((4000, 3000), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(8))
    noisy = np.asarray(image, dtype=np.float32) + random.normal(0, 4, (3000, 4000, 1)).astype(np.float32)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def fitted(data: bytes) -> np.ndarray:
    """Return the pixels (S, S, 3) uint8 of a file as an encoder gets them."""
    return fit_image(open_image(data, min_side=RECIPE.min_side), RECIPE)


def fit_all(items: Sequence[bytes]) -> None:
    for item in items:
        fitted(item)


def rate(pool: Executor, workers: int, items: Sequence[bytes], rounds: int) -> float:
    """Return the images per second, the best of some rounds over all items."""
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        list(pool.map(fit_all, [items[number::workers] for number in range(workers)]))
        best = min(best, time.perf_counter() - start)
    return len(items) / best


def report(name: str, items: Sequence[bytes], rounds: int = 4) -> None:
    """Print the speed of opening and fitting these files."""
    size = sum(map(len, items)) / len(items)
    with ProcessPoolExecutor(2, get_context("fork")) as processes:  # before any threads are started
        separate = rate(processes, 2, items, rounds)
    with ThreadPoolExecutor(2) as threads:
        one, two = (rate(threads, workers, items, rounds) for workers in (1, 2))
    print(
        f"{name:<34}{size / 1e6:8.3f} MB{one:10.1f}/s{two:10.1f}/s{separate:10.1f}/s{1000 / one:10.2f} ms", flush=True
    )


@contextmanager
def by_pillow() -> Iterator[None]:
    """Decode JPEGs with Pillow alone during the block, as in an installation without a compiler."""
    ours = _open.decode_eighth
    _open.decode_eighth = lambda *_: None
    try:
        yield
    finally:
        _open.decode_eighth = ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--photo", type=Path, help="photo to enlarge to 12 megapixels (default: the first example photo)"
    )
    parser.add_argument("--tiny", type=Path, help="tiny-imagenet-mini.zip, to measure small images too")
    arguments = parser.parse_args()
    photo = large_photo(arguments.photo or next(iter(sorted(PHOTOS.glob("*.jpg"))), None))

    print(f"open and fit to {RECIPE.size} px{'':>11}file size    1 thread   2 threads 2 processes    1 image")
    jpeg = encoded(photo, "JPEG", quality=87)
    report("JPEG, 12 megapixels", [jpeg] * 40)
    with by_pillow():
        report("the same with Pillow", [jpeg] * 40)
    report("JPEG progressive, 12 megapixels", [encoded(photo, "JPEG", quality=87, progressive=True)] * 6)
    report("PNG, 12 megapixels", [encoded(photo, "PNG", compress_level=1)] * 6)
    report("WebP, 12 megapixels", [encoded(photo, "WEBP", quality=85, method=0)] * 6)
    report("TIFF, 12 megapixels", [encoded(photo, "TIFF")] * 6)
    if arguments.tiny is not None:
        with zipfile.ZipFile(arguments.tiny) as archive:
            names = [name for name in archive.namelist() if "/val/" in name and name.endswith(".JPEG")]
            small = [archive.read(name) for name in names]
        report(f"JPEG, 64 x 64 ({len(small):,} files)", small)

    reduced = fitted(jpeg).astype(np.float64)
    full = fit_image(open_image(jpeg).image, RECIPE).astype(np.float64)
    cosine = (reduced * full).sum() / np.sqrt((reduced**2).sum() * (full**2).sum())
    difference = np.abs(reduced - full).mean()
    print(f"decoded at an eighth or in full: mean difference {difference:.2f} of 255, cosine {cosine:.6f}")


if __name__ == "__main__":
    main()
