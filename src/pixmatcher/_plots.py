"""Code shared by all plots: file formats, saving, and shortened names."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ._files import check_writable, save_file
from ._user_folders import home_folder, is_writable_place, private_temporary_folder
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
    _find_folder_for_matplotlib()
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PixMatcherError(
            "The picture needs matplotlib: install it with `pip install 'pixmatcher[plots]'`."
        ) from None


def _find_folder_for_matplotlib() -> None:
    """Name a folder for the settings and the list of fonts of matplotlib, if it could not write to the usual ones.

    It would write a warning, and search for fonts in every process.
    """
    if os.environ.get("MPLCONFIGDIR") or sys.platform in ("win32", "darwin"):
        return
    home = home_folder()
    for variable, name in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache")):
        base = os.environ.get(variable) or (home and home / name)
        if not base or not is_writable_place(Path(base, "matplotlib")):
            with contextlib.suppress(PixMatcherError):
                os.environ["MPLCONFIGDIR"] = str(private_temporary_folder() / "matplotlib")
            return


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
