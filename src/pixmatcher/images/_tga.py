"""TGA pictures by Pillow, except that an alpha channel counts only if the header says that there is one.

Source: Truevision TGA File Format Specification, version 2.0, field 5.6 (image descriptor).
"""

from __future__ import annotations

from typing import IO, cast

from PIL import TgaImagePlugin


class TgaImageFile(TgaImagePlugin.TgaImageFile):
    """A TGA picture. Many programs leave the fourth byte of a pixel at 0 and declare no alpha bits."""

    def _open(self) -> None:
        file = cast("IO[bytes]", self.fp)
        self._alpha_bits = file.read(18)[17] & 0x0F
        file.seek(0)
        super()._open()
        self.info.pop("orientation", None)  # the order of the rows, which Pillow has applied

    def load_end(self) -> None:
        super().load_end()
        if self.mode == "RGBA" and not self._alpha_bits:
            self.im.fillband(3, 255)
