"""Files whose end is missing or padded: whether the picture is complete, and how much of it is missing if not.

A JPEG without its end is decoded with an end marker behind it; libjpeg then fills the rest with grey. How much that is
depends only on where the entropy-coded data ends. To find the place with any decoder of JPEG, the data is decoded again
with random bits behind it instead: the picture is the same up to the place where the data ends, and differs after it.

Sources: ITU-T T.81 (JPEG), A.2 and B.1 and G.1; ITU-T T.800 (JPEG 2000), A.4 and I.5.
"""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import IO, TYPE_CHECKING

from ..errors import InvalidImageError
from ._boxes import boxes
from ._directories import Tiff
from ._formats import AVIF, GIF, HEIF, JPEG, JPEG2000, JPEG_XL, PNG, TIFF, WEBP, ImageFormat
from ._jpeg import decode_eighth
from ._limits import check_pixels, decoding_slot
from ._reasons import CUT_OFF
from ._segments import END, RESTART_INTERVAL, SCAN, segments

if TYPE_CHECKING:
    from PIL import Image

MOST_MISSING = 0.1
"""The greatest share of a picture that may be missing; a file of which more may be missing is refused."""

COMPLETED = {"truncated": (JPEG, JPEG2000, WEBP), "damaged": (JPEG2000,)}
"""The formats of which `complete_file` may help, for the reasons why a file was refused."""

_END_OF_IMAGE = b"\xff\xd9"
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MOST_SEGMENTS = 10_000
_MOST_SCANS = 100
_MOST_TILE_PARTS = 1_000_000
_RANDOM_BYTES = 4096
"""Enough random bits to see where they begin; behind them is the end marker."""
_LARGE_SIDE = 512
"""From this shorter side in pixels, a sequential JPEG is compared at 1/8: a cell is a small part of it."""
_TRIALS_SEQUENTIAL, _TRIALS_PROGRESSIVE = 4, 8
"""How often random data is tried, each time with other first bits. It may stand for the same as no data: in a
progressive JPEG, one code can mean that thousands of blocks have no more coefficients."""


@dataclass(frozen=True)
class _Scan:
    """A scan of a JPEG: the numbers of its components, its first and last coefficient, the bits left to later scans."""

    components: tuple[int, ...]
    first: int
    last: int
    low_bits: int


@dataclass(frozen=True)
class _Headers:
    """What the markers of a JPEG say: its scans, the MCUs between restart markers (0: none), the end of what counts.

    `last_data` is where the data of the last scan begins. `cut_off` says that no marker follows it.
    """

    scans: tuple[_Scan, ...]
    restart_interval: int
    last_data: int
    cut_off: bool


def ends_early(image_format: ImageFormat, file: IO[bytes]) -> bool:
    """Return whether the end of the image is missing, as far as this can be seen without decoding it.

    Bytes behind the end do not matter, except for PNG and GIF, whose decoder does not need their ends.
    """
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 12))
        tail = file.read(12)
        if image_format is PNG:
            return tail[4:8] != b"IEND"
        if image_format is GIF:
            return not tail.endswith(b";")
        file.seek(0)
        if image_format is JPEG:
            data = file.read()
            return data.rfind(_END_OF_IMAGE) <= data.rfind(b"\xff\xda")
        head = file.read(16)
        if image_format is WEBP:
            return length < 8 + int.from_bytes(head[4:8], "little")
        if image_format is TIFF:
            tiff = Tiff.of(file)
            return tiff is None or tiff.is_cut_off()
        if image_format is JPEG2000:
            return _codestream_state(file, length)[0] is not _Codestream.WHOLE
        if image_format in (AVIF, HEIF) or (image_format is JPEG_XL and not head.startswith(b"\xff\n")):
            return any(end > length for _, _, end in boxes(file))
    except (OSError, ValueError):  # the file is closed or deleted
        return False
    return False


def ends_in_zeros(image_format: ImageFormat, file: IO[bytes]) -> bool:
    """Return whether zeros replace the end of a JPEG or PNG: its decoder takes them for a part of the picture."""
    file.seek(-2, os.SEEK_END)
    if any(file.read(2)):
        return False
    file.seek(0)
    content = file.read()
    if image_format is PNG:
        return _zeros_are_in_png_data(content)
    data = _without_padding(content)
    try:
        return not data.endswith(_END_OF_IMAGE) and _read_headers(data).cut_off
    except InvalidImageError:
        return False  # the decoder decides


def _zeros_are_in_png_data(data: bytes) -> bool:
    """Return whether the zeros at the end of a PNG begin in the compressed pixels, before their checksum."""
    zeros, at = len(data.rstrip(b"\0")), 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end_of_data = at + 8 + length
        if kind == b"IDAT" and zeros < end_of_data - 4:  # the last four bytes are a checksum as well
            return zlib.crc32(data[at + 4 : end_of_data]) != int.from_bytes(data[end_of_data : end_of_data + 4], "big")
        if kind == b"IEND" or at >= zeros:
            return False
        at = end_of_data + 4
    return False


class _Codestream(Enum):
    """What there is of a JPEG 2000 codestream: all; all but its end marker; less."""

    WHOLE = "whole"
    WITHOUT_END = "without end"
    CUT = "cut"


def _codestream_state(file: IO[bytes], length: int) -> tuple[_Codestream, int]:
    """Return what there is of the codestream of a JPEG 2000 file, alone or in the first box of this kind.

    The number is the position where it ends.
    """
    file.seek(0)
    if file.read(2) == b"\xff\x4f":
        return _state_of_codestream(file, 0, length), length
    for name, start, end in boxes(file):
        if name == b"jp2c":
            end = min(end, length)
            return _state_of_codestream(file, start, end), end
    return _Codestream.CUT, length


def _state_of_codestream(file: IO[bytes], start: int, end: int) -> _Codestream:
    """Return what there is of the codestream from `start` to `end`: its tile-parts say how long they are."""
    offset, size = start + 2, b""
    tiles, complete_tiles = set[int](), set[int]()
    for _ in range(_MOST_TILE_PARTS):
        file.seek(offset)
        head = file.read(12)
        marker = head[:2]
        if marker == _END_OF_IMAGE:
            return _Codestream.WHOLE
        if offset + 12 > end or marker[0] != 0xFF:
            break
        if marker == b"\xff\x51":  # SIZ
            size = head + file.read(32)
        if marker != b"\xff\x90":  # not SOT
            offset += 2 + int.from_bytes(head[2:4], "big")
            continue
        tile, part_length, part, parts = struct.unpack(">HIBB", head[4:12])
        if part_length == 0:  # up to the end of the codestream, in whose data the end marker cannot occur
            file.seek(offset)
            return _Codestream.WHOLE if _END_OF_IMAGE in file.read(end - offset) else _Codestream.CUT
        if part_length < 14 or offset + part_length > end:
            break
        tiles.add(tile)
        if part + 1 == parts:
            complete_tiles.add(tile)
        offset += part_length
    else:
        return _Codestream.WHOLE  # the decoder decides
    whole = complete_tiles == tiles == {*range(_tile_count(size))}
    return _Codestream.WITHOUT_END if whole and offset >= end - 1 else _Codestream.CUT


def _tile_count(size: bytes) -> int:
    """Return the number of tiles from a SIZ marker segment of JPEG 2000, at most 65,536; 0 if it is damaged."""
    if len(size) < 38:
        return 0
    width, height, _, _, tile_width, tile_height, left, top = struct.unpack(">8I", size[6:38])
    if not tile_width or not tile_height or width <= left or height <= top:
        return 0
    return int(min(65_536, -(-(width - left) // tile_width) * -(-(height - top) // tile_height)))


def complete_file(image_format: ImageFormat, file: IO[bytes], max_pixels: int) -> tuple[IO[bytes], float | None]:
    """Return a file that cannot be decoded because its end is missing with an end, and the share that may be missing.

    The share is that of the area of the picture, from 0 to `MOST_MISSING`; None if the end is there, but something
    follows it that the decoder of JPEG 2000 refuses. In a progressive JPEG, a part of which only
    details are missing counts as missing; it is decoded up to nine times. Of JPEG 2000 and WebP, only files that have
    all data of the picture are completed. Raises InvalidImageError ("truncated") if more is missing.
    """
    completed: bytes | None = None
    share: float | None = 0.0
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        if image_format is JPEG:
            content = file.read()
            data = _without_padding(content)
            share = _missing_share(data, max_pixels)
            if share > MOST_MISSING and content != data and _ends_exactly(content, max_pixels):
                data, share = content, 0.0
            completed = data + _END_OF_IMAGE
        elif image_format is WEBP:
            completed = _with_picture_only(file.read())
        else:
            state, end = _codestream_state(file, length)
            file.seek(0)
            if state is _Codestream.WITHOUT_END:
                completed = file.read(end).rstrip(b"\xff") + _END_OF_IMAGE
            elif state is _Codestream.WHOLE and end < length:
                completed, share = file.read(end), None
    except InvalidImageError:
        raise
    except Exception as error:  # hostile data makes the plugin raise nearly anything
        raise InvalidImageError("truncated", CUT_OFF) from error
    if completed is None:
        raise InvalidImageError("truncated", CUT_OFF)
    if share is not None and share > MOST_MISSING:
        raise InvalidImageError("truncated", f"about {share:.0%} of the image is missing")
    return io.BytesIO(completed), share


def _with_picture_only(data: bytes) -> bytes | None:
    """Return a WebP file with those of its chunks that are not cut off; None if the picture is not one of them."""
    chunks, offset, has_picture = b"", 12, False
    while offset + 8 <= len(data):
        kind, size = data[offset : offset + 4], int.from_bytes(data[offset + 4 : offset + 8], "little")
        if offset + 8 + size > len(data) or kind == b"ANMF":
            break
        has_picture = has_picture or kind in (b"VP8 ", b"VP8L")
        chunks += data[offset : offset + 8 + size] + b"\0" * (size % 2)
        offset += 8 + size + size % 2
    if not has_picture:
        return None
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks


def _without_padding(data: bytes) -> bytes:
    """Return a JPEG without the zeros and fill bytes at its end, and without half a marker."""
    stripped = data.rstrip(b"\0")
    if not stripped.endswith(b"\xff"):
        return stripped
    # A zero behind 0xff belongs to the data; without it, 0xff is the half of a marker, or padding.
    return stripped + b"\0" if len(stripped) < len(data) else stripped.rstrip(b"\xff")


def _ends_exactly(data: bytes, max_pixels: int) -> bool:
    """Return whether a JPEG has all data of its picture, and needs the last byte: so this is no padding.

    Where an image has one colour, its data may be only zeros.
    """
    return _missing_share(data, max_pixels) == 0 and _missing_share(data[:-1], max_pixels) > 0


def _missing_share(data: bytes, max_pixels: int) -> float:
    """Return the greatest share of the area of a JPEG without end marker that can be missing."""
    headers = _read_headers(data)
    picture = _opened(data + _END_OF_IMAGE)
    check_pixels(*picture.size, max_pixels)
    layers: list[tuple[int, int, int, int]] = picture.layer  # type: ignore[attr-defined]
    if not _has_all_coefficients(headers, [number for number, *_ in layers]):
        raise InvalidImageError("truncated", "the details of the whole image are missing")
    sampling = {number: (across, down) for number, across, down, _ in layers}
    most_across = max(across for across, _ in sampling.values())
    most_down = max(down for _, down in sampling.values())
    across, down = sampling[headers.scans[-1].components[0]] if len(headers.scans[-1].components) == 1 else (1, 1)
    trials, scale = _TRIALS_PROGRESSIVE, 1
    if "progressive" not in picture.info:
        width, height = picture.size
        if decode_eighth(data + _END_OF_IMAGE, (-(-width // 8), -(-height // 8)), picture.mode) is not None:
            return 0.0  # it decodes only complete data
        trials, scale = _TRIALS_SEQUENTIAL, 8 if min(width, height) >= _LARGE_SIDE else 1
    cell = 8 // scale * most_across // across, 8 // scale * most_down // down
    share = 0.0
    with decoding_slot(picture.width * picture.height):
        _load(picture, scale)
        for trial in range(trials):
            other = _opened(data + _random_data(trial, trials, data, headers) + _END_OF_IMAGE)
            _load(other, scale)
            share = max(share, _share_after_first_difference(picture, other, cell, blended=scale == 1))
            if share > MOST_MISSING:
                break
    return share


def _read_headers(data: bytes) -> _Headers:
    """Read the markers of a JPEG. Raises InvalidImageError if it is cut off before the data of its first scan."""
    scans, interval, last_data, cut_off = list[_Scan](), 0, 0, False
    file, at = io.BytesIO(data), 2
    while at and len(scans) <= _MOST_SCANS:
        following = segments(file, at, most=_MOST_SEGMENTS)
        at = 0
        for marker, start, end in following:
            content = data[start:end]
            if marker == END or end > len(data):
                break
            if marker == RESTART_INTERVAL and len(content) >= 2:
                interval = int.from_bytes(content[:2], "big")
            if marker == SCAN and content and len(content) >= 4 + 2 * content[0]:
                count = content[0]
                first, last, bits = content[1 + 2 * count : 4 + 2 * count]
                scans.append(_Scan(tuple(content[1 : 1 + 2 * count : 2]), first, last, bits & 15))
                last_data, data_end = end, _SCAN_END.search(data, end)
                cut_off = data_end is None
                at = 0 if data_end is None else data_end.start()
                break
    if not 0 < len(scans) <= _MOST_SCANS:
        raise InvalidImageError("truncated", CUT_OFF)
    return _Headers(tuple(scans), interval, last_data, cut_off)


def _has_all_coefficients(headers: _Headers, components: list[int]) -> bool:
    """Return whether the scans contain all bits of all coefficients of all components, the last one perhaps in part."""
    left: dict[tuple[int, int], int] = {}
    for scan in headers.scans:
        for component in scan.components:
            for place in range(scan.first, min(scan.last, 63) + 1):
                left[component, place] = scan.low_bits
    return all(left.get((component, place)) == 0 for component in components for place in range(64))


def _random_data(trial: int, trials: int, data: bytes, headers: _Headers) -> bytes:
    """Return random bytes to follow `data`, with the restart markers that its decoder expects; see `_TRIALS_...`."""
    generated = bytearray(random.Random(trial).randbytes(_RANDOM_BYTES))
    generated[0] = trial * 256 // trials + generated[0] % (256 // trials)
    bits = generated.replace(b"\xff", b"\xfe")
    if not headers.restart_interval:
        return bytes(bits)
    latest, number = max((data.rfind(bytes((0xFF, 0xD0 + n)), headers.last_data), n) for n in range(8))
    following = number + 1 if latest >= 0 else 0
    size = _RANDOM_BYTES // 8
    parts = (bits[n * size : (n + 1) * size] + bytes((0xFF, 0xD0 + (following + n) % 8)) for n in range(8))
    return b"".join(parts)


def _opened(data: bytes) -> Image.Image:
    from PIL.JpegImagePlugin import JpegImageFile

    return JpegImageFile(io.BytesIO(data))


def _load(image: Image.Image, scale: int) -> None:
    """Decode a JPEG at the scale 1/1 or 1/8."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    image.load()


def _share_after_first_difference(
    image: Image.Image, other: Image.Image, cell: tuple[int, int], *, blended: bool
) -> float:
    """Return which share of the area of an image begins with the first difference from another, 0 without one.

    A scan codes the image in cells (width, height) in pixels, row by row. If pixels are `blended`, the chroma of a cell
    is a part of the last row and column of pixels of the cells before it. Otherwise (at 1/8) the difference shows only
    where a cell begins, and the cell before the first different one counts as missing.
    """
    import numpy as np

    (width, height), (across, down) = image.size, cell
    for top in range(0, height, down):
        bottom = min(top + down, height)
        box = (0, top, width, bottom - 1 if blended and bottom < height else bottom)
        different = np.asarray(image.crop(box)) != np.asarray(other.crop(box))
        columns = different.reshape(box[3] - top, width, -1).any(axis=(0, 2))
        if blended:
            columns[across - 1 : -1 : across] = False
        if columns.any():
            left = int(columns.argmax()) // across * across
            missing = (width - left) * (bottom - top) + width * (height - bottom)
            edge = width + bottom - top  # one pixel at the beginning of the cells
            uncertain = edge / 8 + across * down if not blended else edge if max(cell) > 8 else 0
            return min(1.0, (missing + uncertain) / (width * height))
    return 0.0 if blended else across * down / (width * height)
