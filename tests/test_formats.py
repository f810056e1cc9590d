"""Formats that cameras, editors and games write: RAW, JPEG XL, PSD, icons, TGA, PCX, DDS, MPO."""

from __future__ import annotations

import random
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixmatcher.errors import InvalidImageError
from pixmatcher.images import ALLOWED_EXTENSIONS, has_image_content, open_image
from test_images import corners, encoded, opened_or_reason, photo, quarters, reason_of, run_python

UPRIGHT = ["red", "green", "blue", "white"]
QUARTER_TURN = ["blue", "red", "white", "green"]
"""The quarters of an image whose orientation is 6, once it is upright."""
needs_jxl = pytest.mark.skipif(find_spec("pillow_jxl") is None, reason="needs the extra jxl")
needs_libraw = pytest.mark.skipif(find_spec("rawpy") is None, reason="needs the extra raw")

Tags = dict[int, tuple[int, object]]
"""The type and the value of each tag: a number, numbers, bytes, or ("place", index) for the offset of a blob."""


# ---- Files made by hand ----


def tiff(directories: list[Tags], blobs: list[bytes], *, order: str = "<", magic: bytes | None = None) -> bytes:
    """Return a TIFF file; a directory with the tag 0 follows the one before it.

    A tag with the value ("sub", indices) gets the offsets of directories.
    """
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1, 10: 8, 13: 4}
    letters = {1: "B", 3: "H", 4: "I", 13: "I"}

    def data_of(kind: int, value: object, places: list[int], offsets: list[int]) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, tuple) and value and value[0] == "place":
            value = places[value[1]]
        elif isinstance(value, tuple) and value and value[0] == "sub":
            value = tuple(offsets[i] for i in value[1])
        numbers = value if isinstance(value, tuple) else (value,)
        return struct.pack(f"{order}{len(numbers)}{letters[kind]}", *numbers)

    def build(places: list[int], offsets: list[int]) -> tuple[bytes, list[int], list[int]]:
        head = magic or (b"II*\0" if order == "<" else b"MM\0*")
        out = bytearray(head.ljust(4, b"\0")[:4] + struct.pack(order + "I", offsets[0]) + head[4:])
        new_offsets, new_places = [], []
        for index, directory in enumerate(directories):
            out += bytes(len(out) & 1)
            new_offsets.append(len(out))
            tags = sorted((tag, *value) for tag, value in directory.items() if tag)
            extra_at = len(out) + 2 + 12 * len(tags) + 4
            entries, extra = bytearray(), bytearray()
            for tag, kind, value in tags:
                data = data_of(kind, value, places, offsets)
                entries += struct.pack(order + "HHI", tag, kind, len(data) // sizes[kind])
                if len(data) <= 4:
                    entries += data.ljust(4, b"\0")
                else:
                    entries += struct.pack(order + "I", extra_at + len(extra))
                    extra += data + bytes(len(data) & 1)
            follows = index + 1 < len(directories) and directories[index + 1].get(0) == (0, "next")
            following = offsets[index + 1] if follows else 0
            out += struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following) + extra
        for blob in blobs:
            new_places.append(len(out))
            out += blob
        return bytes(out), new_places, new_offsets

    first = build([0] * len(blobs), [0] * len(directories))
    return build(first[1], first[2])[0]


def sensor(seed: int = 0) -> bytes:
    """Return bytes like the compressed values of a sensor."""
    return np.random.default_rng(seed).integers(0, 256, 60_000, np.uint8).tobytes()


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


PREVIEW = encoded(quarters(640, 424), "JPEG", quality=90)
THUMBNAIL = Image.new("RGB", (160, 120), "black")
SMALL = encoded(THUMBNAIL, "JPEG")
LOSSLESS = b"\xff\xd8\xff\xc3\0\x11\x0e\x10\0\x20\0\x03" + bytes(60_000)
"""The begin of a lossless JPEG of 14 bits, in which Canon and DNG store the values of the sensor."""


def nef(preview: bytes = PREVIEW, orientation: int = 1, make: bytes = b"NIKON CORPORATION\0") -> bytes:
    first: Tags = {
        254: (4, 1), 256: (4, 160), 257: (4, 120), 258: (3, (8, 8, 8)), 259: (3, 1), 262: (3, 2), 271: (2, make),
        273: (4, ("place", 0)), 274: (3, orientation), 277: (3, 3), 278: (4, 120), 279: (4, 57600),
        330: (4, ("sub", (1, 2))), 34665: (4, ("sub", (3,))),
    }  # fmt: skip
    jpeg: Tags = {254: (4, 1), 259: (3, 6), 513: (4, ("place", 1)), 514: (4, len(preview))}
    raw: Tags = {
        254: (4, 0), 256: (4, 6000), 257: (4, 4000), 258: (3, 14), 259: (3, 34713), 262: (3, 32803),
        273: (4, ("place", 2)), 277: (3, 1), 279: (4, 60_000),
    }  # fmt: skip
    taken: Tags = {0x9003: (2, b"2019:07:14 18:30:05\0")}
    return tiff([first, jpeg, raw, taken], [THUMBNAIL.tobytes(), preview, sensor()])


def cr2(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    first: Tags = {
        256: (3, 640), 257: (3, 424), 259: (3, 6), 271: (2, b"Canon\0"), 273: (4, ("place", 0)), 274: (3, orientation),
        279: (4, len(preview)),
    }  # fmt: skip
    thumbnail: Tags = {0: (0, "next"), 513: (4, ("place", 1)), 514: (4, len(SMALL))}
    raw: Tags = {0: (0, "next"), 259: (3, 6), 273: (4, ("place", 2)), 279: (4, len(LOSSLESS))}
    return tiff([first, thumbnail, raw], [preview, SMALL, LOSSLESS], magic=b"II*\0CR\2\0\0\0\0\0")


def arw(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    first: Tags = {
        254: (4, 1), 259: (3, 6), 271: (2, b"SONY\0"), 274: (3, orientation), 330: (4, ("sub", (2,))),
        513: (4, ("place", 0)), 514: (4, len(preview)),
    }  # fmt: skip
    thumbnail: Tags = {0: (0, "next"), 259: (3, 6), 513: (4, ("place", 1)), 514: (4, len(SMALL))}
    raw: Tags = {254: (4, 0), 259: (3, 32767), 262: (3, 32803), 273: (4, ("place", 2)), 279: (4, 60_000)}
    return tiff([first, thumbnail, raw], [preview, SMALL, sensor()])


def dng(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    first: Tags = {
        254: (4, 1), 256: (4, 160), 257: (4, 120), 258: (3, (8, 8, 8)), 259: (3, 1), 262: (3, 2), 271: (2, b"Pentax\0"),
        273: (4, ("place", 0)), 274: (3, orientation), 277: (3, 3), 279: (4, 57600), 330: (4, ("sub", (1, 2))),
        50706: (1, bytes([1, 4, 0, 0])),
    }  # fmt: skip
    raw: Tags = {254: (4, 0), 259: (3, 7), 262: (3, 32803), 273: (4, ("place", 2)), 279: (4, len(LOSSLESS))}
    jpeg: Tags = {254: (4, 1), 259: (3, 7), 262: (3, 6), 273: (4, ("place", 1)), 279: (4, len(preview))}
    return tiff([first, raw, jpeg], [THUMBNAIL.tobytes(), preview, LOSSLESS], order=">")


def pef(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    first: Tags = {
        254: (4, 0), 256: (4, 6000), 257: (4, 4000), 258: (3, 12), 259: (3, 65535), 262: (3, 32803),
        271: (2, b"PENTAX\0"), 273: (4, ("place", 0)), 274: (3, orientation), 279: (4, 60_000),
    }  # fmt: skip
    thumbnail: Tags = {0: (0, "next"), 513: (4, ("place", 1)), 514: (4, len(SMALL))}
    jpeg: Tags = {0: (0, "next"), 513: (4, ("place", 2)), 514: (4, len(preview))}
    return tiff([first, thumbnail, jpeg], [sensor(), SMALL, preview], order=">")


def orf(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    """The preview is named only in the note of the maker."""
    first: Tags = {
        259: (3, 1), 271: (2, b"OLYMPUS IMAGING CORP.\0"), 273: (4, ("place", 1)), 274: (3, orientation),
        279: (4, 60_000), 34665: (4, ("sub", (1,))),
    }  # fmt: skip
    taken: Tags = {0x9003: (2, b"2019:07:14 18:30:05\0"), 0x927C: (7, b"OLYMPUS\0II\3\0" + bytes(40))}
    return tiff([first, taken], [b"\0" * 7 + preview, sensor()], magic=b"IIRO")


def rw2(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    first: Tags = {1: (7, b"0410"), 0x2E: (7, preview), 271: (2, b"Panasonic\0"), 274: (3, orientation)}
    return tiff([first], [sensor()], magic=b"IIU\0")


def raf(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    head = b"FUJIFILMCCD-RAW 0201FF383501X-T3".ljust(84, b"\0") + struct.pack(">II", 148, len(preview))
    return head.ljust(148, b"\0") + preview + sensor()


def box(name: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + name + data


def cr3(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    canon = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
    main, taken = tiff([{274: (3, orientation)}], []), tiff([{0x9003: (2, b"2019:07:14 18:30:05\0")}], [])
    moov = box(b"moov", box(b"uuid", canon, box(b"CMT1", main), box(b"CMT2", taken), box(b"THMB", bytes(16), SMALL)))
    return box(b"ftyp", b"crx \0\0\0\1crx isom") + moov + box(b"mdat", preview, sensor())


def mrw(preview: bytes = PREVIEW, orientation: int = 1) -> bytes:
    return b"\0MRM" + bytes(60) + preview + sensor()


RAW = {"nef": nef, "cr2": cr2, "arw": arw, "dng": dng, "pef": pef, "orf": orf, "rw2": rw2, "raf": raf, "cr3": cr3}
WITH_ORIENTATION = [name for name in RAW if name != "raf"]  # a RAF file has it in the preview alone
WITH_TIME = ["nef", "orf", "cr3"]


def developable(orientation: int = 1, side: int = 400) -> bytes:
    """Return a DNG without a preview, whose sensor saw the four quarters."""
    scene = np.asarray(quarters(side, side // 2)).astype(np.uint16) * 117 + 200
    values = scene[:, :, 1].copy()
    values[::2, ::2], values[1::2, 1::2] = scene[::2, ::2, 0], scene[1::2, 1::2, 2]
    unit = struct.pack("<ii", 1, 1) + 3 * struct.pack("<ii", 0, 1)
    tags: Tags = {
        254: (4, 0), 256: (4, side), 257: (4, side // 2), 258: (3, 16), 259: (3, 1), 262: (3, 32803),
        271: (2, b"Maker\0"), 272: (2, b"Camera\0"), 273: (4, ("place", 0)), 274: (3, orientation), 277: (3, 1),
        278: (4, side // 2), 279: (4, values.nbytes), 33421: (3, (2, 2)), 33422: (1, bytes([0, 1, 1, 2])),
        50706: (1, bytes([1, 4, 0, 0])), 50708: (2, b"Maker Camera\0"), 50717: (4, 30_035),
        50721: (10, (unit * 3)[:72]), 50728: (5, 3 * struct.pack("<II", 1, 1)), 50778: (3, 21),
    }  # fmt: skip
    return tiff([tags], [values.astype("<u2").tobytes()])


def psd(
    planes: list[np.ndarray], mode: int, *, bits: int = 8, version: int = 1, packed: bool = True,
    layers: int | None = None, merged: bool = True, palette: bytes = b"", resources: bytes = b"",
) -> bytes:  # fmt: skip
    """Return a Photoshop file whose flattened picture has these channels (H, W)."""
    height, width = planes[0].shape
    head = struct.pack(">4sH6xHIIHH", b"8BPS", version, len(planes), height, width, bits, mode)
    resources += struct.pack(">4sHHI", b"8BIM", 1057, 0, 5) + struct.pack(">IB", 1, merged) + b"\0"
    wide = ">Q" if version == 2 else ">I"
    section = b"" if layers is None else struct.pack(wide, 6) + struct.pack(">h", layers) + bytes(4)
    out = head + struct.pack(">I", len(palette)) + palette + struct.pack(">I", len(resources)) + resources
    out += struct.pack(wide, len(section)) + section
    if bits == 1:
        rows = [np.packbits(row).tobytes() for plane in planes for row in plane]
    else:
        rows = [row.astype(">u2" if bits == 16 else "u1").tobytes() for plane in planes for row in plane]
    if not packed:
        return out + b"\0\0" + b"".join(rows)
    packed_rows = [
        b"".join(bytes([len(row[i : i + 128]) - 1]) + row[i : i + 128] for i in range(0, len(row), 128)) for row in rows
    ]
    unit = "I" if version == 2 else "H"
    lengths = struct.pack(f">{len(rows)}{unit}", *map(len, packed_rows))
    return out + b"\0\1" + lengths + b"".join(packed_rows)


def planes_of(image: Image.Image, bits: int = 8) -> list[np.ndarray]:
    array = np.atleast_3d(np.asarray(image)).astype(np.uint16) * (257 if bits == 16 else 1)
    return [array[:, :, i] for i in range(array.shape[2])]


def dds(bits: int, masks: tuple[int, ...], pixels: bytes, size: tuple[int, int]) -> bytes:
    flags = 0x41 if len(masks) == 4 else 0x40
    pixel_format = struct.pack("<8I", 32, flags, 0, bits, *(*masks, 0)[:4])
    head = struct.pack("<7I44x", 124, 0x1007, size[1], size[0], 0, 0, 0)
    return b"DDS " + head + pixel_format + struct.pack("<5I", 0x1000, 0, 0, 0, 0) + pixels


def simple_files() -> dict[str, bytes]:
    """Return a file of each new format that shows the four quarters and is not RAW."""
    image = quarters()
    files = {
        "a.ico": encoded(image, "ICO", sizes=[(16, 16), (96, 64)]),
        "bmp.ico": encoded(image, "ICO", sizes=[(96, 64)], bitmap_format="bmp"),
        "a.tga": encoded(image, "TGA"),
        "rle.tga": encoded(image, "TGA", compression="tga_rle"),
        "palette.tga": encoded(image.quantize(16), "TGA"),
        "a.pcx": encoded(image, "PCX"),
        "palette.pcx": encoded(image.quantize(16), "PCX"),
        "a.dds": encoded(image, "DDS"),
        "bc1.dds": encoded(image, "DDS", pixel_format="DXT1"),
        "a.psd": psd(planes_of(image), 3),
        "a.psb": psd(planes_of(image), 3, version=2),
    }
    files["a.cur"] = cursor(files["bmp.ico"])
    if find_spec("pillow_jxl") is not None:
        files["a.jxl"] = jxl(image)
        files["boxes.jxl"] = jxl(image, use_container=True)
    return files


def cursor(icon: bytes) -> bytes:
    """Return an icon of one picture as a cursor with its hot spot at 40, 30."""
    return icon[:2] + b"\2" + icon[3:10] + struct.pack("<HH", 40, 30) + icon[14:]


def jxl(image: Image.Image, **options: object) -> bytes:
    import pillow_jxl  # noqa: F401

    return encoded(image, "JXL", lossless=True, **options)


# ---- RAW ----


@pytest.mark.parametrize("name", [*RAW, "mrw"])
def test_the_preview_of_a_raw_file_is_decoded(tmp_path: Path, name: str) -> None:
    data = (RAW | {"mrw": mrw})[name]()
    path = tmp_path / f"photo.{name}"
    path.write_bytes(data)
    with path.open("rb") as file:
        for source in (path, data, file):
            opened = open_image(source)
            assert (opened.format, opened.width, opened.height) == ("RAW", 640, 424)
            assert corners(opened.image) == UPRIGHT
    small = open_image(path, min_side=50)
    assert (small.width, small.height) == (640, 424)
    assert small.image.size[0] < 320
    assert f".{name}" in ALLOWED_EXTENSIONS
    assert has_image_content(data[:512])


@pytest.mark.parametrize("name", RAW)
def test_a_raw_file_larger_than_what_is_read_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixmatcher.images import _read

    monkeypatch.setattr(_read, "_READ_AT_ONCE", 1000)
    path = tmp_path / "photo"
    path.write_bytes(RAW[name]())
    assert corners(open_image(path).image) == UPRIGHT


@pytest.mark.parametrize("name", WITH_ORIENTATION)
def test_the_orientation_of_a_raw_file_is_used_if_the_preview_has_none(name: str) -> None:
    opened = open_image(RAW[name](orientation=6))
    assert (opened.width, opened.height) == (424, 640)
    assert corners(opened.image) == QUARTER_TURN
    reduced = open_image(RAW[name](orientation=6), min_side=60)
    assert (reduced.width, reduced.height) == (424, 640)
    assert corners(reduced.image) == QUARTER_TURN


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize(("own", "expected"), [(6, QUARTER_TURN), (1, UPRIGHT)])
def test_the_orientation_of_the_preview_comes_first_and_is_used_once(name: str, own: int, expected: list[str]) -> None:
    preview = encoded(quarters(640, 424), "JPEG", quality=90, exif=exif(own))
    assert corners(open_image(RAW[name](preview, orientation=6)).image) == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_a_raw_file(orientation: int) -> None:
    jpeg = encoded(quarters(640, 424), "JPEG", quality=90, exif=exif(orientation))
    expected, opened = open_image(jpeg, min_side=60), open_image(nef(orientation=orientation), min_side=60)
    assert corners(opened.image) == corners(expected.image)
    assert (opened.area, opened.width, opened.height) == (expected.area, expected.width, expected.height)


@pytest.mark.parametrize("name", WITH_TIME)
def test_the_time_of_a_raw_file(name: str) -> None:
    assert open_image(RAW[name]()).taken == "2019-07-14T18:30:05"


def xmp(name: str, value: str) -> bytes:
    """Return an XMP packet with one property of the schema "tiff" or "xap"."""
    space = f"http://ns.adobe.com/{name.partition(':')[0]}/1.0/"
    about = f"xmlns:{name.partition(':')[0]}='{space}' {name}='{value}'"
    syntax = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    return f"<rdf:RDF xmlns:rdf='{syntax}'><rdf:Description {about}/></rdf:RDF>".encode()


TIME = b"2019:07:14 18:30:05\0"


def with_times(camera: Tags, main: Tags | None = None, gps: Tags | None = None, preview: bytes = PREVIEW) -> bytes:
    """Return a RAW file with these tags in its directories."""
    first: Tags = {
        254: (4, 1), 259: (3, 6), 271: (2, b"SONY\0"), 513: (4, ("place", 0)), 514: (4, len(preview)),
        34665: (4, ("sub", (1,))), 34853: (4, ("sub", (2,))),
    }  # fmt: skip
    return tiff([first | (main or {}), camera, gps or {}], [preview])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (with_times({0x9004: (2, TIME)}), "2019-07-14T18:30:05"),
        (with_times({0x9003: (2, TIME), 0x9011: (2, b"+02:00\0")}), "2019-07-14T18:30:05+02:00"),
        (with_times({0x9003: (2, b"0000:00:00 00:00:00\0"), 0x9004: (2, TIME)}), "2019-07-14T18:30:05"),
        (with_times({0x9003: (2, TIME)}, {0x132: (2, b"2021:01:01 00:00:00\0")}), "2019-07-14T18:30:05"),
        (with_times({}, {0x132: (2, TIME)}), "2019-07-14T18:30:05"),
        (with_times({}, {700: (1, xmp("xap:CreateDate", "2019-07-14T18:30:05"))}), "2019-07-14T18:30:05"),
        (
            with_times({}, gps={7: (5, struct.pack("<6I", 18, 1, 30, 1, 5, 1)), 29: (2, b"2019:07:14\0")}),
            "2019-07-14T18:30:05+00:00",
        ),
        (with_times({}), None),
        # A preview that says its orientation need not say the time.
        (
            with_times({0x9003: (2, TIME)}, preview=encoded(quarters(640, 424), "JPEG", exif=exif(1))),
            "2019-07-14T18:30:05",
        ),
    ],
)
def test_every_time_of_a_raw_file(data: bytes, expected: str | None) -> None:
    opened = open_image(data)
    assert (opened.format, opened.taken) == ("RAW", expected)


def test_cr3_has_the_time_of_the_photo_before_that_of_its_change() -> None:
    main = tiff([{0x112: (3, 6), 0x132: (2, b"2021:01:01 00:00:00\0")}], [])
    camera = tiff([{0x9003: (2, TIME)}], [])
    canon = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
    start = box(b"ftyp", b"crx \0\0\0\1crx isom")

    def cr3_of(*boxes: bytes) -> bytes:
        return start + box(b"moov", box(b"uuid", canon, *boxes)) + box(b"mdat", PREVIEW, sensor())

    opened = open_image(cr3_of(box(b"CMT1", main), box(b"CMT2", camera)))
    assert (corners(opened.image), opened.taken) == (QUARTER_TURN, "2019-07-14T18:30:05")
    # Only what is in the box of Canon counts.
    assert open_image(cr3_of(box(b"free", box(b"CMT2", camera)))).taken is None
    packet = box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac"), xmp("xap:CreateDate", "2018-05"))
    opened = open_image(cr3_of(box(b"CMT1", tiff([{0x112: (3, 6)}], []))) + packet)
    assert (corners(opened.image), opened.taken) == (QUARTER_TURN, "2018-05-01")


def test_a_raw_file_with_places_of_64_bits() -> None:
    """DNG 1.7 allows BigTIFF."""
    count, start = 6, 16 + 8 + 20 * 6 + 8
    entries = [
        (254, 4, 1, struct.pack("<Q", 1)), (259, 3, 1, struct.pack("<Q", 7)), (273, 16, 1, struct.pack("<Q", start)),
        (274, 3, 1, struct.pack("<Q", 6)), (279, 16, 1, struct.pack("<Q", len(PREVIEW))),
        (50706, 1, 4, bytes([1, 7, 0, 0, 0, 0, 0, 0])),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHQ", *entry[:3]) + entry[3] for entry in entries)
    data = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, count) + directory + bytes(8) + PREVIEW
    opened = open_image(data)
    assert (opened.format, opened.width, corners(opened.image)) == ("RAW", 424, QUARTER_TURN)


def test_a_preview_with_fill_bytes_between_its_segments() -> None:
    filled = PREVIEW[:2] + b"\xff" * 5000 + PREVIEW[2:]
    for make in (nef, raf, mrw):
        assert open_image(make(filled)).width == 640


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("name", ["nef", "arw", "dng", "pef", "cr3", "raf"])
def test_a_raw_file_that_is_cut_off(name: str, extra: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "install an extra", which does not help."""
    if not extra:
        monkeypatch.setitem(sys.modules, "rawpy", None)
    elif find_spec("rawpy") is None:
        pytest.skip("needs the extra raw")
    data = RAW[name]()
    preview = data.index(PREVIEW)
    for length in (preview - 10, preview + len(PREVIEW) // 2):
        with pytest.raises(InvalidImageError) as caught:
            open_image(data[:length])
        assert str(caught.value) == "truncated: the file is cut off before the end of the image", length
        assert caught.value.decoder == "rawpy"


def test_the_limit_of_pixels_counts_for_the_preview() -> None:
    assert reason_of(nef(), max_pixels=640 * 424 - 1) == "too many pixels"
    assert open_image(nef(), max_pixels=640 * 424).width == 640


@pytest.mark.parametrize("make", [b"NIKON CORPORATION\0", b"SONY\0", b"Canon\0"])
def test_a_tiff_of_a_camera_or_an_editor_stays_tiff(make: bytes) -> None:
    image = quarters(640, 424)
    plain = encoded(image, "TIFF", tiffinfo={271: make.decode().rstrip("\0"), 274: 6})
    opened = open_image(plain)
    assert (opened.format, corners(opened.image)) == ("TIFF", QUARTER_TURN)
    with_thumbnail = tiff(  # as editors write it: the picture first, smaller ones below it
        [
            {254: (4, 0), 256: (4, 640), 257: (4, 424), 258: (3, (8, 8, 8)), 259: (3, 1), 262: (3, 2), 271: (2, make),
             273: (4, ("place", 0)), 277: (3, 3), 278: (4, 424), 279: (4, 640 * 424 * 3), 330: (4, ("sub", (1,)))},
            {254: (4, 1), 259: (3, 6), 513: (4, ("place", 1)), 514: (4, len(SMALL))},
        ],
        [image.tobytes(), SMALL],
    )  # fmt: skip
    opened = open_image(with_thumbnail)
    assert (opened.format, opened.width, corners(opened.image)) == ("TIFF", 640, UPRIGHT)


@needs_libraw
@pytest.mark.parametrize(("orientation", "expected"), [(1, UPRIGHT), (6, QUARTER_TURN)])
def test_a_raw_file_without_a_preview_is_developed(orientation: int, expected: list[str]) -> None:
    opened = open_image(developable(orientation))
    assert opened.format == "RAW"
    assert (opened.width, opened.height) == ((200, 100) if orientation == 1 else (100, 200))
    width, height = opened.width, opened.height
    seen = [opened.image.getpixel((width * x // 4, height * y // 4)) for y in (1, 3) for x in (1, 3)]
    names = ["white" if min(p) > 200 else ("red", "green", "blue")[p.index(max(p))] for p in seen]
    assert names == expected
    assert reason_of(developable(side=400), max_pixels=79_999) == "too many pixels"


@needs_libraw
def test_a_thumbnail_is_not_taken_for_the_photo(capfd: pytest.CaptureFixture[str]) -> None:
    for data in (nef(SMALL), cr2(SMALL), arw(SMALL)):  # LibRaw cannot develop these values
        assert reason_of(data) in ("damaged", "unsupported format", "truncated")
    assert capfd.readouterr() == ("", "")


def test_raw_without_a_preview_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "a.dng"
    path.write_bytes(developable())
    code = f"""
        import sys
        sys.modules["rawpy"] = None  # what makes an import fail
        from pixmatcher.images import open_image
        try:
            open_image({str(path)!r})
        except Exception as error:
            print(type(error).__name__, error)
    """
    result = run_python(code)
    expected = "unsupported format: RAW without a preview needs an extra: pip install 'pixmatcher[raw]'\n"
    assert result.stdout.startswith("InvalidImageError ")
    assert result.stdout.endswith(expected)
    assert result.stderr == ""


def test_a_raw_file_with_a_preview_needs_no_extra(tmp_path: Path) -> None:
    path = tmp_path / "a.nef"
    path.write_bytes(nef())
    code = f"""
        import sys
        sys.modules["rawpy"] = None
        from pixmatcher.images import open_image
        print(open_image({str(path)!r}).width)
    """
    assert run_python(code).stdout == "640\n"


def test_directories_that_point_to_each_other_end() -> None:
    looped = bytearray(nef())
    start = struct.unpack_from("<I", looped, 4)[0]
    count = struct.unpack_from("<H", looped, start)[0]
    struct.pack_into("<I", looped, start + 2 + 12 * count, start)
    assert open_image(bytes(looped)).width == 640
    assert isinstance(opened_or_reason(b"FUJIFILMCCD-RAW " + b"\xff\xd8\xff\xe0\0\2" * 200_000), str)


# ---- JPEG XL ----


@needs_jxl
def test_jpeg_xl_made_from_a_jpeg_is_the_same_jpeg(tmp_path: Path) -> None:
    import pillow_jxl  # noqa: F401

    path = tmp_path / "a.jpg"
    quarters().save(path, quality=90, exif=exif(6))
    with Image.open(path) as image, pytest.warns(UserWarning, match="reconstruction"):
        image.save(tmp_path / "a.jxl")
    opened, jpeg = open_image(tmp_path / "a.jxl"), open_image(path)
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(jpeg.image))
    assert (opened.format, opened.width, opened.height) == ("JXL", 64, 96)
    assert corners(opened.image) == QUARTER_TURN


@needs_jxl
def test_jpeg_xl_orientation_transparency_and_size() -> None:
    assert corners(open_image(jxl(quarters(), exif=exif(6))).image) == QUARTER_TURN
    assert open_image(jxl(Image.new("RGBA", (64, 64)))).image.getpixel((9, 9)) == (255, 255, 255)
    assert open_image(jxl(Image.new("L", (64, 64), 99))).image.getpixel((9, 9)) == (99, 99, 99)
    for container in (False, True):
        data = jxl(quarters(), use_container=container)
        assert reason_of(data, max_pixels=96 * 64 - 1) == "too many pixels"
        assert has_image_content(data[:512])


@needs_jxl
def test_time_and_orientation_in_the_boxes_of_jpeg_xl() -> None:
    block = Image.Exif()
    block.get_ifd(0x8769)[0x9004] = "2020:01:02 03:04:05"
    assert open_image(jxl(quarters(), exif=block.tobytes(), use_container=True)).taken == "2020-01-02T03:04:05"
    data = jxl(quarters(), use_container=True)
    assert open_image(data + box(b"xml ", xmp("xap:CreateDate", "2020-01-02"))).taken == "2020-01-02"
    assert corners(open_image(data + box(b"xml ", xmp("tiff:Orientation", "6"))).image) == QUARTER_TURN


def test_the_size_of_jpeg_xl_is_checked_before_anything_is_decoded() -> None:
    """The header of 2^30 x 2^30 pixels: no small sizes, the widest number, the ratio 1 to 1."""
    side = (1 << 30) - 1
    header = 0 | 3 << 1 | side << 3 | 1 << 33
    assert reason_of(b"\xff\x0a" + header.to_bytes(16, "little")) == "too many pixels"


def test_jpeg_xl_without_the_extra_says_what_to_install() -> None:
    code = """
        import sys
        sys.modules["pillow_jxl"] = None  # what makes an import fail
        from pixmatcher.images import open_image
        try:
            open_image(bytes.fromhex("ff0a18f3010013880200799bb59f2000") + bytes(100))
        except Exception as error:
            print(type(error).__name__, error)
    """
    result = run_python(code)
    expected = "InvalidImageError unsupported format: JPEG XL needs an extra: pip install 'pixmatcher[jxl]'\n"
    assert (result.stdout, result.stderr) == (expected, "")


# ---- Files of editors and games ----


@pytest.mark.parametrize("name", [name for name in simple_files() if "bc1" not in name])
def test_new_formats_open(tmp_path: Path, name: str) -> None:
    data = simple_files()[name]
    path = tmp_path / name
    path.write_bytes(data)
    expected = {"cur": "ICO", "psb": "PSD"}.get(path.suffix[1:], path.suffix[1:].upper())
    for source in (path, data):
        opened = open_image(source)
        assert (opened.format, opened.width, opened.height) == (expected, 96, 64)
        assert corners(opened.image) == UPRIGHT
    assert path.suffix in ALLOWED_EXTENSIONS
    assert has_image_content(data[:512])
    assert reason_of(data, max_pixels=96 * 64 - 1) == "too many pixels"
    assert corners(open_image(data, min_side=8).image) == UPRIGHT


@pytest.mark.parametrize("name", simple_files())
def test_new_formats_that_are_cut_off(name: str) -> None:
    data = simple_files()[name]
    whole = np.asarray(open_image(data).image)
    reasons = set()
    for cut in sorted({*range(1, 160), *range(160, len(data), max(1, len(data) // 60))}):
        opened = opened_or_reason(data[:cut])
        if isinstance(opened, str):
            reasons.add(opened)
        else:
            np.testing.assert_array_equal(np.asarray(opened.image), whole)
            assert cut > 0.9 * len(data)
    assert "truncated" in reasons or name == "a.jxl"  # nothing in a bare codestream says how long it is
    assert reasons <= {"truncated", "not an image", "damaged"}


@pytest.mark.parametrize(("bits", "packed", "version"), [(8, True, 1), (8, False, 2), (16, True, 2), (16, False, 1)])
def test_psd_with_8_and_16_bits(bits: int, packed: bool, version: int) -> None:
    image = photo(61, 47)
    options = {"bits": bits, "packed": packed, "version": version}
    opened = open_image(psd(planes_of(image, bits), 3, **options))
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(image))
    grey = open_image(psd(planes_of(image.convert("L"), bits), 1, **options))
    np.testing.assert_array_equal(np.asarray(grey.image.convert("L")), np.asarray(image.convert("L")))


def test_psd_of_other_colour_modes() -> None:
    image = quarters()
    cmyk = [255 - plane for plane in planes_of(image.convert("CMYK"))]  # Photoshop stores less ink as more
    assert corners(open_image(psd(cmyk, 4)).image)[0] == "red"
    palette = image.quantize(4)
    colours = np.zeros((3, 256), np.uint8)
    colours[:, :4] = np.array(palette.getpalette()[:12]).reshape(4, 3).T
    assert corners(open_image(psd(planes_of(palette), 2, palette=colours.tobytes())).image) == UPRIGHT
    black = np.zeros((16, 16), np.uint8)
    black[:, :8] = 1
    bitmap = open_image(psd([black], 0, bits=1)).image
    assert (bitmap.getpixel((2, 2)), bitmap.getpixel((12, 2))) == ((0, 0, 0), (255, 255, 255))
    lab = [np.full((8, 8), value, np.uint8) for value in (138, 208, 195)]  # red: L 54, a +80, b +67
    red = open_image(psd(lab, 9)).image.getpixel((4, 4))
    assert red[0] > 230
    assert max(red[1:]) < 40
    assert reason_of(psd(planes_of(image), 3, bits=32)) == "unsupported format"
    assert reason_of(psd([*cmyk, *cmyk], 4, bits=16)) == "unsupported format"


def test_psd_transparency_and_saved_selections() -> None:
    planes = [*planes_of(quarters()), np.zeros((64, 96), np.uint16)]
    assert corners(open_image(psd(planes, 3)).image) == UPRIGHT  # a selection that was saved
    assert corners(open_image(psd(planes, 3, layers=1)).image) == UPRIGHT
    for version in (1, 2):
        assert corners(open_image(psd(planes, 3, layers=-1, version=version)).image) == ["white"] * 4
    grey = [np.full((8, 8), 50, np.uint16), np.full((8, 8), 255, np.uint16)]
    assert open_image(psd(grey, 1, layers=-2)).image.getpixel((4, 4)) == (50, 50, 50)


def test_psd_without_a_flattened_picture() -> None:
    with pytest.raises(Exception, match="Maximize Compatibility"):
        open_image(psd(planes_of(quarters()), 3, merged=False))
    assert reason_of(psd(planes_of(quarters()), 3, merged=False)) == "unsupported format"


def test_psd_time() -> None:
    block = Image.Exif()
    block.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    data = block.tobytes()[6:]
    resource = struct.pack(">4sHHI", b"8BIM", 1058, 0, len(data)) + data + bytes(len(data) & 1)
    assert open_image(psd(planes_of(quarters()), 3, resources=resource)).taken == "2020-01-02T03:04:05"


@pytest.mark.parametrize(
    ("number", "content", "expected"),
    [
        (1028, b"\x1c\x02\x37\0\x0820200102\x1c\x02\x3c\0\x0b030405+0000", "2020-01-02T03:04:05+00:00"),
        (1060, xmp("xap:CreateDate", "2020-01-02T03:04:05"), "2020-01-02T03:04:05"),
    ],
)
def test_psd_time_in_iptc_and_xmp(number: int, content: bytes, expected: str) -> None:
    other = struct.pack(">4sH", b"8BIM", 1000) + b"\4name\0" + struct.pack(">I", 3) + b"abc\0"
    resource = struct.pack(">4sHHI", b"8BIM", number, 0, len(content)) + content + bytes(len(content) & 1)
    assert open_image(psd(planes_of(quarters()), 3, resources=other + resource)).taken == expected


def test_psd_whose_resources_are_cut_off() -> None:
    resource = struct.pack(">4sHHI", b"8BIM", 1058, 0, 1 << 30) + b"abc\0"
    assert reason_of(psd(planes_of(quarters()), 3, resources=resource)) == "truncated"


@pytest.mark.parametrize("name", ["AVIF", "WEBP", "JPEG"])
def test_an_icon_with_a_picture_that_is_no_icon_says_which(name: str) -> None:
    picture = encoded(quarters(), name)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 96, 64, 0, 0, 1, 32, len(picture), 22) + picture
    with pytest.raises(InvalidImageError, match=f"unsupported format: an icon with a picture of the format {name}"):
        open_image(icon)
    with pytest.raises(InvalidImageError, match="damaged: the picture in the icon has no header"):
        open_image(icon[:22] + bytes(range(100, 200)) + icon[122:])


def test_the_largest_picture_of_an_icon_is_used() -> None:
    images = [Image.new("RGBA", (side, side), colour) for side, colour in ((16, "blue"), (48, "red"), (32, "green"))]
    for bitmap_format in ("png", "bmp"):
        icon = encoded(
            images[1], "ICO", append_images=images, sizes=[i.size for i in images], bitmap_format=bitmap_format
        )
        assert open_image(icon).image.size == (48, 48)
        assert open_image(icon).image.getpixel((20, 20)) == (255, 0, 0)


def test_a_picture_in_an_icon_may_be_larger_than_the_icon_says() -> None:
    huge = encoded(Image.new("L", (3000, 3000)), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(huge), 22) + huge
    assert reason_of(icon, max_pixels=1_000_000) == "too many pixels"
    assert open_image(icon).width == 3000
    bitmap = struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(bitmap), 22) + bitmap
    assert reason_of(icon) == "too many pixels"


def test_tga_without_declared_alpha_is_opaque() -> None:
    transparent, opaque, white = b"\0\0\xff\0", b"\0\x7c", (255, 255, 255)
    for depth, declared, pixel, expected in (
        (32, 0, transparent, (255, 0, 0)),
        (32, 8, transparent, white),
        (16, 0, opaque, (255, 0, 0)),
        (16, 0, b"\0\xfc", (255, 0, 0)),
    ):
        data = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 16, 16, depth, declared) + pixel * 256
        assert open_image(data).image.getpixel((3, 3)) == expected, (depth, declared)


def test_tga_with_a_footer_is_known_by_it() -> None:
    odd = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 7, 7, 7, 0, 0, 96, 64, 24, 0x20)  # a colour map that is not there
    pixels = np.asarray(quarters())[:, :, ::-1].tobytes()
    footer = bytes(8) + b"TRUEVISION-XFILE.\0"
    assert corners(open_image(odd + pixels + footer).image) == UPRIGHT
    assert reason_of(odd + pixels) == "not an image"


@pytest.mark.parametrize(
    ("bits", "masks", "mode", "raw_mode"),
    [
        (24, (0xFF0000, 0xFF00, 0xFF), "RGB", "BGR"),
        (32, (0xFF, 0xFF00, 0xFF0000), "RGB", "RGBX"),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), "RGBA", "BGRA"),
        (16, (0xF800, 0x7E0, 0x1F), "RGB", "BGR;16"),
    ],
)
def test_uncompressed_dds(bits: int, masks: tuple[int, ...], mode: str, raw_mode: str) -> None:
    if bits == 16:
        rgb = np.asarray(quarters()).astype(np.uint16)
        pixels = ((rgb[:, :, 0] >> 3) << 11 | (rgb[:, :, 1] >> 2) << 5 | rgb[:, :, 2] >> 3).astype("<u2").tobytes()
    else:
        pixels = quarters().convert(mode).tobytes("raw", raw_mode)
    data = dds(bits, masks, pixels, (96, 64))
    assert corners(open_image(data).image) == UPRIGHT
    assert reason_of(data[:-50]) == "truncated"
    assert reason_of(dds(bits, (0xF, 0xF0, 0xF00), pixels, (96, 64))) == "unsupported format"


def test_several_jpegs_in_one_file(tmp_path: Path) -> None:
    image, other = quarters(640, 424), Image.new("RGB", (640, 424), "black")
    mpo = encoded(image, "MPO", save_all=True, append_images=[other], quality=90)
    for name in ("a.mpo", "a.jps", "a.jpg_large", "a.insp", "a.thm", "a.jpg"):
        path = tmp_path / name
        path.write_bytes(mpo)
        for min_side in (None, 50):
            opened = open_image(path, min_side=min_side)
            assert (opened.width, corners(opened.image)) == (640, UPRIGHT)
        assert path.suffix in ALLOWED_EXTENSIONS
    assert has_image_content(mpo[:512])


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (b"\xc5\xd0\xd3\xc6" + bytes(200), "PostScript"),
        (b"gimp xcf v011\0" + bytes(200), "GIMP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
    ],
)
def test_formats_that_stay_unsupported(head: bytes, named: str) -> None:
    assert reason_of(head) == "unsupported format"
    with pytest.raises(Exception, match=named):
        open_image(head)


# ---- Content without a name ----


NOT_IMAGES = {
    "text": b"BM is short for bitmap. P5 is a letter and a digit.\n" * 10,
    "digits": b"P1 3 items and 4 more\n" * 20,
    "line first": b"\n\5\1\x08 begins with a line feed" + b"x" * 300,
    "elf": b"\x7fELF\2\1\1" + bytes(500),
    "exe": b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff" + bytes(490),
    "mp4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(400),
    "mov": b"\0\0\0\x14ftypqt  \0\0\2\0qt  " + bytes(400),
    "mpeg": b"\0\0\1\xba\x44\0\4\0" + bytes(400),
    "font": b"\0\1\0\0\0\x12\1\0\0\4\0\x20" + bytes(400),
    "zeros": bytes(512),
    "ones": b"\xff" * 512,
    "zip": b"PK\3\4" + bytes(400),
    "pdf": b"%PDF-1.7\n" + bytes(400),
    "xcf": b"gimp xcf v011\0" + bytes(400),
    "integers": struct.pack("<128I", *range(40, 168)),
    "short": b"\xff\xd8",
    "nothing": b"",
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_content_that_is_no_image(name: str) -> None:
    assert not has_image_content(NOT_IMAGES[name])


def test_random_content_is_no_image() -> None:
    chance = random.Random(1)
    heads = [chance.randbytes(512) for _ in range(10_000)]
    found = [head for head in heads if has_image_content(head)]
    assert [head for head in found if not head.startswith(b"\xff\n")] == []
    assert len(found) <= 3  # JPEG XL: two certain bytes, so one in 100,000


def test_programs_of_this_system_are_no_images() -> None:
    files = [p for p in Path(sys.executable).resolve().parent.iterdir() if p.is_file()]
    files += [p for p in Path("/usr/bin").glob("*") if p.is_file()][:2000]
    found = []
    for path in files:
        try:
            with path.open("rb") as file:
                if has_image_content(file.read(512)):
                    found.append(path)
        except OSError:
            continue
    assert found == []


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF"])
def test_content_of_images(name: str) -> None:
    assert has_image_content(encoded(quarters(), name)[:512])


# ---- Hostile files ----

SEEDS = simple_files() | {name: make() for name, make in RAW.items()}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.randoms(use_true_random=False), st.integers(1, 12))
def test_changed_bytes_raise_nothing_else(name: str, chance: random.Random, flips: int) -> None:
    data = bytearray(SEEDS[name])
    span = len(data) if chance.random() < 0.3 else min(len(data), 600)
    for _ in range(flips):
        data[chance.randrange(span)] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
    opened = opened_or_reason(bytes(data), min_side=4, max_pixels=1_000_000)
    assert opened if isinstance(opened, str) else opened.image.mode == "RGB"


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 200), st.binary(max_size=300))
def test_other_content_after_the_head_raises_nothing_else(name: str, kept: int, tail: bytes) -> None:
    opened = opened_or_reason(SEEDS[name][:kept] + tail, max_pixels=1_000_000)
    assert opened if isinstance(opened, str) else opened.image.mode == "RGB"
