"""The groups of a map: items that have one colour and one entry in the legend."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .._plots import shortened
from .projection import Projection

_NAMED_COLORS = (
    *("#4269d0", "#efb118", "#e4572e", "#3ca951", "#a463f2", "#ff8ab7", "#38b2c8", "#9c6b4e", "#7a8b00", "#1b3a8a"),
    *("#97bbf5", "#b3261e", "#8fd694", "#5b21a6", "#f5a97f", "#0f6e63", "#d16ba5", "#8a5a00", "#6cc5b0", "#4b5563"),
)
_OTHERS, _NONE = "#b6bbc2", "#dfe2e6"
INK, FAINT, PAPER = "#202124", "#5f6368", "#ffffff"
"""Colours of texts, of less important texts, and of the background."""
MOST_SINGLE_POINTS = 5_000
"""Points that are drawn one by one, as vectors; more are drawn as pixels, in a browser by WebGL."""


@dataclass(frozen=True)
class Group:
    """Items of one colour: their name in the legend, and their positions (N,) int64 in the map."""

    name: str
    color: str
    members: npt.NDArray[np.int64]
    kind: Literal["label", "cluster", "others", "none"] = "label"
    number: int = 0
    """The number of the cluster, from 1; for the kind "others", the number of its labels."""

    @property
    def named(self) -> bool:
        """Whether it is one label or one cluster, not the remaining items."""
        return self.kind in ("label", "cluster")


def color_groups(
    projection: Projection, color: str | None = None, names: Mapping[str, str] | None = None
) -> list[Group]:
    """Return the items of a map grouped by colour, the largest group first, the remaining items last.

    With `color` "label", the 20 most frequent labels have colours of their own (of equally frequent ones, a
    pseudo-random choice); with "cluster", the clusters; with None, labels if the map has any, otherwise clusters.
    `names` are the names of the labels.
    """
    if color == "cluster" or (color is None and not any(label is not None for label in projection.labels)):
        clusters = range(int(projection.clusters.max(initial=-1)) + 1)
        members = [np.flatnonzero(projection.clusters == cluster) for cluster in clusters]
        return [
            Group(f"cluster {cluster + 1}", _NAMED_COLORS[cluster % len(_NAMED_COLORS)], found, "cluster", cluster + 1)
            for cluster, found in enumerate(members)
            if len(found)
        ]
    counts = Counter(label for label in projection.labels if label is not None)
    ranked = sorted(counts, key=lambda label: (-counts[label], zlib.crc32(label.encode()), label))
    position_of = {label: position for position, label in enumerate(ranked)}
    codes = np.array([-1 if label is None else position_of[label] for label in projection.labels])
    first = ranked[: len(_NAMED_COLORS)]
    groups = [
        Group((names or {}).get(label, label), shade, np.flatnonzero(codes == code))
        for code, (label, shade) in enumerate(zip(first, _NAMED_COLORS, strict=False))
    ]
    others = len(ranked) - len(first)
    if others:
        what = f"{others:,} other labels" if others > 1 else "1 other label"
        groups.append(Group(what, _OTHERS, np.flatnonzero(codes >= len(first)), "others", others))
    if (codes < 0).any():
        groups.append(Group("no label", _NONE, np.flatnonzero(codes < 0), "none"))
    return groups


def legend_name(group: Group) -> str:
    """Return the text of a group in the legend."""
    return f"{shortened(group.name)}  ({len(group.members):,})"


def printable_text(text: str) -> str:
    """Return a text with control characters replaced."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
