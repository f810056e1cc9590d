"""Contact sheets: one picture of the hits of a search, each with its rank, score and name."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import check_writable, save_file
from ..errors import PixMatcherError
from ..searching import item_picture

if TYPE_CHECKING:
    from PIL import Image

    from ..collection import Store
    from ..searching import SearchResult

_CELL, _MARGIN, _LINE = 240, 12, 20
_TITLE_SIZE, _TEXT_SIZE = 18, 14
_MOST = 400
"""The most hits on one sheet: 20 x 20, a picture of 30 megapixels."""
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_INK, _FAINT, _PAPER, _EMPTY = (32, 33, 36), (95, 99, 104), (255, 255, 255), (232, 234, 237)


def check_sheet_path(path: Path) -> None:
    """Check before the work whether a contact sheet can be saved at a path. Raises `PixMatcherError` if not."""
    if path.suffix.lower() not in _FORMATS:
        raise PixMatcherError(f"{path} must end in .png or .jpg.")
    check_writable(path)


def save_contact_sheet(result: SearchResult, path: Path, collection: Store | None = None) -> None:
    """Draw the hits in a grid and save it as .png or .jpg; an image that cannot be shown is an empty cell.

    With `collection`, its thumbnails are shown for images that are remote or missing.

    Raises `PixMatcherError` if the file cannot be written.
    """
    check_sheet_path(path)
    sheet = draw_contact_sheet(result, collection)
    save_file(path, lambda file: sheet.save(file, _FORMATS[path.suffix.lower()], quality=90))


def draw_contact_sheet(result: SearchResult, collection: Store | None = None) -> Image.Image:
    """Return the first 400 hits of a result as one RGB picture; a last line says if there are more."""
    from PIL import Image

    hits = result.hits[:_MOST]
    # Many hits make about a square: a JPEG has at most 65,500 pixels a side.
    columns = min(max(1, len(hits)), max(4, math.isqrt(len(hits))))
    rows = math.ceil(len(hits) / columns)
    cell_height = _CELL + 2 * _LINE + _MARGIN
    width = max(columns * (_CELL + _MARGIN) + _MARGIN, 2 * _CELL)
    height = 3 * _MARGIN + _LINE + rows * cell_height
    more = len(result.hits) > len(hits)
    sheet = Image.new("RGB", (width, height + (_LINE + _MARGIN if more else 0)), _PAPER)
    name = result.query if isinstance(result.query, str) else " + ".join(result.query.values())
    _write(sheet, (_MARGIN, _MARGIN), name, _TITLE_SIZE, _INK, width - 2 * _MARGIN)
    for position, hit in enumerate(hits):
        left = _MARGIN + position % columns * (_CELL + _MARGIN)
        top = 2 * _MARGIN + _LINE + position // columns * cell_height
        picture = item_picture(hit.item, collection, _CELL)
        sheet.paste(_EMPTY, (left, top, left + _CELL, top + _CELL))
        if picture is not None:
            picture = _enlarged(picture)
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, top + (_CELL - picture.height) // 2))
        below = top + _CELL + 4
        _write(sheet, (left, below), os.path.basename(hit.item.uri), _TEXT_SIZE, _INK, _CELL)
        line = f"{hit.rank}   {hit.score:.3f}   {hit.item.details.get('author', '')}"
        _write(sheet, (left, below + _LINE), line.rstrip(), _TEXT_SIZE, _FAINT, _CELL)
    if more:
        line = f"These are the first {len(hits):,} of {len(result.hits):,} hits."
        _write(sheet, (_MARGIN, height), line, _TEXT_SIZE, _INK, width - 2 * _MARGIN)
    return sheet


def _enlarged(picture: Image.Image) -> Image.Image:
    """Return a picture that fills a cell: a smaller one is enlarged smoothly, in its proportions."""
    from PIL import Image

    factor = _CELL / max(picture.size)
    if factor <= 1:
        return picture
    width, height = (max(1, round(factor * side)) for side in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _write(
    sheet: Image.Image, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    """Write one line of text; one that is too long is shortened in the middle."""
    from ._text_drawing import draw_line

    draw_line(sheet, at, text, size, colour, width)
