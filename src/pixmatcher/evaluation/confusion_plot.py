"""The picture of the most confused categories: whose images find which others."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import check_writable, save_file
from ..errors import PixMatcherError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from . import Evaluation

_MOST = 20
"""Categories on the picture."""
PLOT_FORMATS = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
"""How the name of a picture that matplotlib draws may end."""
_INK, _FAINT = "#202124", "#5f6368"


def check_plot_path(path: Path) -> None:
    """Find out, before the work is done, whether the picture could be drawn and saved there.

    Raises `PixMatcherError` if not.
    """
    if path.suffix.lower() not in PLOT_FORMATS:
        raise PixMatcherError(f"{path} must end in {', '.join(PLOT_FORMATS[:-1])} or {PLOT_FORMATS[-1]}.")
    check_writable(path)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise PixMatcherError(
            "The picture needs matplotlib: install it with `pip install 'pixmatcher[plots]'`."
        ) from None


def save_confusion_plot(evaluation: Evaluation, path: Path) -> None:
    """Draw the categories that are most confused and save the picture as .png, .jpg, .svg or .pdf.

    Raises `PixMatcherError` if matplotlib is missing, no category is confused, or the file cannot be written.
    """
    check_plot_path(path)
    save_figure(draw_confusion_plot(evaluation), path)


def save_figure(figure: Figure, path: Path) -> None:
    """Save a picture in the format its name ends in. Raises `PixMatcherError` if it cannot be written."""
    with warnings.catch_warnings():
        # Of a character that no font has, a box is drawn.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        save_file(path, lambda file: figure.savefig(file, format=path.suffix.lower()[1:], dpi=150, bbox_inches="tight"))


def draw_confusion_plot(evaluation: Evaluation) -> Figure:
    """A matrix of the most confused categories: of the images of a row, the share of the hits that shows a column."""
    import numpy as np
    from matplotlib.figure import Figure

    labels = _most_confused(evaluation)
    if not labels:
        raise PixMatcherError("No category is confused with another one: there is nothing to draw.")
    by_label = {category.label: category for category in evaluation.categories}
    precision = f"precision@{evaluation.k}"
    shares = np.full((len(labels), len(labels)), np.nan)
    for row, label in enumerate(labels):
        if label in by_label:
            known = {**by_label[label].wrong, label: by_label[label].figures[precision]}
            shares[row] = [known.get(other, 0.0) for other in labels]
    names = [shortened(evaluation.names[label]) for label in labels]
    side = 2.5 + 0.42 * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(0.6, float(np.nanmax(shares))))
    positions: Sequence[int] = range(len(labels))
    # A dollar sign would begin a formula.
    plain = [name.replace("$", r"\$") for name in names]
    axes.set_xticks(positions, plain, rotation=60, ha="right", rotation_mode="anchor", fontsize=9, color=_INK)
    axes.set_yticks(positions, plain, fontsize=9, color=_INK)
    axes.tick_params(length=0)
    axes.set_xlabel("shown by the hits", color=_FAINT)
    axes.set_ylabel("shown by the query", color=_FAINT)
    axes.set_title(
        f"The most confused of {len(evaluation.categories):,} categories\nper cent of the first {evaluation.k} hits",
        fontsize=11,
        color=_INK,
    )
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(np.nan_to_num(shares) >= 0.005).tolist():
        share = shares[row, column]
        axes.text(column, row, f"{share:.0%}"[:-1], ha="center", va="center", fontsize=8, color=_on_blue(share))
    return figure


def _most_confused(evaluation: Evaluation) -> list[str]:
    """The labels of the most confused pairs, those of a pair side by side as far as may be."""
    pairs = sorted(
        (-share, category.label, other) for category in evaluation.categories for other, share in category.wrong.items()
    )
    found: dict[str, None] = {}
    for _, *pair in pairs:
        if len(found.keys() | set(pair)) > _MOST:
            break
        found.update(dict.fromkeys(pair))
    return _side_by_side(list(found), ((label, other) for _, label, other in pairs))


def _side_by_side(labels: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The labels in an order in which those that belong together, by pairs of which the first count most, are near."""
    groups = {label: [label] for label in labels}
    for first, second in pairs:
        if first in groups and second in groups and groups[first] is not groups[second]:
            groups[first].extend(groups[second])
            for label in groups[second]:
                groups[label] = groups[first]
    return [label for group in {id(group): group for group in groups.values()}.values() for label in group]


def shortened(name: str) -> str:
    """A name as a picture shows it: in one line of at most 28 characters."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return shown if len(shown) <= 28 else shown[:27] + "…"


def _on_blue(share: float) -> str:
    """A colour that can be read on the blue of a share."""
    return "white" if share > 0.35 else _INK
