"""The decoder of large JPEGs is compared with Pillow pixel by pixel, for good and damaged files."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher import open_image
from pixmatcher.images import _open
from pixmatcher.images._jpeg import LIBRARY, decode_eighth
from support import build_with_sanitizers

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
# With a compiler, a build without the library must be noticed.
needs_library = pytest.mark.skipif(
    not LIBRARY.exists() and shutil.which("cc") is None, reason="the package was built without a C compiler"
)


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return a picture of soft shapes with edges and grain, so that blocks have few or many values."""
    random_numbers = np.random.default_rng(seed)
    small = random_numbers.integers(0, 256, (max(2, height // 50), max(2, width // 50), 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels[: height // 2] += random_numbers.normal(0, 12, (height // 2, width, 3)).astype(np.int16)
    pixels[:, width // 2 : width // 2 + 3] = random_numbers.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
    assert image.decoderconfig[0] == 8
    image.load()
    return image


def by_us(data: bytes, width: int, height: int, mode: str = "RGB") -> Image.Image | None:
    return decode_eighth(data, (-(-width // 8), -(-height // 8)), mode)


def assert_same(data: bytes) -> None:
    expected = by_pillow(data)
    with Image.open(io.BytesIO(data)) as image:
        found = by_us(data, *image.size, image.mode)
    assert found is not None
    assert (found.size, found.mode) == (expected.size, expected.mode)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@needs_library
@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_pixels_equal_those_of_pillow(quality: int, subsampling: int) -> None:
    for number, size in enumerate([(640, 480), (333, 217), (16, 16), (9, 130), (8, 8)]):
        assert_same(jpeg(picture(*size, seed=number), quality=quality, subsampling=subsampling))


@needs_library
@pytest.mark.parametrize(
    "options",
    [
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 7},
        {"restart_marker_blocks": 1, "quality": 100},
        {"comment": b"\xff\xd8 \xff\xda", "dpi": (300, 300)},
        {"qtables": [[1] * 64, [255] * 64]},
    ],
)
def test_options_of_jpeg_encoders_change_nothing(options: dict[str, object]) -> None:
    assert_same(jpeg(picture(500, 403), **options))
    assert_same(jpeg(picture(500, 403, "L"), **options))


@needs_library
def test_noise_has_the_longest_codes() -> None:
    noise = np.random.default_rng(0).integers(0, 2, (256, 256, 3), np.uint8) * 255
    for subsampling in (0, 1, 2):
        assert_same(jpeg(Image.fromarray(noise), quality=100, subsampling=subsampling))
    assert_same(jpeg(Image.fromarray(noise[..., 0]), quality=100))


@needs_library
def test_colour_at_half_the_rows_alone() -> None:
    data = jpeg(picture(256, 256), subsampling=1)
    assert data.count(b"\x03\x01\x21\x00") == 1
    assert_same(data.replace(b"\x03\x01\x21\x00", b"\x03\x01\x12\x00"))


@needs_library
def test_photos_equal_those_of_pillow() -> None:
    for path in sorted(PHOTOS.glob("*.jpg")):
        with Image.open(path) as image:
            assert_same(jpeg(image.resize((2 * image.width + 5, 2 * image.height + 3)), quality=90))


@needs_library
def test_unusual_files_are_left_to_pillow() -> None:
    image = picture(320, 240)
    whole = jpeg(image)
    assert by_us(whole, 320, 240) is not None
    for data in (
        jpeg(image, progressive=True),
        jpeg(image.convert("CMYK")),
        jpeg(image, keep_rgb=True),
        whole[:-2],
        whole[: len(whole) // 2],
        whole[: len(whole) // 2] + b"\xff\xd9",
        whole[:300],
        whole.replace(b"\xff\xd9", b"\0\xff\xd9"),
        whole.replace(b"\xff\xda", segment(0xC4, huffman_table(0, [0]) * 40) + b"\xff\xda"),
        with_long_codes(whole),
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff",
        b"\xff",
        b"",
        b"\x89PNG\r\n\x1a\n",
    ):
        assert by_us(data, 320, 240) is None
    assert by_us(whole, 640, 240) is None
    assert by_us(whole, 320, 240, "L") is None
    assert by_us(whole, 320, 240, "CMYK") is None
    assert by_us(jpeg(image.convert("L")), 320, 240) is None


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def huffman_table(number: int, symbols: list[int]) -> bytes:
    """One code of each length."""
    return bytes([number]) + bytes(n < len(symbols) for n in range(16)) + bytes(symbols)


def mid_grey(width: int) -> bytes:
    """A picture of `width` x 8 pixels, of 2 bits a block."""
    frame = b"\x08\0\x08" + width.to_bytes(2, "big") + b"\x01\x01\x11\0"
    tables = huffman_table(0x00, [0]) + huffman_table(0x10, [0])
    header = segment(0xDB, bytes([0] + [1] * 64)) + segment(0xC0, frame) + segment(0xC4, tables)
    data = bytes(width // 8 * 2 // 8)
    return b"\xff\xd8" + header + segment(0xDA, b"\x01\x01\0\0\x3f\0") + data + b"\xff\xd9"


@needs_library
def test_images_too_wide_for_libjpeg_are_left_to_it() -> None:
    assert_same(mid_grey(65_472))
    assert by_us(mid_grey(65_504), 65_504, 8, "L") is None
    with pytest.raises(OSError, match="broken data stream"):
        by_pillow(mid_grey(65_504))


def with_long_codes(data: bytes) -> bytes:
    """The file with tables of codes of all lengths, of which those without a value of their own take just the bits that
    are looked up at once."""
    tables = b"".join(
        huffman_table(number, [*range(1, 12), 0]) + huffman_table(0x10 + number, [*range(1, 11), 0x11, 0xF0, 0])
        for number in (0, 1)
    )
    start = data.index(b"\xff\xda")
    return data[:start] + segment(0xC4, tables) + data[start:]


def damaged(count: int, seed: int) -> list[bytes]:
    """Files with some bytes changed, left out or doubled, in their headers or anywhere."""
    choose = random.Random(seed)
    whole = [
        jpeg(picture(200, 136, seed=1), quality=80, subsampling=2),
        jpeg(picture(97, 201, seed=2), quality=95, subsampling=0, restart_marker_blocks=3),
        jpeg(picture(120, 64, seed=3), quality=40, subsampling=1, optimize=True),
        jpeg(picture(130, 90, "L", seed=4), quality=60),
    ]
    files = []
    for _ in range(count):
        data = bytearray(choose.choice(whole))
        for _ in range(choose.choice((1, 1, 2, 5))):
            place = choose.randrange(2, len(data) if choose.random() < 0.5 else 700)
            change = choose.randrange(4)
            if change == 0:
                data[place] = choose.randrange(256)
            elif change == 1:
                data[place] ^= 1 << choose.randrange(8)
            elif change == 2:
                del data[place : place + choose.randrange(1, 40)]
            else:
                data[place:place] = data[place : place + choose.randrange(1, 40)]
        files.append(bytes(data))
    return files


@needs_library
def test_damaged_files_are_decoded_as_pillow_does_or_not_at_all() -> None:
    decoded = 0
    for data in damaged(3000, seed=0):
        try:
            with Image.open(io.BytesIO(data)) as image:
                size, mode, layers = image.size, image.mode, image.layers
        except (OSError, SyntaxError, ValueError, IndexError, EOFError):
            continue
        if layers not in (1, 3) or max(size) > 4000 or min(size) < 8:
            continue
        found = by_us(data, *size, mode)
        if found is not None:
            decoded += 1
            assert np.array_equal(np.asarray(found), np.asarray(by_pillow(data)))
    assert decoded > 100  # damage that cannot be detected in this format


HARNESS = """
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
int pixmatcher_eighth(const uint8_t *, size_t, int, int, int, uint8_t *);
int main(int count, char **names) {
    for (int n = 1; n < count; n++) {
        FILE *file = fopen(names[n], "rb");
        uint8_t *data = malloc(1 << 20);
        size_t length = fread(data, 1, 1 << 20, file);
        fclose(file);
        data = realloc(data, length ? length : 1); /* so that what is read beyond the end is noticed */
        size_t at = 0;
        while (at + 9 < length && !(data[at] == 0xff && (data[at + 1] | 1) == 0xc1)) at++;
        if (at + 9 < length) {
            int height = (data[at + 5] << 8 | data[at + 6]) + 7, width = (data[at + 7] << 8 | data[at + 8]) + 7;
            for (int channels = 1; channels <= 3; channels += 2) {
                uint8_t *out = malloc((size_t)(width / 8) * (height / 8) * channels + 1);
                pixmatcher_eighth(data, length, width / 8, height / 8, channels, out);
                free(out);
            }
        }
        free(data);
    }
    puts("done");
}
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_damaged_files_cause_no_memory_errors(tmp_path: Path) -> None:
    """The same code, built so that it stops at the first byte out of bounds and the first undefined result."""
    program, harness = tmp_path / "harness", tmp_path / "harness.c"
    harness.write_text(HARNESS)
    build_with_sanitizers(program, harness, LIBRARY.with_suffix(".c"))
    names = []
    long_codes = [with_long_codes(jpeg(picture(64, 64), subsampling=subsampling)) for subsampling in (0, 2)]
    for number, data in enumerate([*long_codes, *damaged(1500, seed=1)]):
        names.append(tmp_path / f"{number}.jpg")
        names[-1].write_bytes(data)
    ran = subprocess.run([program, *names], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr[-3000:]


@needs_library
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_open_image_returns_the_same_with_and_without_the_decoder(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture(1207, 903), exif=exif)
    calls = []

    def watched(*arguments: object) -> Image.Image | None:
        calls.append(decode_eighth(*arguments))  # type: ignore[arg-type]
        return calls[-1]

    monkeypatch.setattr(_open, "decode_eighth", watched)
    fast = open_image(data, min_side=100)
    assert len(calls) == 1
    assert calls[0] is not None
    monkeypatch.setattr(_open, "decode_eighth", lambda *_: None)
    slow = open_image(data, min_side=100)
    assert np.array_equal(np.asarray(fast.image), np.asarray(slow.image))
    assert (fast.area, fast.width, fast.height, fast.format) == (slow.area, slow.width, slow.height, slow.format)
