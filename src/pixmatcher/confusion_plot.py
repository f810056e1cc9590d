"""The picture of the most confused categories: whose images find which others."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import PixMatcherError
from .outputs import check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .evaluation import Evaluation

_MOST = 20
"""Categories on the picture."""
_FORMATS = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
_INK, _FAINT = "#202124", "#5f6368"


def check_plot_path(path: Path) -> None:
    """Find out, before the work is done, whether the picture could be drawn and saved there.

    Raises `PixMatcherError` if not.
    """
    if path.suffix.lower() not in _FORMATS:
        raise PixMatcherError(f"{path} must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}.")
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
    figure = draw_confusion_plot(evaluation)
    try:
        # Encoded in memory first, so that a picture which cannot be encoded leaves an old one as it was.
        encoded = io.BytesIO()
        figure.savefig(encoded, format=path.suffix.lower()[1:], dpi=150, bbox_inches="tight")
        path.write_bytes(encoded.getvalue())
    except OSError as error:
        raise PixMatcherError(f"{path} cannot be written ({error.strerror or error}): name another file.") from error


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
    names = [_shortened(evaluation.names[label]) for label in labels]
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


def _shortened(name: str) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return shown if len(shown) <= 28 else shown[:27] + "…"


def _on_blue(share: float) -> str:
    """A colour that can be read on the blue of a share."""
    return "white" if share > 0.35 else _INK
