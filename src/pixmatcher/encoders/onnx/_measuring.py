"""Measuring which device runs an image network fastest, and whether its embeddings are those of the CPU."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..._cores import usable_cores
from ._measurement_cache import Measurement
from .networks import Floats

logger = logging.getLogger("pixmatcher.encoders")

MIN_COSINE = 0.995
"""A device is refused if an embedding differs from that of the CPU by a smaller cosine: about what int8 costs."""
MIN_GAIN = 1.1
"""So many times as fast as the CPU must a device be, as measurements are noisy."""
_TURNS = 3
_TURN_SECONDS = 0.2


class ImageSide(Protocol):
    """An image network that is loaded on a device."""

    def encode(self, pixels: npt.NDArray[np.uint8], /) -> Mapping[str, Floats]:
        """Embed pixels (N, size, size, 3): for each space (N, dimension)."""


def measure_devices(load: Callable[[str], ImageSide], devices: Sequence[str], batch: int, size: int) -> Measurement:
    """Encode batches on the CPU and on each device, with as many threads as indexing has, and return the paces.

    `load` loads the network on a device. `batch` is the number of images of a batch, `size` their side in pixels.
    Raises what `load("cpu")` raises.
    """
    pixels = example_images(batch, size)
    sides, rejected, complete = {"cpu": load("cpu")}, {}, True
    expected = sides["cpu"].encode(pixels)
    for device in devices:
        try:
            side = load(device)
            nearness = least_cosine(expected, side.encode(pixels))
        except Exception as error:  # the libraries of a device may raise anything
            rejected[device], complete = f"it fails ({_first_line(error)})", False
            continue
        if nearness >= MIN_COSINE:
            sides[device] = side
        else:
            rejected[device] = f"its embeddings differ from those of the CPU (cosine {nearness:.4f})"
    paces: dict[str, list[float]] = {device: [] for device in sides}
    with ThreadPoolExecutor(usable_cores(), "pixmatcher-measuring") as threads:
        batches = {device: _batches_of_turn(threads, side, pixels) for device, side in sides.items()}
        # In turns, so that other work on this machine slows all of them.
        for _ in range(_TURNS):
            for device, side in sides.items():
                seconds = _seconds(threads, side, pixels, batches[device])
                paces[device].append(usable_cores() * batches[device] * batch / seconds)
    return Measurement({device: float(np.median(each)) for device, each in paces.items()}, rejected, complete)


def fastest(measured: Measurement) -> str:
    """Return the device to use: the fastest one, if it is clearly faster than the CPU."""
    device, pace = max(measured.images_per_second.items(), key=lambda pair: pair[1])
    return device if pace >= MIN_GAIN * measured.images_per_second["cpu"] else "cpu"


def example_images(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return images (count, size, size, 3) that are the same each time: areas, gradients and some noise."""
    random = np.random.default_rng(0)
    made = np.empty((count, size, size, 3), np.uint8)
    places = np.linspace(0, 1, size, dtype=np.float32)
    for image in made:
        values = np.full((size, size, 3), random.uniform(0, 255, 3), np.float32)
        for _ in range(12):
            x, y, width, height = random.uniform(0, 0.8, 4)
            inside = (abs(places[:, None] - y) < height / 2) & (abs(places - x) < width / 2)
            values[inside] = random.uniform(0, 255, 3)
        values += 60 * np.sin(places[:, None] * random.uniform(2, 40) + places * random.uniform(2, 40))[..., None]
        image[:] = (values + random.normal(0, 8, values.shape)).clip(0, 255)
    return made


def least_cosine(expected: Mapping[str, Floats], found: Mapping[str, Floats]) -> float:
    """Return the smallest cosine between the embeddings of the same image; -1 if one is missing or not a number."""
    least = 1.0
    for space, vectors in expected.items():
        other = found.get(space)
        if other is None or other.shape != vectors.shape or not np.isfinite(other).all():
            return -1.0
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(other, axis=1)
        cosines = (vectors * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
        least = min(least, float(cosines.min()))
    return least


def _batches_of_turn(threads: ThreadPoolExecutor, side: ImageSide, pixels: npt.NDArray[np.uint8]) -> int:
    """Return how many batches each thread encodes in a turn, after each has encoded one to warm up."""
    _seconds(threads, side, pixels, 1)
    return max(1, min(50, round(_TURN_SECONDS / _seconds(threads, side, pixels, 1))))


def _seconds(threads: ThreadPoolExecutor, side: ImageSide, pixels: npt.NDArray[np.uint8], batches: int) -> float:
    """Return how long it takes until every thread has encoded so many batches."""

    def work(_: int) -> None:
        for _ in range(batches):
            side.encode(pixels)

    started = time.perf_counter()
    list(threads.map(work, range(usable_cores())))
    return max(time.perf_counter() - started, 1e-6)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
