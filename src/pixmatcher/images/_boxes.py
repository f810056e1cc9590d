"""Boxes (ISO/IEC 14496-12), and the metadata in them that decoders either change or do not read.

They are the structure of HEIC and AVIF files (ISO/IEC 23008-12), of JPEG 2000 files (ISO/IEC 15444-1), of JPEG XL files
(ISO/IEC 18181-2) and of Canon's CR3 files.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from ._limits import MAX_METADATA_BYTES

_MAX_BOXES = 100_000
"""Further boxes do not count."""
_MAX_BOX = 16 << 20
"""The most bytes that are read of a box with other boxes in it."""
_MAX_ITEMS = 100_000
"""Further items, and further references between items, do not count."""

_EXIF_UUIDS = (b"JpgTiffExif->JP2", bytes.fromhex("0537cdab9d0c4431a72afa561f2a113e"))
_XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_CANON_UUID = bytes.fromhex("85c0b687820f11e08111f4ce462b6a48")
_IPTC_UUID = bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38")


@dataclass(frozen=True)
class BoxMetadata:
    """The blocks of metadata of an image, empty where it has none."""

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    transformed: bool = False
    """Whether the file has properties that rotate or mirror the image (`irot`, `imir`): then EXIF does not count."""


def jp2_metadata(file: IO[bytes]) -> BoxMetadata:
    """Return the metadata of a JPEG 2000 file. Raises OSError if the file cannot be read."""
    blocks = {b"exif": b"", b"xmp": b"", b"iptc": b""}
    for kind, start, end in boxes(file):
        if kind != b"uuid":
            continue
        file.seek(start)
        uuid = file.read(16)
        name = {_XMP_UUID: b"xmp", _IPTC_UUID: b"iptc"}.get(uuid, b"exif" if uuid in _EXIF_UUIDS else b"")
        if name and not blocks[name]:
            blocks[name] = file.read(min(max(end - start - 16, 0), MAX_METADATA_BYTES))
    return BoxMetadata(blocks[b"exif"], blocks[b"xmp"], blocks[b"iptc"])


def heif_metadata(file: IO[bytes]) -> BoxMetadata | None:
    """Return the metadata of the primary image of a HEIC or AVIF file; None if its boxes do not name one.

    Reads its box `meta` and the blocks of metadata. Raises OSError if the file cannot be read.
    """
    meta = _first_box(file, b"meta")
    try:
        return _metadata_of_primary(file, meta) if meta else None
    except (struct.error, IndexError):  # cut off
        return None


def cr3_exif(file: IO[bytes]) -> list[bytes]:
    """Return the EXIF blocks of Canon's CR3 file. Raises OSError if the file cannot be read.

    The tags that other files have in one block are in several: those of the camera, and those of the first directory.
    """
    for kind, content in _boxes_in(_first_box(file, b"moov")):
        if kind == b"uuid" and content.startswith(_CANON_UUID):
            return [_inner_box(content[len(_CANON_UUID) :], name) for name in (b"CMT2", b"CMT1")]
    return []


def colour_boxes(file: IO[bytes]) -> list[bytes]:
    """Return the contents of the boxes `colr` of an AVIF or JPEG 2000 file. Raises OSError if it cannot be read."""
    properties = _inner_box(_inner_box(_first_box(file, b"meta")[4:], b"iprp"), b"ipco")
    return [content for name, content in _boxes_in(properties or _first_box(file, b"jp2h")) if name == b"colr"]


@dataclass
class _Item:
    kind: bytes = b""
    content: bytes = b""
    """The media type of its content."""
    method: int = 0
    """0 if its extents are places in the file, 1 if they are places in the box `idat`."""
    extents: list[tuple[int, int]] = field(default_factory=list)
    """Places and lengths; the length 0 means all that follows."""


def _metadata_of_primary(file: IO[bytes], meta: bytes) -> BoxMetadata | None:
    """Raises struct.error or IndexError if a box is cut off."""
    boxes: dict[bytes, bytes] = {}
    for kind, content in _boxes_in(meta[4:]):
        boxes.setdefault(kind, content)
    if b"pitm" not in boxes:
        return None
    primary = int.from_bytes(boxes[b"pitm"][4 : 6 if boxes[b"pitm"][0] == 0 else 8], "big")
    items = _item_infos(boxes.get(b"iinf", b""))
    references = _references(boxes.get(b"iref", b""))
    images = {primary}
    if primary in items and items[primary].kind == b"iden":  # another item, transformed
        images.update(target for kind, source, target in references if kind == b"dimg" and source == primary)
    described = {(source, target) for kind, source, target in references if kind == b"cdsc"}
    others = {source for source, target in described if target not in images}
    _locate(items, boxes.get(b"iloc", b""))
    blocks = {b"exif": b"", b"xmp": b""}
    for number, item in items.items():
        name = b"exif" if item.kind == b"Exif" else b"xmp" if item.content == b"application/rdf+xml" else b""
        about_others = number in others and not any((number, image) in described for image in images)
        if name and not blocks[name] and not about_others:
            blocks[name] = _content(file, item, boxes.get(b"idat", b""))
    transformed = _is_transformed(boxes.get(b"iprp", b""), images)
    return BoxMetadata(_without_offset(blocks[b"exif"]), blocks[b"xmp"], transformed=transformed)


def _without_offset(exif: bytes) -> bytes:
    """Return the block behind the four bytes that say how many come before its TIFF header."""
    skipped = int.from_bytes(exif[:4], "big")
    return exif[4 + skipped :] if skipped < len(exif) - 8 else exif[4:]


def _item_infos(box: bytes) -> dict[int, _Item]:
    items: dict[int, _Item] = {}
    for kind, content in _boxes_in(box[6 if box[:1] == b"\0" else 8 :]):
        if kind != b"infe" or content[0] < 2 or len(items) >= _MAX_ITEMS:
            continue
        (number,) = struct.unpack_from(">H" if content[0] == 2 else ">I", content, 4)
        rest = content[8 if content[0] == 2 else 10 :]
        texts = rest[4:].split(b"\0", 2)  # name, media type
        items[number] = _Item(rest[:4], texts[1] if rest[:4] == b"mime" and len(texts) > 1 else b"")
    return items


def _references(box: bytes) -> list[tuple[bytes, int, int]]:
    """Return kind, source and target of the references from metadata to images, and from images to others."""
    code, size = (">H", 2) if box[:1] == b"\0" else (">I", 4)
    found: list[tuple[bytes, int, int]] = []
    for kind, content in _boxes_in(box[4:]):
        if kind not in (b"cdsc", b"dimg") or len(found) >= _MAX_ITEMS:
            continue
        source, count = (*struct.unpack_from(code, content), *struct.unpack_from(">H", content, size))
        targets = content[size + 2 : size + 2 + count * size]
        found += [(kind, source, target) for (target,) in struct.iter_unpack(code, targets)]
    return found


def _locate(items: dict[int, _Item], box: bytes) -> None:
    """Store the places of the items of metadata."""
    if len(box) < 8:
        return
    version = box[0]
    offset_size, length_size, base_size, index_size = box[4] >> 4, box[4] & 15, box[5] >> 4, box[5] & 15
    id_size = 4 if version == 2 else 2
    if version == 0:
        index_size = 0
    at = 6 + id_size
    for _ in range(min(int.from_bytes(box[6:at], "big"), _MAX_ITEMS)):
        item = items.get(int.from_bytes(box[at : at + id_size], "big"))
        at += id_size
        method = 0
        if version in (1, 2):
            method = box[at + 1] & 15
            at += 2
        base = int.from_bytes(box[at + 2 : at + 2 + base_size], "big")
        at += 2 + base_size
        (count,) = struct.unpack_from(">H", box, at)
        at += 2
        size = index_size + offset_size + length_size
        if item is not None and size and (item.kind == b"Exif" or item.content):
            item.method = method
            for start in range(at + index_size, min(at + count * size, len(box)), size):
                middle, end = start + offset_size, start + offset_size + length_size
                place = base + int.from_bytes(box[start:middle], "big")
                item.extents.append((place, int.from_bytes(box[middle:end], "big")))
        at += count * size


def _content(file: IO[bytes], item: _Item, data: bytes) -> bytes:
    content = b""
    for place, length in item.extents:
        wanted = min(length or MAX_METADATA_BYTES, MAX_METADATA_BYTES - len(content))
        if wanted <= 0 or place >= 1 << 62:
            break
        if item.method == 1:
            content += data[place : place + wanted]
        elif item.method == 0:
            file.seek(place)
            content += file.read(wanted)
    return content


def _is_transformed(box: bytes, images: set[int]) -> bool:
    """Return whether a property of one of the images rotates or mirrors it."""
    kinds: list[bytes] = []
    tables = []
    for kind, content in _boxes_in(box):
        if kind == b"ipco":
            kinds = [name for name, _ in _boxes_in(content)]
        elif kind == b"ipma":
            tables.append(content)
    turning = {number for number, kind in enumerate(kinds, start=1) if kind in (b"irot", b"imir")}
    for table in tables if turning else ():
        code, size = (">H", 2) if table[0] == 0 else (">I", 4)
        wide = 2 if table[3] & 1 else 1
        (count,) = struct.unpack_from(">I", table, 4)
        at = 8
        for _ in range(min(count, _MAX_ITEMS)):
            (image,) = struct.unpack_from(code, table, at)
            start = at + size + 1
            at = start + wide * table[at + size]
            numbers = (int.from_bytes(table[n : n + wide], "big") for n in range(start, at, wide))
            if image in images and any(number & (0x7FFF if wide == 2 else 0x7F) in turning for number in numbers):
                return True
    return False


def _first_box(file: IO[bytes], name: bytes) -> bytes:
    """Return the content of the first box of this name in a file; empty if there is none."""
    for kind, start, end in boxes(file):
        if kind == name:
            file.seek(start)
            return file.read(min(end - start, _MAX_BOX))
    return b""


def _inner_box(data: bytes, name: bytes) -> bytes:
    """Return the content of the first box of this name in a box; empty if there is none."""
    return next((content for kind, content in _boxes_in(data) if kind == name), b"")


def boxes(file: IO[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box of a file, and where its content begins and ends.

    The end is as the box says, perhaps behind that of the file. A box whose header is cut off has the name b"" and ends
    there. Nothing after a box that says an impossible size is yielded. Raises OSError if the file cannot be read.
    """
    length, at = file.seek(0, os.SEEK_END), 0
    for _ in range(_MAX_BOXES):
        if at >= length:
            return
        file.seek(at)
        head = file.read(16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        header = 16 if size == 1 else 8
        if len(head) < header:
            yield b"", at, at + header
            return
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        elif size == 0:  # up to the end of the file
            size = length - at
        if size < header:
            return
        yield name, at + header, at + size
        at += size


def _boxes_in(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the content of each box of a box; of the last one perhaps a part."""
    return ((name, data[start:end]) for name, start, end in boxes(io.BytesIO(data)))
