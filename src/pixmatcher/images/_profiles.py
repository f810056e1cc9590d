"""Colour profiles: find out in which colour space the values of an image are, and convert them to sRGB.

LittleCMS converts, through Pillow, with the relative colorimetric intent and black point compensation, as image editors
do: white stays white, black stays black, and a colour that sRGB has does not change. The perceptual intent would change
all colours, in a way that each maker of profiles decides.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any

from ._boxes import colour_boxes
from ._formats import AVIF, JPEG2000, ImageFormat

if TYPE_CHECKING:
    from PIL import Image, ImageCms

_MAX_PROFILE_BYTES = 8 << 20
"""Larger profiles are ignored. Those of printing conditions, the largest ones, have up to about 3 MB."""

_MAX_FLOAT_TAG_BYTES = 1 << 16
"""A conversion in floats (D2B0 to D2B3) may have any number of steps; profiles with a larger one are ignored."""

_SAME_COLOUR = 3
"""A profile whose colours are all within so many of 255 values of sRGB is sRGB: makers round its curve differently."""

_SPACES = {b"RGB ": "RGB", b"CMYK": "CMYK", b"GRAY": "L"}
_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")  # of devices, and of colour spaces

_GREY_MODES = ("L", "LA", "La", "I", "F")
_RGB_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr", "HSV")

_D65 = (0.3127, 0.3290)
_ADOBE_RGB = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)  # red, green and blue, x and y of each
_DISPLAY_P3 = (0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_BT_2020 = (0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
_NCLX_PRIMARIES = {9: _BT_2020, 12: _DISPLAY_P3}  # ITU-T H.273; 1 is sRGB
_NCLX_CURVES = (1, 6, 13, 14, 15)  # those for standard dynamic range, for which screens use the curve of sRGB

# One entry each of an EXIF directory, in both byte orders: what cameras write for Adobe RGB (DCF 2.0), and for sRGB.
_INTEROPERABILITY_R03 = (b"\1\0\2\0\4\0\0\0R03\0", b"\0\1\0\2\0\0\0\4R03\0")
_COLOR_SPACE_SRGB = (b"\1\xa0\3\0\1\0\0\0\1\0", b"\xa0\1\0\3\0\0\0\1\0\1")


@dataclass(frozen=True)
class SrgbTransform:
    """Converts images of one mode from one colour profile to sRGB. Threads may use it at the same time."""

    mode: str
    """The mode of the images it takes: "RGB", "CMYK" or "L"."""
    _transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image in sRGB, mode RGB."""
        result = self._transform.apply(image)
        result.info.clear()  # Pillow adds the profile of sRGB
        return result


def srgb_transform(mode: str, info: Mapping[Any, Any]) -> SrgbTransform | None:
    """Return what converts an image of this Pillow mode and these details (`Image.info`) to sRGB; None for nothing.

    The profile is the embedded one, or else Adobe RGB if EXIF says so, or what the chunks cHRM and gAMA of a PNG file
    or the nclx box of an AVIF or HEIF file describe. A profile that is damaged, of another colour space than the image,
    or so near to sRGB that it makes no difference, gives None.
    """
    if mode == "CMYK":
        wanted = "CMYK"
    elif mode in _RGB_MODES:
        wanted = "RGB"
    elif mode in _GREY_MODES or mode.startswith("I;16"):
        wanted = "L"
    else:  # LAB is independent of devices
        return None
    profile = info.get("icc_profile")
    if not profile and wanted == "RGB":
        profile = _described_profile(info)
    if not isinstance(profile, bytes) or not 128 < len(profile) <= _MAX_PROFILE_BYTES:
        return None
    if _SPACES.get(profile[16:20]) != wanted or profile[12:16] not in _CLASSES or profile[36:40] != b"acsp":
        return None
    return _transforms.get(profile, wanted)


def colour_box(image_format: ImageFormat, file: IO[bytes]) -> dict[str | tuple[int, int], Any]:
    """Return what the box `colr` of an AVIF or JPEG 2000 file says and Pillow leaves out, as details for `Image.info`.

    The first box of a kind counts. The position in the file does not change.
    """
    if image_format not in (AVIF, JPEG2000):
        return {}
    position = file.tell()
    details: dict[str | tuple[int, int], Any] = {}
    for content in colour_boxes(file):
        if image_format is AVIF and content[:4] == b"nclx" and len(content) >= 8:
            primaries, curve = struct.unpack_from(">HH", content, 4)
            details.setdefault("nclx_profile", {"color_primaries": primaries, "transfer_characteristics": curve})
        elif image_format is JPEG2000 and content[:1] in (b"\2", b"\3"):  # a profile
            details.setdefault("icc_profile", content[3:])
    file.seek(position)
    return details


class _Transforms:
    """The transforms of the profiles that were used last, so that the images of one camera share one."""

    _MOST = 16

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[bytes, SrgbTransform | None] = {}

    def get(self, profile: bytes, mode: str) -> SrgbTransform | None:
        key = hashlib.sha256(profile).digest()
        with self._lock:
            if key in self._known:
                transform = self._known[key] = self._known.pop(key)  # the one used last is at the end
                return transform
        transform = _make_transform(profile, mode)
        with self._lock:
            self._known[key] = transform
            if len(self._known) > self._MOST:
                del self._known[next(iter(self._known))]
        return transform


_transforms = _Transforms()


def _make_transform(profile: bytes, mode: str) -> SrgbTransform | None:
    import io

    from PIL import ImageCms

    if _has_long_float_tag(profile):
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # Without the cache of the last pixel, threads share nothing that changes.
            ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE,
        )
        made = SrgbTransform(mode, transform)
        return None if _changes_nothing(made) else made
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # a damaged profile
        return None


def _has_long_float_tag(profile: bytes) -> bool:
    (count,) = struct.unpack_from(">I", profile, 128) if len(profile) >= 132 else (0,)
    for at in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        if profile[at : at + 3] == b"D2B" and int.from_bytes(profile[at + 8 : at + 12], "big") > _MAX_FLOAT_TAG_BYTES:
            return True
    return False


def _changes_nothing(transform: SrgbTransform) -> bool:
    """Return whether a transform of RGB or grey leaves a grid of colours and all greys as they are."""
    import numpy as np
    from PIL import Image

    if transform.mode == "CMYK":
        return False
    grey = np.arange(256, dtype=np.uint8)
    if transform.mode == "L":
        colours = grey[None, :]
        expected = np.repeat(colours[..., None], 3, axis=2)
    else:
        steps = np.linspace(0, 255, 10).astype(np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
        expected = colours = np.concatenate([grid, np.repeat(grey[:, None], 3, axis=1)])[None]
    result = np.asarray(transform(Image.fromarray(np.ascontiguousarray(colours))))
    return int(np.abs(result.astype(int) - expected).max()) <= _SAME_COLOUR


def _described_profile(info: Mapping[Any, Any]) -> bytes | None:
    """Return the profile of an RGB image that describes its colour space without one; None for sRGB or if unknown."""
    exif = info.get("exif")
    if isinstance(exif, bytes) and any(entry in exif for entry in _INTEROPERABILITY_R03):
        return (
            None if any(entry in exif for entry in _COLOR_SPACE_SRGB) else _matrix_profile(_ADOBE_RGB, _D65, 563 / 256)
        )
    nclx = info.get("nclx_profile")
    if isinstance(nclx, dict):
        primaries = _NCLX_PRIMARIES.get(nclx.get("color_primaries", 0))
        if primaries is not None and nclx.get("transfer_characteristics") in _NCLX_CURVES:
            return _matrix_profile(primaries, _D65, None)
        return None
    chromaticity, gamma = info.get("chromaticity"), info.get("gamma")
    if isinstance(chromaticity, tuple) and isinstance(gamma, float) and "srgb" not in info:
        if not 0.1 < gamma < 5 or len(chromaticity) != 8:
            return None
        # As libpng does: up to 5 % from 1/2.2 means the curve of sRGB.
        curve = None if abs(gamma * 2.2 - 1) <= 0.05 else 1 / gamma
        return _matrix_profile(chromaticity[2:], chromaticity[:2], curve)
    return None


@lru_cache(maxsize=16)
def _matrix_profile(primaries: tuple[float, ...], white: tuple[float, ...], gamma: float | None) -> bytes | None:
    """Return an ICC profile of an RGB space; None if there is no such space.

    `primaries` are x and y of red, green and blue, `white` is x and y of white, all CIE 1931. Without a `gamma`, the
    curve is that of sRGB.
    """
    import numpy as np

    # The Bradford transform adapts XYZ to another white (ICC.1:2022, annex E).
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    try:
        pairs = zip(primaries[::2], primaries[1::2], strict=True)
        xyz = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in pairs]).T
        x, y = white
        white_xyz = np.array([x / y, 1.0, (1 - x - y) / y])
        matrix = xyz * np.linalg.solve(xyz, white_xyz)
        cones = bradford @ np.array([0.9642, 1.0, 0.8249]) / (bradford @ white_xyz)  # D50, the white of ICC
        matrix = np.linalg.inv(bradford) @ np.diag(cones) @ bradford @ matrix
        if not np.abs(matrix).max() < 100:  # false for nan as well
            return None
        columns = [b"XYZ \0\0\0\0" + np.rint(column * 65536).astype(">i4").tobytes() for column in matrix.T]
    except (ZeroDivisionError, ValueError, np.linalg.LinAlgError):
        return None
    if gamma is None:
        values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        curve = b"para\0\0\0\0\0\3\0\0" + struct.pack(">5i", *(round(v * 65536) for v in values))
    else:
        curve = b"para\0\0\0\0\0\0\0\0" + struct.pack(">i", round(gamma * 65536))
    tags = list(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True))
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content
    header = struct.pack(">I4xI8s4s12x4s", start + len(data), 0x04000000, b"mntrRGB ", b"XYZ ", b"acsp")
    return header.ljust(128, b"\0") + table + data
