"""EXIF: the tags of a photo that are used, from a block of bytes or from a file with the structure of TIFF.

The tags are those of EXIF 3.0 (CIPA DC-008).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO

from ._dates import iso_date, utc_date
from ._directories import Directory, Tiff
from ._limits import MAX_METADATA_BYTES

_ORIENTATION, _XMP, _IPTC, _PHOTOSHOP, _EXIF_IFD, _GPS_IFD = 0x0112, 0x02BC, 0x83BB, 0x8649, 0x8769, 0x8825
_TIMES = ((0x9003, 0x9011), (0x9004, 0x9012), (0x0132, 0x9010))
"""The tags DateTimeOriginal, DateTimeDigitized and DateTime, each with that of its UTC offset, the first that counts
first."""
_GPS_TIME, _GPS_DAY = 0x0007, 0x001D
_MAX_PADDING = 64
"""Some programs write other bytes than "Exif" and two zeros before the block."""
_SIGNATURES = (b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class ExifValues:
    """What EXIF says, as far as it is valid."""

    orientation: int | None = None
    """1 to 8."""
    taken: str | None = None
    """The first of DateTimeOriginal, DateTimeDigitized and DateTime, in ISO 8601."""
    located: str | None = None
    """The time of the GPS, in ISO 8601."""
    xmp: bytes = b""
    """The XMP packet of a TIFF file."""
    iptc: bytes = b""
    """The IPTC record of a TIFF file, or the Photoshop resources that may contain it."""


def read_exif(data: bytes | IO[bytes]) -> ExifValues:
    """Return what an EXIF block says, with or without its prefix, or a file with the structure of TIFF.

    Raw files of most cameras have that structure. The file must be seekable; not more is read than the tables and the
    values that are used. What is cut off or damaged is left out; OSError alone is raised, if the file cannot be read.
    """
    if isinstance(data, bytes):
        at = [place for place in (data.find(start, 0, _MAX_PADDING + 4) for start in _SIGNATURES) if place >= 0]
        if not at:
            return ExifValues()
        data = io.BytesIO(data[min(at) :])
    tiff = Tiff.of(data)
    if tiff is None:
        return ExifValues()
    main = tiff.directory(tiff.first)
    camera = tiff.directory(tiff.number(main, _EXIF_IFD))
    gps = tiff.directory(tiff.number(main, _GPS_IFD))
    orientation = tiff.number(main, _ORIENTATION)
    taken = None
    for tag, offset in _TIMES:  # TIFF/EP has the tags of the second directory in the first one
        text = tiff.text(camera if tag in camera else main, tag)
        taken = iso_date(text, tiff.text(camera if offset in camera else main, offset)) if text else None
        if taken is not None:
            break
    return ExifValues(
        orientation if 1 <= orientation <= 8 else None,
        taken,
        _time_of_gps(tiff, gps) if gps else None,
        tiff.value(main, _XMP, MAX_METADATA_BYTES),
        tiff.value(main, _IPTC, MAX_METADATA_BYTES) or tiff.value(main, _PHOTOSHOP, MAX_METADATA_BYTES),
    )


def _time_of_gps(tiff: Tiff, gps: Directory) -> str | None:
    clock = tiff.fractions(gps, _GPS_TIME)[:3]
    hours, minutes, seconds = clock if len(clock) == 3 else (-1, 0, 0)
    return utc_date(tiff.text(gps, _GPS_DAY), hours, minutes, seconds)
