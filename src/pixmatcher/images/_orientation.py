"""Rotate and flip an image so that it is upright, and say where it is within its whole pixels then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION_OF_ROTATION = {0: 1, 90: 8, 180: 3, 270: 6}
"""The EXIF orientation that means a rotation by so many degrees counterclockwise."""


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return the image rotated and flipped as its EXIF orientation (1 to 8) says."""
    if orientation == 1:
        return image
    from PIL.Image import Transpose

    steps = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(steps[orientation])


def upright_area(
    size: tuple[int, int], width: float, height: float, orientation: int
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of an image of `width` x `height` pixels, once it is upright.

    `size` are the columns and rows of the whole pixels that hold it before it is rotated. It begins at the top left.
    """
    spare_x, spare_y = size[0] - width, size[1] - height  # on the right and at the bottom, before the rotation
    left, right = (spare_x, 0.0) if orientation in (2, 3, 7, 8) else (0.0, spare_x)
    top, bottom = (spare_y, 0.0) if orientation in (3, 4, 6, 7) else (0.0, spare_y)
    columns, rows = size
    if orientation >= 5:
        columns, rows, left, top, right, bottom = rows, columns, top, left, bottom, right
    return left, top, columns - right, rows - bottom
