"""TIFF files of numbers that Pillow refuses or gets wrong: 12 bits, floats, signed numbers, planes, extra samples."""

from __future__ import annotations

import io
import itertools
import random
import struct
import subprocess
import sys
import textwrap
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from pixmatcher.errors import InvalidImageError
from pixmatcher.images import open_image
from pixmatcher.images._pillow import tiff_codec_is_missing

WIDTH, HEIGHT = 50, 41
_y, _x = np.mgrid[0:HEIGHT, 0:WIDTH]
RGB = np.stack([_x / (WIDTH - 1), _y / (HEIGHT - 1), (_x + _y) / (WIDTH + HEIGHT - 2)], axis=2)
"""The picture of these tests in [0, 1]: each corner has another colour."""

BYTES = np.rint(RGB * 255).astype(int)


def numbers(dtype: str, bits: int | None = None) -> NDArray[Any]:
    """Return the picture in the whole range of integers, or in [0, 1]."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return RGB.astype(dtype)
    largest = (1 << bits) - 1 if bits else int(np.iinfo(kind).max)
    return np.minimum(
        np.rint(RGB * float(largest)), np.nextafter(float(largest), 0) if largest > 1 << 53 else largest
    ).astype(dtype)


def packed(rows: NDArray[Any], bits: int, order: str, predictor: int, samples: int) -> bytes:
    """Return the bytes of rows (rows, pixels, samples) of a strip or tile."""
    if bits % 8:
        spread = np.stack([rows.astype(np.uint32) >> (bits - 1 - bit) & 1 for bit in range(bits)], axis=-1)
        return np.packbits(spread.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
    if predictor == 2:
        whole = rows.view(f"u{bits // 8}")
        rows = np.concatenate([whole[:, :1], np.diff(whole, axis=1)], axis=1)
    if predictor == 3:
        apart = np.ascontiguousarray(rows).astype(rows.dtype.newbyteorder(">")).view(np.uint8)
        apart = apart.reshape(len(rows), -1, bits // 8).swapaxes(1, 2).reshape(len(rows), -1, samples)
        return np.concatenate([apart[:, :1], np.diff(apart, axis=1)], axis=1).tobytes()
    return rows.astype(rows.dtype.newbyteorder(order)).tobytes()


def tiff(
    pixels: NDArray[Any],
    *,
    bits: int | None = None,
    order: str = "<",
    photometric: int | None = None,
    compression: int = 1,
    predictor: int = 1,
    planes: bool = False,
    tile: tuple[int, int] | None = None,
    extra: tuple[int, ...] = (),
    tags: dict[int, tuple[int, ...]] | None = None,
    big: bool = False,
    profile: bytes = b"",
) -> bytes:
    """Return a TIFF file of pixels (H, W) or (H, W, samples)."""
    pixels = np.atleast_3d(pixels)
    height, width, samples = pixels.shape
    bits = bits or pixels.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    offset_of_data = 16 if big else 8
    blocks: list[bytes] = []
    for plane in [pixels[..., [n]] for n in range(samples)] if planes else [pixels]:
        if tile:
            padded = np.zeros(
                (-(-height // tile[1]) * tile[1], -(-width // tile[0]) * tile[0], plane.shape[2]), pixels.dtype
            )
            padded[:height, :width] = plane
            boxes = itertools.product(range(0, height, tile[1]), range(0, width, tile[0]))
            blocks += [
                packed(padded[y : y + tile[1], x : x + tile[0]], bits, order, predictor, plane.shape[2])
                for y, x in boxes
            ]
        else:
            blocks += [packed(plane[y : y + 7], bits, order, predictor, plane.shape[2]) for y in range(0, height, 7)]
    if compression == 8:
        blocks = [zlib.compress(block) for block in blocks]
    offsets = tuple(itertools.accumulate((len(block) for block in blocks), initial=offset_of_data))[:-1]
    counts = tuple(len(block) for block in blocks)
    directory: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (bits,) * samples, 259: (compression,), 277: (samples,),
        262: (photometric if photometric is not None else 2 if samples >= 3 else 1,),
        284: (2 if planes else 1,), 317: (predictor,), 339: (kind,) * samples,
    }  # fmt: skip
    if tile:
        directory |= {322: (tile[0],), 323: (tile[1],), 324: offsets, 325: counts}
    else:
        directory |= {273: offsets, 278: (7,), 279: counts}
    if extra:
        directory[338] = extra
    directory |= tags or {}
    data = b"".join(blocks)
    entries, outside = b"", b""
    word, count_of, size = ("Q", "Q", 8) if big else ("I", "H", 4)
    start = offset_of_data + len(data)
    outside_start = (
        start + struct.calcsize(f"={count_of}") + (12 if not big else 20) * (len(directory) + bool(profile)) + size
    )
    for tag, values in sorted((directory | ({34675: tuple(profile)} if profile else {})).items()):
        short, letter = (7, "B") if tag == 34675 else (16, "Q") if big else (4, "I")
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(value) > size:
            value, outside = struct.pack(order + word, outside_start + len(outside)), outside + value
        entries += struct.pack(f"{order}HH{word}", tag, short, len(values)) + value.ljust(size, b"\0")
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}HHHQ", 43, 8, 0, start) if big else struct.pack(f"{order}HI", 42, start)
    return head + data + struct.pack(order + count_of, len(directory) + bool(profile)) + entries + bytes(size) + outside


def difference(data: bytes, expected: NDArray[Any] = BYTES, **options: int) -> int:
    return int(np.abs(np.asarray(open_image(data, **options).image).astype(int) - expected).max())


GREY = BYTES[..., :1]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15])
def test_packed_bits(bits: int, tile: tuple[int, int] | None, order: str) -> None:
    pixels = numbers("u2", bits)
    for compression, planes in itertools.product((1, 8), (False, True)):
        data = tiff(pixels, bits=bits, tile=tile, order=order, compression=compression, planes=planes)
        assert difference(data) <= 1, (compression, planes)
        assert difference(tiff(pixels[..., :1], bits=bits, tile=tile, order=order, compression=compression), GREY) <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_every_kind_of_number(dtype: str, order: str) -> None:
    pixels = numbers(dtype)
    predictors = {"f": (1, 2, 3)}.get(dtype[0], (1, 2))
    for compression, predictor, tile, planes in itertools.product((1, 8), predictors, (None, (16, 32)), (False, True)):
        if predictor > 1 and compression == 1:
            continue
        options: dict[str, Any] = {"compression": compression, "predictor": predictor, "tile": tile, "order": order}
        assert difference(tiff(pixels, planes=planes, **options)) <= 1, (options, planes)
        assert difference(tiff(pixels[..., :1], **options), GREY) <= 1, options


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f4"])
def test_alpha_and_extra_samples(dtype: str) -> None:
    pixels = numbers(dtype)
    whole = 1 if dtype[0] == "f" else np.iinfo(dtype).max
    opaque = np.full_like(pixels[..., :1], whole)
    half = (opaque.astype(float) / 2).astype(dtype)
    over_white = (BYTES + 255) // 2
    for planes in (False, True):
        many = np.concatenate([pixels, opaque, pixels, pixels], axis=2)
        assert difference(tiff(many[..., :4], extra=(2,), planes=planes)) <= 1
        assert difference(tiff(many[..., :4], extra=(0,), planes=planes)) <= 1
        assert difference(tiff(many[..., :5], extra=(0, 0), planes=planes)) <= 1
        assert difference(tiff(many, extra=(0,) * 7, planes=planes)) <= 1
        assert difference(tiff(np.concatenate([pixels, half], axis=2), extra=(2,), planes=planes), over_white) <= 2
        if dtype == "u4":  # scaled by the colours' own range
            continue
        premultiplied = np.concatenate([(pixels.astype(float) / 2).astype(dtype), half], axis=2)
        assert difference(tiff(premultiplied, extra=(1,), planes=planes), over_white) <= 3
        if dtype != "u1":
            grey = np.concatenate([pixels[..., :1], half], axis=2)
            assert difference(tiff(grey, extra=(2,), planes=planes), over_white[..., :1]) <= 2


def test_other_colour_spaces() -> None:
    assert difference(tiff(numbers("f4")[..., :1], photometric=0), 255 - GREY) <= 1
    assert difference(tiff(numbers("u2", 12)[..., :1], bits=12, photometric=0), 255 - GREY) <= 1
    ink = np.concatenate([1 - RGB, np.zeros_like(RGB[..., :1])], axis=2)
    for planes in (False, True):
        assert difference(tiff(np.rint(ink * 65535).astype("u2"), photometric=5, planes=planes)) <= 1
        assert difference(tiff(np.rint(ink * 4095).astype("u2"), bits=12, photometric=5, planes=planes)) <= 1
        assert difference(tiff(ink.astype("f4"), photometric=5, planes=planes)) <= 1
    lab = np.zeros((4, 4, 3), "i2")
    lab[:] = (round(0.5324 * 65535) - 65536, round(80.1 * 256), round(67.2 * 256))  # red
    for photometric, shift in ((8, 0), (9, 128 << 8)):
        data = tiff((lab.view("u2") + np.array([0, shift, shift], "u2")).astype("u2"), photometric=photometric)
        assert np.abs(np.array(open_image(data).image.getpixel((1, 1))) - (255, 0, 0)).max() <= 15


def test_ranges_of_numbers() -> None:
    def grey(values: list[float], dtype: str, **options: Any) -> list[int]:
        data = tiff(np.array([values], dtype=dtype), **options)
        return [int(v) for v in np.asarray(open_image(data).image)[0, :, 0]]

    for order in "<>":
        for compression in (1, 8):
            options: dict[str, Any] = {"order": order, "compression": compression}
            assert grey([0, 0.5, 1], "f4", **options) == [0, 128, 255]
            assert grey([0, 100, 200], "f4", **options) == [0, 100, 200]
            assert grey([0, 32896, 65535], "f8", **options) == [0, 128, 255]
            assert grey([-1, 0, 1], "f2", **options) == [0, 128, 255]
            assert grey([np.nan, 1, np.inf, -np.inf, 0.5], "f4", **options) == [0, 255, 255, 0, 128]
            assert grey([7e300, -7e300, 0], "f8", **options) == [255, 0, 128]
            assert grey([0, 100, 255], "u4", **options) == [0, 100, 255]
            assert grey([0, 2**31, 2**32 - 1], "u4", **options) == [0, 128, 255]
            assert grey([-1000, 0, 1000], "i2", **options) == [0, 128, 255]
            assert grey([0, 100, 200], "i2", **options) == [0, 100, 200]
            assert grey([0, 2048, 4095], "u2", bits=12, **options) == [0, 128, 255]


def test_the_three_colours_have_one_range() -> None:
    pixels = np.zeros((4, 4, 3), "f4")
    pixels[:] = (200, 100, 0)
    assert open_image(tiff(pixels)).image.getpixel((0, 0)) == (200, 100, 0)


def test_big_tiff_orientation_profile_and_scale() -> None:
    assert difference(tiff(numbers("f4"), big=True)) <= 1
    for order in "<>":
        data = tiff(numbers("f4"), tags={274: (6,)}, order=order)
        opened = open_image(data)
        assert (opened.width, opened.height) == (HEIGHT, WIDTH)
        assert difference(data, np.rot90(BYTES, -1)) <= 1
    assert open_image(tiff(np.tile(numbers("f4"), (8, 8, 1))), min_side=20).image.size == (50, 41)
    from test_profiles import PROFILES

    pixels = np.zeros((4, 4, 3), "f4")
    pixels[:] = (200, 100, 50)
    assert open_image(tiff(pixels, profile=PROFILES["Adobe RGB"])).image.getpixel((0, 0)) == (227, 100, 42)


def test_large_files_are_read_from_the_disk(tmp_path: Any) -> None:
    for compression in (1, 8):
        path = tmp_path / f"{compression}.tif"
        noise = np.random.default_rng(0).random((1200, 1300, 3)).astype("f4")
        path.write_bytes(tiff(noise, compression=compression))
        assert path.stat().st_size > 16 << 20 or compression == 8
        assert difference(path, np.rint(noise * 255).astype(int)) <= 1  # type: ignore[arg-type]


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_deflate"])
def test_other_compressions(compression: str) -> None:
    if compression not in TiffImagePlugin.COMPRESSION_INFO.values():
        pytest.skip("this Pillow cannot write it")
    for order in ("II", "MM"):
        file = io.BytesIO()
        Image.fromarray(RGB[..., 0].astype(np.float32)).save(file, "TIFF", compression=compression, prefix=order)
        assert difference(file.getvalue(), GREY) <= 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_whose_white_is_0(order: str) -> None:
    inverted = 65535 - numbers("u2")[..., :1]
    assert difference(tiff(inverted, order=order, photometric=0), GREY) <= 1
    assert difference(tiff(inverted, order=order, photometric=0, compression=8, predictor=2), GREY) <= 1


def test_what_libtiff_does_not_know_is_not_called_damaged() -> None:
    files = {
        "TIFF compressed with LERC": tiff(numbers("u1"), tags={259: (34887,)}),
        "TIFF compressed with JPEG 2000": tiff(numbers("u2"), tags={259: (34712,)}),
        "TIFF compressed with method 12345 of compression": tiff(numbers("f4"), tags={259: (12345,)}),
        "BigTIFF in big-endian byte order": tiff(numbers("u1"), big=True, order=">"),
    }
    if tiff_codec_is_missing(50001):
        files["TIFF compressed with WebP"] = tiff(numbers("u1"), tags={259: (50001,)})
    for detail, data in files.items():
        with pytest.raises(InvalidImageError) as caught:
            open_image(data)
        assert (caught.value.reason, caught.value.detail) == ("unsupported format", detail)


def test_too_large_or_cut_off() -> None:
    whole = tiff(numbers("f4"))

    def reason(data: bytes, **options: int) -> str:
        with pytest.raises(InvalidImageError) as caught:
            open_image(data, **options)
        return caught.value.reason

    assert reason(whole, max_pixels=WIDTH * HEIGHT - 1) == "too many pixels"
    assert reason(tiff(numbers("f4"), tags={256: (20000,), 257: (20000,)})) == "truncated"
    assert reason(tiff(numbers("f8"), tags={256: (30000,), 257: (30000,)})) == "too many pixels"
    assert reason(tiff(numbers("f4"), tags={256: (9000,), 257: (9000,), 277: (60000,)})) in (
        "damaged",
        "unsupported format",
        "too many pixels",
    )
    tiled = tiff(numbers("f4"), tile=(16, 32), compression=8, tags={322: (1 << 20,), 323: (1 << 20,)})
    assert reason(tiled) == "too many pixels"
    assert reason(tiff(numbers("f4"), compression=8)[:3000] + whole[3000:]) in ("truncated", "damaged", "not an image")


def test_damaged_files_raise_and_print_nothing() -> None:
    code = """
        import random, sys
        sys.path.insert(0, "tests")
        from test_tiff import InvalidImageError, numbers, open_image, tiff
        chance = random.Random(int(sys.argv[1]))
        files = [
            tiff(numbers(dtype), compression=compression, predictor=predictor, planes=planes, tile=tile)
            for dtype, predictor in (("u2", 1), ("f4", 3), ("i2", 2))
            for compression in (1, 8) for planes in (False, True) for tile in (None, (16, 32))
        ] + [tiff(numbers("u2", 12), bits=12), tiff(numbers("f2"), order=">")]
        for _ in range(int(sys.argv[2])):
            data = bytearray(chance.choice(files))
            start = int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")
            for _ in range(chance.randint(1, 5)):
                at = chance.choice([chance.randrange(len(data)), start + chance.randrange(200)])
                data[at % len(data)] = chance.choice([0, 1, 2, 255, chance.randrange(256)])
            if chance.random() < 0.1:
                del data[chance.randrange(len(data)):]
            try:
                open_image(bytes(data))
            except InvalidImageError:
                pass
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(random.randrange(10**6)), "400"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
