"""Open, check, orient and shrink one image, and prepare it for an encoder.

Everything that reads an image goes through `open_image`, which is made for files nobody has vouched for: the
content alone decides what a file is, only the plugins of the supported formats ever see it, the size is
checked before memory is taken, and whatever goes wrong is raised as `InvalidImageError` with a reason that
can be counted. Pillow and NumPy are imported on first use, so that a text query, which needs only `Recipe`,
does not pay for them.

Colour profiles are not applied: values are taken as sRGB, which is what the encoders were trained on.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import stat
import struct
import sys
import threading
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib import import_module
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, cast, overload

from ..errors import InvalidImageError, PixMatcherError
from ._jpeg import decode_eighth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image, ImageFile

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any]"
"""What can be opened: a path, encoded bytes, a binary file, a PIL image, or an array (see `open_image`)."""

DEFAULT_MAX_PIXELS = 512_000_000

_MAX_ENCODED_BYTES = 1 << 30
"""Longest file of a compressed format; their plugins may read the whole of it into memory."""

_READ_AT_ONCE = 16 << 20
"""Files up to this many bytes are read in one go: faster than the many small reads of the plugins."""

_STRIP_PIXELS = 1 << 20
"""About how many pixels of a large picture are converted at once."""

THUMBNAIL_SIDE = 256
"""The long side of a thumbnail, at most."""

_TRUNCATED = "the file ends before the picture does"
_CUT_OFF = re.compile("truncated|not enough|reached eof|requires a buffer|expected to read", re.I)
_UNSUPPORTED = re.compile("unsupported|unknown pixel mode|not available|not installed", re.I)


# ---- Formats ----


@dataclass(frozen=True)
class _Format:
    name: str
    module: str
    plugin: str
    extensions: tuple[str, ...]
    compressed: bool = True


_JPEG = _Format("JPEG", "PIL.JpegImagePlugin", "JpegImageFile", (".jpg", ".jpeg", ".jpe", ".jfif"))
_PNG = _Format("PNG", "PIL.PngImagePlugin", "PngImageFile", (".png", ".apng"))
_WEBP = _Format("WEBP", "PIL.WebPImagePlugin", "WebPImageFile", (".webp",))
_GIF = _Format("GIF", "PIL.GifImagePlugin", "GifImageFile", (".gif",))
_BMP = _Format("BMP", "PIL.BmpImagePlugin", "BmpImageFile", (".bmp",), compressed=False)
_DIB = _Format("DIB", "PIL.BmpImagePlugin", "DibImageFile", (".dib",), compressed=False)
_TIFF = _Format("TIFF", "PIL.TiffImagePlugin", "TiffImageFile", (".tif", ".tiff"), compressed=False)
_JPEG2000 = _Format(
    "JPEG2000",
    "PIL.Jpeg2KImagePlugin",
    "Jpeg2KImageFile",
    (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
)
_PPM = _Format("PPM", "PIL.PpmImagePlugin", "PpmImageFile", (".ppm", ".pgm", ".pbm", ".pnm"), compressed=False)
_AVIF = _Format("AVIF", "PIL.AvifImagePlugin", "AvifImageFile", (".avif", ".avifs"))
_HEIF = _Format("HEIF", "pillow_heif", "HeifImageFile", (".heic", ".heics", ".heif", ".heifs", ".hif"))

_FORMATS = (_JPEG, _PNG, _WEBP, _GIF, _BMP, _DIB, _TIFF, _JPEG2000, _PPM, _AVIF, _HEIF)

ALLOWED_EXTENSIONS: frozenset[str] = frozenset(e for f in _FORMATS for e in f.extensions)
"""Extensions, lower case with the dot, of the files worth opening; the content then decides."""


def is_allowed_extension(path: str | os.PathLike[str]) -> bool:
    """Whether the name ends like an image, whatever its case. Nothing is read."""
    return PurePath(path).suffix.lower() in ALLOWED_EXTENSIONS


_MAGIC: tuple[tuple[bytes, _Format], ...] = (
    (b"\xff\xd8\xff", _JPEG),
    (b"\x89PNG\r\n\x1a\n", _PNG),
    (b"GIF87a", _GIF),
    (b"GIF89a", _GIF),
    (b"II*\0", _TIFF),
    (b"MM\0*", _TIFF),
    (b"II+\0", _TIFF),
    (b"MM\0+", _TIFF),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", _JPEG2000),
    (b"\xff\x4f\xff\x51", _JPEG2000),
    (b"BM", _BMP),
)
_DIB_HEADER_SIZES = frozenset({12, 40, 52, 56, 64, 108, 124})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_OTHER_MAGIC: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (re.compile(rb"\s*<(!doctype html|html)", re.I), "not an image", "it is a web page"),
    (re.compile(rb"PK\x03\x04"), "not an image", "it is a ZIP archive"),
    (re.compile(rb"%PDF-"), "unsupported format", "PDF"),
    (re.compile(rb"%!PS"), "unsupported format", "PostScript"),
    (re.compile(rb"8BPS"), "unsupported format", "Photoshop"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "unsupported format", "JPEG XL"),
    (re.compile(rb"\s*(<\?xml[^>]*>)?\s*<svg", re.I), "unsupported format", "SVG"),
)


def _recognise(head: bytes) -> _Format:
    """The format of a file by its first bytes (32 or more, where it has as many).

    Raises InvalidImageError: "not an image" or "unsupported format".
    """
    for magic, image_format in _MAGIC:
        if head.startswith(magic):
            return image_format
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _WEBP
    if head[4:8] == b"ftyp":
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(_u32(head, 0), len(head)), 4)}
        if brands & {b"avif", b"avis"}:
            return _AVIF
        if brands & _HEIF_BRANDS:
            return _HEIF
        raise InvalidImageError("not an image", "it is a video or another media file")
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return _PPM
    if len(head) >= 16 and int.from_bytes(head[:4], "little") in _DIB_HEADER_SIZES:
        return _DIB
    for pattern, reason, detail in _OTHER_MAGIC:
        if pattern.match(head):
            raise InvalidImageError(reason, detail)
    raise InvalidImageError("not an image", "its content is of no image format known here")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "big")


# ---- Recipes ----


@dataclass(frozen=True)
class Recipe:
    """How an encoder wants its images: resize, centre crop, normalise. Part of the encoder's fingerprint."""

    size: int
    """Side of the square that the encoder takes, in pixels."""
    crop: float = 1.0
    """Share of the short side that the centre crop keeps, above 0 and up to 1."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, of values in [0, 1]; subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, of values in [0, 1]; divided by."""
    resize: Literal["box", "shortest", "squash"] = "box"
    """`box` crops exactly the centre. `shortest` does as torchvision and open_clip do: the short side is resized to
    `size / crop`, rounded, and the centre of whole pixels is cropped. `squash` resizes both sides to that, whatever
    their ratio."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, not {self.crop}")

    @property
    def min_side(self) -> int:
        """The short side a picture needs, so that this recipe gives what it would of all its pixels; see `open_image`.

        A `box` is only never enlarged. The others follow a reference, from which they stay away by less than 1/255 a
        pixel on average, since the decoder of a JPEG, which scales in another way, only does so down to a few times the
        pixels they need.
        """
        return math.ceil(self.size / self.crop) if self.resize == "box" else math.ceil(_SPARE * self._resized)

    @property
    def _resized(self) -> int:
        """What `shortest` and `squash` resize to before they crop."""
        return round(self.size / self.crop)


_SPARE = 3.9
"""Pixels a side for each one of `shortest` and `squash` that are left to be resized as the reference does.

What is more may be averaged or scaled in other ways before. With 4, photos of 12 megapixels would be decoded at full
scale for 384 pixels. With 3, differences are twice as large, and above 1/255 where there is much fine detail.
"""


IMAGENET_RECIPE = Recipe(size=224, interpolation="bilinear")
"""The default of `preprocess_image`: 224 pixels, bilinear, the mean and standard deviation of ImageNet."""


# ---- Opening ----


@dataclass(frozen=True)
class OpenedImage:
    """A picture that has been decoded whole and is ready to be shown or encoded."""

    image: Image.Image
    """RGB, upright, perhaps of a reduced scale. May be the very picture that was given: read only."""
    area: tuple[float, float, float, float]
    """Left, top, right and bottom of the picture in `image`: at a reduced scale it may end within the last pixels."""
    width: int
    """Of the upright picture at full scale, as `height` is."""
    height: int
    format: str
    """Pillow's name of the format, such as "JPEG"; empty for what never was a file."""
    taken: str | None
    """When the photo was taken, in ISO 8601, with an offset where the camera wrote one."""


def open_image(
    source: ImageSource, *, min_side: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS, rotation: int = 0
) -> OpenedImage:
    """Decode one image, upright and in RGB. Of a file with many frames or pages, only the first is touched.

    `source` is a path, `bytes` (the encoded image, not a path), a binary file (read from where it stands), a
    PIL image, or an array: (H, W), (H, W, 3) or (H, W, 4), of uint8, or of floats in [0, 1].

    With `min_side`, the caller needs a short side of only so many pixels, and the picture may come back
    smaller than it is, but not below that.

    `rotation` are the degrees, 0, 90, 180 or 270, by which a picture is turned counterclockwise that does not tell
    itself how it must be turned to be upright.

    Transparency is laid over white. 16-bit values are scaled by their whole range. Values of 32-bit integers
    and floats, which have no agreed range, are scaled by the first of 0-1 (floats only), 0-255 and 0-65535
    that holds them all, otherwise by their own least and greatest; what is not a number becomes black.

    `max_pixels` is checked before memory is taken. A picture takes for a moment, beside the bytes of its file, up to
    14 bytes a pixel at the scale it is decoded at (a progressive JPEG always at full scale); where the decoder itself
    needs much, 17 (WebP, TIFF), 21 (HEIF) or 29 (JPEG 2000). Pictures of more than 32 megapixels are decoded one at
    a time, however many threads there are. Up to `max_pixels` Pillow's own limit is out of force, except in GIF files.

    A file that ends too early is refused. Damage that its format cannot tell (pixel data overwritten, or an
    end marker set too early) is not noticed.

    Raises InvalidImageError whatever is wrong with the image, and TypeError if `source` is nothing of the
    above.
    """
    from PIL import Image

    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side must be at least 1, not {min_side}")
    if rotation not in _ORIENTATION_OF:
        raise ValueError(f"rotation must be 0, 90, 180 or 270, not {rotation}")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), min_side, max_pixels, rotation)
    if isinstance(source, (str, os.PathLike)):
        with open_regular_file(os.fspath(source)) as file:
            return _decode(file, min_side, max_pixels, rotation)
    if isinstance(source, Image.Image):
        return _from_pil(source, min_side, max_pixels, rotation)
    numpy = sys.modules.get("numpy")  # whoever holds an array has imported it
    if numpy is not None and isinstance(source, numpy.ndarray):
        return _from_pil(_array_to_pil(source, max_pixels), min_side, max_pixels, rotation)
    if isinstance(source, io.BufferedReader) and source.seekable() and source.tell() == 0:
        return _decode(source, min_side, max_pixels, rotation)
    if hasattr(source, "read"):
        return _decode(io.BytesIO(_read_all(cast("IO[bytes]", source))), min_side, max_pixels, rotation)
    raise TypeError(f"cannot open an image from {type(source).__name__}: give a path, bytes, file, PIL image or array")


def _decode(file: IO[bytes], min_side: int | None, max_pixels: int, rotation: int) -> OpenedImage:
    """Decode the encoded image in `file`, which is seekable and stands at 0."""
    try:
        image_format, claimed_pixels = _identify(file, max_pixels)
    except OSError as error:
        raise InvalidImageError("cannot be read", _os_message(error)) from error
    plugin = _load_plugin(image_format)
    orientation, taken, scale = 1, None, 1
    with _pillow_is_quiet:
        try:
            with _pillow_limit_lifted(claimed_pixels):
                image = plugin(file)
            width, height = image.size
            _check_pixels(width, height, max_pixels)
            if image_format is _TIFF:
                _check_tiles(image, max_pixels)
                taken = _tiff_taken(image)
            elif image_format is _JPEG:
                if "progressive" in image.info:
                    _check_scans(file)
                if min_side is not None and image.draft(None, (min_side, min_side)) is not None:
                    scale = image.decoderconfig[0]
            with _turn(_pixels_in_memory(image, width, height)):
                loaded = _load_eighth(image, file) if scale == 8 else None
                if loaded is None:
                    with _pillow_limit_lifted(width * height):
                        image.load()
                    loaded = image
                if image_format is not _TIFF:  # Pillow turns TIFF files upright by itself
                    orientation, taken = _exif_fields(image.info.get("exif"))
                if orientation == 1:
                    orientation = _ORIENTATION_OF[rotation]
                rgb = _to_rgb(loaded, min_side)
                scale *= _shrink_factor(loaded.size, min_side)
                del image, loaded  # turning a large picture takes memory for another one
                area = _area(rgb.size, width / scale, height / scale, orientation)
                rgb = _upright(rgb, orientation)
        except InvalidImageError:
            raise
        except Exception as error:  # hostile data makes the plugins raise nearly anything
            _raise_invalid(error, image_format, file)
    if orientation >= 5:
        width, height = height, width
    return OpenedImage(rgb, area, width, height, image_format.name, taken)


def _identify(file: IO[bytes], max_pixels: int) -> tuple[_Format, int]:
    """The format of a file, and the pixels it claims to have where its plugin would not wait for our check.

    Leaves the file at 0. Raises InvalidImageError for what need not be decoded to be refused, and OSError.
    """
    head = file.read(512)
    if not head:
        raise InvalidImageError("empty file")
    image_format = _recognise(head)
    length = file.seek(0, os.SEEK_END)
    if image_format.compressed and length > _MAX_ENCODED_BYTES:
        raise InvalidImageError("too large", f"{length:,} bytes, more than an image needs")
    if image_format is _JPEG2000 and _ends_early(image_format, file):  # its decoder is lenient
        raise InvalidImageError("truncated", _TRUNCATED)
    # The plugin of WebP takes the memory as soon as it opens a file.
    width, height = _webp_size(head) if image_format is _WEBP else (0, 0)
    _check_pixels(width, height, max_pixels)
    file.seek(0)
    return image_format, width * height


def _load_eighth(image: Image.Image, file: IO[bytes]) -> Image.Image | None:
    """What `image.load` would give of a JPEG at the scale 1/8, in less time, or None."""
    return decode_eighth(file.getvalue(), image.size, image.mode) if isinstance(file, io.BytesIO) else None


def _from_pil(image: Image.Image, min_side: int | None, max_pixels: int, rotation: int) -> OpenedImage:
    _check_pixels(*image.size, max_pixels)
    with _pillow_is_quiet:
        try:
            with _turn(image.width * image.height):
                image.load()
                orientation, taken = _exif_fields(image.info.get("exif"))
                if orientation == 1:
                    orientation = _ORIENTATION_OF[rotation]
                rgb = _to_rgb(image, min_side)
                scale = _shrink_factor(image.size, min_side)
                area = _area(rgb.size, image.width / scale, image.height / scale, orientation)
                rgb = _upright(rgb, orientation)
        except Exception as error:
            _raise_invalid(error)
    width, height = image.size
    if orientation >= 5:
        width, height = height, width
    return OpenedImage(rgb, area, width, height, image.format or "", taken)


def _array_to_pil(array: NDArray[Any], max_pixels: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    shape = array.shape
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
        raise InvalidImageError("unsupported array", f"shape {shape}, not (H, W), (H, W, 3) or (H, W, 4)")
    _check_pixels(shape[1], shape[0], max_pixels)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # false for nan as well
            raise InvalidImageError("unsupported array", "floats must all be in [0, 1]")
        array = _floats_to_bytes(array)
    elif array.dtype != np.uint8:
        raise InvalidImageError("unsupported array", f"dtype {array.dtype}, not uint8 or a float in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(array))


def _floats_to_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Floats (H, W, ...) in [0, 1] to 0-255, a few rows at a time: on the way there are two copies of them."""
    import numpy as np

    pixels = np.empty(array.shape, np.uint8)
    rows = max(1, _STRIP_PIXELS // array.shape[1])
    for top in range(0, len(array), rows):
        pixels[top : top + rows] = array[top : top + rows] * 255 + 0.5
    return pixels


@contextmanager
def open_regular_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, without ever waiting for it: a fifo or a device is refused."""
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise InvalidImageError(*_open_failure(path, error)) from error
    except ValueError as error:  # a null character in the name
        raise InvalidImageError("missing", str(error)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidImageError("not a regular file", _kind_of_file(status.st_mode))
    with open(descriptor, "rb") as file:
        if status.st_size > _READ_AT_ONCE:
            yield file
            return
        try:
            content = file.read()
        except OSError as error:
            raise InvalidImageError("cannot be read", _os_message(error)) from error
    yield io.BytesIO(content)


def _open_failure(path: str, error: OSError) -> tuple[str, str]:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.islink(path):
            return "dangling link", "what it points to does not exist"
        return "missing", "there is no such file"
    if error.errno == errno.ELOOP:
        return "symlink loop", "the link leads back to itself"
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.path.isdir(path):
            return "not a regular file", "a directory"
        return "permission denied", "it may not be read by this user"
    if error.errno == errno.ENXIO:
        return "not a regular file", "a socket or a device"
    return "cannot be read", _os_message(error)


def _kind_of_file(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a directory"
    return "a fifo" if stat.S_ISFIFO(mode) else "a device"


def _os_message(error: OSError) -> str:
    return error.strerror or str(error)


def _read_all(file: IO[bytes]) -> bytes:
    try:
        content = file.read(_MAX_ENCODED_BYTES + 1)
    except OSError as error:
        raise InvalidImageError("cannot be read", _os_message(error)) from error
    if not isinstance(content, bytes):
        raise TypeError("the file must be opened in binary mode")
    if len(content) > _MAX_ENCODED_BYTES:
        raise InvalidImageError("too large", f"more than {_MAX_ENCODED_BYTES:,} bytes")
    return content


def _load_plugin(image_format: _Format) -> type[ImageFile.ImageFile]:
    try:
        module = import_module(image_format.module)
    except ImportError as error:
        if image_format is not _HEIF:
            raise
        detail = "HEIC needs an extra: pip install 'pixmatcher[heif]'"
        raise InvalidImageError("unsupported format", detail) from error
    if image_format is _TIFF:
        _silence_libtiff()
    return cast("type[ImageFile.ImageFile]", getattr(module, image_format.plugin))


@cache
def _silence_libtiff() -> None:
    """Keep libtiff from writing to standard error what Pillow raises anyway.

    Where Pillow is not linked to libtiff in a way that lets it be found, a damaged TIFF file prints a line.
    """
    import ctypes

    from PIL import _imaging

    with suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _raise_invalid(error: Exception, image_format: _Format | None = None, file: IO[bytes] | None = None) -> NoReturn:
    """Turn what Pillow raised into an InvalidImageError with the reason that fits."""
    from PIL.Image import DecompressionBombError

    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, DecompressionBombError):
        reason = "too many pixels"
    elif isinstance(error, MemoryError):
        reason, text = "out of memory", "there is not enough memory to decode it"
    elif _CUT_OFF.search(text) or (image_format is not None and file is not None and _ends_early(image_format, file)):
        reason, text = "truncated", _TRUNCATED
    elif _UNSUPPORTED.search(text):
        reason = "unsupported format"
    else:
        reason = "damaged"
    raise InvalidImageError(reason, text) from error


def _ends_early(image_format: _Format, file: IO[bytes]) -> bool:
    """Whether the end of the file is not the end of the format, as far as can be told without decoding it."""
    try:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 12))
        tail = file.read(12)
        if image_format is _JPEG:
            return not tail.endswith(b"\xff\xd9")
        if image_format is _PNG:
            return tail[4:8] != b"IEND"
        if image_format is _GIF:
            return not tail.endswith(b";")
        file.seek(0)
        head = file.read(12)
        if image_format is _WEBP:
            return length < 8 + int.from_bytes(head[4:8], "little")
        if image_format is _JPEG2000 and head.startswith(b"\xff\x4f"):
            return not tail.endswith(b"\xff\xd9")
        if image_format in (_AVIF, _HEIF, _JPEG2000):
            return _last_box_is_cut(file, length)
    except (OSError, ValueError):  # the file is closed or gone
        return False
    return False


def _last_box_is_cut(file: IO[bytes], length: int) -> bool:
    """Whether a box of an ISO base media file claims more bytes than there are."""
    offset = 0
    while offset < length:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8:
            return True
        size = _u32(head, 0)
        if size == 0:  # up to the end of the file
            return False
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:
            return False
        offset += size
    return offset > length


# ---- Limits ----


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidImageError("too many pixels", f"{width} x {height}, the limit is {max_pixels:,}")


def _check_tiles(image: Any, max_pixels: int) -> None:
    """Check the tiles of a TIFF file: each takes a buffer of its own, however small the picture is."""
    _check_pixels(int(image.tag_v2.get(322, 1)), int(image.tag_v2.get(323, 1)), max_pixels)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height from the first 30 bytes of a WebP file; (0, 0) where they are not to be found."""
    if len(head) >= 30:
        chunk = head[12:16]
        if chunk == b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        if chunk == b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return 0, 0


_MAX_SCANS = 500


def _check_scans(file: IO[bytes]) -> None:
    """Refuse a progressive JPEG of absurdly many scans: each goes through the whole picture once more."""
    position = file.tell()
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(1 << 20):
        scans += (last + block).count(b"\xff\xda")  # never within the data of a scan, where 0xff is escaped
        last = block[-1:]
    file.seek(position)
    if scans > _MAX_SCANS:
        raise InvalidImageError("too many scans", f"{scans:,} in one picture")


_HUGE_PIXELS = 32_000_000
"""Pictures of more pixels than this are decoded one at a time."""

_huge_turn = threading.RLock()  # of a thread, so that a file that opens images while it is read cannot block itself


def _turn(pixels: int) -> AbstractContextManager[object]:
    """The right to decode a picture of so many pixels: small ones have it at once, huge ones wait for each other.

    So threads that meet several huge pictures at the same moment take the memory of one.
    """
    return _huge_turn if pixels > _HUGE_PIXELS else nullcontext()


def _pixels_in_memory(image: Image.Image, width: int, height: int) -> int:
    """The pixels of a picture of full scale `width` x `height` that decoding it will hold."""
    if "progressive" in image.info:  # each scan adds to the coefficients of the whole, however small it will be
        return width * height
    return image.width * image.height


_limit_lock = threading.Lock()
_limit_lifters = 0
_limit_of_pillow: int | None = None


@contextmanager
def _pillow_limit_lifted(pixels: int) -> Iterator[None]:
    """Put Pillow's own limit out of force while a picture above it, though within ours, is opened or loaded.

    Pillow's limit is a global that some plugins look up, so the first thread that needs it away takes it away
    and the last one puts it back. `Image.open`, which checks it for every format, is not used here.
    """
    global _limit_lifters, _limit_of_pillow
    from PIL import Image

    with _limit_lock:
        if _limit_lifters == 0:
            _limit_of_pillow = Image.MAX_IMAGE_PIXELS
        needed = _limit_of_pillow is not None and pixels > _limit_of_pillow
        if needed:
            _limit_lifters += 1
            Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        if needed:
            with _limit_lock:
                _limit_lifters -= 1
                if _limit_lifters == 0:
                    Image.MAX_IMAGE_PIXELS = _limit_of_pillow


class _PillowIsQuiet(threading.local):
    """Silences Pillow's warnings, in the threads that are inside of this context and in no other.

    What Pillow warns of (damaged metadata and the like) does not concern the user of a picture that could be
    read. `warnings.catch_warnings` swaps the filters of the whole process and so breaks in threads. This
    object instead stands in one filter, in the place of the pattern that the warning's module must match, and
    only matches where it should.
    """

    def __init__(self) -> None:
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        filters = cast("list[Any]", warnings.filters)
        if not filters or filters[0] is not _quiet_filter:  # other filters may have been set since, or these restored
            filters.insert(0, _quiet_filter)

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1

    def match(self, module: str) -> bool:
        return self._depth > 0 and module.startswith(("PIL.", "pillow_heif"))


_pillow_is_quiet = _PillowIsQuiet()
_quiet_filter = ("ignore", None, Warning, _pillow_is_quiet, 0)


# ---- Colour ----


def _to_rgb(image: Image.Image, min_side: int | None) -> Image.Image:
    """Any mode of a loaded picture to RGB, shrunk as far as `min_side` lets it; the very picture if nothing is to do.

    A large picture is converted and shrunk in strips, so that no second one of its size is made on the way.
    """
    from PIL import Image

    factor = _shrink_factor(image.size, min_side)
    if image.mode == "RGB" and "transparency" not in image.info:
        return _reduce(image, factor)
    convert = _converter(image)
    width, height = image.size
    if width * height <= _STRIP_PIXELS:
        return _reduce(convert(image), factor)
    rgb = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    for left, top, strip in _strips(image, factor):
        rgb.paste(_reduce(convert(strip), factor), (left // factor, top // factor))
    return rgb


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, int, Image.Image]]:
    """Copies of the parts of a picture, each with its left and top, which are multiples of `multiple`.

    They are as wide as the picture, unless a single row of it is too much, and so high that they have about
    `_STRIP_PIXELS`.
    """
    width, height = image.size
    columns = min(width, _STRIP_PIXELS)
    rows = max(1, _STRIP_PIXELS // columns)
    columns, rows = (math.ceil(n / multiple) * multiple for n in (columns, rows))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            box = (left, top, min(left + columns, width), min(top + rows, height))
            with _pillow_limit_lifted(width * height):
                strip = image.crop(box)
            yield left, top, strip


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What turns a loaded picture, or any part of it, into RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        low, high = _range(image)
        return lambda part: _range_to_rgb(part, low, high)
    if image.mode == "LAB":
        return _lab_converter()
    if image.has_transparency_data:
        return _over_white
    return lambda part: part.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "La":  # which Pillow turns into LA only
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _range_to_rgb(image: Image.Image, low: float, high: float) -> Image.Image:
    """Grey of 16 or 32 bits or floats to RGB: `low` becomes black and `high` white."""
    import numpy as np
    from PIL import Image

    scaled = np.asarray(image).astype(np.float32)
    scaled -= low
    scaled *= 255.0 / (high - low) if high > low else 0.0
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(scaled, 0, 255, out=scaled)
    scaled += 0.5
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of a grey picture that are black and white; see `open_image`."""
    if image.mode.startswith("I;16"):
        return 0.0, 4095.0 if _is_12_bit(image) else 65535.0
    if image.format in ("PPM", "PNG"):
        return 0.0, 65535.0  # their 16 bits, which Pillow holds in 32
    extremes = _finite_extremes(image)
    if not extremes:
        return 0.0, 1.0
    low, high = min(extremes), max(extremes)
    if low >= 0:
        for usual in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
            if high <= usual:
                return 0.0, usual
    return low, high


def _finite_extremes(image: Image.Image) -> list[float]:
    """The least and the greatest number of each strip that has one."""
    import numpy as np

    extremes: list[float] = []
    for _, _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            extremes += float(finite.min()), float(finite.max())
    return extremes


def _is_12_bit(image: Image.Image) -> bool:
    return getattr(image, "tag_v2", {}).get(258) == (12,)


def _lab_converter() -> Callable[[Image.Image], Image.Image]:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    return lambda part: cast("Image.Image", ImageCms.applyTransform(part, transform))


def _shrink_factor(size: tuple[int, int], min_side: int | None) -> int:
    """How many pixels a side are averaged into one: down to twice `min_side`, the rest is left to `fit_image`."""
    return 1 if min_side is None else max(1, min(size) // (2 * min_side))


def _reduce(image: Image.Image, factor: int) -> Image.Image:
    """Average whole blocks of pixels."""
    if factor == 1:
        return image
    from PIL.Image import Image

    return Image.reduce(image, factor)  # not image.reduce, which means another thing in JPEG 2000 files


# ---- EXIF ----

_ORIENTATION, _EXIF_IFD, _TAKEN, _TAKEN_OFFSET = 0x0112, 0x8769, 0x9003, 0x9011
_TAKEN_PATTERN = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_OFFSET_PATTERN = re.compile(r"[+-]\d\d:\d\d")


def _exif_fields(exif: object) -> tuple[int, str | None]:
    """Orientation (1 to 8) and time of an EXIF block; (1, None) where there are none.

    Pillow's own reader decodes every tag, warns and raises; this one looks at four tags and never does.
    """
    if not isinstance(exif, bytes):
        return 1, None
    data = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 1, None
    try:
        main = _ifd_values(data, order, struct.unpack_from(order + "I", data, 4)[0])
        orientation = main.get(_ORIENTATION, 1)
        offset = main.get(_EXIF_IFD)
        taken = _ifd_values(data, order, offset) if isinstance(offset, int) else {}
    except struct.error:  # it ends too early
        return 1, None
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    return orientation, _iso_time(taken.get(_TAKEN), taken.get(_TAKEN_OFFSET))


def _ifd_values(data: bytes, order: str, offset: int) -> dict[int, int | str]:
    """The wanted tags of one directory of an EXIF block. Raises struct.error where it is cut off."""
    values: dict[int, int | str] = {}
    (count,) = struct.unpack_from(order + "H", data, offset)
    for at in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", data, at)
        if tag not in (_ORIENTATION, _EXIF_IFD, _TAKEN, _TAKEN_OFFSET):
            continue
        if kind == 3:
            values[tag] = struct.unpack_from(order + "H", data, at + 8)[0]
        elif kind == 4:
            values[tag] = struct.unpack_from(order + "I", data, at + 8)[0]
        elif kind == 2 and 4 < length <= 64:
            (start,) = struct.unpack_from(order + "I", data, at + 8)
            values[tag] = data[start : start + length].split(b"\0")[0].decode("ascii", "replace")
    return values


def _iso_time(taken: object, offset: object) -> str | None:
    match = _TAKEN_PATTERN.match(taken) if isinstance(taken, str) else None
    if match is None:
        return None
    text = "{}-{}-{}T{}:{}:{}".format(*match.groups())
    if isinstance(offset, str) and _OFFSET_PATTERN.fullmatch(offset.strip()) and _is_time(text + offset.strip()):
        return text + offset.strip()
    return text if _is_time(text) else None


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _tiff_taken(image: Any) -> str | None:
    try:
        ifd = image.getexif().get_ifd(_EXIF_IFD)
    except Exception:  # as hostile as any other part of the file, and not needed
        return None
    return _iso_time(ifd.get(_TAKEN), ifd.get(_TAKEN_OFFSET))


# The EXIF orientation that says the same as degrees counterclockwise.
_ORIENTATION_OF = {0: 1, 90: 8, 180: 3, 270: 6}


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[orientation])


def _area(size: tuple[int, int], width: float, height: float, orientation: int) -> tuple[float, float, float, float]:
    """Where a picture of `width` x `height` lies in its image of whole pixels once that is upright."""
    spare_x, spare_y = size[0] - width, size[1] - height  # on the right and at the bottom, as long as it is not turned
    left, right = (spare_x, 0.0) if orientation in (2, 3, 7, 8) else (0.0, spare_x)
    top, bottom = (spare_y, 0.0) if orientation in (3, 4, 6, 7) else (0.0, spare_y)
    columns, rows = size
    if orientation >= 5:
        columns, rows, left, top, right, bottom = rows, columns, top, left, bottom, right
    return left, top, columns - right, rows - bottom


# ---- Thumbnails ----


def make_thumbnail(image: Image.Image) -> bytes:
    """A JPEG of an RGB picture, its long side at most `THUMBNAIL_SIDE` pixels, without any metadata."""
    thumbnail = image.copy()
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    encoded = io.BytesIO()
    thumbnail.info.clear()  # whatever the camera noted
    thumbnail.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()


# ---- Preparing for an encoder ----


def fit_image(image: Image.Image | OpenedImage, recipe: Recipe) -> NDArray[np.uint8]:
    """Crop and resize an image as the recipe says.

    `image` is RGB, of any size; what `open_image` gave at a reduced scale is fitted by its full size. Returns a
    contiguous uint8 array (size, size, 3).
    """
    import numpy as np

    return np.array(_fit(image, recipe))


def _fit(image: Image.Image | OpenedImage, recipe: Recipe) -> Image.Image:
    if isinstance(image, OpenedImage):
        pixels, area, full = image.image, image.area, (image.width, image.height)
    else:
        pixels, area, full = image, (0.0, 0.0, *image.size), image.size
    target = (recipe.size, recipe.size)
    if recipe.resize == "box":
        width, height = pixels.size
        side = min(width, height) * recipe.crop
        left, top = (width - side) / 2, (height - side) / 2
        # With a gap of 3, what is first averaged in whole blocks cannot be told from what is resized in one go.
        return _resize(pixels, target, recipe, (left, top, left + side, top + side), reducing_gap=3.0)
    columns, rows = _resized_size(full, recipe)
    x, y = (area[2] - area[0]) / columns, (area[3] - area[1]) / rows
    first_column, first_row = (round((side - recipe.size) / 2) for side in (columns, rows))
    left, top = area[0] + first_column * x, area[1] + first_row * y
    right, bottom = left + recipe.size * x, top + recipe.size * y
    # Since version 13, Pillow begins with the direction that is shrunk more, going by the picture, not by the box.
    above, below = math.floor(top - _reach(y)), math.ceil(bottom + _reach(y))
    if above > 0 or below < pixels.height:
        above, below = max(above, 0), min(below, pixels.height)
        pixels = pixels.crop((0, above, pixels.width, below))
        top, bottom = top - above, bottom - above
    return _resize(pixels, target, recipe, (left, top, right, bottom))


def _reach(scale: float) -> float:
    """How far from the middle of a pixel any filter looks, where the picture is shrunk by `scale`."""
    return 3 * max(1.0, scale) + 1


def _resized_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """Width and height that a picture of `size` is resized to before its centre is cropped, as torchvision does it."""
    resized = recipe._resized
    if recipe.resize == "squash":
        return resized, resized
    width, height = size
    long = int(resized * max(size) / min(size))
    return (resized, long) if width <= height else (long, resized)


def _resize(
    image: Image.Image,
    size: tuple[int, int],
    recipe: Recipe,
    box: tuple[float, float, float, float],
    reducing_gap: float = _SPARE,
) -> Image.Image:
    """Resize what is in the box alone, so that a picture of 3000 x 2 is never blown up as a whole."""
    from PIL.Image import Resampling

    return image.resize(size, Resampling[recipe.interpolation.upper()], box, reducing_gap)


def normalize_pixels(pixels: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """Bring uint8 pixels (..., H, W, 3) to the float32 (..., 3, H, W) that the encoder takes."""
    import numpy as np

    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must be uint8 (..., H, W, 3), not {pixels.dtype} {pixels.shape}")
    *batch, height, width, _ = pixels.shape
    out = np.empty((*batch, 3, height, width), dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(recipe.mean, recipe.std, strict=True)):
        plane = out[..., channel, :, :]
        np.multiply(pixels[..., channel], np.float32(1 / (255 * std)), out=plane, dtype=np.float32)
        plane -= np.float32(mean / std)
    return out


@overload
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["array"] = "array",
    to_tensor: Literal[False] = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> NDArray[np.float32]: ...
@overload
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["pil"],
    to_tensor: Literal[False] = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image: ...
@overload
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["array"] = "array",
    to_tensor: Literal[True],
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> torch.Tensor: ...
def preprocess_image(
    source: ImageSource,
    recipe: Recipe | None = None,
    *,
    target_size: tuple[int, int] | None = None,
    output: Literal["array", "pil"] = "array",
    to_tensor: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> NDArray[np.float32] | Image.Image | torch.Tensor:
    """Open an image and bring it to what an encoder takes; `IMAGENET_RECIPE` where no recipe is given.

    With a `target_size` (width, height) the whole picture is resized to that, whatever its shape.

    Returns a float32 array (3, size, size), or (3, height, width) with `target_size`; with `to_tensor=True` a
    `torch.Tensor` of the same, or with `output="pil"` the cropped and resized picture. Raises as `open_image` does, and
    PixMatcherError if a tensor is asked for and PyTorch is not installed.
    """
    if to_tensor:
        if output == "pil":
            raise ValueError("a PIL image is no tensor: leave out output or to_tensor")
        from_numpy = _from_numpy()
    import numpy as np

    recipe = recipe or IMAGENET_RECIPE
    if target_size is None:
        image = _fit(open_image(source, min_side=recipe.min_side, max_pixels=max_pixels), recipe)
    else:
        recipe = replace(recipe, size=max(target_size), crop=1.0, resize="squash")
        opened = open_image(source, min_side=recipe.min_side, max_pixels=max_pixels)
        image = _resize(opened.image, target_size, recipe, opened.area)
    if output == "pil":
        return image
    pixels = normalize_pixels(np.asarray(image), recipe)
    return from_numpy(pixels) if to_tensor else pixels


def _from_numpy() -> Callable[[NDArray[np.float32]], torch.Tensor]:
    try:
        import torch
    except ImportError as error:
        raise PixMatcherError("A tensor needs PyTorch: run `pip install 'pixmatcher[torch]'`.") from error
    return torch.from_numpy  # type: ignore[no-any-return]


def preprocess_images(
    sources: Iterable[ImageSource], recipe: Recipe | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.float32]:
    """Open many images and bring them to one float32 array (N, 3, size, size); see `preprocess_image`."""
    import numpy as np

    recipe = recipe or IMAGENET_RECIPE
    fitted = [
        fit_image(open_image(source, min_side=recipe.min_side, max_pixels=max_pixels), recipe) for source in sources
    ]
    if not fitted:
        return np.empty((0, 3, recipe.size, recipe.size), dtype=np.float32)
    return normalize_pixels(np.stack(fitted), recipe)
