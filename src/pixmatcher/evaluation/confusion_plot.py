"""A plot of the most confused categories: which categories their images find instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._plots import check_plot_path, save_figure, shortened
from ..errors import PixMatcherError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ._results import Evaluation

_MAX_CATEGORIES = 20
_INK, _FAINT = "#202124", "#5f6368"


def save_confusion_plot(evaluation: Evaluation, path: Path) -> None:
    """Draw the most confused categories and save the plot as .png, .jpg, .svg or .pdf.

    Raises `PixMatcherError` if matplotlib is missing, no category is confused, or the file cannot be written.
    """
    check_plot_path(path)
    save_figure(draw_confusion_plot(evaluation), path)


def draw_confusion_plot(evaluation: Evaluation) -> Figure:
    """Return a matrix of the most confused categories.

    Rows are the categories of the queries, columns those of the hits. A cell is the share of a column among the first k
    hits of a row. Raises `PixMatcherError` if no category is confused.
    """
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
            known = {**by_label[label].wrong, label: by_label[label].metrics[precision]}
            shares[row] = [known.get(other, 0.0) for other in labels]
    names = [shortened(evaluation.names[label]) for label in labels]
    side = 2.5 + 0.42 * len(labels)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=max(0.6, float(np.nanmax(shares))))
    positions: Sequence[int] = range(len(labels))
    # For matplotlib, a dollar sign begins a formula.
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
    """Return the labels of the most confused pairs, with the labels of a pair side by side if possible."""
    pairs = sorted(
        (-share, category.label, other) for category in evaluation.categories for other, share in category.wrong.items()
    )
    found: dict[str, None] = {}
    for _, *pair in pairs:
        if len(found.keys() | set(pair)) > _MAX_CATEGORIES:
            break
        found.update(dict.fromkeys(pair))
    return _side_by_side(list(found), ((label, other) for _, label, other in pairs))


def _side_by_side(labels: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return the labels in an order that puts those of a pair near each other; earlier pairs have precedence."""
    groups = {label: [label] for label in labels}
    for first, second in pairs:
        if first in groups and second in groups and groups[first] is not groups[second]:
            groups[first].extend(groups[second])
            for label in groups[second]:
                groups[label] = groups[first]
    return [label for group in {id(group): group for group in groups.values()}.values() for label in group]


def _on_blue(share: float) -> str:
    """Return a text colour that is readable on the blue of a share."""
    return "white" if share > 0.35 else _INK
