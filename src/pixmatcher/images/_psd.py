"""The flattened picture of a Photoshop file (PSD or PSB), with 8 or 16 bits a channel.

Source: Adobe Photoshop File Formats Specification, November 2019. Pillow's own plugin reads 8 bits and no PSB, takes
any fourth channel for transparency, and shows a white picture where Photoshop stored none.
"""

from __future__ import annotations

import os
import struct
from typing import IO, cast

from PIL import ImageFile, ImagePalette

from ..errors import InvalidImageError
from ._resources import EXIF, IPTC, PROFILE, VERSION_INFO, XMP, photoshop_resources

_MODES: dict[tuple[int, int], tuple[str, tuple[str, ...]]] = {
    # (colour mode of Photoshop, bits a channel): (mode of Pillow, raw mode of each channel)
    (0, 1): ("1", ("1;I",)),
    (1, 8): ("L", ("L",)),
    (1, 16): ("L", ("L;16B",)),
    (2, 8): ("P", ("P",)),
    (3, 8): ("RGB", ("R", "G", "B")),
    (3, 16): ("RGB", ("R;16B", "G;16B", "B;16B")),
    (4, 8): ("CMYK", ("C;I", "M;I", "Y;I", "K;I")),
    (8, 8): ("L", ("L",)),  # duotone, which Photoshop shows as grey where it does not know the inks
    (8, 16): ("L", ("L;16B",)),
    (9, 8): ("LAB", ("L", "A", "B")),
}
_COLOUR_MODES = ("bitmap", "grey", "indexed", "RGB", "CMYK", "5", "6", "multichannel", "duotone", "Lab")
_INFO_NAMES = {PROFILE: "icc_profile", EXIF: "exif", XMP: "xmp"}
"""The names under which Pillow keeps the contents of resources."""


class PsdImageFile(ImageFile.ImageFile):
    """The flattened picture of a PSD file."""

    format = "PSD"
    format_description = "Adobe Photoshop"

    def _open(self) -> None:
        file = cast("IO[bytes]", self.fp)
        signature, version, channels, height, width, bits, colour = struct.unpack(">4sH6xHIIHH", file.read(26))
        if signature != b"8BPS" or version not in (1, 2):
            raise SyntaxError("not a PSD file")
        if (colour, bits) not in _MODES:
            name = _COLOUR_MODES[colour] if colour < len(_COLOUR_MODES) else str(colour)
            raise InvalidImageError("unsupported format", f"PSD, {name} with {bits} bits a channel")
        mode, raw_modes = _MODES[colour, bits]
        if channels < len(raw_modes):
            raise OSError(f"{channels} channels are not enough for {mode}")
        palette = file.read(_length(file, 4))
        if mode == "P" and len(palette) == 768:
            self.palette = ImagePalette.raw("RGB;L", palette)
        self._read_resources(file)
        transparent = _skip_layers(file, wide=version == 2)
        planes = list(enumerate(raw_modes))
        if transparent and mode in ("L", "RGB") and channels > len(raw_modes):
            suffix = ";16B" if bits == 16 else ""
            colours = [(0 if mode == "L" else i, band + suffix) for i, band in enumerate("RGB")]
            mode, planes = "RGBA", [*colours, (len(raw_modes), "A" + suffix)]
        self._mode, self._size = mode, (width, height)
        self.tile = _tiles(file, planes, (width, height), bits, channels, wide=version == 2)

    def _read_resources(self, file: IO[bytes]) -> None:
        """Keep the colour profile and metadata. Raises InvalidImageError if the file has no flattened picture."""
        section = _length(file, 4) + file.tell()
        for number, start, end in photoshop_resources(file, file.tell(), section):
            if end > section:
                raise OSError("image file is truncated")
            file.seek(start)
            if number == VERSION_INFO and file.read(min(5, end - start))[4:] == b"\0":
                detail = "PSD without a flattened picture: save it again with 'Maximize Compatibility'"
                raise InvalidImageError("unsupported format", detail)
            if number == IPTC:
                self.info["photoshop"] = {IPTC: file.read(end - start)}
            elif number in _INFO_NAMES:
                self.info[_INFO_NAMES[number]] = file.read(end - start)
        file.seek(section)


def _length(file: IO[bytes], size: int) -> int:
    """Read the length of a section. Raises OSError if the file is shorter than that."""
    length = int.from_bytes(file.read(size), "big")
    _require(file, length)
    return length


def _skip_layers(file: IO[bytes], *, wide: bool) -> bool:
    """Skip the layers; return whether the first channel after the colours is transparency.

    The number of layers is negative then. Otherwise such a channel is a selection that was saved.
    """
    size = 8 if wide else 4
    end = _length(file, size) + file.tell()
    head = file.read(size + 2) if end - file.tell() >= size + 2 else b""
    file.seek(end)
    return len(head) == size + 2 and any(head[:size]) and head[size] >= 0x80


def _tiles(
    file: IO[bytes], planes: list[tuple[int, str]], size: tuple[int, int], bits: int, channels: int, *, wide: bool
) -> list[ImageFile._Tile]:
    """Return what Pillow has to decode: for each plane, which channel of the file it is, and its raw mode.

    The channels are stored one after the other. Compressed ones begin with the lengths of all rows.
    """
    compression = int.from_bytes(file.read(2), "big")
    width, height = size
    needed = 1 + max(channel for channel, _ in planes)
    if compression == 0:
        lengths = [(width * bits + 7) // 8 * height] * needed
    elif compression == 1:
        unit = "I" if wide else "H"
        row_lengths = _read(file, height * channels * struct.calcsize(unit))
        lengths = [
            sum(struct.unpack_from(f">{height}{unit}", row_lengths, i * height * struct.calcsize(unit)))
            for i in range(needed)
        ]
    else:
        raise InvalidImageError("unsupported format", f"PSD with compression {compression}")
    start = file.tell()
    return [
        ImageFile._Tile(
            "packbits" if compression else "raw",
            (0, 0, width, height),
            start + sum(lengths[:channel]),
            raw_mode if compression else (raw_mode, 0, 1),
        )
        for channel, raw_mode in planes
    ]


def _read(file: IO[bytes], length: int) -> bytes:
    """Read so many bytes. Raises OSError, before memory is taken, if the file has fewer left."""
    _require(file, length)
    return file.read(length)


def _require(file: IO[bytes], length: int) -> None:
    """Raise OSError if the file has fewer bytes left."""
    position = file.tell()
    if file.seek(0, os.SEEK_END) < position + length:
        raise OSError("image file is truncated")
    file.seek(position)
