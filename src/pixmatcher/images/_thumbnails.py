"""Thumbnails: small JPEGs that are kept so that results can be shown without the original files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL_SIDE = 256
"""The longest side of a thumbnail in pixels."""


def make_thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """Return a JPEG of an RGB image, its long side at most `side` pixels, without any metadata."""
    thumbnail = image.copy()
    thumbnail.thumbnail((side, side))
    encoded = io.BytesIO()
    thumbnail.info.clear()  # the metadata of the camera
    thumbnail.save(encoded, "JPEG", quality=80)
    return encoded.getvalue()
