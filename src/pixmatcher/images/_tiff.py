"""TIFF files of any kind of numbers: Pillow's plugin, and our own decoder for those that it refuses or gets wrong.

These are 10, 12 and 14 bits, floats, signed and 32-bit integers, samples of 16 bits in separate planes, and many extra
samples. libtiff still unpacks them: it is given a directory that describes the same data as grey of 8 bits, so that it
returns the bytes of each row. NumPy then makes numbers of them (TIFF 6.0; predictor 3: Adobe's TIFF Technical Note 3).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

from PIL import Image, TiffImagePlugin

from ..errors import InvalidImageError
from ._colour import USUAL_FLOATS, USUAL_INTEGERS, range_of_numbers
from ._pillow import pillow_limit_lifted, tiff_codec_is_missing
from ._reasons import CUT_OFF

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS, _PLANAR, _PREDICTOR = 273, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _EXTRA, _FORMAT, _PROFILE = 322, 323, 324, 325, 338, 339, 34675

_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4, 8: 3, 9: 3}
"""Samples of a pixel without the extra ones, for grey (white or black is 0), RGB, CMYK, CIE L*a*b* and ICC L*a*b*."""

_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, Deflate, PackBits, old Deflate, LZMA, Zstandard
_NAMES = {
    **{33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"},
    **{34887: "LERC", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"},
}
"""Methods of compression that libtiff does not know, or not in each of its builds."""
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4

_ROWS_BYTES = 1 << 22
"""About how many bytes of rows become numbers at once."""

_MOST_BYTES_A_PIXEL = 32
_ALWAYS_ALLOWED_BYTES = 1 << 29


@dataclass(frozen=True)
class _Layout:
    """How the samples of a TIFF file are stored."""

    width: int
    height: int
    kind: int
    """`_UNSIGNED`, `_SIGNED` or `_FLOAT`."""
    bits: int
    samples: int
    photometric: int
    alpha: int
    """0 for none, 1 for associated (colours are multiplied by it), 2 for unassociated."""
    planes: bool
    """Each sample has its own strips or tiles."""
    compression: int
    predictor: int
    fill_order: int
    little_endian: bool
    tile: tuple[int, int] | None
    """Width and height of a tile; None for strips."""
    rows_per_strip: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def colours(self) -> int:
        return _COLOURS[self.photometric]

    @property
    def pixels_in_row(self) -> int:
        """Pixels that are stored for a row: whole tiles."""
        return -(-self.width // self.tile[0]) * self.tile[0] if self.tile else self.width

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row, of one plane if there are several."""
        segment = self.tile[0] if self.tile else self.width
        in_segment = (segment * (1 if self.planes else self.samples) * self.bits + 7) // 8
        return self.pixels_in_row // segment * in_segment


class TiffFile(TiffImagePlugin.TiffImageFile):
    """An opened TIFF file. `load` raises InvalidImageError and what Pillow raises."""

    _layout: _Layout | None = None

    def _open(self) -> None:
        file = cast("IO[bytes]", self.fp)
        if file.read(4) == b"MM\0+":
            raise InvalidImageError("unsupported format", "BigTIFF in big-endian byte order")
        file.seek(0)
        super()._open()

    def _setup(self) -> None:
        self._layout = None
        compression = self.tag_v2.get(_COMPRESSION, 1)
        if isinstance(compression, int) and (
            compression not in TiffImagePlugin.COMPRESSION_INFO or tiff_codec_is_missing(compression)
        ):
            name = _NAMES.get(compression, f"method {compression} of compression")
            raise InvalidImageError("unsupported format", f"TIFF compressed with {name}")
        if _pillow_is_wrong(self.tag_v2):
            self._layout = _layout_of(self.tag_v2)
        if self._layout is None:
            if max(_numbers(self.tag_v2, _SAMPLES, (1,)), default=1) > TiffImagePlugin.MAX_SAMPLESPERPIXEL:
                raise SyntaxError("unknown pixel mode")  # Pillow would log an error as well
            try:
                super()._setup()
            except (SyntaxError, IndexError):  # an unknown mode; samples in planes that its table does not expect
                self._layout = _layout_of(self.tag_v2)
                if self._layout is None:
                    raise
        if self._layout is not None:
            self._tile_size = self._layout.width, self._layout.height
            turned = self.tag_v2.get(274) in (5, 6, 7, 8)
            self._size = self._tile_size[::-1] if turned else self._tile_size
            self._mode = _mode_of(self._layout)
            self.tile, self.palette, self.use_load_libtiff = [], None, False
            if _PROFILE in self.tag_v2:
                self.info["icc_profile"] = self.tag_v2[_PROFILE]

    def load(self) -> Any:
        if self._layout is not None:
            layout, self._layout = self._layout, None
            assert self.fp is not None
            self.im = _decode(self.fp, layout).im
            self.load_end()  # makes it upright
        return super().load()


def _pillow_is_wrong(tags: Any) -> bool:
    """Return whether Pillow would open a file but mix up its bytes, lose the sign of its numbers, or raise late."""
    bits, kind, samples = (max(_numbers(tags, tag, (1,)), default=1) for tag in (_BITS, _FORMAT, _SAMPLES))
    if tags.get(_PLANAR) == 2 and (bits > 8 or samples > 3):
        return True
    if (bits, samples, tags.get(_PHOTOMETRIC), tags.prefix) == (32, 1, 1, b"II") and kind != _UNSIGNED:
        return False
    if bits == 16 and tags.get(_PHOTOMETRIC) == 0:  # white is 0
        return True
    return kind in (_SIGNED, _FLOAT) or bits > 16 or samples > TiffImagePlugin.MAX_SAMPLESPERPIXEL


def _layout_of(tags: Any) -> _Layout | None:
    """Return how the samples are stored; None if our decoder does not know that kind either."""
    width, height = tags.get(_WIDTH), tags.get(_HEIGHT)
    bits, kinds = _numbers(tags, _BITS, (1,)), _numbers(tags, _FORMAT, (1,))
    photometric, compression = tags.get(_PHOTOMETRIC, 0), tags.get(_COMPRESSION, 1)
    predictor, samples = tags.get(_PREDICTOR, 1), tags.get(_SAMPLES, 1)
    fill_order = tags.get(_FILL_ORDER, 1)
    tile = (tags.get(_TILE_WIDTH), tags.get(_TILE_HEIGHT)) if _TILE_OFFSETS in tags else None
    offsets = _numbers(tags, _TILE_OFFSETS if tile else _STRIP_OFFSETS, ())
    counts = _numbers(tags, _TILE_COUNTS if tile else _STRIP_COUNTS, ())
    rows_per_strip = tags.get(_ROWS_PER_STRIP, height)
    sizes = (width, height, samples, rows_per_strip, *(tile or ()))
    if not all(isinstance(size, int) and 0 < size < 1 << 32 for size in sizes):
        return None
    if compression not in _LOSSLESS or photometric not in _COLOURS or fill_order not in (1, 2):
        return None
    if compression != 1 and len(offsets) != len(counts):
        return None
    if len(set(bits)) != 1 or len(set(kinds)) != 1 or samples < _COLOURS[photometric]:
        return None
    kind = _UNSIGNED if kinds[0] == _UNDEFINED else kinds[0]
    whole_bytes = bits[0] in (8, 16, 32, 64)
    known = {_UNSIGNED: whole_bytes or bits[0] <= 16, _SIGNED: whole_bytes, _FLOAT: bits[0] in (16, 32, 64)}
    known_predictor = {1: True, 2: whole_bytes, 3: kind == _FLOAT}
    if not known.get(kind, False) or bits[0] < 1 or not known_predictor.get(predictor, False):
        return None
    if photometric in (8, 9) and (kind == _FLOAT or bits[0] not in (8, 16)):
        return None
    extra = _numbers(tags, _EXTRA, ())
    has_alpha = bool(extra) and extra[0] in (1, 2) and samples > _COLOURS[photometric] and photometric in (0, 1, 2)
    planes = tags.get(_PLANAR) == 2 and samples > 1
    little_endian = tags.prefix == b"II"
    return _Layout(
        width, height, kind, bits[0], samples, photometric, extra[0] if has_alpha else 0, planes, compression,
        predictor, fill_order, little_endian, cast("tuple[int, int] | None", tile), rows_per_strip, offsets, counts,
    )  # fmt: skip


def _numbers(tags: Any, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple) else (value,)
    return values if all(isinstance(v, int) and v >= 0 for v in values) else ()


def _mode_of(layout: _Layout) -> str:
    if layout.photometric in (8, 9):
        return "LAB"
    if layout.photometric == 5:
        return "CMYK"
    colour = layout.photometric == 2
    return (("L", "La", "LA"), ("RGB", "RGBa", "RGBA"))[colour][layout.alpha]


def _decode(file: IO[bytes], layout: _Layout) -> Image.Image:
    """Return the image in 8 bits a sample, before it is made upright.

    Raises InvalidImageError if the samples take too much memory or the file is too short for them.
    """
    import numpy as np

    used = layout.colours + (layout.alpha > 0)
    planes = used if layout.planes else 1
    rows_bytes = layout.row_bytes * layout.height
    allowed = max(_ALWAYS_ALLOWED_BYTES, _MOST_BYTES_A_PIXEL * layout.width * layout.height)
    taken = layout.row_bytes * max(layout.height * planes, layout.tile[1] if layout.tile else 0)
    if taken > allowed:
        raise InvalidImageError("too many pixels", f"its samples take {taken:,} bytes, the limit is {allowed:,}")
    length = file.seek(0, io.SEEK_END)
    if layout.compression == 1 and length < rows_bytes * planes:
        raise InvalidImageError("truncated", CUT_OFF)
    with pillow_limit_lifted(rows_bytes):
        rows = [_rows_as_grey(file, layout, plane) for plane in range(planes)]
    colours, alpha = _ranges(layout, rows)
    mode = _mode_of(layout)
    image = Image.new(mode, (layout.width, layout.height))
    for top, numbers in _samples(layout, rows):
        pixels = np.empty(numbers.shape, np.uint8)
        if mode == "LAB":
            pixels[:] = _lab(layout, numbers)
        else:
            pixels[..., : layout.colours] = _scaled(numbers[..., : layout.colours], *colours)
            if layout.alpha:
                pixels[..., -1] = _scaled(numbers[..., -1], *alpha)
        bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band])) for band in range(used)]
        image.paste(Image.merge(mode, bands) if used > 1 else bands[0], (0, top))
    return image


def _samples(layout: _Layout, rows: list[Image.Image]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield the numbers (rows, width, used samples) of a few rows at a time, with the first row."""
    import numpy as np

    used = layout.colours + (layout.alpha > 0)
    at_once = max(1, _ROWS_BYTES // (layout.row_bytes * len(rows)))
    for top in range(0, layout.height, at_once):
        box = (0, top, layout.row_bytes, min(top + at_once, layout.height))
        parts = []
        for plane in rows:
            with pillow_limit_lifted(plane.width * plane.height):
                parts.append(_numbers_of_rows(layout, np.asarray(plane.crop(box))))
        yield top, (np.concatenate(parts, axis=2) if layout.planes else parts[0])[:, : layout.width, :used]


def _numbers_of_rows(layout: _Layout, data: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the numbers (rows, pixels, samples) in bytes (rows, row bytes)."""
    import numpy as np

    samples = 1 if layout.planes else layout.samples
    segment = layout.tile[0] if layout.tile else layout.width
    count = len(data)
    data = data.reshape(count, layout.pixels_in_row // segment, -1)  # of a strip or tile each
    size = layout.bits // 8
    if layout.bits % 8 or size == 3:
        bits = np.unpackbits(data, axis=2)[..., : segment * samples * layout.bits]
        bits = bits.reshape(count, -1, segment * samples, layout.bits)
        unpacked = np.zeros(bits.shape[:3], np.uint16)
        for bit in range(layout.bits):
            unpacked = unpacked << 1 | bits[..., bit]
        return unpacked.reshape(count, -1, samples)
    if layout.predictor == 3:
        data = np.cumsum(data.reshape(count, data.shape[1], -1, samples), axis=2, dtype=np.uint8)
        planes = data.reshape(count, data.shape[1], size, segment * samples)  # the most significant bytes come first
        data = np.ascontiguousarray(planes.swapaxes(2, 3)).reshape(count, data.shape[1], -1)
    order = "<" if layout.little_endian and layout.predictor != 3 else ">"
    numbers: NDArray[Any] = np.ascontiguousarray(data).view(f"{order}u{size}").astype(f"u{size}")
    if layout.predictor == 2:
        pixels = numbers.reshape(count, numbers.shape[1], segment, samples)
        numbers = np.cumsum(pixels, axis=2, dtype=pixels.dtype)
    kind = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}[layout.kind]
    return np.ascontiguousarray(numbers).view(f"{kind}{size}").reshape(count, -1, samples)


def _ranges(layout: _Layout, rows: list[Image.Image]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the numbers that become 0 and 255, of colours and of alpha; see `open_image`."""
    whole = float((1 << (layout.bits - (layout.kind == _SIGNED))) - 1)
    fixed = layout.kind == _UNSIGNED and layout.bits <= 16
    colours = alpha = (0.0, whole)
    if not fixed and layout.photometric not in (8, 9):
        found = _Extremes(), _Extremes()
        for _, numbers in _samples(layout, rows):
            found[0].add(numbers[..., : layout.colours])
            if layout.alpha and layout.kind == _FLOAT:
                found[1].add(numbers[..., layout.colours :])
        if layout.kind == _FLOAT:
            colours, alpha = found[0].range(USUAL_FLOATS), (0.0, found[1].range(USUAL_FLOATS)[1])
        else:
            colours = found[0].range(tuple(min(usual, whole) for usual in USUAL_INTEGERS))
    if layout.photometric == 0:  # white is 0
        colours = colours[::-1]
    return colours, alpha


class _Extremes:
    """The least and the greatest finite number so far."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def add(self, numbers: NDArray[Any]) -> None:
        import numpy as np

        finite = numbers[np.isfinite(numbers)]
        if finite.size:
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))

    def range(self, usual: tuple[float, ...]) -> tuple[float, float]:
        return range_of_numbers(self.low, self.high, usual) if self.low <= self.high else (0.0, 1.0)


def _scaled(numbers: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return numbers as bytes: `low` becomes 0 and `high`, which may be less, 255; what is not a number becomes 0."""
    import numpy as np

    with np.errstate(all="ignore"):  # the numbers of a hostile file
        scaled = (numbers.astype(np.float64) - low) * (255.0 / (high - low) if high != low else 0.0)
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return (np.clip(scaled, 0, 255) + 0.5).astype(np.uint8)


def _lab(layout: _Layout, numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Return L*a*b* as Pillow has it: 8 bits, a and b from 128 for grey."""
    import numpy as np

    values = (numbers.view(f"u{layout.bits // 8}") >> (layout.bits - 8)).astype(np.uint8)
    if layout.photometric == 8:  # a and b have a sign
        values[..., 1:] ^= 128
    return values


def _rows_as_grey(file: IO[bytes], layout: _Layout, plane: int) -> Image.Image:
    """Return the bytes of all rows of one plane as the pixels of a grey image, its width the bytes of a row."""
    rows = layout.tile[1] if layout.tile else layout.rows_per_strip
    across = layout.pixels_in_row // layout.tile[0] if layout.tile else 1
    parts = -(-layout.height // rows) * across  # of a plane
    offsets = layout.offsets[plane * parts : (plane + 1) * parts]
    counts = layout.counts[plane * parts : (plane + 1) * parts]
    if len(offsets) < parts:
        raise InvalidImageError("damaged", "strips or tiles of the image are missing")
    numbers: dict[int, tuple[int, ...]] = {
        _WIDTH: (layout.row_bytes,),
        _HEIGHT: (layout.height,),
        _BITS: (8,),
        _COMPRESSION: (layout.compression,),
        _PHOTOMETRIC: (1,),
        _FILL_ORDER: (layout.fill_order,),
        _SAMPLES: (1,),
    }
    if layout.tile:
        numbers |= {_TILE_WIDTH: (layout.row_bytes // across,), _TILE_HEIGHT: (rows,)}
    else:
        numbers[_ROWS_PER_STRIP] = (min(rows, layout.height),)
    numbers[_TILE_OFFSETS if layout.tile else _STRIP_OFFSETS] = offsets
    if counts:
        numbers[_TILE_COUNTS if layout.tile else _STRIP_COUNTS] = counts
    grey = TiffImagePlugin.TiffImageFile(cast("IO[bytes]", _WithHead(file, numbers)))
    grey.load()
    return grey


class _WithHead:
    """A binary file with a new TIFF header and directory before its bytes, which are not copied."""

    def __init__(self, file: IO[bytes], numbers: dict[int, tuple[int, ...]]) -> None:
        entries_end = 16 + 8 + 20 * len(numbers) + 8
        long_ones = [values for values in numbers.values() if len(values) > 1]
        self._file, self._position = file, 0
        self._length = entries_end + 8 * sum(map(len, long_ones))
        entries, data = b"", b""
        for tag, values in sorted(numbers.items()):
            if tag in (_STRIP_OFFSETS, _TILE_OFFSETS):
                values = tuple(self._length + value for value in values)
            packed = struct.pack(f"<{len(values)}Q", *values)
            if len(values) == 1:
                entries += struct.pack("<HHQ", tag, 16, 1) + packed
            else:
                entries += struct.pack("<HHQQ", tag, 16, len(values), entries_end + len(data))
                data += packed
        # The header of BigTIFF, whose numbers have 64 bits.
        self._head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", len(numbers)) + entries
        self._head += bytes(8) + data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset += self._length + self._file.seek(0, io.SEEK_END)
        elif whence == io.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        data = self._head[self._position :][: size if size >= 0 else None]
        if size < 0 or len(data) < size:
            self._file.seek(max(0, self._position + len(data) - self._length))
            data += self._file.read(size - len(data) if size >= 0 else -1)
        self._position += len(data)
        return data
