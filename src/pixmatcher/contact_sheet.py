"""The contact sheet: a picture of the hits, each with its rank, score and name."""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InvalidImageError, PixMatcherError
from .fetch import is_url
from .images import open_image

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    from .searching import SearchResult

_CELL, _MARGIN, _LINE = 240, 12, 20
_INK, _FAINT, _PAPER, _EMPTY = (32, 33, 36), (95, 99, 104), (255, 255, 255), (232, 234, 237)


def save_contact_sheet(result: SearchResult, path: Path) -> None:
    """Draw the hits in a grid and save it as .png or .jpg; an image that cannot be shown leaves an empty cell.

    Raises `PixMatcherError` if the file cannot be written.
    """
    sheet = draw_contact_sheet(result)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise PixMatcherError(f"{path} must end in .png or .jpg.")
    # Drawn in memory first, so that a full disk does not leave half a picture over an old one.
    encoded = io.BytesIO()
    sheet.save(encoded, "PNG" if path.suffix.lower() == ".png" else "JPEG", quality=90)
    try:
        path.write_bytes(encoded.getvalue())
    except OSError as error:
        raise PixMatcherError(f"{path} cannot be written ({error.strerror}).") from error


def draw_contact_sheet(result: SearchResult) -> Image.Image:
    """The hits of a result as one RGB picture."""
    from PIL import Image, ImageDraw, ImageFont

    columns = max(1, min(len(result.hits), 4))
    rows = math.ceil(len(result.hits) / columns)
    cell_height = _CELL + 2 * _LINE + _MARGIN
    width = max(columns * (_CELL + _MARGIN) + _MARGIN, 2 * _CELL)
    sheet = Image.new("RGB", (width, 3 * _MARGIN + _LINE + rows * cell_height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(18), ImageFont.load_default(14)
    name = result.query if isinstance(result.query, str) else " + ".join(result.query.values())
    _write(draw, (_MARGIN, _MARGIN), name, title, _INK, width - 2 * _MARGIN)
    for position, hit in enumerate(result.hits):
        left = _MARGIN + position % columns * (_CELL + _MARGIN)
        top = 2 * _MARGIN + _LINE + position // columns * cell_height
        _paste(sheet, hit.item.uri, left, top)
        below = top + _CELL + 4
        _write(draw, (left, below), os.path.basename(hit.item.uri), text, _INK, _CELL)
        _write(draw, (left, below + _LINE), f"{hit.rank}   {hit.score:.3f}", text, _FAINT, _CELL)
    return sheet


def _paste(sheet: Image.Image, uri: str, left: int, top: int) -> None:
    sheet.paste(_EMPTY, (left, top, left + _CELL, top + _CELL))
    if is_url(uri):
        return
    try:
        picture = open_image(uri, min_side=_CELL).image.copy()
    except InvalidImageError:
        return
    picture.thumbnail((_CELL, _CELL))
    sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """Write one line, shortened in its middle where it is too long."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)[:400]
    shown = text
    while len(text) > 8 and draw.textlength(shown, font=font) > width:
        text = text[: len(text) // 2 - 1] + text[len(text) // 2 + 1 :]
        shown = f"{text[: len(text) // 2]}...{text[len(text) // 2 :]}"
    draw.text(at, shown, font=font, fill=colour)
