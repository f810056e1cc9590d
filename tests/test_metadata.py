"""Orientation and date of photos, from each kind of metadata; the files are made here, byte by byte where needed."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixmatcher import Collection, Filter, index
from pixmatcher.errors import CollectionError
from pixmatcher.images import OpenedImage, date_in_name, open_image
from pixmatcher.images._boxes import heif_metadata, jp2_metadata
from pixmatcher.images._dates import iso_date
from pixmatcher.images._exif import read_exif
from pixmatcher.images._iptc import iptc_date
from pixmatcher.images._xmp import read_xmp
from test_images import TURNED, corners, encoded, quarters

ORIENTATION, EXIF, GPS = 0x0112, 0x8769, 0x8825
ORIGINAL, DIGITIZED, DATE_TIME = 0x9003, 0x9004, 0x0132
WHEN = {ORIGINAL: "2001:01:01 01:01:01", DIGITIZED: "2002:02:02 02:02:02", DATE_TIME: "2003:03:03 03:03:03"}

BYTE, ASCII, SHORT, LONG, RATIONAL, SSHORT, SLONG = 1, 2, 3, 4, 5, 8, 9
CODES = {BYTE: "B", SHORT: "H", LONG: "I", SSHORT: "h", SLONG: "i"}


# ---- Making metadata ----


def exif_block(
    orientation: int | None = None,
    *,
    kind: int = SHORT,
    order: str = "<",
    main: dict[int, str] | None = None,
    camera: dict[int, str] | None = None,
    gps: tuple[str, tuple[int, ...]] | None = None,
) -> bytes:
    """Return an EXIF block without prefix: the header of TIFF, then the directory with its values, then the others."""
    tags: list[tuple[int, int, int, bytes]] = []
    if orientation is not None:
        tags.append((ORIENTATION, kind, 1, struct.pack(order + CODES[kind], orientation)))
    tags += [(tag, ASCII, len(text) + 1, text.encode() + b"\0") for tag, text in (main or {}).items()]
    block = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8))
    count = len(tags) + bool(camera) + bool(gps)
    following = 8 + 2 + 12 * count + 4 + sum(len(value) + 1 for *_, value in tags if len(value) > 4)
    if camera:
        texts = [(tag, ASCII, len(text) + 1, text.encode() + b"\0") for tag, text in camera.items()]
        directory = ifd(texts, order, following)
        tags.append((EXIF, LONG, 1, struct.pack(order + "I", following)))
        rest = directory
    else:
        rest = b""
    if gps:
        place = following + len(rest)
        day, clock = gps
        times = struct.pack(f"{order}{len(clock)}I", *clock)
        values = [(7, RATIONAL, len(clock) // 2, times), (29, ASCII, len(day) + 1, day.encode() + b"\0")]
        rest += ifd(values, order, place)
        tags.append((GPS, LONG, 1, struct.pack(order + "I", place)))
    block += ifd(tags, order, 8)
    assert len(block) <= following
    return bytes(block) + bytes(following - len(block)) + rest


def ifd(tags: list[tuple[int, int, int, bytes]], order: str, place: int) -> bytes:
    """Return a directory of TIFF that lies at `place`, followed by its values."""
    table, values = struct.pack(order + "H", len(tags)), b""
    start = place + 2 + 12 * len(tags) + 4
    for tag, kind, count, value in tags:
        table += struct.pack(order + "HHI", tag, kind, count)
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(order + "I", start + len(values))
            values += value
    return table + bytes(4) + values


def xmp_packet(properties: dict[str, str], *, form: str = "attributes", encoding: str = "utf-8") -> bytes:
    """Return an XMP packet; `form` is how it says the properties."""
    prefixes = {"tiff": "tiff/1.0/", "exif": "exif/1.0/", "xmp": "xap/1.0/", "photoshop": "photoshop/1.0/"}
    renamed = {prefix: f"a{n}" if form == "other prefix" else prefix for n, prefix in enumerate(prefixes)}
    spaces = " ".join(f'xmlns:{renamed[p]}="http://ns.adobe.com/{place}"' for p, place in prefixes.items())
    names = {name: f"{renamed[name.partition(':')[0]]}:{name.partition(':')[2]}" for name in properties}
    if form == "elements":
        children = "".join(f"<{names[name]}>\n {value} </{names[name]}>" for name, value in properties.items())
        node = f'<rdf:Description rdf:about="" {spaces}>{children}</rdf:Description>'
    elif form == "default namespace":
        (name, value), *_ = properties.items()
        prefix, _, local = name.partition(":")
        space = f"http://ns.adobe.com/{prefixes[prefix]}"
        node = f'<rdf:Description rdf:about=""><{local} xmlns="{space}">{value}</{local}></rdf:Description>'
    else:
        attributes = " ".join(f"{names[name]}='{value}'" for name, value in properties.items())
        node = f'<rdf:Description rdf:about="" {"" if form == "undeclared" else spaces} {attributes}/>'
    text = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{node}</rdf:RDF></x:xmpmeta>'
        f'{" " * 100}<?xpacket end="w"?>'
    )
    return text.encode(encoding)


def iptc_record(day: str, clock: str | None = None, fields: tuple[int, int] = (55, 60)) -> bytes:
    record = b"\x1c\x02\x00\x00\x02\x00\x04" + b"\x1c\x02\x69\x00\x05title"
    record += b"\x1c\x02" + struct.pack(">BH", fields[0], len(day)) + day.encode()
    if clock is not None:
        record += b"\x1c\x02" + struct.pack(">BH", fields[1], len(clock)) + clock.encode()
    return record


def photoshop_resources(record: bytes) -> bytes:
    padding = b"\0" * (len(record) % 2)
    other = b"8BIM\x04\x25\x03abc\0\0\0\x03xyz\0"
    return other + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(record)) + record + padding


def with_segments(*segments: tuple[int, bytes]) -> bytes:
    """Return a JPEG file with these segments, each a marker and its content, after the first one."""
    data = encoded(quarters(), "JPEG", quality=95)
    added = b"".join(b"\xff" + struct.pack(">BH", marker, len(content) + 2) + content for marker, content in segments)
    return data[:20] + added + data[20:]


def with_chunks(*chunks: tuple[bytes, bytes], late: bool = False) -> bytes:
    """Return a PNG file with these chunks before, or with `late` after, its pixels."""
    data = encoded(quarters(), "PNG")
    added = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    place = len(data) - 12 if late else 33
    return data[:place] + added + data[place:]


def raw_profile(kind: str, content: bytes) -> bytes:
    digits = content.hex()
    lines = "\n".join(digits[n : n + 72] for n in range(0, len(digits), 72))
    return f"\n{kind}\n{len(content):8}\n{lines}\n".encode()


def itxt(keyword: bytes, content: bytes, *, compressed: bool = False) -> tuple[bytes, bytes]:
    flag, content = (b"\1\0", zlib.compress(content)) if compressed else (b"\0\0", content)
    return b"iTXt", keyword + b"\0" + flag + b"\0\0" + content


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def jp2_with(*uuids: tuple[bytes, bytes]) -> bytes:
    """Return a JPEG 2000 file with these boxes, each a UUID and its content, before its pixels."""
    data = encoded(quarters(), "JPEG2000")
    place = data.index(b"jp2c") - 4
    added = b"".join(box(b"uuid", uuid + content) for uuid, content in uuids)
    return data[:place] + added + data[place:]


def heic(**options: bytes) -> bytes:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    return encoded(quarters(), "HEIF", quality=95, **options)


NOT_USED = 0x0113
"""A tag of EXIF that no encoder looks at."""


def hidden(orientation: int) -> bytes:
    """Return an EXIF block whose orientation encoders do not see; see `shown`."""
    return exif_block(orientation).replace(struct.pack("<H", ORIENTATION), struct.pack("<H", NOT_USED), 1)


def shown(data: bytes, orientation: int) -> bytes:
    """Return a file that has an EXIF block made by `hidden` with the tag as it should be."""
    before, after = (struct.pack("<HHIH", tag, SHORT, 1, orientation) for tag in (NOT_USED, ORIENTATION))
    assert data.count(before) == 1
    return data.replace(before, after)


EXIF_UUID = b"JpgTiffExif->JP2"
XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"


def files_with(exif: bytes, xmp: bytes) -> dict[str, bytes]:
    """Return files of each kind with an EXIF block, or an XMP packet, or both."""
    prefixed = b"Exif\0\0" + exif
    files: dict[str, bytes] = {}
    if exif and not xmp:
        files |= {
            "JPEG, padded": with_segments((0xE1, b"Exif\0\0\0\0\0\0" + exif)),
            "JPEG, another prefix": with_segments((0xE1, b"Exif\0\xff" + exif)),
            "JPEG, after a broken one": with_segments((0xE1, b"Exif\0\0nothing"), (0xE1, prefixed)),
            "PNG, after its pixels": with_chunks((b"eXIf", exif), late=True),
            "PNG, tEXt": with_chunks((b"tEXt", b"Raw profile type exif\0" + raw_profile("exif", prefixed))),
            "PNG, zTXt": with_chunks(
                (b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(raw_profile("generic profile", prefixed)))
            ),
            "PNG, iTXt": with_chunks(itxt(b"Raw profile type exif", raw_profile("exif", exif), compressed=True)),
            "PNG, tEXt after its pixels": with_chunks(
                (b"tEXt", b"Raw profile type exif\0" + raw_profile("exif", prefixed)), late=True
            ),
        }
    if xmp and not exif:
        files |= {
            "PNG, after its pixels": with_chunks(itxt(b"XML:com.adobe.xmp", xmp), late=True),
            "PNG, compressed": with_chunks(itxt(b"XML:com.adobe.xmp", xmp, compressed=True)),
            "PNG, profile xmp": with_chunks((b"tEXt", b"Raw profile type xmp\0" + raw_profile("xmp", xmp))),
            "PNG, profile APP1": with_chunks(
                (b"tEXt", b"Raw profile type APP1\0" + raw_profile("generic profile", XMP_MARK + xmp))
            ),
        }
    segments = ([(0xE1, XMP_MARK + xmp)] if xmp else []) + ([(0xE1, prefixed)] if exif else [])
    chunks = ([(b"eXIf", exif)] if exif else []) + ([itxt(b"XML:com.adobe.xmp", xmp)] if xmp else [])
    uuids = ([(EXIF_UUID, exif)] if exif else []) + ([(XMP_UUID, xmp)] if xmp else [])
    options: dict[str, Any] = ({"exif": exif} if exif else {}) | ({"xmp": xmp} if xmp else {})
    return files | {
        "JPEG": with_segments(*segments),
        "PNG": with_chunks(*chunks),
        "WEBP": encoded(quarters(), "WEBP", lossless=True, **options),
        "JPEG2000": jp2_with(*uuids),
    }


def look(opened: OpenedImage) -> tuple[list[str], int, int]:
    """Return what has to be right of an upright image: its quarters and its size."""
    assert (opened.width > opened.height) == (opened.image.width > opened.image.height)
    return corners(opened.image), opened.width, opened.height


def turned(orientation: int) -> tuple[list[str], int, int]:
    return TURNED[orientation], *((96, 64) if orientation < 5 else (64, 96))


# ---- Orientation ----


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", CODES)
def test_orientation_of_any_integer_type(kind: int, order: str) -> None:
    for orientation in range(1, 9):
        block = exif_block(orientation, kind=kind, order=order)
        assert read_exif(block).orientation == orientation
        assert read_exif(b"Exif\0\0" + block).orientation == orientation
    data = with_segments((0xE1, b"Exif\0\0" + exif_block(6, kind=kind, order=order)))
    assert look(open_image(data)) == turned(6)


@pytest.mark.parametrize(("orientation", "kind"), [(0, SHORT), (9, SHORT), (65536, LONG), (-1, SSHORT), (-6, SLONG)])
def test_orientations_that_do_not_exist_are_ignored(orientation: int, kind: int) -> None:
    for data in files_with(exif_block(orientation, kind=kind), b"").values():
        assert look(open_image(data)) == turned(1)
    # They do not keep another source from counting.
    data = with_segments(
        (0xE1, b"Exif\0\0" + exif_block(orientation, kind=kind)),
        (0xE1, XMP_MARK + xmp_packet({"tiff:Orientation": "6"})),
    )
    assert look(open_image(data)) == turned(6)


@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_in_exif_of_every_place(orientation: int) -> None:
    for name, data in files_with(exif_block(orientation), b"").items():
        for min_side in (None, 8):
            assert look(open_image(data, min_side=min_side)) == turned(orientation), name


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["attributes", "elements", "other prefix", "default namespace", "undeclared"])
def test_orientation_in_xmp_alone(orientation: int, form: str) -> None:
    packet = xmp_packet({"tiff:Orientation": str(orientation)}, form=form)
    for name, data in files_with(b"", packet).items():
        assert look(open_image(data)) == turned(orientation), name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_xmp_in_any_encoding(encoding: str) -> None:
    packet = xmp_packet({"tiff:Orientation": "6", "xmp:CreateDate": "2004-04-04"}, encoding=encoding)
    assert look(open_image(with_segments((0xE1, XMP_MARK + packet)))) == turned(6)
    declared = b'<?xml version="1.0" encoding="UTF-16"?>' + xmp_packet({"tiff:Orientation": "6"})
    assert read_xmp(declared).orientation == 6


def test_the_orientation_of_exif_counts_before_that_of_xmp() -> None:
    for name, data in files_with(exif_block(1), xmp_packet({"tiff:Orientation": "6"})).items():
        assert look(open_image(data)) == turned(1), name
    for name, data in files_with(exif_block(8), xmp_packet({"tiff:Orientation": "6"})).items():
        assert look(open_image(data)) == turned(8), name
    for name, data in files_with(
        exif_block(main={DATE_TIME: WHEN[DATE_TIME]}), xmp_packet({"tiff:Orientation": "3"})
    ).items():
        assert look(open_image(data)) == turned(3), name


def test_only_what_xmp_says_of_the_image_itself_counts() -> None:
    ingredient = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"><xmpMM:Pantry><rdf:Bag><rdf:li>'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
        "</rdf:li></rdf:Bag></xmpMM:Pantry></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    assert read_xmp(ingredient.encode()).orientation is None
    assert read_xmp(b"<a><!-- tiff:Orientation='6' --></a>").orientation is None


def avif(**options: bytes) -> bytes:
    return encoded(quarters(), "AVIF", **options)


@pytest.mark.parametrize("make", [heic, avif])
@pytest.mark.parametrize("orientation", TURNED)
def test_heic_and_avif_are_turned_once(make: Callable[..., bytes], orientation: int) -> None:
    packet = xmp_packet({"tiff:Orientation": str(orientation)})
    # The encoders write `irot` and `imir` for the orientation in EXIF.
    data = make(exif=exif_block(orientation))
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    assert look(open_image(data)) == turned(orientation)
    assert look(open_image(make(exif=exif_block(orientation), xmp=packet))) == turned(orientation)
    for data in (shown(make(exif=hidden(orientation)), orientation), make(xmp=packet)):
        assert b"irot" not in data
        assert b"imir" not in data
        for min_side in (None, 8):
            assert look(open_image(data, min_side=min_side)) == turned(orientation)


@pytest.mark.parametrize("make", [heic, avif])
def test_a_transform_counts_before_another_orientation_in_exif(make: Callable[..., bytes]) -> None:
    rotated = make(exif=exif_block(3), xmp=xmp_packet({"tiff:Orientation": "8"}))
    assert b"irot" in rotated
    assert look(open_image(rotated)) == turned(3)
    three, eight = (struct.pack("<HHIHH", ORIENTATION, SHORT, 1, value, 0) for value in (3, 8))
    assert look(open_image(rotated.replace(three, eight))) == turned(3)


def heif_boxes(wide: bool, *, in_data: bool, rotated: int, primary: int = 1, exif_of: int = 1) -> bytes:
    """Return a file without pixels, with the images 1 and 2, and 3, which is 2 transformed; EXIF of one of them.

    `wide` is for the versions of the boxes with long numbers, `in_data` for metadata in `idat`.
    """
    code, number = (">I", 1) if wide else (">H", 0)

    def ident(item: int) -> bytes:
        return struct.pack(code, item)

    def full(kind: bytes, version: int, content: bytes, flags: int = 0) -> bytes:
        return box(kind, struct.pack(">I", version << 24 | flags) + content)

    kinds = {1: b"hvc1", 2: b"hvc1", 3: b"iden", 9: b"Exif"}
    infos = b"".join(full(b"infe", 2 + number, ident(i) + b"\0\0" + kind + b"\0") for i, kind in kinds.items())
    exif = bytes(4) + exif_block(6)
    association = struct.pack(">BH" if wide else ">BB", 1, 2)  # the second property
    places = struct.pack(">BBHHHHII", 0x44, 0, 1, 9, 0, 1, 0, len(exif))
    if in_data or wide:
        head = struct.pack(">BB", 0x44, 0) + (struct.pack(">II", 1, 9) if wide else struct.pack(">HH", 1, 9))
        places = head + struct.pack(">HHHII", int(in_data), 0, 1, 0, len(exif))
    place = len(places) - 8

    def meta(offset: int) -> bytes:
        located = places[:place] + struct.pack(">I", offset) + places[place + 4 :]
        return full(
            b"meta",
            0,
            full(b"pitm", number, ident(primary))
            + full(b"iinf", number, ident(len(kinds)) + infos)
            + full(
                b"iref",
                number,
                box(b"cdsc", ident(9) + b"\0\1" + ident(exif_of)) + box(b"dimg", ident(3) + b"\0\1" + ident(2)),
            )
            + full(b"iloc", 2 if wide else 1 if in_data else 0, located)
            + box(
                b"iprp",
                box(b"ipco", box(b"ispe", bytes(12)) + box(b"irot", b"\1"))
                + full(b"ipma", number, struct.pack(">I", 1) + ident(rotated) + association, int(wide)),
            )
            + (box(b"idat", exif) if in_data else b""),
        )

    start = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    end = b"" if in_data else box(b"mdat", exif)
    return start + meta(0 if in_data else len(start) + len(meta(0)) + 8) + end


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("in_data", [False, True])
def test_the_transform_and_the_metadata_of_the_primary_image_count(wide: bool, in_data: bool) -> None:
    def read(**options: int) -> tuple[bool, int | None]:
        found = heif_metadata(io.BytesIO(heif_boxes(wide, in_data=in_data, **options)))
        assert found is not None
        return found.transformed, read_exif(found.exif).orientation

    assert read(rotated=1) == (True, 6)
    assert read(rotated=2) == (False, 6)  # a thumbnail, for example
    assert read(rotated=1, exif_of=2) == (True, None)
    assert read(rotated=2, primary=3, exif_of=3) == (True, 6)
    assert read(rotated=1, primary=3, exif_of=2) == (False, 6)


@pytest.mark.parametrize("orientation", TURNED)
def test_tiff_is_turned_once(orientation: int) -> None:
    def tiff(tag: Any, packet: bytes = b"") -> bytes:
        tags: dict[int, Any] = {700: packet} if packet else {}
        if tag is not None:
            tags[ORIENTATION] = tag
        return encoded(quarters(), "TIFF", tiffinfo=tags)

    data = tiff(orientation)
    assert look(open_image(data)) == turned(orientation)
    for kind in CODES:  # of which Pillow does not know all
        value = struct.pack("<" + CODES[kind], orientation).ljust(4, b"\0")
        other = data.replace(
            struct.pack("<HHIHH", ORIENTATION, SHORT, 1, orientation, 0),
            struct.pack("<HHI", ORIENTATION, kind, 1) + value,
        )
        assert kind == SHORT or other != data
        assert look(open_image(other)) == turned(orientation), kind
    for form in ("attributes", "elements", "other prefix"):
        packet = xmp_packet({"tiff:Orientation": str(orientation)}, form=form)
        for min_side in (None, 8):
            assert look(open_image(tiff(None, packet), min_side=min_side)) == turned(orientation), form
    assert look(open_image(tiff(orientation, xmp_packet({"tiff:Orientation": "3"})))) == turned(orientation)


def test_orientation_in_xmp_of_a_gif() -> None:
    data = encoded(quarters().quantize(4), "GIF")
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    extension = b"\x21\xff\x0bXMP DataXMP" + xmp_packet({"tiff:Orientation": "6"}) + trailer
    assert look(open_image(data[:place] + extension + data[place:])) == turned(6)


def test_an_image_that_pillow_opened_has_its_orientation() -> None:
    for name, data in files_with(exif_block(6), b"").items():
        if name != "JPEG2000":  # Pillow does not read it
            with Image.open(io.BytesIO(data)) as image:
                assert look(open_image(image)) == turned(6), name
    with Image.open(io.BytesIO(encoded(quarters(), "TIFF", tiffinfo={ORIENTATION: 6}))) as image:
        assert look(open_image(image)) == turned(6)


def test_rotation_of_the_source_counts_only_without_an_orientation() -> None:
    packet = xmp_packet({"tiff:Orientation": "6"})
    assert look(open_image(with_segments((0xE1, XMP_MARK + packet)), rotation=180)) == turned(6)
    assert look(open_image(with_segments(), rotation=180)) == turned(3)


# ---- Dates ----


def taken(data: bytes) -> str | None:
    return open_image(data).taken


def test_the_first_valid_date_counts() -> None:
    packet = xmp_packet({"xmp:CreateDate": "2004-04-04T04:04:04"})
    resources = b"Photoshop 3.0\0" + photoshop_resources(iptc_record("20050505", "050505+0200"))
    gps = ("2006:06:06", (6, 1, 6, 1, 6, 1))
    expected = [
        ({ORIGINAL, DIGITIZED, DATE_TIME}, "2001-01-01T01:01:01"),
        ({DIGITIZED, DATE_TIME}, "2002-02-02T02:02:02"),
        ({DATE_TIME}, "2003-03-03T03:03:03"),
        (set(), "2004-04-04T04:04:04"),
    ]
    for nonsense in (None, "0000:00:00 00:00:00", "    :  :     :  :  ", "2080:01:01 00:00:00", "1970:01:01 00:00:00"):
        for valid, right in expected:
            texts = {tag: text if tag in valid else nonsense for tag, text in WHEN.items()}
            given = {tag: text for tag, text in texts.items() if text is not None}
            block = exif_block(
                main={tag: text for tag, text in given.items() if tag == DATE_TIME},
                camera={tag: text for tag, text in given.items() if tag != DATE_TIME},
                gps=gps,
            )
            segments = [(0xE1, b"Exif\0\0" + block), (0xE1, XMP_MARK + packet), (0xED, resources)]
            assert taken(with_segments(*segments)) == right
            if not valid:
                assert taken(with_segments(segments[0], segments[2])) == "2005-05-05T05:05:05+02:00"
                assert taken(with_segments(segments[0])) == "2006-06-06T06:06:06+00:00"


@pytest.mark.parametrize(
    ("tag", "offset", "where"),
    [(ORIGINAL, 0x9011, "camera"), (DIGITIZED, 0x9012, "camera"), (DATE_TIME, 0x9010, "both")],
)
def test_each_date_of_exif_has_its_own_utc_offset(tag: int, offset: int, where: str) -> None:
    text = {tag: "2019:07:14 21:05:59"}
    camera = {offset: "+05:30"} | ({} if where == "both" else text)
    block = exif_block(main=text if where == "both" else None, camera=camera)
    for name, data in files_with(block, b"").items():
        assert taken(data) == "2019-07-14T21:05:59+05:30", name
    other = {o: "+01:00" for o in (0x9010, 0x9011, 0x9012) if o != offset}
    block = exif_block(main=text if where == "both" else None, camera=other | ({} if where == "both" else text))
    assert read_exif(block).taken == "2019-07-14T21:05:59"


@pytest.mark.parametrize("order", ["<", ">"])
def test_time_of_the_gps(order: str) -> None:
    def located(day: str, *clock: int) -> str | None:
        return taken(with_segments((0xE1, b"Exif\0\0" + exif_block(order=order, gps=(day, clock)))))

    assert located("2020:02:29", 23, 1, 59, 1, 5950, 100) == "2020-02-29T23:59:59+00:00"
    assert located("2020:02:29", 23, 1, 59, 1, 1, 0) == "2020-02-29"
    assert located("2020:02:29", 99, 1, 59, 1, 1, 1) == "2020-02-29"
    assert located("2021:02:29", 23, 1, 59, 1, 1, 1) is None


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2019:07:14 21:05:59", "2019-07-14T21:05:59"),
        ("2019:07:14 21:05:59.123+02:00", "2019-07-14T21:05:59+02:00"),
        ("2019-07-14T21:05:59Z", "2019-07-14T21:05:59+00:00"),
        ("2019-07-14T21:05-0330", "2019-07-14T21:05:00-03:30"),
        ("2019/07/14 21:05:60", "2019-07-14T21:05:59"),
        ("2019:07:14  1:05:59", "2019-07-14T01:05:59"),
        ("2019:07:14   :  :  ", "2019-07-14"),
        ("2019:07:14", "2019-07-14"),
        ("2019:07:14 25:61:61", "2019-07-14"),
        ("1890:07:14 00:00:00", "1890-07-14T00:00:00"),
        ("2019:07:145", None),
        ("2019-13-01", None),
        ("2019:02:29 10:00:00", None),
        ("2019", None),
        ("2019:00:00 00:00:00", None),
        ("1825:01:01 00:00:00", None),
        ("1970:01:01 01:00:00", None),
        ("1904:01:01 00:00:00", None),
        ("٢٠١٩:07:14 21:05:59", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_notations_of_dates(text: str, date: str | None) -> None:
    assert iso_date(text) == date


def test_a_date_after_next_year_is_not_a_date() -> None:
    year = datetime.now().year
    assert iso_date(f"{year + 1}:01:01 00:00:00") == f"{year + 1}-01-01T00:00:00"
    assert iso_date(f"{year + 2}:01:01 00:00:00") is None
    assert date_in_name(f"IMG_{year + 1}0101.jpg") == f"{year + 1}-01-01"
    assert date_in_name(f"IMG_{year + 2}0101.jpg") is None


@pytest.mark.parametrize("form", ["attributes", "elements", "other prefix", "undeclared"])
@pytest.mark.parametrize(
    "name",
    ["exif:DateTimeOriginal", "photoshop:DateCreated", "exif:DateTimeDigitized", "xmp:CreateDate", "tiff:DateTime"],
)
def test_dates_of_xmp(name: str, form: str) -> None:
    for text, date in [
        ("2019-07-14T21:05:59+02:00", "2019-07-14T21:05:59+02:00"),
        ("2019-07-14", "2019-07-14"),
        ("1965-08", "1965-08-01"),
        ("1965", "1965-01-01"),
    ]:
        for place, data in files_with(b"", xmp_packet({name: text}, form=form)).items():
            assert taken(data) == date, place


def test_dates_of_xmp_count_in_their_order() -> None:
    texts = {
        "exif:DateTimeOriginal": "2001-01-01",
        "photoshop:DateCreated": "2002-01-01",
        "exif:DateTimeDigitized": "2003-01-01",
        "xmp:CreateDate": "2004-01-01",
        "tiff:DateTime": "2005-01-01",
    }
    while texts:
        assert read_xmp(xmp_packet(dict(reversed(texts.items())))).taken == next(iter(texts.values()))
        del texts[next(iter(texts))]


def test_dates_of_iptc() -> None:
    assert iptc_date(iptc_record("20050505")) == "2005-05-05"
    assert iptc_date(iptc_record("20050505", "235959-0130")) == "2005-05-05T23:59:59-01:30"
    assert iptc_date(iptc_record("20050505", "235959", (62, 63))) == "2005-05-05T23:59:59"
    assert iptc_date(iptc_record("19650800")) == "1965-08-01"  # the day is not known
    assert iptc_date(iptc_record("19650000")) == "1965-01-01"
    assert iptc_date(iptc_record("00000000")) is None
    assert iptc_date(iptc_record("2005-5-5")) is None
    long = b"\x1c\x02\x78\x80\x04" + struct.pack(">I", 40000) + bytes(40000)  # a caption with an extended length
    assert iptc_date(long + iptc_record("20050505")) == "2005-05-05"
    resources = photoshop_resources(iptc_record("20050505"))
    for profile in (b"iptc", b"8bim"):
        data = with_chunks((b"tEXt", b"Raw profile type " + profile + b"\0" + raw_profile("iptc", resources)))
        assert taken(data) == "2005-05-05"
    record = iptc_record("20050505")
    for tags in ({33723: record}, {34377: resources}):
        assert taken(encoded(quarters(), "TIFF", tiffinfo=tags)) == "2005-05-05"


def test_dates_of_tiff_heic_avif_and_jpeg_2000() -> None:
    packet = xmp_packet({"photoshop:DateCreated": "2004-04-04"})
    assert taken(encoded(quarters(), "TIFF", tiffinfo={DATE_TIME: WHEN[DATE_TIME]})) == "2003-03-03T03:03:03"
    assert taken(encoded(quarters(), "TIFF", tiffinfo={700: packet})) == "2004-04-04"
    assert (
        taken(encoded(quarters(), "TIFF", tiffinfo={DATE_TIME: WHEN[DATE_TIME]}, big_tiff=True))
        == "2003-03-03T03:03:03"
    )
    exif = exif_block(camera={DIGITIZED: WHEN[DIGITIZED]})
    assert taken(heic(exif=exif)) == taken(encoded(quarters(), "AVIF", exif=exif)) == "2002-02-02T02:02:02"
    assert taken(heic(xmp=packet)) == taken(encoded(quarters(), "AVIF", xmp=packet)) == "2004-04-04"
    iptc = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")
    assert taken(jp2_with((iptc, iptc_record("20050505")))) == "2005-05-05"


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("Wed, 31 Jan 2024 12:00:00 +0000", "2024-01-31T12:00:00+00:00"),
        ("2024-01-31T12:00:00", "2024-01-31T12:00:00"),
        ("2024:01:31 12:00:00", "2024-01-31T12:00:00"),
        ("a while ago", None),
        ("Wed, 99 Jan 99999 12:00:00 +9999", None),
    ],
)
def test_creation_time_of_png(text: str, date: str | None) -> None:
    assert taken(with_chunks((b"tEXt", b"Creation Time\0" + text.encode()))) == date


def test_the_directory_of_tiff_ep_has_the_date_of_the_camera() -> None:
    assert read_exif(exif_block(main={ORIGINAL: WHEN[ORIGINAL]})).taken == "2001-01-01T01:01:01"
    for signature, order in [(b"IIU\0", "<"), (b"IIRO", "<"), (b"MMOR", ">")]:  # raw files of Panasonic and Olympus
        block = exif_block(6, order=order, camera={ORIGINAL: WHEN[ORIGINAL]})
        values = read_exif(io.BytesIO(signature + block[4:]))
        assert (values.orientation, values.taken) == (6, "2001-01-01T01:01:01")


# ---- Dates in names ----


@pytest.mark.parametrize(
    "name",
    [
        "IMG_20240131_120000.jpg",
        "IMG20240131120000.jpg",
        "20240131_120000.jpg",
        "20240131120000.jpg",
        "20240131_120000(0).jpg",
        "20240131_120000~2.jpg",
        "2024-01-31 12.00.00.png",
        "2024-01-31 12.00.00-1.jpg",
        "2024-01-31_12h00m00s.png",
        "2024-01-31T12:00:00.jpg",
        "PXL_20240131_120000123.jpg",
        "PXL_20240131_120000123.PORTRAIT.jpg",
        "Screenshot_2024-01-31-12-00-00.png",
        "Screenshot_20240131-120000_Browser.png",
        "Screenshot 2024-01-31 at 12.00.00.png",
        "Screenshot 2024-01-31 at 12.00.00\u202fPM.png",
        "Capture d\u2019écran 2024-01-31 à 12.00.00.png",
        "Captura de pantalla 2024-01-31 a las 12.00.00.png",
        "WhatsApp Image 2024-01-31 at 12.00.00.jpeg",
        "signal-2024-01-31-120000.jpeg",
        "signal-2024-01-31-12-00-00-123.jpeg",
        "WIN_20240131_12_00_00_Pro.jpg",
        "DJI_20240131120000_0001_D.JPG",
        "微信图片_20240131120000.jpg",
    ],
)
def test_date_and_time_in_a_name(name: str) -> None:
    assert date_in_name(name) == "2024-01-31T12:00:00"
    assert date_in_name(f"/photos/1999-09-09/{name}") == "2024-01-31T12:00:00"
    assert date_in_name(f"https://example.org/19990909/{name}?version=20200202#20200202") == "2024-01-31T12:00:00"


@pytest.mark.parametrize(
    "name",
    [
        "IMG-20240131-WA0001.jpg",
        "20240131.jpg",
        "2024-01-31.jpg",
        "2024_01_31 beach.jpg",
        "2024.01.31.jpg",
        "birthday 2024-01-31b.jpg",
        "20240131a.jpg",
        "20240131_1.jpg",
        "2024-01-31-0001.jpg",
        "IMG_20240131_256199.jpg",
        "IMG_20240131_1234567.jpg",
    ],
)
def test_date_alone_in_a_name(name: str) -> None:
    assert date_in_name(name) == "2024-01-31"


@pytest.mark.parametrize(
    "name",
    [
        "DSC_0123.jpg",
        "DSC20123.jpg",
        "DSC12345678.jpg",
        "DSC_20241331.jpg",
        "IMG_120240131.jpg",
        "IMG_202401311.jpg",
        "5f20240131ab.jpg",
        "ab20240131cd34.jpg",
        "1706702400000.jpg",
        "2024-02-30.jpg",
        "2024-01-311.jpg",
        "2024-01.31.jpg",
        "IMG_19690131.jpg",
        "IMG_19700101_000000.jpg",
        "12345678901234567890.jpg",
        "20240131/photo.jpg",
        "https://example.org/photo.jpg?date=20240131",
        "http://[/20240131/x.jpg",
        "",
        "/",
    ],
)
def test_no_date_in_a_name(name: str) -> None:
    assert date_in_name(name) is None


@pytest.mark.parametrize("clock", ["12.05.07 AM", "00.05.07"])
def test_twelve_hour_clocks_in_names(clock: str) -> None:
    assert date_in_name(f"Screenshot 2024-01-31 at {clock}.png") == "2024-01-31T00:05:07"
    assert date_in_name("Screenshot 2024-01-31 at 9.05.07 PM.png") == "2024-01-31T21:05:07"


def test_an_index_has_the_date_of_the_name_where_the_file_has_none(tiny: Any, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    dated = with_segments((0xE1, b"Exif\0\0" + exif_block(camera={DIGITIZED: WHEN[DIGITIZED]})))
    (photos / "IMG_20240131_120000.jpg").write_bytes(with_segments())
    (photos / "IMG_20240202_120000.jpg").write_bytes(dated)
    (photos / "x.jpg").write_bytes(with_segments((0xFE, b"another content")))
    index(photos, encoders=[tiny])
    (photos / "copy-20230303.jpg").write_bytes(dated)
    (photos / "20230404.jpg").write_bytes(with_segments((0xFE, b"another content")))
    index(photos, encoders=[tiny])
    with Collection.open(photos) as collection:
        dates = {Path(item.uri).name: item.taken for item in collection.items()}
        assert dates == {
            "IMG_20240131_120000.jpg": "2024-01-31T12:00:00",
            "IMG_20240202_120000.jpg": "2002-02-02T02:02:02",
            "x.jpg": None,
            "copy-20230303.jpg": "2002-02-02T02:02:02",  # the same content
            "20230404.jpg": "2023-04-04",
        }

        def found(**dates: str) -> set[str]:
            hits = collection.search(np.ones(48), space="visual", filter=Filter(**dates))  # type: ignore[arg-type]
            return {Path(hit.item.uri).name for hit in hits}

        assert found(before="2003") == {"IMG_20240202_120000.jpg", "copy-20230303.jpg"}
        midnight = found(after="2023-04-04T00:00", before="2024-01-31 12:00:01")  # its day has no time
        assert midnight == {"20230404.jpg", "IMG_20240131_120000.jpg"}


# ---- Dates of filters ----


@pytest.mark.parametrize(
    "date",
    [
        "2024-13",
        "2024-00",
        "2024-02-30",
        "2023-02-29",
        "2024-1-1",
        "24-01-01",
        "0000",
        "2024-01-01T24:00",
        "2024-01-01T12:60",
        "yesterday",
        "",
        "2024-01-01Z",
        "\uff12\uff10\uff12\uff14",
    ],
)
def test_a_filter_refuses_a_date_that_does_not_exist(date: str) -> None:
    message = re.escape(f"{date!r} is not a date: write it like 2024, 2024-05 or 2024-05-17.")
    with pytest.raises(CollectionError, match=message):
        Filter(after=date)
    with pytest.raises(CollectionError, match=message):
        Filter(before=date)


@pytest.mark.parametrize(
    "date", ["2024", "2024-02", "2024-02-29", "2024-02-29T23", "2024-02-29 23:59", "2024-02-29T23:59:59"]
)
def test_a_filter_accepts_a_date(date: str) -> None:
    assert Filter(after=date, before=date).after == date


# ---- Hostile metadata ----


def hostile(data: bytes, draw: st.DataObject) -> bytes:
    """Return the bytes with some of them replaced, then cut off or repeated."""
    changed = bytearray(data)
    for at in draw.draw(st.lists(st.integers(0, len(changed) - 1), max_size=8)):
        changed[at] = draw.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF]) | st.integers(0, 255))
    return bytes(changed[: draw.draw(st.integers(0, len(changed)))]) if draw.draw(st.booleans()) else bytes(changed)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(["<", ">"]))
def test_hostile_blocks_never_raise(draw: st.DataObject, order: str) -> None:
    block = exif_block(6, order=order, main=WHEN, camera=WHEN, gps=("2006:06:06", (6, 1, 6, 1, 6, 1)))
    orientation = read_exif(hostile(block, draw)).orientation
    assert orientation is None or 1 <= orientation <= 8
    read_exif(io.BytesIO(hostile(block[:2] + (b"+\0" if order == "<" else b"\0+") + block[4:], draw)))
    values = read_xmp(hostile(xmp_packet({"tiff:Orientation": "6", "xmp:CreateDate": "2004"}), draw))
    assert values.orientation in (None, *range(1, 9))
    iptc_date(hostile(photoshop_resources(iptc_record("20050505", "050505")), draw))
    date_in_name(draw.draw(st.text(alphabet="0123456789-_ .:ATapm/", max_size=40)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_boxes_never_raise(draw: st.DataObject) -> None:
    avif = encoded(quarters(), "AVIF", exif=exif_block(6), xmp=xmp_packet({"tiff:Orientation": "6"}))
    heif_metadata(io.BytesIO(hostile(avif[:600], draw)))
    jp2_metadata(io.BytesIO(hostile(jp2_with((EXIF_UUID, exif_block(6)), (XMP_UUID, b"x"))[:400], draw)))


def test_entities_of_xmp_are_not_expanded() -> None:
    laughs = '<!DOCTYPE a [<!ENTITY a0 "2004-04-04">' + "".join(
        f'<!ENTITY a{n} "{f"&a{n - 1};" * 100}">' for n in range(1, 30)
    )
    packet = laughs.encode() + b"]>" + xmp_packet({"xmp:CreateDate": "&a29;", "tiff:Orientation": "6"})
    assert read_xmp(packet).taken is None
    assert read_xmp(b"<a>" * 500_000).orientation is None
    assert read_xmp(b"<!--" * 500_000).orientation is None
    assert read_xmp(b" tiff:Orientation=" * 200_000).orientation is None


def test_an_image_with_broken_metadata_is_an_image() -> None:
    for block in (b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", bytes(100)):
        for name, data in files_with(block or b"?", b"<rdf:RDF").items():
            opened = open_image(data)
            assert look(opened) == turned(1), name
            assert opened.taken is None


# ---- Against ExifTool ----


def test_dates_and_orientations_are_those_of_exiftool(tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("ExifTool is not installed (Debian: libimage-exiftool-perl)")
    heic_file = heic()
    plain = {
        "a.jpg": encoded(quarters(), "JPEG", quality=95),
        "a.png": encoded(quarters(), "PNG"),
        "a.webp": encoded(quarters(), "WEBP", lossless=True),
        "a.tif": encoded(quarters(), "TIFF"),
        "a.jp2": encoded(quarters(), "JPEG2000"),
        "a.heic": heic_file,
        "a.avif": encoded(quarters(), "AVIF"),
    }
    writes = {
        "exif": [
            "-IFD0:Orientation#=6",
            "-ExifIFD:CreateDate=2012:03:04 05:06:07",
            "-ExifIFD:OffsetTimeDigitized=+01:00",
        ],
        "xmp": ["-XMP-tiff:Orientation#=8", "-XMP-photoshop:DateCreated=2012:03:04 05:06:07-05:00"],
        "gps": ["-GPS:GPSDateStamp=2012:03:04", "-GPS:GPSTimeStamp=05:06:07"],
        "iptc": ["-IPTC:DateCreated=2012:03:04", "-IPTC:TimeCreated=05:06:07+00:00"],
    }
    right = {
        "exif": (6, "2012-03-04T05:06:07+01:00"),
        "xmp": (8, "2012-03-04T05:06:07-05:00"),
        "gps": (1, "2012-03-04T05:06:07+00:00"),
        "iptc": (1, "2012-03-04T05:06:07+00:00"),
    }
    done = []
    for kind, options in writes.items():
        for name, content in plain.items():
            path = tmp_path / f"{kind}-{name}"
            path.write_bytes(content)
            subprocess.run(["exiftool", "-q", "-overwrite_original", *options, path], capture_output=True, check=False)
            found = json.loads(subprocess.run(["exiftool", "-j", "-G1", path], capture_output=True, check=True).stdout)[
                0
            ]
            if not any("2012:03:04" in str(value) for value in found.values()):
                continue  # ExifTool does not write this to files of this format
            opened = open_image(path)
            assert (look(opened), opened.taken) == (turned(right[kind][0]), right[kind][1]), path.name
            done.append(path.name)
    assert len(done) >= 20, done
