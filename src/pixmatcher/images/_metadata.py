"""The orientation and the date of a photo, from wherever its file has them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from ._boxes import BoxMetadata, cr3_exif, heif_metadata, jp2_metadata
from ._dates import iso_date
from ._exif import ExifValues, read_exif
from ._iptc import iptc_date
from ._limits import MAX_METADATA_BYTES
from ._resources import IPTC
from ._xmp import XmpValues, read_xmp

if TYPE_CHECKING:
    from PIL import Image

_RAW_PROFILE = re.compile(r"raw profile type (exif|app1|xmp|iptc|8bim)", re.I)
_XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
_GIF_XMP = b"XMP DataXMP"

logger = logging.getLogger(__package__)


@dataclass(frozen=True)
class PhotoTags:
    """The orientation (1 to 8) and the time (ISO 8601) of a photo; None where they are not known."""

    orientation: int | None = None
    taken: str | None = None


NO_TAGS = PhotoTags()


def orientation_and_time(
    image: Image.Image, file: IO[bytes] | None = None, around: PhotoTags = NO_TAGS
) -> tuple[int, str | None]:
    """Return the orientation that is still to be applied (1 to 8) and the time of a photo (ISO 8601, or None).

    `image` was opened by Pillow from `file`, which is at any position and stays there or elsewhere; without it, only
    what Pillow has read counts. A TIFF file is given before it is decoded, because Pillow makes most of them upright
    then. All others are given after that: a PNG file may have metadata after its pixels. `around` are the tags of a
    file in which the image is: their time counts first, their orientation only if the image does not say its own.

    The first valid orientation counts, of EXIF or else of XMP. In HEIC and AVIF, where the decoder does what the
    properties `irot` and `imir` say, both count only if the image has no such property. The first valid time counts:
    that of EXIF (DateTimeOriginal, DateTimeDigitized, DateTime), XMP, IPTC, GPS, and "Creation Time" in PNG. Raises
    nothing.
    """
    try:
        return _Metadata(image, file).orientation_and_time(around)
    except Exception as error:  # metadata is optional, and hostile data can cause any exception in Pillow
        logger.debug("metadata cannot be read: %s", error)
        return around.orientation or 1, around.taken


def raw_tags(file: IO[bytes]) -> PhotoTags:
    """Return the orientation and the time of a RAW file. Raises OSError if it cannot be read."""
    exif = [read_exif(file), *map(read_exif, cr3_exif(file))]
    packets = [values.xmp for values in exif] + [jp2_metadata(file).xmp]  # CR3 has the box of JPEG 2000 for it
    return first_valid(exif, map(read_xmp, filter(None, packets)), (values.iptc for values in exif))


def first_valid(
    exif: Iterable[ExifValues],
    xmp: Iterable[XmpValues],
    iptc: Iterable[bytes] = (),
    known: PhotoTags = NO_TAGS,
) -> PhotoTags:
    """Return the first valid orientation and time of blocks of metadata, which are taken until both are found.

    What is `known` is not looked for. The time of the GPS counts only if no block says another one.
    """
    orientation, taken, located = known.orientation, known.taken, None
    for values in exif:
        orientation = orientation or values.orientation
        taken, located = taken or values.taken, located or values.located
        if orientation and taken:
            return PhotoTags(orientation, taken)
    for packet in xmp:
        orientation, taken = orientation or packet.orientation, taken or packet.taken
        if orientation and taken:
            return PhotoTags(orientation, taken)
    taken = taken or next((date for data in iptc if (date := iptc_date(data))), None)
    return PhotoTags(orientation, taken or located)


class _Metadata:
    """The blocks of metadata of one image; each kind is read only if the kinds before it do not say everything."""

    def __init__(self, image: Image.Image, file: IO[bytes] | None) -> None:
        self._image = image
        self._file = file
        self._format = image.format or ""
        self._boxes: BoxMetadata | None = None
        self._tiff = ExifValues()
        self._fixed: int | None = None
        """The orientation if EXIF and XMP have no say."""
        if self._format in ("HEIF", "AVIF"):
            self._boxes = heif_metadata(file) if file is not None else None
            if self._boxes is None or self._boxes.transformed:
                # libavif leaves the rotation to Pillow, whose plugin writes it to EXIF.
                by_plugin = read_exif(_bytes(image.info.get("exif"))).orientation if self._format == "AVIF" else 1
                self._fixed = by_plugin or 1
        elif self._format == "JPEG2000":
            self._boxes = jp2_metadata(file) if file is not None else None
        elif self._format == "TIFF":
            self._tiff = read_exif(file) if file is not None else ExifValues()
            if file is None or _pillow_turns(image):
                self._fixed = 1

    def orientation_and_time(self, around: PhotoTags) -> tuple[int, str | None]:
        found = first_valid(self._exif(), self._xmp(), self._iptc(), PhotoTags(self._fixed, around.taken))
        return found.orientation or around.orientation or 1, found.taken or self._creation_time()

    def _exif(self) -> Iterator[ExifValues]:
        """Yield what each EXIF block says."""
        if self._format == "TIFF":
            yield self._tiff
        if self._boxes is not None:
            yield read_exif(self._boxes.exif)
        else:
            yield read_exif(_bytes(self._image.info.get("exif")))
            for segment in self._segments():  # Pillow leaves unusual ones out, and appends further ones to the first
                if segment[:4].upper() == b"EXIF":
                    yield read_exif(segment)
        for kind, profile in self._raw_profiles():
            if kind in ("exif", "app1") and not profile.startswith(_XMP_MARK):
                yield read_exif(profile)

    def _xmp(self) -> Iterator[XmpValues]:
        """Yield what each XMP packet says."""
        packets = [self._tiff.xmp]
        if self._boxes is not None:
            packets.append(self._boxes.xmp)
        elif self._format != "TIFF":
            packets.append(_bytes(self._image.info.get("xmp")))
            packets += [s[len(_XMP_MARK) :] for s in self._segments() if s.startswith(_XMP_MARK)]
        for kind, profile in self._raw_profiles():
            if kind == "xmp" or (kind == "app1" and profile.startswith(_XMP_MARK)):
                packets.append(profile.removeprefix(_XMP_MARK))
        packets.append(self._gif_packet())
        yield from (read_xmp(packet) for packet in dict.fromkeys(packets) if packet)

    def _iptc(self) -> Iterator[bytes]:
        yield self._tiff.iptc
        if self._boxes is not None:
            yield self._boxes.iptc
        resources = self._image.info.get("photoshop")
        if isinstance(resources, dict):
            yield _bytes(resources.get(IPTC))
        yield from (profile for kind, profile in self._raw_profiles() if kind in ("iptc", "8bim"))

    def _segments(self) -> list[bytes]:
        """Return the APP1 segments of a JPEG file."""
        segments: Any = getattr(self._image, "applist", ())
        return [data for name, data in segments if name == "APP1"]

    def _raw_profiles(self) -> Iterator[tuple[str, bytes]]:
        """Yield kind and content of the profiles that ImageMagick writes to the texts of a PNG file."""
        if self._format != "PNG":
            return
        for key, text in self._image.info.items():
            match = _RAW_PROFILE.fullmatch(key) if isinstance(key, str) and isinstance(text, str) else None
            if match is not None:
                yield match[1].lower(), _unhexed(text)

    def _gif_packet(self) -> bytes:
        """Return the XMP packet of a GIF file, if that is the last extension before its first picture."""
        extension = self._image.info.get("extension")
        if self._format != "GIF" or self._file is None or not isinstance(extension, tuple):
            return b""
        if _bytes(extension[0]) != _GIF_XMP:
            return b""
        self._file.seek(extension[1])
        return self._file.read(MAX_METADATA_BYTES).partition(b"\x01\xff\xfe")[0]

    def _creation_time(self) -> str | None:
        text = self._image.info.get("Creation Time") if self._format == "PNG" else None
        if not isinstance(text, str):
            return None
        if (found := iso_date(text)) is not None:
            return found
        from email.utils import parsedate_to_datetime

        try:
            return iso_date(parsedate_to_datetime(text[:64]).isoformat())
        except (ValueError, TypeError, IndexError, OverflowError):
            return None


def _pillow_turns(image: Image.Image) -> bool:
    """Return whether Pillow, when it decodes a TIFF file, makes it upright."""
    return image.getexif().get(0x0112, 1) in range(2, 9)


def _unhexed(text: str) -> bytes:
    """Return the content of a profile: an empty line, its name, its length and its bytes in hexadecimal."""
    lines = text[: 3 * MAX_METADATA_BYTES].strip().split("\n", 2)
    if len(lines) < 3:
        return b""
    digits = re.sub(r"[^0-9a-fA-F]", "", lines[2])
    return bytes.fromhex(digits[: len(digits) // 2 * 2])


def _bytes(value: object) -> bytes:
    """Return a value that Pillow read, if it has the type that it should have."""
    return value.encode("utf-8", "replace") if isinstance(value, str) else value if isinstance(value, bytes) else b""
