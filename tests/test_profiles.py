"""Colour profiles: pictures in other colour spaces are turned to sRGB."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import textwrap
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from pixmatcher.errors import InvalidImageError
from pixmatcher.images import _colour, _profiles, make_thumbnail, open_image

# The primaries as their profiles give them: XYZ of red, green and blue for the white D50.
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def profile_of(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """Return an ICC profile of version 2 with these tags."""
    start = 132 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content.ljust((len(content) + 3) // 4 * 4, b"\0")
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(data), 0x02400000, kind, space, pcs, b"acsp")
    return header.ljust(128, b"\0") + table + data


def curve(gamma: float | None) -> bytes:
    """Return a curve tag: a gamma, or that of sRGB in 1024 steps."""
    if gamma is not None:
        return b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256)) + b"\0\0"
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + struct.pack(">II", 0, 1024) + np.rint(y * 65535).astype(">u2").tobytes()


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float | None) -> bytes:
    tags = {
        name: b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in xyz))
        for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    }
    return profile_of(b"RGB ", tags | {name: curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")})


def grey_profile(gamma: float) -> bytes:
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    return profile_of(b"GRAY", {b"wtpt": white, b"kTRC": curve(gamma)}, pcs=b"XYZ ")


def cmyk_profile() -> bytes:
    """Return a profile of inks paler than those of Pillow's own formula, with a table of 2 values for each ink."""
    inks = ((0.0, 0.62, 0.85), (0.87, 0.1, 0.48), (1.0, 0.93, 0.1), (0.14, 0.13, 0.12))  # RGB of cyan ... black
    nodes = []
    for index in range(16):
        rgb = np.ones(3)
        for ink, colour in enumerate(inks):
            if index >> (3 - ink) & 1:
                rgb *= colour
        nodes.append(tuple(int(v) for v in np.rint(rgb * 255)))
    image = Image.new("RGB", (16, 1))
    image.putdata(nodes)
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(image, to_lab)
    assert lab is not None
    table = bytes(v ^ (0, 128, 128)[i % 3] for i, v in enumerate(lab.tobytes()))  # a and b from -128 become from 0
    identity = bytes(range(256))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    lut += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += identity * 4 + table + identity * 3
    return profile_of(b"CMYK", {b"A2B0": lut}, pcs=b"Lab ", kind=b"prtr")


PROFILES = {
    "Adobe RGB": rgb_profile(ADOBE_RGB, 563 / 256),
    "Display P3": rgb_profile(DISPLAY_P3, None),
    "CMYK": cmyk_profile(),
    "grey": grey_profile(1.8),
}


def converted(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an sRGB image in the colour space of a profile, as an image editor converts it."""
    result = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(io.BytesIO(profile)), outputMode="RGB"
    )
    assert result is not None
    result.info.clear()  # Pillow adds the profile, and would save it
    return result


def soft_photo(width: int = 160, height: int = 120) -> Image.Image:
    """Return an image of colours that all the colour spaces of these tests have."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [128 + 60 * np.sin(x / 17 + 2 * k) * np.cos(y / 13 - k) for k in range(3)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean())


LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}


@pytest.mark.parametrize("image_format", [*LOSSLESS, "AVIF"])
@pytest.mark.parametrize("name", ["Adobe RGB", "Display P3"])
def test_rgb_with_a_profile_becomes_srgb(image_format: str, name: str) -> None:
    original = soft_photo()
    wide = converted(original, PROFILES[name])
    assert difference(wide, original) > 3
    options = LOSSLESS.get(image_format, {"quality": 95})
    data = encoded(wide, image_format, icc_profile=PROFILES[name], **options)
    opened = open_image(data).image
    assert difference(opened, original) < 2.5
    assert "icc_profile" not in opened.info  # it would be applied a second time
    assert difference(open_image(opened).image, opened) == 0
    small = open_image(data, min_side=20).image
    assert difference(small, open_image(encoded(original, image_format, **options), min_side=20).image) < 2.5


def test_heif_with_a_profile() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    original = soft_photo()
    for profile, expected in ((PROFILES["Display P3"], 2.5), (None, 0)):
        image = converted(original, profile) if profile else original
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file, quality=95, icc_profile=profile)
        assert difference(open_image(file.getvalue()).image, original) < (expected or 2.5)


def test_heif_that_names_its_primaries() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    original = soft_photo()
    file = io.BytesIO()
    wide = pillow_heif.from_pillow(converted(original, PROFILES["Display P3"]))
    wide.save(file, quality=95, color_primaries=12, transfer_characteristics=13)
    assert difference(open_image(file.getvalue()).image, original) < 2.5


def test_avif_that_names_its_primaries() -> None:
    original = soft_photo()
    data = encoded(converted(original, PROFILES["Display P3"]), "AVIF", quality=95)
    at = data.index(b"colrnclx") + 8
    assert difference(open_image(data).image, original) > 3
    for curve, low, high in ((13, 0, 2.5), (16, 3, 99)):  # the curve of sRGB; PQ, of high dynamic range
        named = data[:at] + struct.pack(">HH", 12, curve) + data[at + 4 :]
        assert low <= difference(open_image(named).image, original) < high


def test_only_the_box_of_the_image_names_its_primaries() -> None:
    """Not bytes that look like it, and not only near the beginning of the file."""
    original = soft_photo()
    for noise, expected in ((b"colrnclx" + struct.pack(">HHHB", 12, 13, 1, 128), 0), (bytes(100_000), 2.5)):
        data = encoded(original if expected == 0 else converted(original, PROFILES["Display P3"]), "AVIF", quality=95)
        size = int.from_bytes(data[:4], "big")
        meta = size + int.from_bytes(data[size : size + 4], "big")
        if expected:
            at = data.index(b"colrnclx") + 8
            data = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
        filler = struct.pack(">I", 8 + len(noise)) + b"free" + noise
        plain = open_image(data).image
        # Behind the file header, the places of the pixels move.
        moved = bytearray(data[:size] + filler + data[size:])
        place = data.index(b"iloc")
        assert meta > place
        offsets = [n for n in range(place, meta) if data[n : n + 4] == struct.pack(">I", data.index(b"mdat") + 4)]
        for n in offsets:
            moved[n + len(filler) : n + len(filler) + 4] = struct.pack(">I", data.index(b"mdat") + 4 + len(filler))
        assert offsets
        assert difference(open_image(bytes(moved)).image, plain) == 0


def test_jpeg_2000_with_a_profile() -> None:
    original = soft_photo()
    for method in (b"\2", b"\3"):
        data = encoded(converted(original, PROFILES["Display P3"]), "JPEG2000")
        box = struct.pack(">I", 11 + len(P3)) + b"colr" + method + bytes(2) + P3
        at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
        length = int.from_bytes(data[header : header + 4], "big") - 15 + len(box)
        data = data[:header] + struct.pack(">I", length) + data[header + 4 : at] + box + data[at + 15 :]
        assert difference(open_image(data).image, original) < 1
        assert difference(open_image(data, min_side=30).image, open_image(original, min_side=30).image) < 2


def test_photo_at_an_eighth_of_its_scale_is_converted() -> None:
    original = soft_photo(800, 640)
    wide = converted(original, PROFILES["Display P3"])
    small = open_image(encoded(wide, "JPEG", quality=95, icc_profile=PROFILES["Display P3"]), min_side=60).image
    assert small.size == (100, 80)
    assert difference(small, open_image(encoded(original, "JPEG", quality=95), min_side=60).image) < 2


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_has_the_colours_of_its_inks(image_format: str) -> None:
    image = Image.new("CMYK", (64, 64))
    colours = {(0, 0, 0, 0): (255, 255, 255), (255, 0, 0, 0): (0, 158, 217), (0, 255, 255, 0): (222, 24, 12)}
    for colour, expected in colours.items():
        image.paste(colour, (0, 0, 64, 64))
        options = {"quality": 98} if image_format == "JPEG" else {}
        plain = open_image(encoded(image, image_format, **options)).image
        assert plain.getpixel((9, 9)) == image.convert("RGB").getpixel((9, 9))
        for min_side in (None, 8):
            opened = open_image(
                encoded(image, image_format, icc_profile=PROFILES["CMYK"], **options), min_side=min_side
            )
            pixel = opened.image.getpixel((opened.image.width // 2,) * 2)
            assert np.abs(np.array(pixel) - expected).max() <= 15, (colour, pixel)
    black = Image.new("CMYK", (8, 8), (255, 255, 255, 255))  # black point compensation: the darkest is black
    assert max(open_image(encoded(black, "TIFF", icc_profile=PROFILES["CMYK"])).image.getpixel((0, 0))) <= 2  # type: ignore[arg-type, type-var]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "F"])
def test_grey_with_a_profile(mode: str) -> None:
    value = {"L": 100, "LA": (100, 255), "I;16": 100 * 257, "F": 100.0}[mode]
    image = Image.new(mode, (8, 8), value)  # type: ignore[arg-type]
    image.info["icc_profile"] = PROFILES["grey"]
    expected = round(255 * (1.055 * ((100 / 255) ** 1.8) ** (1 / 2.4) - 0.055))
    pixel = open_image(image).image.getpixel((1, 1))
    assert isinstance(pixel, tuple)
    assert pixel[0] == pixel[1] == pixel[2]
    assert abs(pixel[0] - expected) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "P", "PA", "RGBX", "YCbCr"])
def test_profile_of_rgb_fits_all_modes_of_colour(mode: str) -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50)).convert("P" if mode == "PA" else mode).convert(mode)
    image.info["icc_profile"] = PROFILES["Adobe RGB"]
    pixel = open_image(image).image.getpixel((1, 1))
    assert np.abs(np.array(pixel) - (227, 100, 42)).max() <= 4, pixel


SRGB_PROFILES = {
    "of LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "of a camera": rgb_profile(SRGB, None),
}


@pytest.mark.parametrize("name", SRGB_PROFILES)
def test_srgb_profiles_change_nothing(name: str) -> None:
    plain = open_image(encoded(soft_photo(), "JPEG")).image
    assert difference(open_image(encoded(soft_photo(), "JPEG", icc_profile=SRGB_PROFILES[name])).image, plain) == 0


P3 = PROFILES["Display P3"]
IGNORED = {
    "empty": b"",
    "cut off": P3[:300],
    "only a header": P3[:128],
    "no signature": P3[:36] + b"nope" + P3[40:],
    "of another space": PROFILES["CMYK"],
    "of grey": PROFILES["grey"],
    "a device link": P3[:12] + b"link" + P3[16:],
    "too large": P3 + bytes(9 << 20),
    "any number of steps": profile_of(b"RGB ", {b"D2B0": b"mpet" + bytes(1 << 17)}),
    "text": b"sRGB IEC61966-2.1" * 20,
}


@pytest.mark.parametrize("name", IGNORED)
def test_profiles_that_cannot_be_used_are_ignored(name: str) -> None:
    image = soft_photo()
    image.info["icc_profile"] = IGNORED[name]
    assert difference(open_image(image).image, soft_photo()) == 0


def test_large_profile_in_a_png_is_used_or_ignored() -> None:
    for spare, expected in ((3 << 20, (215, 93, 31)), (9 << 20, (200, 100, 50))):
        content = b"profile\0\0" + zlib.compress(P3 + bytes(spare))
        data = png_with(Image.new("RGB", (8, 8), (200, 100, 50)), iCCP=content)
        assert open_image(data).image.getpixel((0, 0)) == expected


def adobe_exif(order: str, color_space: int = 0xFFFF, index: bytes = b"R03\0") -> bytes:
    """Return an EXIF block as cameras write it for Adobe RGB: directories for EXIF and for interoperability."""
    main = struct.pack(order + "HHHIII", 1, 0x8769, 4, 1, 26, 0)
    camera = struct.pack(order + "HHHIHHHHIII", 2, 0xA001, 3, 1, color_space, 0, 0xA005, 4, 1, 56, 0)
    interoperability = struct.pack(order + "HHHI4sI", 1, 1, 2, 4, index, 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return b"Exif\0\0" + head + main + camera + interoperability


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_can_say_adobe_rgb(order: str) -> None:
    original = soft_photo()
    wide = converted(original, PROFILES["Adobe RGB"])

    def opened(**options: object) -> Image.Image:
        return open_image(encoded(wide, "JPEG", quality=98, subsampling=0, **options)).image

    plain = opened()
    assert difference(opened(exif=adobe_exif(order)), original) < 2
    assert difference(opened(exif=adobe_exif(order, color_space=1)), plain) == 0
    assert difference(opened(exif=adobe_exif(order, index=b"R98\0")), plain) == 0
    # A profile is more than a name.
    assert difference(opened(exif=adobe_exif(order), icc_profile=SRGB_PROFILES["of a camera"]), plain) == 0


def png_with(image: Image.Image, **chunks: bytes) -> bytes:
    """Return a PNG of an image with these chunks after its header."""
    data = encoded(image, "PNG")
    added = b""
    for kind, content in chunks.items():
        chunk = kind.encode() + content
        added += struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + added + data[33:]


def primaries(*values: float) -> bytes:
    return struct.pack(">8I", *(round(v * 100000) for v in values))


def test_png_that_describes_its_colours() -> None:
    original = soft_photo()
    wide = converted(original, PROFILES["Adobe RGB"])
    adobe = primaries(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
    p3 = primaries(0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
    srgb = primaries(0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
    usual, linear = struct.pack(">I", 45455), struct.pack(">I", 100000)
    # Near 1/2.2 the curve of sRGB is taken, as by libpng; Adobe RGB is that but for the darkest values.
    assert difference(open_image(png_with(wide, cHRM=adobe, gAMA=usual)).image, original) < 2
    wide = converted(original, PROFILES["Display P3"])
    assert difference(open_image(png_with(wide, cHRM=p3, gAMA=usual)).image, original) < 1
    grey = Image.new("RGB", (8, 8), (55, 55, 55))
    assert open_image(png_with(grey, cHRM=srgb, gAMA=linear)).image.getpixel((0, 0)) == (128, 128, 128)
    for chunks in (
        {"gAMA": usual},
        {"cHRM": srgb, "gAMA": usual},  # what ImageMagick writes into each PNG
        {"cHRM": p3, "gAMA": usual, "sRGB": b"\0"},
        {"cHRM": bytes(32), "gAMA": usual},
        {"cHRM": b"\xff" * 32, "gAMA": usual},
        {"cHRM": p3, "gAMA": bytes(4)},
    ):
        assert difference(open_image(png_with(original, **chunks)).image, original) == 0, chunks


@pytest.mark.parametrize("min_side", [None, 10])
def test_strips_are_converted_as_the_whole(monkeypatch: pytest.MonkeyPatch, min_side: int | None) -> None:
    images = {"RGB": soft_photo(), "L": soft_photo().convert("L"), "CMYK": soft_photo().convert("CMYK")}
    images["RGBA"] = Image.merge("RGBA", (*soft_photo().split(), images["L"]))
    for mode, image in images.items():
        image.info["icc_profile"] = PROFILES[{"L": "grey", "CMYK": "CMYK"}.get(mode, "Adobe RGB")]
    before = {mode: image.copy() for mode, image in images.items()}
    wholes = {mode: open_image(image, min_side=min_side).image for mode, image in images.items()}
    monkeypatch.setattr(_colour, "_STRIP_PIXELS", 200)
    for mode, image in images.items():
        assert difference(open_image(image, min_side=min_side).image, wholes[mode]) == 0, mode
        assert image.tobytes() == before[mode].tobytes(), f"{mode}: the image of the caller has changed"


def test_thumbnails_have_no_profile_and_the_colours_of_srgb() -> None:
    data = encoded(Image.new("RGB", (600, 400), (200, 100, 50)), "PNG", icc_profile=PROFILES["Adobe RGB"])
    thumbnail = Image.open(io.BytesIO(make_thumbnail(open_image(data).image)))
    assert "icc_profile" not in thumbnail.info
    assert np.abs(np.array(thumbnail.getpixel((50, 50))) - (227, 100, 42)).max() <= 3


def test_threads_share_a_transform() -> None:
    images = []
    for seed in range(24):
        noise = np.random.default_rng(seed).integers(0, 256, (90, 90, 4), dtype=np.uint8)
        image = (
            Image.frombytes("CMYK", (90, 90), noise.tobytes()) if seed % 2 else Image.fromarray(noise[..., :3].copy())
        )
        image.info["icc_profile"] = PROFILES["CMYK" if seed % 2 else "Display P3"]
        images.append(image)
    one_by_one = [open_image(image).image.tobytes() for image in images]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(6):
            assert list(pool.map(lambda image: open_image(image).image.tobytes(), images)) == one_by_one


def test_the_profiles_used_last_are_kept() -> None:
    kept = _profiles._Transforms()
    profiles = [rgb_profile(DISPLAY_P3, 1 + n / 50) for n in range(2 * kept._MOST)]
    first = kept.get(profiles[0], "RGB")
    for profile in profiles:
        kept.get(profile, "RGB")
        assert kept.get(profiles[0], "RGB") is first
    assert len(kept._known) == kept._MOST


def test_damaged_profiles_raise_and_print_nothing() -> None:
    code = """
        import sys, random
        sys.path.insert(0, "tests")
        from test_profiles import PROFILES, open_image, soft_photo
        chance = random.Random(int(sys.argv[1]))
        images = {"CMYK": soft_photo(12, 9).convert("CMYK"), "grey": soft_photo(12, 9).convert("L")}
        for _ in range(int(sys.argv[2])):
            name = chance.choice(list(PROFILES))
            data = bytearray(PROFILES[name])
            for _ in range(chance.randint(1, 8)):
                at = chance.choice([chance.randrange(len(data)), chance.randrange(128, 300)])
                data[at % len(data)] = chance.choice([0, 1, 255, chance.randrange(256)])
            if chance.random() < 0.2:
                del data[chance.randrange(128, len(data)):]
            image = images.get(name, soft_photo(12, 9))
            image.info["icc_profile"] = bytes(data)
            open_image(image)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(random.randrange(10**6)), "300"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_damaged_profile_in_a_file_is_ignored() -> None:
    for image_format in ("JPEG", "PNG", "TIFF", "WEBP"):
        data = encoded(soft_photo(), image_format, icc_profile=P3[:200] + b"\xff" * 200)
        try:
            assert open_image(data).image.size == (160, 120)
        except InvalidImageError as error:
            pytest.fail(f"{image_format}: {error}")
