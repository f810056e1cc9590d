"""Code shared by all plots: file formats, saving, and shortened names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ._files import check_writable, save_file
from .errors import PixMatcherError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_FORMATS = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
"""Suffixes of the files that matplotlib can write."""
_MAX_NAME_CHARACTERS = 28


def check_plot_path(path: Path) -> None:
    """Raise `PixMatcherError` if a plot cannot be drawn and saved to `path`; to be called before long work."""
    if path.suffix.lower() not in PLOT_FORMATS:
        raise PixMatcherError(f"{path} must end in {', '.join(PLOT_FORMATS[:-1])} or {PLOT_FORMATS[-1]}.")
    check_writable(path)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PixMatcherError(
            "The picture needs matplotlib: install it with `pip install 'pixmatcher[plots]'`."
        ) from None


def save_figure(figure: Figure, path: Path) -> None:
    """Save a plot in the format of the suffix of `path`. Raises `PixMatcherError` if it cannot be written."""
    with warnings.catch_warnings():
        # A character that no font has is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        save_file(path, lambda file: figure.savefig(file, format=path.suffix.lower()[1:], dpi=150, bbox_inches="tight"))


def shortened(name: str) -> str:
    """Return a name as plots show it: printable characters only, on one line of at most 28 characters."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return shown if len(shown) <= _MAX_NAME_CHARACTERS else shown[: _MAX_NAME_CHARACTERS - 1] + "…"
