"""DDS textures by Pillow; uncompressed ones by its raw decoder, as the one in Python takes seconds a megapixel.

Source: Microsoft, Programming Guide for DDS, DDS_PIXELFORMAT.
"""

from __future__ import annotations

from typing import cast

from PIL import DdsImagePlugin, ImageFile

from ..errors import InvalidImageError

_RAW_MODES: dict[tuple[int, tuple[int, ...]], tuple[str, str]] = {
    # (bits a pixel, masks of red, green, blue and alpha): (mode, raw mode) of Pillow
    (24, (0xFF0000, 0xFF00, 0xFF)): ("RGB", "BGR"),
    (24, (0xFF, 0xFF00, 0xFF0000)): ("RGB", "RGB"),
    (32, (0xFF0000, 0xFF00, 0xFF)): ("RGB", "BGRX"),
    (32, (0xFF, 0xFF00, 0xFF0000)): ("RGB", "RGBX"),
    (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)): ("RGBA", "BGRA"),
    (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)): ("RGBA", "RGBA"),
    (16, (0xF800, 0x7E0, 0x1F)): ("RGB", "BGR;16"),
    (16, (0x7C00, 0x3E0, 0x1F)): ("RGB", "BGR;15"),
    (16, (0x7C00, 0x3E0, 0x1F, 0x8000)): ("RGBA", "BGRA;15"),
}


class DdsImageFile(DdsImagePlugin.DdsImageFile):
    """The largest level of the first picture of a DDS file."""

    def _open(self) -> None:
        super()._open()
        tile = self.tile[0]
        if tile.codec_name == "dds_rgb":
            bits, masks = cast("tuple[int, tuple[int, ...]]", tile.args)
            if (bits, masks) not in _RAW_MODES:
                raise InvalidImageError("unsupported format", f"DDS with {bits} bits a pixel in an unusual order")
            self._mode, raw_mode = _RAW_MODES[bits, masks]
            self.tile = [ImageFile._Tile("raw", tile.extents, 0, (raw_mode, 0, 1))]
