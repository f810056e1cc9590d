"""The resizing in C against Pillow, which computes the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher.images import Recipe, _bilinear, fit_image
from pixmatcher.images._bilinear import resize_bilinear
from support import build_with_sanitizers

needs_library = pytest.mark.skipif(_bilinear._resizer() is None, reason="needs the compiled library and AVX2")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@needs_library
def test_the_bytes_are_those_of_pillow() -> None:
    random = np.random.default_rng(1)
    sizes = [(64, 64), (1, 1), (1, 2), (2, 1), (500, 375), (375, 500), (260, 260), (700, 3), (3, 700)]
    sizes += [(int(width), int(height)) for width, height in random.integers(1, 400, (150, 2))]
    resized = 0
    for number, (width, height) in enumerate(sizes):
        image, side = noise(width, height, number), (260, 224, 64, 7)[number % 4]
        kept = min(width, height) * (1.0, 0.875, 0.3)[number % 3]
        left, top = (width - kept) / 2, (height - kept) / 2
        box = (left, top, left + kept, top + kept)
        found = resize_bilinear(image, side, box)
        if found is not None:
            expected = image.resize((side, side), Image.Resampling.BILINEAR, box)
            assert np.array_equal(found, np.asarray(expected)), (width, height, side, box)
            resized += 1
    assert resized > len(sizes) / 2


@needs_library
@pytest.mark.parametrize("size", [(64, 64), (375, 500), (500, 375), (1600, 1570)])
def test_an_image_fits_a_recipe_alike_without_the_library(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, recipe = noise(*size), Recipe(260, interpolation="bilinear")
    found = fit_image(image, recipe)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    monkeypatch.setattr(_bilinear, "_resizer", lambda: None)
    assert np.array_equal(found, fit_image(image, recipe))


@needs_library
def test_large_images_are_left_to_pillow() -> None:
    assert resize_bilinear(noise(1000, 1000), 260, (0, 0, 1000, 1000)) is not None
    assert resize_bilinear(noise(30_000, 300), 260, (0, 0, 300, 300)) is None


def test_without_the_library_pillow_resizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bilinear, "LIBRARY", tmp_path / "missing.so")
    _bilinear._resizer.cache_clear()
    try:
        assert resize_bilinear(noise(64, 64), 260, (0, 0, 64, 64)) is None
        assert fit_image(noise(64, 64), Recipe(260, interpolation="bilinear")).shape == (260, 260, 3)
    finally:
        _bilinear._resizer.cache_clear()


SANITIZED = """
import sys
from pathlib import Path
from PIL import Image
from pixmatcher.images import _bilinear
_bilinear.LIBRARY = Path(sys.argv[1])
for width, height in ((64, 64), (1, 1), (500, 375), (700, 3), (301, 300)):
    kept = min(width, height)
    box = ((width - kept) / 2, (height - kept) / 2, (width + kept) / 2, (height + kept) / 2)
    for side in (1, 7, 260, 301):
        assert _bilinear.resize_bilinear(Image.new("RGB", (width, height), "white"), side, box).min() == 255
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@needs_library
def test_the_code_stays_within_its_memory(tmp_path: Path) -> None:
    """The same code, built so that it stops at the first byte out of bounds and the first undefined result."""
    library = tmp_path / "sanitized.so"
    source = Path(_bilinear.__file__).with_name("_resize_bilinear.c")
    build_with_sanitizers(library, source, flags=["-O1", "-shared", "-fPIC"])
    preloaded = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {"LD_PRELOAD": preloaded.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    ran = subprocess.run([sys.executable, "-c", SANITIZED, library], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
