"""PCX pictures by Pillow, which shows a file whose end with the palette is missing in grey.

Source: ZSoft PCX File Format Technical Reference Manual.
"""

from __future__ import annotations

import os
from typing import IO, cast

from PIL import PcxImagePlugin


class PcxImageFile(PcxImagePlugin.PcxImageFile):
    """A PCX picture. One with 8 bits a pixel ends with a palette, unless its header says that it is grey."""

    def _open(self) -> None:
        super()._open()
        file = cast("IO[bytes]", self.fp)
        file.seek(0)
        head = file.read(70)
        if self.mode == "L" and int.from_bytes(head[68:70], "little") == 1:
            file.seek(-769, os.SEEK_END)
            if file.read(1) != b"\x0c":
                raise OSError("image file is truncated")
