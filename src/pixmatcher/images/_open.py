"""Open one image: find out its format, check its size, decode it, and make it upright and RGB."""

from __future__ import annotations

import io
import logging
import os
import sys
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeAlias, cast

from ..errors import InvalidImageError
from ._colour import array_to_pil, shrink_factor, to_rgb
from ._decoders import decoder_of
from ._endings import COMPLETED, complete_file, ends_early, ends_in_zeros
from ._formats import (
    ICO,
    JPEG,
    JPEG2000,
    JPEG_XL,
    PNG,
    RAW,
    TGA,
    TIFF,
    WEBP,
    ImageFormat,
    format_of,
    has_tga_footer,
    webp_size,
)
from ._icons import icon_picture
from ._jpeg import decode_eighth
from ._jpeg_xl import jpeg_xl_picture
from ._limits import (
    DEFAULT_MAX_PIXELS,
    MAX_ENCODED_BYTES,
    check_pixels,
    check_scans,
    check_tiles,
    decoding_slot,
    pixels_in_memory,
)
from ._metadata import NO_TAGS, PhotoTags, orientation_and_time
from ._orientation import ORIENTATION_OF_ROTATION, upright, upright_area
from ._pillow import load_plugin, pillow_limit_lifted, quiet_pillow
from ._profiles import colour_box
from ._raw import is_raw, raw_preview
from ._read import open_regular_file, os_message, read_all
from ._reasons import CUT_OFF, reason_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | Image.Image | NDArray[Any]"
"""What can be opened: a path, encoded bytes, a binary file, a PIL image, or an array (see `open_image`)."""

logger = logging.getLogger(__package__)


@dataclass(frozen=True)
class OpenedImage:
    """A decoded image, which can be shown and encoded."""

    image: Image.Image
    """RGB, upright, perhaps at a reduced scale. It may be the object that was given to `open_image`: do not change it.
    """
    area: tuple[float, float, float, float]
    """Left, top, right and bottom of the image in `image`: at a reduced scale it may end within the last pixels."""
    width: int
    """Width in pixels of the upright image at full scale."""
    height: int
    """Height in pixels of the upright image at full scale."""
    format: str
    """The name of the format, such as "JPEG" or "RAW"; empty if the image was not in a file."""
    taken: str | None
    """When the photo was taken, in ISO 8601, with the UTC offset if the file has one; the day alone if that is all."""
    missing: float | None = None
    """The greatest share of the picture, from 0 to 0.1, that can be missing because the end of the file is; None if the
    file has its end."""


def open_image(
    source: ImageSource, *, min_side: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS, rotation: int = 0
) -> OpenedImage:
    """Decode one image, upright and in RGB. Of a file with several frames or pages, only the first one is read.

    `source` is a path, `bytes` (the encoded image, not a path), a binary file (read from its current position), a
    PIL image, or an array: (H, W), (H, W, 3) or (H, W, 4), of uint8, or of floats in [0, 1].

    With `min_side`, the result may have a reduced scale, but its short side keeps that many pixels or all it has.

    A RAW file is opened by the largest preview in it, or developed in half size if it has none, in a process of its
    own; an icon by its largest picture; and an animated JPEG XL file by its last frame, which is what libjxl returns.

    `rotation` are the degrees, 0, 90, 180 or 270, by which an image is rotated counterclockwise if it has no
    orientation of its own.

    Values are turned to sRGB if the image has a colour profile of another colour space. Transparency is laid over
    white, or over grey if little of the picture could be seen on white.

    Unsigned values of 9 to 16 bits are scaled by their whole range, such as 0-4095. 32-bit and signed integers and
    floats, which have no fixed range, are scaled by the first of 0-1 (floats only), 0-255 and 0-65535 that holds them
    all (of signed 16 bits: 0-32767), otherwise by their own least and greatest; NaN becomes black.

    `max_pixels` is checked before memory is allocated. While an image is decoded, it takes up to 14 bytes a pixel at
    the scale of the decoder (a progressive JPEG always at full scale), besides the bytes of its file. Decoders that
    need much memory take 17 (WebP, TIFF), 21 (HEIF) or 29 (JPEG 2000); a TIFF of floats or of separate planes takes 14
    and its samples, which are refused above 32 bytes a pixel. Images of more than 32 megapixels are decoded one at a
    time, in all threads together. Pillow's own limit does not count up to `max_pixels`, except for GIF files.

    A JPEG that lacks only its end is decoded; `OpenedImage.missing` says how much of the picture is missing at most. If
    that is more than a tenth, a file that ends too early is refused, as it is in other formats, except WebP and JPEG
    2000 files that have all data of the picture. Damage that the format cannot detect (overwritten pixel data, or an
    end marker that is too early) is not noticed.

    Raises InvalidImageError if anything is wrong with the image; its message names the path. Raises TypeError if
    `source` has another type.
    """
    from PIL import Image

    if min_side is not None and min_side < 1:
        raise ValueError(f"min_side must be at least 1, not {min_side}")
    if rotation not in ORIENTATION_OF_ROTATION:
        raise ValueError(f"rotation must be 0, 90, 180 or 270, not {rotation}")
    if isinstance(source, bytes):
        return _decode_or_complete(io.BytesIO(source), min_side, max_pixels, rotation)
    if isinstance(source, (str, os.PathLike)):
        try:
            with open_regular_file(os.fspath(source)) as file:
                return _decode_or_complete(file, min_side, max_pixels, rotation)
        except InvalidImageError as error:
            error.args = (f"{os.fsdecode(source)}: {error}",)
            raise
    if isinstance(source, Image.Image):
        return _from_pil(source, min_side, max_pixels, rotation)
    numpy = sys.modules.get("numpy")  # a caller with an array has imported it
    if numpy is not None and isinstance(source, numpy.ndarray):
        return _from_pil(array_to_pil(source, max_pixels), min_side, max_pixels, rotation)
    if isinstance(source, io.BufferedReader) and source.seekable() and source.tell() == 0:
        return _decode_or_complete(source, min_side, max_pixels, rotation)
    if hasattr(source, "read"):
        return _decode_or_complete(io.BytesIO(read_all(cast("IO[bytes]", source))), min_side, max_pixels, rotation)
    raise TypeError(f"cannot open an image from {type(source).__name__}: give a path, bytes, file, PIL image or array")


def _decode_or_complete(file: IO[bytes], min_side: int | None, max_pixels: int, rotation: int) -> OpenedImage:
    """Decode the encoded image in `file`, also if it lacks only its end."""
    try:
        return _decode(file, min_side, max_pixels, rotation)
    except InvalidImageError as error:
        try:
            image_format = _format_in(file)
        except (InvalidImageError, OSError, ValueError):  # no format is known, or the file is closed
            raise error from error.__cause__
        error.decoder = decoder_of(image_format)
        if image_format not in COMPLETED.get(error.reason, ()):
            raise
        try:
            with quiet_pillow:
                completed, missing = complete_file(image_format, file, max_pixels)
        except InvalidImageError as refusal:
            refusal.decoder = error.decoder
            raise (error if error.reason == "damaged" else refusal) from error.__cause__
        try:
            return replace(_decode(completed, min_side, max_pixels, rotation), missing=missing)
        except InvalidImageError:
            raise error from error.__cause__


def _decode(
    file: IO[bytes], min_side: int | None, max_pixels: int, rotation: int, around: PhotoTags = NO_TAGS
) -> OpenedImage:
    """Decode the encoded image in `file`, which is seekable and at position 0.

    `around` are the tags of the file in which that was found, if it was.
    """
    try:
        image_format, claimed_pixels = _identify(file, max_pixels)
    except OSError as error:
        raise InvalidImageError("cannot be read", os_message(error)) from error
    if image_format in _EMBEDDED:
        return _decode_embedded(file, image_format, min_side, max_pixels, rotation)
    plugin = load_plugin(image_format)
    orientation, taken, scale = 1, None, 1
    with quiet_pillow:
        try:
            with pillow_limit_lifted(claimed_pixels):
                image = plugin(file)
            image.info |= colour_box(image_format, file)
            width, height = image.size
            check_pixels(width, height, max_pixels)
            if image_format is TIFF:
                check_tiles(image, max_pixels)
                orientation, taken = orientation_and_time(image, file, around)
            elif image_format is JPEG:
                if "progressive" in image.info:
                    check_scans(file)
                if min_side is not None and image.draft(None, (min_side, min_side)) is not None:
                    scale = image.decoderconfig[0]
            with decoding_slot(pixels_in_memory(image, width, height)):
                loaded = _load_eighth(image, file) if scale == 8 else None
                decoder = "Pillow" if loaded is None else "the JPEG decoder of PixMatcher"
                if loaded is None:
                    with pillow_limit_lifted(width * height):
                        image.load()
                    loaded = image
                if image_format is PNG and ends_in_zeros(image_format, file):
                    raise InvalidImageError("truncated", CUT_OFF)
                if image_format is TIFF:
                    width, height = loaded.size  # Pillow has made it upright, if it could
                else:
                    orientation, taken = orientation_and_time(image, file, around)
                if orientation == 1:
                    orientation = ORIENTATION_OF_ROTATION[rotation]
                rgb = to_rgb(loaded, min_side, image.info)
                scale *= shrink_factor(loaded.size, min_side)
                del image, loaded  # rotating a large image takes the memory of another one
                area = upright_area(rgb.size, width / scale, height / scale, orientation)
                rgb = upright(rgb, orientation)
        except InvalidImageError:
            raise
        except Exception as error:  # hostile data makes the plugins raise nearly anything
            _raise_invalid(error, image_format, file)
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s decoded %s, %d x %d pixels, scale 1/%d", decoder, image_format.name, width, height, scale)
    if orientation >= 5:
        width, height = height, width
    return OpenedImage(rgb, area, width, height, image_format.name, taken)


_EMBEDDED = {RAW: raw_preview, ICO: icon_picture, JPEG_XL: jpeg_xl_picture}
"""Formats of which a picture inside the file is decoded, and the function that returns it, encoded or decoded, and what
the file says about it."""


def _decode_embedded(
    file: IO[bytes], image_format: ImageFormat, min_side: int | None, max_pixels: int, rotation: int
) -> OpenedImage:
    """Decode the picture that represents a file of one of the formats in `_EMBEDDED`."""
    with quiet_pillow:
        try:
            picture, around = _EMBEDDED[image_format](file, max_pixels)
        except InvalidImageError:
            raise
        except Exception as error:
            _raise_invalid(error, image_format, file)
    if isinstance(picture, bytes):
        opened = _decode(io.BytesIO(picture), min_side, max_pixels, rotation, around)
    else:
        opened = _from_pil(picture, min_side, max_pixels, rotation, around)
    return replace(opened, format=image_format.name)


def _identify(file: IO[bytes], max_pixels: int) -> tuple[ImageFormat, int]:
    """Return the format of a file, and its number of pixels if its plugin allocates memory before our check.

    Leaves the file at position 0. Raises OSError, and InvalidImageError for files that are refused undecoded.
    """
    image_format = _format_in(file)
    length = file.seek(0, os.SEEK_END)
    if image_format.compressed and length > MAX_ENCODED_BYTES:
        raise InvalidImageError("too large", f"{length:,} bytes, more than an image needs")
    if image_format is JPEG2000 and ends_early(image_format, file):  # its decoder accepts such files
        raise InvalidImageError("truncated", CUT_OFF)
    if image_format is JPEG and ends_in_zeros(image_format, file):
        raise InvalidImageError("truncated", CUT_OFF)
    # The WebP plugin allocates the memory as soon as it opens a file.
    file.seek(0)
    width, height = webp_size(file.read(30)) if image_format is WEBP else (0, 0)
    check_pixels(width, height, max_pixels)
    file.seek(0)
    return image_format, width * height


def _format_in(file: IO[bytes]) -> ImageFormat:
    """Return the format of a file. Raises OSError, and InvalidImageError if it has none that is supported."""
    file.seek(0)
    head = file.read(512)
    if not head:
        raise InvalidImageError("empty file")
    try:
        image_format = format_of(head)
    except InvalidImageError:
        if not has_tga_footer(file):
            raise
        return TGA
    return RAW if image_format is TIFF and is_raw(file) else image_format


def _load_eighth(image: Image.Image, file: IO[bytes]) -> Image.Image | None:
    """Decode a JPEG at the scale 1/8, as `image.load` does but faster; return None if that is not possible."""
    return decode_eighth(file.getvalue(), image.size, image.mode) if isinstance(file, io.BytesIO) else None


def _from_pil(
    image: Image.Image, min_side: int | None, max_pixels: int, rotation: int, around: PhotoTags = NO_TAGS
) -> OpenedImage:
    check_pixels(*image.size, max_pixels)
    with quiet_pillow:
        try:
            with decoding_slot(image.width * image.height):
                image.load()
                orientation, taken = orientation_and_time(image, around=around)
                if orientation == 1:
                    orientation = ORIENTATION_OF_ROTATION[rotation]
                rgb = to_rgb(image, min_side, image.info)
                scale = shrink_factor(image.size, min_side)
                area = upright_area(rgb.size, image.width / scale, image.height / scale, orientation)
                rgb = upright(rgb, orientation)
        except Exception as error:
            _raise_invalid(error)
    width, height = image.size
    if orientation >= 5:
        width, height = height, width
    return OpenedImage(rgb, area, width, height, image.format or "", taken)


def _raise_invalid(
    error: Exception, image_format: ImageFormat | None = None, file: IO[bytes] | None = None
) -> NoReturn:
    """Raise the InvalidImageError for what Pillow raised, with the reason that fits."""
    cut_off = image_format is not None and file is not None and ends_early(image_format, file)
    reason, detail = reason_of(error, image_format.name if image_format is not None else "", cut_off=cut_off)
    raise InvalidImageError(reason, detail) from error
