"""The picture inside a file of a format that is a container of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class EmbeddedPicture:
    """The picture that represents a file."""

    picture: bytes | Image.Image
    """An encoded picture, or a decoded one."""
    orientation: int = 1
    """The EXIF orientation (1 to 8) of the file if the picture has none of its own."""
    exif: bytes = b""
    """EXIF of the file, for the time at which a photo was taken."""
