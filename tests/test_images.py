"""Opening images: good and hostile files, made with Pillow or by hand."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, TiffImagePlugin

from pixmatcher.errors import InvalidImageError
from pixmatcher.images import (
    ALLOWED_EXTENSIONS,
    OpenedImage,
    Recipe,
    _colour,
    _limits,
    _read,
    fit_image,
    is_allowed_extension,
    normalize_pixels,
    open_image,
    preprocess_image,
    preprocess_images,
)

SAVED_AS = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "gif": "GIF",
    "bmp": "BMP",
    "dib": "DIB",
    "tiff": "TIFF",
    "jp2": "JPEG2000",
    "j2k": "JPEG2000",
    "ppm": "PPM",
    "avif": "AVIF",
}

COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def quarters(width: int = 96, height: int = 64) -> Image.Image:
    """Return an image with red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("green", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("white", (width // 2, height // 2, width, height))
    return image


def corners(image: Image.Image) -> list[str]:
    """Return the names of the colours in the four quarters of an image, row by row."""
    width, height = image.size
    points = [(x, y) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    names = []
    for point in points:
        pixel = np.array(image.getpixel(point), dtype=int)
        distances = {name: int(np.abs(pixel - colour).max()) for name, colour in COLOURS.items()}
        name = min(distances, key=lambda n: distances[n])
        assert distances[name] < 24, (point, pixel)
        names.append(name)
    return names


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def photo(width: int, height: int) -> Image.Image:
    """Return an image with edges, gradients and noise, which does not compress well."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 90 * np.sin(x / 37 + k) * np.cos(y / 23 - k) for k in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(planes, axis=2) + noise, 0, 255).astype(np.uint8))


def reason_of(source: object, **options: int) -> str:
    with pytest.raises(InvalidImageError) as caught:
        open_image(source, **options)  # type: ignore[arg-type]
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def opened_or_reason(data: bytes, **options: int) -> OpenedImage | str:
    try:
        return open_image(data, **options)
    except InvalidImageError as error:
        return error.reason


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, *options.pop("flags", ()), "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


# ---- Formats ----


@pytest.mark.parametrize(("extension", "name"), SAVED_AS.items())
def test_every_format_opens_from_path_bytes_and_file(tmp_path: Path, extension: str, name: str) -> None:
    path = tmp_path / f"picture.{extension}"
    options = {"no_jp2": True} if extension == "j2k" else {}
    quarters().save(path, name, **options)

    for source in (path, str(path), path.read_bytes(), path.open("rb")):
        opened = open_image(source)
        if hasattr(source, "close"):
            source.close()
        assert (opened.format, opened.width, opened.height) == (name, 96, 64)
        assert (opened.image.mode, opened.image.size) == ("RGB", (96, 64))
        assert corners(opened.image) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize("plain", [False, True])
def test_pbm_pgm_ppm(mode: str, plain: bool) -> None:
    data = encoded(quarters().convert(mode), "PPM")
    assert data[:2] in (b"P4", b"P5", b"P6")
    if plain:
        pixels = np.asarray(quarters().convert(mode))
        values = " ".join(str(int(v)) for v in (~pixels if mode == "1" else pixels).ravel())
        magic = {"1": "P1\n96 64\n", "L": "P2\n96 64 255\n", "RGB": "P3\n96 64 255\n"}[mode]
        data = (magic + values + "\n").encode()
    expected = np.asarray(quarters().convert(mode).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(open_image(data).image), expected)


def test_heic_opens(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "picture.heic"
    pillow_heif.from_pillow(quarters()).save(path, quality=95)
    opened = open_image(path)
    assert (opened.format, opened.width, opened.height) == ("HEIF", 96, 64)
    assert corners(opened.image) == ["red", "green", "blue", "white"]
    assert reason_of(path.read_bytes()[:-200]) == "truncated"
    assert reason_of(path, max_pixels=96 * 64 - 1) == "too many pixels"


def test_heic_without_the_extra_says_what_to_install() -> None:
    code = """
        import sys
        sys.modules["pillow_heif"] = None  # what makes an import fail
        from pixmatcher.images import open_image
        try:
            open_image(b"\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic" + bytes(100))
        except Exception as error:
            print(type(error).__name__, error)
    """
    result = run_python(code)
    expected = "InvalidImageError unsupported format: HEIC needs an extra: pip install 'pixmatcher[heif]'\n"
    assert (result.stdout, result.stderr) == (expected, "")


def test_allowed_extensions() -> None:
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".jp2",
        ".avif",
        ".heic",
    } < ALLOWED_EXTENSIONS
    assert all(e == e.lower() and e.startswith(".") for e in ALLOWED_EXTENSIONS)
    assert is_allowed_extension("a/b/IMG_1.JPG")
    assert is_allowed_extension(Path("x.y.TiFf"))
    for name in ("readme.txt", "jpg", ".jpg", "a.jpg/b", "a.jpg.zip", ""):
        assert not is_allowed_extension(name), name


def test_the_content_decides_not_the_extension(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    path.write_bytes(encoded(quarters(), "PNG"))
    assert open_image(path).format == "PNG"
    path = tmp_path / "really-a-jpeg.txt"
    path.write_bytes(encoded(quarters(), "JPEG"))
    assert open_image(path).format == "JPEG"


def test_the_first_frame_is_used() -> None:
    first, second = quarters(), Image.new("RGB", (96, 64), "black")
    for name in ("GIF", "WEBP", "TIFF", "PNG", "AVIF"):
        data = encoded(first, name, save_all=True, append_images=[second] * 20)
        assert corners(open_image(data).image) == ["red", "green", "blue", "white"], name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        (b"PK\x03\x04" + bytes(60), "not an image"),
        (b"Dear diary, today I took no photo at all.\n" * 9, "not an image"),
        (b"\0" * 4096, "not an image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(64), "not an image"),
        (b"%PDF-1.7\n" + bytes(64), "unsupported format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported format"),
        (b"<?xml version='1.0'?>\n<svg width='9'/>", "unsupported format"),
        (b"SIMPLE  =                    T" + bytes(64), "not an image"),
    ],
)
def test_files_that_are_not_images_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    assert reason_of(path) == reason
    assert reason_of(content) == reason


def test_plugins_of_unsupported_formats_are_never_called() -> None:
    """Pillow could open these, and some of their plugins are old or start other programs."""
    for name in ("SGI", "EPS", "PDF", "MSP", "XBM"):
        mode = "1" if name in ("MSP", "XBM") else "RGB"
        data = encoded(quarters().convert(mode), name)
        assert reason_of(data) in ("not an image", "unsupported format"), name


# ---- Colour ----


def pixel_of(source: object) -> tuple[int, int, int]:
    image = open_image(source).image  # type: ignore[arg-type]
    assert image.mode == "RGB"
    pixel = image.getpixel((1, 1))
    assert isinstance(pixel, tuple)
    return pixel  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("RGBX", (10, 200, 30, 0), (10, 200, 30)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("La", (0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),
        ("I", 200, (200, 200, 200)),
        ("F", 0.5, (128, 128, 128)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: object, expected: tuple[int, int, int]) -> None:
    assert pixel_of(Image.new(mode, (4, 4), colour)) == expected  # type: ignore[arg-type]


def test_palette_with_and_without_transparency() -> None:
    image = quarters().quantize(8)
    assert image.mode == "P"
    assert corners(open_image(image).image) == ["red", "green", "blue", "white"]
    for name in ("PNG", "GIF"):
        index = image.getpixel((1, 1))
        data = encoded(image, name, transparency=index)
        assert corners(open_image(data).image) == ["white", "green", "blue", "white"], name
    alphas = bytes([128] * 256)  # one alpha for each entry of the palette, which makes Pillow warn
    halved = open_image(encoded(image, "PNG", transparency=alphas)).image
    assert halved.getpixel((1, 1)) == (255, 127, 127)
    assert pixel_of(image.convert("PA")) == (255, 0, 0)


@pytest.mark.parametrize("name", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_alpha_is_blended_with_white(name: str) -> None:
    image = quarters().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 48, 32))
    data = encoded(image, name, **({"lossless": True} if name == "WEBP" else {}))
    assert corners(open_image(data).image) == ["white", "green", "blue", "white"]


@pytest.mark.parametrize(("mode", "key"), [("L", 76), ("RGB", (255, 0, 0)), ("1", 0)])
def test_png_transparent_colour(mode: str, key: object) -> None:
    image = quarters().convert(mode)
    if mode == "1":
        image = Image.new("1", (8, 8), 0)
    assert pixel_of(encoded(image, "PNG", transparency=key)) == (255, 255, 255)


RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_scaled_by_its_range(name: str) -> None:
    grey = np.asarray(open_image(encoded(Image.fromarray(RAMP), name)).image)[..., 0].astype(int)
    assert np.abs(grey - np.arange(256).reshape(16, 16)).max() <= 1


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG made of these chunks."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    return data


def test_colour_of_16_bits_is_scaled_by_its_range() -> None:
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in RAMP)
    data = png(struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0), (b"IDAT", zlib.compress(rows)))
    pixels = np.asarray(open_image(data).image).astype(int)
    assert np.abs(pixels - np.arange(256).reshape(16, 16, 1)).max() <= 1


def test_grey_of_32_bits_and_floats_is_scaled_by_the_range_it_uses() -> None:
    def grey(values: object, dtype: type) -> list[int]:
        image = Image.fromarray(np.array([values], dtype=dtype))
        return [int(v) for v in np.asarray(open_image(encoded(image, "TIFF")).image)[0, :, 0]]

    assert grey([0, 100, 255], np.int32) == [0, 100, 255]
    assert grey([0, 32896, 65535], np.int32) == [0, 128, 255]
    assert grey([-1000, 0, 1000], np.int32) == [0, 128, 255]
    assert grey([0, 0.5, 1], np.float32) == [0, 128, 255]
    assert grey([0, 100, 200], np.float32) == [0, 100, 200]
    assert grey([-1, 0, 1], np.float32) == [0, 128, 255]
    assert grey([np.nan, 1, np.inf, -np.inf], np.float32) == [0, 255, 255, 0]
    assert grey([7e9, 7e9], np.float32) == [0, 0]


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    image = quarters().convert("CMYK")
    data = encoded(image, "JPEG", quality=95)
    assert b"Adobe" in data
    assert corners(open_image(data).image) == ["red", "green", "blue", "white"]
    assert corners(open_image(encoded(image, "TIFF")).image) == ["red", "green", "blue", "white"]


def test_lab_tiff() -> None:
    lab = ImageCms.profileToProfile(
        quarters(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert corners(open_image(encoded(lab, "TIFF")).image) == ["red", "green", "blue", "white"]


def pictures_of_every_mode(width: int, height: int) -> dict[str, Image.Image]:
    """Return pictures of every mode and every kind of transparency, with more than one colour."""
    chance = np.random.default_rng(0)
    colour = Image.fromarray(chance.integers(0, 256, (height, width, 4), dtype=np.uint8))
    opaque = colour.convert("RGB")
    grey = chance.integers(0, 65536, (height, width))
    floats = chance.normal(0, 1000, (height, width)).astype(np.float32)
    floats[0, 0], floats[-1, -1], floats[5, 5] = np.nan, np.inf, -np.inf
    key, palette, alphas = opaque.copy(), opaque.quantize(64), opaque.quantize(64)
    key.putpixel((3, 3), (1, 2, 3))
    key.info["transparency"], palette.info["transparency"] = (1, 2, 3), 7
    alphas.info["transparency"] = bytes(range(100, 164)).ljust(256, b"\xff")
    modes = ("1", "L", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "P")
    return {
        **{mode: opaque.convert(mode) for mode in modes},
        **{mode: colour.convert(mode) for mode in ("LA", "RGBA", "RGBa")},
        "La": colour.convert("LA").convert("La"),
        "PA": palette.convert("PA"),
        "LAB": Image.merge("LAB", opaque.split()),
        "I;16": Image.fromarray(grey.astype(np.uint16)),
        "I": Image.fromarray((grey - 999).astype(np.int32)),
        "F": Image.fromarray(floats),
        "F of nothing": Image.fromarray(np.full((height, width), np.nan, np.float32)),
        "a transparent colour": key,
        "a transparent entry": palette,
        "a palette of alphas": alphas,
    }


@pytest.mark.parametrize("size", [(61, 47), (9, 130), (1900, 7)])
@pytest.mark.parametrize("min_side", [None, 1, 3, 10])
def test_strips_give_the_same_pixels_as_the_complete_image(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], min_side: int | None
) -> None:
    pictures = pictures_of_every_mode(*size)
    wholes = {name: open_image(picture, min_side=min_side).image for name, picture in pictures.items()}
    assert len({whole.tobytes() for whole in wholes.values()}) > 10
    monkeypatch.setattr(_colour, "_STRIP_PIXELS", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # a strip may be above it as well
    for name, picture in pictures.items():
        opened = open_image(picture, min_side=min_side)
        assert opened.image.size == wholes[name].size, name
        assert opened.image.tobytes() == wholes[name].tobytes(), name


# ---- Logging ----


def test_the_decoder_and_the_scale_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(quarters(960, 640), "JPEG", progressive=True)
    open_image(data)
    assert not caplog.records
    with caplog.at_level("DEBUG", "pixmatcher.images"):
        open_image(data, min_side=100)
    assert [record.getMessage() for record in caplog.records] == [
        "Pillow decoded JPEG, 960 x 640 pixels, scale 1/4",
    ]


# ---- EXIF ----

TURNED = {
    1: ["red", "green", "blue", "white"],
    2: ["green", "red", "white", "blue"],
    3: ["white", "blue", "green", "red"],
    4: ["blue", "white", "red", "green"],
    5: ["red", "blue", "green", "white"],
    6: ["blue", "red", "white", "green"],
    7: ["white", "green", "blue", "red"],
    8: ["green", "white", "red", "blue"],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(quarters(), name, exif=exif)
    expected_size = (96, 64) if orientation < 5 else (64, 96)
    for min_side in (None, 8):
        opened = open_image(data, min_side=min_side)
        assert (opened.width, opened.height) == expected_size
        assert corners(opened.image) == TURNED[orientation]
        assert (opened.image.width > opened.image.height) == (orientation < 5)
    with Image.open(io.BytesIO(data)) as image:
        assert corners(open_image(image).image) == TURNED[orientation]


def with_camera_tags(name: str, tags: dict[int, str]) -> bytes:
    if name == "TIFF":  # its EXIF tags are a part of the directory of the file
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory[0x8769] = tags
        return encoded(quarters(), name, tiffinfo=directory)
    exif = Image.Exif()
    exif[0x010F], exif[0x8769] = "a camera", tags
    return encoded(quarters(), name, exif=exif)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize(
    ("tags", "taken"),
    [
        ({0x9003: "2019:07:14 21:05:59"}, "2019-07-14T21:05:59"),
        ({0x9003: "2019:07:14 21:05:59", 0x9011: "-03:30"}, "2019-07-14T21:05:59-03:30"),
        ({0x9003: "2019:07:14 21:05:59", 0x9011: "somewhere"}, "2019-07-14T21:05:59"),
        ({0x9003: "2019:07:14 21:05:59", 0x9011: "+99:00"}, "2019-07-14T21:05:59"),
        ({0x9003: "0000:00:00 00:00:00"}, None),
        ({0x9003: "2019:02:30 10:00:00"}, None),
        ({0x9003: "    :  :     :  :  "}, None),
        ({0x9003: "yesterday"}, None),
    ],
)
def test_time_taken(name: str, tags: dict[int, str], taken: str | None) -> None:
    assert open_image(with_camera_tags(name, tags)).taken == taken


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_exif_never_raises(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2019:07:14 21:05:59"
    block = bytearray(exif.tobytes())
    for at in data.draw(st.lists(st.integers(6, len(block) - 1), min_size=1, max_size=8)):
        block[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(6, len(block)))
    opened = open_image(encoded(quarters(), "JPEG", exif=bytes(block[:cut])))
    assert {opened.width, opened.height} == {96, 64}


# ---- Reduced scale ----


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_reduced_scale_is_large_enough_and_looks_the_same(name: str) -> None:
    image = photo(1600, 1104)
    data = encoded(image, name, **({"quality": 90} if name in ("JPEG", "WEBP") else {}))
    recipe = Recipe(130)
    opened = open_image(data, min_side=recipe.min_side)
    assert (opened.width, opened.height) == (1600, 1104)
    assert 130 <= min(opened.image.size) < 550
    if name == "JPEG":  # decoded at an eighth of the size, which makes large photos fast
        assert opened.image.size == (200, 138)
    reduced = fit_image(opened.image, recipe).astype(int)
    full = fit_image(open_image(data).image, recipe).astype(int)
    assert np.abs(reduced - full).mean() < 2


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_reduced_scale_never_goes_below_min_side(width: int, height: int, min_side: int) -> None:
    image = Image.new("RGB", (width, height))
    for source in (image, encoded(image, "JPEG")):
        opened = open_image(source, min_side=min_side)
        assert min(opened.image.size) >= min(min_side, width, height)
        assert (opened.width, opened.height) == (width, height)


def test_min_side_must_be_positive() -> None:
    with pytest.raises(ValueError, match="min_side"):
        open_image(quarters(), min_side=0)


# ---- Truncated and damaged files ----


@pytest.mark.parametrize(("extension", "name"), [pair for pair in SAVED_AS.items() if pair[0] != "jpg"])
def test_truncated_files_never_give_an_incomplete_picture(extension: str, name: str) -> None:
    options = {"no_jp2": True} if extension == "j2k" else {}
    data = encoded(photo(90, 60), name, **options)
    whole = np.asarray(open_image(data).image)
    cuts = sorted({*range(1, 40), *range(40, len(data), max(1, len(data) // 60)), len(data) - 1})
    reasons = set()
    for cut in cuts:
        opened = opened_or_reason(data[:cut])
        if isinstance(opened, str):
            reasons.add(opened)
        else:  # only what follows the picture was cut off
            assert cut > 0.97 * len(data)
            np.testing.assert_array_equal(np.asarray(opened.image), whole)
    assert "truncated" in reasons
    assert reasons <= {"truncated", "not an image"} | ({"damaged"} if name == "TIFF" else set())


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}, {}])
@pytest.mark.parametrize("min_side", [None, 20])
def test_truncated_jpegs(options: dict[str, object], min_side: int | None) -> None:
    data = encoded(photo(400, 300), "JPEG", quality=80, **options)
    for cut in range(0, int(0.7 * len(data)), len(data) // 50):  # see test_endings for the rest
        assert reason_of(data[:cut], min_side=min_side) in ("truncated", "empty file", "not an image")  # type: ignore[arg-type]


@pytest.mark.parametrize("extension", ["jp2", "j2k"])
def test_jpeg_2000_cut_off_after_the_headers(extension: str) -> None:
    """Pillow returns a black picture for a file that ends after the headers."""
    data = encoded(photo(240, 160), "JPEG2000", no_jp2=extension == "j2k")
    start = data.index(b"\xff\x90")
    for cut in range(start, start + 200):
        assert reason_of(data[:cut]) == "truncated"


def test_truncated_tiff_of_every_compression() -> None:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        data = encoded(photo(200, 150), "TIFF", compression=compression)
        assert open_image(data).width == 200
        for cut in range(8, len(data) - 400, max(1, len(data) // 30)):
            assert reason_of(data[:cut]) in ("truncated", "damaged")


SEEDS = {name: encoded(quarters(24, 16), name) for name in SAVED_AS.values()}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.randoms(use_true_random=False), st.integers(1, 12))
def test_flipped_bytes_raise_nothing_else(name: str, chance: random.Random, flips: int) -> None:
    data = bytearray(SEEDS[name])
    for _ in range(flips):
        data[chance.randrange(len(data))] = chance.randrange(256)
    opened = opened_or_reason(bytes(data), min_side=4, max_pixels=1_000_000)
    assert opened if isinstance(opened, str) else opened.image.mode == "RGB"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 40), st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(name: str, kept: int, tail: bytes) -> None:
    opened = opened_or_reason(SEEDS[name][:kept] + tail, max_pixels=1_000_000)
    assert opened if isinstance(opened, str) else opened.image.mode == "RGB"


# ---- Limits ----


def test_the_limit_of_pixels_is_checked_before_decoding(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(header, (b"IDAT", zlib.compress(bytes(1000)))))
    assert reason_of(path) == "too many pixels"
    for name in SAVED_AS.values():
        data = encoded(quarters(), name)
        assert reason_of(data, max_pixels=96 * 64 - 1) == "too many pixels", name
        assert open_image(data, max_pixels=96 * 64).width == 96
    assert reason_of(quarters(), max_pixels=100) == "too many pixels"
    assert reason_of(np.zeros((11, 10), np.uint8), max_pixels=100) == "too many pixels"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are kept on Linux only")
def test_decompression_bombs_use_little_memory(tmp_path: Path) -> None:
    """Small files that would take gigabytes; the process may take 500 MB more than it starts with."""
    size = 30_000
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(1 + 3 * size)) for _ in range(300)) + squeeze.flush()
    text = zlib.compress(bytes(900_000))
    bombs = {
        "real.png": png(header, (b"IDAT", rows)),
        "text.png": png(
            struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0),
            *[(b"zTXt", b"k%d\0\0" % i + text) for i in range(2000)],
            (b"IDAT", zlib.compress(b"\0\0")),
        ),
        "profile.png": png(
            struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0),
            (b"iCCP", b"p\0\0" + zlib.compress(bytes(100 << 20), 1)),
            (b"IDAT", zlib.compress(b"\0\0")),
        ),
        "canvas.webp": bytearray(encoded(quarters(), "WEBP", exif=b"II*\0" + bytes(20))),
        "screen.gif": b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;",
        "frame.gif": b"GIF89a\1\0\1\0\x80\0\0"
        + bytes(6)
        + b"!\xf9\4\x08\0\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;",
        "header.bmp": b"BM" + struct.pack("<IIIIiiHHI", 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0) + bytes(20),
        "header.ppm": b"P6 60000 60000 255\n",
        "tags.tif": b"II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHIIHHII", 256, 4, 0xFFFFFFF0, 8, 270, 2, 0xFFFFFFF0, 8)
        + bytes(4),
        "tile.tif": tiled_tiff(60_000),
    }
    webp = bombs["canvas.webp"]
    assert isinstance(webp, bytearray)
    assert webp[12:16] == b"VP8X"
    webp[24:30] = b"\xff\x3f\0\xff\x3f\0"  # 16384 x 16384
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    code = """
        import resource, sys
        from pathlib import Path
        from pixmatcher.errors import InvalidImageError
        from pixmatcher.images import open_image
        import PIL.GifImagePlugin, PIL.PngImagePlugin, PIL.TiffImagePlugin, PIL.WebPImagePlugin

        vsize = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (vsize + 500_000_000,) * 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sorted(Path(sys.argv[1]).iterdir()):
            limit = {"canvas.webp": 1_000_000}.get(path.name, 512_000_000)
            try:
                open_image(path, max_pixels=limit)
            except InvalidImageError as error:
                print(path.name, "->", error.reason)
            else:
                print(path.name, "-> opened")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print("grown too much" if grown > 250_000 else "grown little", grown if grown > 250_000 else "")
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.stderr == ""
    result = dict(line.split(" -> ") for line in process.stdout.splitlines() if "->" in line)
    assert result.pop("text.png") in ("damaged", "opened")
    assert result.pop("profile.png") in ("damaged", "opened")
    assert result.pop("tags.tif") in ("damaged", "truncated", "unsupported format")
    assert set(result.values()) == {"too many pixels"}, result
    assert "grown little" in process.stdout, process.stdout


LARGE = {
    "I;16": ("PNG", 65535, 2),
    "I": ("TIFF", 70_000, 4),
    "F": ("TIFF", 0.5, 4),
    "RGBA": ("PNG", (1, 2, 3, 4), 4),
    "LA": ("PNG", (1, 2), 4),
    "P": ("PNG", 3, 1),
    "CMYK": ("TIFF", (1, 2, 3, 4), 4),
    "LAB": ("TIFF", (1, 2, 3), 4),
}
"""Of each mode: a format that stores it, a colour, and the bytes that Pillow takes for a pixel."""


PEAK = """
import re
from pathlib import Path

def peak():
    # Not ru_maxrss, which begins with what the process that started this one had.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
"""
"""Code that prints the peak memory of the process, in bytes."""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("mode", LARGE)
def test_a_large_picture_needs_little_more_memory_than_its_pixels(tmp_path: Path, mode: str) -> None:
    """A picture of 16 megapixels is converted in strips, and made smaller before all of it is in RGB."""
    name, colour, bytes_a_pixel = LARGE[mode]
    path, small = tmp_path / "large", tmp_path / "small"
    compression = {"compress_level": 1} if name == "PNG" else {"compression": "tiff_lzw"}
    Image.new(mode, (4000, 4000), colour).save(path, name, **compression)  # type: ignore[arg-type]
    Image.new(mode, (4, 4), colour).save(small, name, **compression)  # type: ignore[arg-type]
    code = f"""
        from pixmatcher.images import open_image
        open_image({str(small)!r})
        before = peak()
        open_image({str(path)!r}, min_side=64)
        print(peak() - before)
    """
    result = run_python(PEAK + textwrap.dedent(code))
    assert result.stderr == ""
    assert int(result.stdout) < 16_000_000 * bytes_a_pixel + 40_000_000


class SlowFile(io.RawIOBase):
    """A file that reports to a `Decodings` when its pixels are read; the headers are in its first bytes."""

    def __init__(self, data: bytes, decodings: Decodings) -> None:
        self._data, self._decodings = io.BytesIO(data), decodings

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._data.seek(offset, whence)

    def readinto(self, buffer: object) -> int:
        if self._data.tell() > 16_384:
            self._decodings.goes_on(self)
        count = self._data.readinto(buffer)  # type: ignore[arg-type]
        if self._data.tell() == len(self._data.getbuffer()):
            self._decodings.ends(self)
        return count


class Decodings:
    """The slow files that are being decoded. The first one waits until `go_on` is set."""

    def __init__(self) -> None:
        self.under_way: set[SlowFile] = set()
        self.peak = 0
        self.one, self.two, self.go_on = threading.Event(), threading.Event(), threading.Event()

    def goes_on(self, file: SlowFile) -> None:
        self.under_way.add(file)
        self.peak = max(self.peak, len(self.under_way))
        (self.two if len(self.under_way) > 1 else self.one).set()
        assert self.go_on.wait(60)

    def ends(self, file: SlowFile) -> None:
        self.under_way.discard(file)


def test_huge_pictures_are_decoded_one_at_a_time_and_others_pass() -> None:
    huge = encoded(Image.new("L", (6000, 6000), 9), "PNG", compress_level=1)
    reduced = encoded(Image.new("L", (6000, 6000), 9), "JPEG")
    decodings = Decodings()
    with ThreadPoolExecutor(4) as pool:
        try:
            files = [io.BufferedReader(SlowFile(huge, decodings)) for _ in range(3)]
            opening = [pool.submit(open_image, file, min_side=64) for file in files]
            assert decodings.one.wait(60)
            assert pool.submit(open_image, encoded(quarters(), "PNG")).result(timeout=60).width == 96
            assert pool.submit(open_image, reduced, min_side=64).result(timeout=60).width == 6000
            assert not decodings.two.wait(0.5)
            assert not any(future.done() for future in opening)
        finally:
            decodings.go_on.set()
        assert all(future.result(timeout=60).width == 6000 for future in opening)
    assert decodings.peak == 1
    assert not decodings.under_way


def test_which_images_wait_for_the_lock_of_huge_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "_HUGE_PIXELS", 10_000)
    picture = photo(400, 300)
    waits: list[object] = [
        picture,
        encoded(picture, "WEBP"),
        encoded(picture, "JPEG", progressive=True),  # whose coefficients are all kept
    ]
    passes: list[object] = [encoded(picture, "JPEG"), picture.resize((100, 100)), b"no image"]
    with ThreadPoolExecutor(6) as pool:
        with _limits._huge_image_lock:
            waiting = [pool.submit(open_image, source, min_side=20) for source in waits]  # type: ignore[arg-type]
            for source in passes:
                pool.submit(opened_or_reason, source, min_side=20).result(timeout=60)  # type: ignore[arg-type]
            assert not wait(waiting, timeout=0.3).done
            open_image(picture)  # the thread that has the lock
        assert all(future.result(timeout=60).width == 400 for future in waiting)


def test_a_broken_huge_image_frees_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "_HUGE_PIXELS", 100)
    data = encoded(photo(90, 60), "PNG")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(reason_of, data[:-2000]).result(timeout=60) == "truncated"
        assert open_image(data).width == 90  # in another thread


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 64 x 64 that says it is stored in one tile of `side` x `side`."""
    tags = [
        (256, 3, 64), (257, 3, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, side), (323, 4, side), (324, 4, 200), (325, 4, 12),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return data.ljust(200, b"\0") + zlib.compress(bytes(50))


def test_large_pictures_within_the_limit_open_above_the_limit_of_pillow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in set(SAVED_AS.values()) - {"GIF"}:
        assert open_image(encoded(quarters(), name)).width == 96, name
        assert Image.MAX_IMAGE_PIXELS == 1000
    data = encoded(quarters(), "TIFF")
    with ThreadPoolExecutor(4) as pool:
        assert all(o.width == 96 for o in pool.map(open_image, [data] * 200))
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_jpeg_of_too_many_scans() -> None:
    data = encoded(quarters(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert open_image(data[:-2] + data[last:-2] * 20 + data[-2:]).width == 96
    assert reason_of(data[:-2] + data[last:-2] * 600 + data[-2:]) == "too many scans"


def test_extreme_shapes() -> None:
    for size in ((1, 1), (3000, 2), (2, 3000), (65500, 1)):
        image = Image.new("RGB", size, (10, 200, 30))
        for source in (image, encoded(image, "PNG"), encoded(image, "JPEG", quality=95)):
            opened = open_image(source, min_side=64)
            assert (opened.width, opened.height) == size
            pixels = fit_image(opened.image, Recipe(64))
            assert pixels.shape == (64, 64, 3)
            assert np.abs(pixels.astype(int) - (10, 200, 30)).max() <= 3


# ---- Paths ----


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "nothing.jpg") == "missing"
    assert reason_of(tmp_path) == "not a regular file"
    assert reason_of("/dev/null") == "not a regular file"
    assert reason_of("a\0b.jpg") == "missing"
    assert reason_of("x" * 5000) == "cannot be read"
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    assert reason_of(tmp_path / "dangling.jpg") == "dangling link"
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert reason_of(tmp_path / "loop.jpg") == "symlink loop"


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    reasons: list[str] = []
    thread = threading.Thread(target=lambda: reasons.append(reason_of(tmp_path / "fifo.jpg")), daemon=True)
    thread.start()
    thread.join(5)
    assert reasons == ["not a regular file"]


def test_no_permission(tmp_path: Path) -> None:
    """Root may read everything, so a process without these rights reads the file."""
    path = tmp_path / "secret.jpg"
    quarters().save(path)
    path.chmod(0)
    code = """
        import os, sys
        from pixmatcher.errors import InvalidImageError
        from pixmatcher.images import open_image
        import PIL.JpegImagePlugin
        descriptor = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
        os.fchdir(descriptor)
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            open_image(os.path.basename(sys.argv[1]))
        except InvalidImageError as error:
            print(error.reason)
    """
    tmp_path.chmod(0o755)
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True, timeout=60
    )
    assert (process.stdout, process.stderr) == ("permission denied\n", "")


@pytest.mark.parametrize(
    "name", [b"new\nline.png", b"quo'te\".png", b"\xff\xfe\xe9.png", "\u96ea \U0001f600.png".encode()]
)
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        with open(path, "wb") as file:
            file.write(encoded(quarters(), "PNG"))
    except OSError:
        pytest.skip("this file system does not take such a name")
    assert open_image(os.fsdecode(path)).width == 96
    assert is_allowed_extension(os.fsdecode(path))


def test_large_file_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read, "_READ_AT_ONCE", 100)
    for extension, name in SAVED_AS.items():
        path = tmp_path / f"a.{extension}"
        quarters().save(path, name)
        assert corners(open_image(path).image) == ["red", "green", "blue", "white"]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert reason_of(path) == "truncated"


def test_no_file_descriptor_stays_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encoded(quarters(), "PNG"))
    bad.write_bytes(encoded(quarters(), "PNG")[:100])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        open_image(good)
        reason_of(bad)
        reason_of(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ---- Other sources ----


def test_file_that_cannot_seek() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(encoded(quarters(), "PNG"))
    with os.fdopen(reader, "rb") as file:
        assert corners(open_image(file).image) == ["red", "green", "blue", "white"]


def test_sources_of_the_wrong_type() -> None:
    for source in (None, 5, io.StringIO("text"), ["a.jpg"]):
        with pytest.raises(TypeError):
            open_image(source)  # type: ignore[arg-type]


def test_arrays() -> None:
    pixels = np.asarray(quarters())
    expected = ["red", "green", "blue", "white"]
    assert corners(open_image(pixels).image) == expected
    assert corners(open_image(pixels / 255).image) == expected
    assert corners(open_image((pixels / 255).astype(np.float16)).image) == expected
    assert corners(open_image(pixels[:, ::-1]).image) == ["green", "red", "white", "blue"]
    alpha = np.dstack([pixels, np.full((64, 96), 255, np.uint8)])
    alpha[:32, :48, 3] = 0
    assert corners(open_image(alpha).image) == ["white", "green", "blue", "white"]
    large = np.random.default_rng(0).random((3000, 700))  # scaled a few rows at a time
    np.testing.assert_array_equal(open_image(large).image.getchannel(0), (large * 255 + 0.5).astype(np.uint8))
    opened = open_image(np.full((5, 7), 9, np.uint8))
    assert (opened.width, opened.height, opened.format, opened.taken) == (7, 5, "", None)
    assert opened.image.getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), bool),
        np.full((4, 4), 1.5),
        np.full((4, 4), -0.1),
        np.full((4, 4), np.nan),
        np.zeros((4, 4), complex),
    ],
)
def test_arrays_that_are_not_images(array: np.ndarray) -> None:
    assert reason_of(array) == "unsupported array"


def test_a_pil_image_is_not_changed() -> None:
    data = encoded(photo(800, 600), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        opened = open_image(image, min_side=50)
        assert (opened.width, opened.height, opened.format) == (800, 600, "JPEG")
        assert min(opened.image.size) < 600
        assert image.size == (800, 600)


def test_a_pil_image_of_a_truncated_file() -> None:
    with Image.open(io.BytesIO(encoded(photo(80, 60), "JPEG")[:-300])) as image:
        assert reason_of(image) == "truncated"


# ---- Warnings and threads ----


def warning_files() -> dict[str, bytes]:
    """Return files that can be opened, and for which Pillow alone shows a warning."""
    exif = Image.Exif()
    exif[0x010E] = "a description that is longer than four bytes"
    tag, doubled = struct.pack("<HHI", 296, 3, 1), struct.pack("<HHI", 296, 3, 2)  # a unit, given twice
    tiff = encoded(quarters(), "TIFF", tiffinfo={296: 2})
    assert tag in tiff
    return {
        "exif.jpg": encoded(quarters(), "JPEG", exif=exif.tobytes()[:-30]),
        "tag.tif": tiff.replace(tag, doubled),
        "palette.png": encoded(quarters().quantize(8), "PNG", transparency=bytes([128] * 256)),
        "animated.png": png(
            struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0),
            (b"acTL", bytes(8)),
            (b"IDAT", zlib.compress(b"\0\0")),
        ),
    }


@pytest.mark.parametrize("name", warning_files())
def test_warnings_are_not_shown_and_not_raised(name: str) -> None:
    data = warning_files()[name]
    with pytest.warns(UserWarning, match=r"."), Image.open(io.BytesIO(data)) as image:
        image.convert("RGB")
    assert open_image(data).image.mode == "RGB"


def test_warnings_of_other_threads_are_shown() -> None:
    """While one thread opens images, another one must get the warnings of Pillow, as it would without."""
    apng = warning_files()["animated.png"]
    stop = threading.Event()

    def keep_opening() -> None:
        while not stop.is_set():
            open_image(apng)

    thread = threading.Thread(target=keep_opening)
    thread.start()
    try:
        for _ in range(100):
            with pytest.raises(UserWarning, match="APNG"):
                Image.open(io.BytesIO(apng))
    finally:
        stop.set()
        thread.join()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_image(apng)
        Image.open(io.BytesIO(apng))
    assert len(caught) == 1


@pytest.mark.parametrize("flags", [(), ("-W", "error"), ("-W", "always")])
def test_nothing_is_written_to_stderr(tmp_path: Path, flags: tuple[str, ...]) -> None:
    for name, data in warning_files().items():
        (tmp_path / name).write_bytes(data)
    for compression in ("tiff_lzw", "jpeg", "tiff_adobe_deflate"):
        data = encoded(photo(100, 80), "TIFF", compression=compression)
        middle = len(data) // 2
        (tmp_path / compression).write_bytes(data[:middle] + bytes(50) + data[middle + 50 :])
    for name in ("JPEG", "PNG", "WEBP", "JPEG2000", "AVIF"):
        data = encoded(photo(100, 80), name)
        (tmp_path / name).write_bytes(data[:700] + bytes(50) + data[750:])
    code = f"""
        from pathlib import Path
        from pixmatcher.errors import InvalidImageError
        from pixmatcher.images import open_image
        for path in Path({str(tmp_path)!r}).iterdir():
            try:
                open_image(path)
            except InvalidImageError:
                pass
        print("done")
    """
    result = run_python(code, flags=flags)
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_many_threads_get_the_same_pixels_as_one(tmp_path: Path) -> None:
    sources = [encoded(photo(300, 200), name) for name in SAVED_AS.values()] * 4
    alone = preprocess_images(sources)
    with ThreadPoolExecutor(4) as pool:
        together = np.stack(list(pool.map(preprocess_image, sources)))
    np.testing.assert_array_equal(alone, together)


# ---- Recipes ----


def test_importing_images_imports_neither_pillow_nor_numpy() -> None:
    result = run_python(
        "import sys, pixmatcher.images; print([m for m in ('PIL', 'numpy', 'ctypes') if m in sys.modules])"
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_recipe_is_checked() -> None:
    assert Recipe(260).min_side == 260
    assert Recipe(224, crop=0.875).min_side == 256
    for wrong in ({"size": 0}, {"size": 9, "crop": 0.0}, {"size": 9, "crop": 1.1}):
        with pytest.raises(ValueError, match=r"size|crop"):
            Recipe(**wrong)  # type: ignore[arg-type]


def test_fit_crops_the_centre() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    assert (fit_image(image, Recipe(50)) == (0, 0, 255)).mean() > 0.97
    ring = Image.new("RGB", (100, 100), "red")
    ring.paste("blue", (25, 25, 75, 75))
    assert (fit_image(ring, Recipe(20, crop=0.5))[1:-1, 1:-1] == (0, 0, 255)).all()
    assert (fit_image(ring, Recipe(20))[:5] == (255, 0, 0)).mean() > 0.9


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_fit_is_a_plain_resize_of_the_crop(interpolation: str) -> None:
    image = photo(240, 180)
    recipe = Recipe(90, interpolation=interpolation)  # type: ignore[arg-type]
    plain = image.crop((30, 0, 210, 180)).resize((90, 90), Image.Resampling[interpolation.upper()])
    fitted = fit_image(image, recipe)
    # At the border, a crop by the box uses the pixels outside the box, as intended.
    np.testing.assert_array_equal(fitted[3:-3, 3:-3], np.asarray(plain)[3:-3, 3:-3])
    assert fitted.dtype == np.uint8
    assert fitted.flags.c_contiguous
    assert fitted.flags.writeable


def test_normalize_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    recipe = Recipe(5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    expected = np.moveaxis((pixels / 255 - recipe.mean) / recipe.std, -1, -3)
    got = normalize_pixels(pixels, recipe)
    assert (got.dtype, got.shape, got.flags.c_contiguous) == (np.float32, (2, 3, 5, 7), True)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_array_equal(normalize_pixels(pixels[1], recipe), got[1])
    for wrong in (pixels[..., :2], pixels.astype(np.float32), pixels[0, 0, 0]):
        with pytest.raises(ValueError, match="pixels must be"):
            normalize_pixels(wrong, recipe)


def test_preprocess_image() -> None:
    image = photo(400, 300)
    array = preprocess_image(image)
    assert (array.shape, array.dtype) == ((3, 224, 224), np.float32)
    fitted = preprocess_image(image, output="pil")
    assert (fitted.mode, fitted.size) == ("RGB", (224, 224))
    expected = (np.asarray(fitted) / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(array, expected.transpose(2, 0, 1), atol=1e-5)
    recipe = Recipe(32, crop=0.5)
    batch = preprocess_images([image, encoded(image, "PNG")], recipe)
    assert batch.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(batch[0], batch[1])
    np.testing.assert_array_equal(batch[0], preprocess_image(image, recipe))
    assert preprocess_images([], recipe).shape == (0, 3, 32, 32)
    with pytest.raises(InvalidImageError, match="too many pixels"):
        preprocess_image(image, max_pixels=1000)
