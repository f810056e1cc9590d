"""Draw one line of text in any script: each part in a font that has it, in the right order, shortened to a width."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .._text import printable
from ._fonts import Face, bundled_face, face_for

_MOST_CLUSTERS = 400
_MOST_MARKS = 8
"""Combining marks on one character; more are shown as escapes."""
_ELLIPSIS = "..."
_CLUSTER = re.compile(
    r"""
    [\U0001f1e6-\U0001f1ff]{2}                                     # a flag: two letters of a country
    | [0-9#*]\ufe0f?\u20e3                                           # a key
    | \U0001f3f4[\U000e0020-\U000e007f]{2,8}                       # the flag of a part of a country
    | [\u00a9\u00ae\u203c-\u3299\U0001f000-\U0001faff]               # an emoji, with others that it is joined to
      [\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]*
      (?:\u200d[\u2190-\u2bff\U0001f000-\U0001faff][\ufe0f\U0001f3fb-\U0001f3ff]*){0,6}
    | [\u1100-\u115f]+[\u1160-\u11a7]*[\u11a8-\u11ff]*               # a Korean syllable in parts
    | [^\W_](?:\u200c|\u200d)(?=[^\W_])                              # a letter, joined to the next one or not
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_EMOJI = re.compile(
    r"[\U0001f1e6-\U0001f1ff]{2}|.?\ufe0f?\u20e3|.*\ufe0f.*|[\U0001f000-\U0001faff].*|[\u231a\u231b\u23e9-\u23f3\u25fd\u25fe"
    r"\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5"
    r"\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e\u2753-\u2755\u2757\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55]",
    re.DOTALL,
)
"""What is shown as an emoji in colour (Unicode Technical Standard 51, Emoji_Presentation)."""
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MIRRORED = str.maketrans("()[]{}<>\u00ab\u00bb", ")(][}{><\u00bb\u00ab")
"""The brackets that are drawn mirrored from right to left."""


@dataclass(frozen=True)
class _Cluster:
    """What is one character for a reader, and is never divided."""

    text: str
    face: Face


@dataclass(frozen=True)
class _Run:
    """Neighbouring clusters of one font and one direction."""

    text: str
    face: Face
    level: int
    """Of the Unicode Bidirectional Algorithm: even from left to right, odd from right to left."""


def draw_line(
    image: Image.Image, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    """Draw one line of text on an RGB image; one that is wider than `width` pixels is shortened in the middle.

    `at` is the left and upper end of the line. Control characters, characters that change the direction, bytes that are
    not Unicode and characters that no font has are drawn as escapes.
    """
    clusters = _clusters(text, size)
    runs = _runs(clusters)
    if sum(map(_width, runs)) > width:
        kept, too_many = 0, len(clusters)
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            if sum(map(_width, _runs(_shortened(clusters, middle, size)))) <= width:
                kept = middle
            else:
                too_many = middle
        runs = _runs(_shortened(clusters, kept, size))
    _draw_runs(image, at, runs, size, colour)


def _shortened(clusters: Sequence[_Cluster], kept: int, size: int) -> list[_Cluster]:
    """Return so many clusters of the beginning and the end together, with dots between."""
    right = kept // 2
    dots = _Cluster(_ELLIPSIS, bundled_face(size))
    return [*clusters[: kept - right], dots, *clusters[len(clusters) - right :]]


def _clusters(text: str, size: int) -> list[_Cluster]:
    """Return the clusters of a text, each with a font that has it; what cannot be drawn is escaped."""
    text = unicodedata.normalize("NFC", text)
    if len(text) > 4 * _MOST_CLUSTERS:
        text = text[: 2 * _MOST_CLUSTERS] + text[-2 * _MOST_CLUSTERS :]
    parts: list[str] = _CLUSTER.findall(text)
    # One font for the whole line looks best, if there is one.
    plain = "".join(sorted({part for part in parts if len(part) == 1 and part.isprintable() and not _is_emoji(part)}))
    usual = (not plain.isascii() and face_for(plain, size)) or bundled_face(size)
    clusters: list[_Cluster] = []
    marks = 0
    for part in parts:
        if clusters and _is_mark(part) and marks < _MOST_MARKS and not _is_escape(clusters[-1]):
            joined = clusters[-1].text + part
            face = face_for(joined, size)
            if face is not None:
                clusters[-1] = _Cluster(joined, face)
                marks += 1
                continue
        marks = 0
        if part.isascii() and part.isprintable():
            clusters.append(_Cluster(part, usual))
            continue
        face = _face_of(part, size)
        clusters += [_Cluster(part, face)] if face is not None else [_single(character, size) for character in part]
    if len(clusters) > _MOST_CLUSTERS:
        half = _MOST_CLUSTERS // 2
        clusters = clusters[:half] + clusters[-half:]
    return clusters


def _face_of(part: str, size: int) -> Face | None:
    """Return a font for a cluster; None if it is to be escaped."""
    visible = part.rstrip("\u200c\u200d") if len(part) > 1 else part
    if len(visible) == 1 and not visible.isprintable():
        return None
    return face_for(visible, size, is_emoji=_is_emoji(part))


def _single(character: str, size: int) -> _Cluster:
    """Return a cluster of a single character, or its escape."""
    face = _face_of(character, size)
    if face is not None:
        return _Cluster(character, face)
    escaped = printable(character)
    if escaped == character:
        escaped = character.encode("ascii", "backslashreplace").decode()
    return _Cluster(escaped, bundled_face(size))


def _is_escape(cluster: _Cluster) -> bool:
    return len(cluster.text) > 1 and cluster.text.isascii()


def _is_emoji(part: str) -> bool:
    return _EMOJI.fullmatch(part) is not None


def _is_mark(part: str) -> bool:
    return len(part) == 1 and (unicodedata.category(part)[0] == "M" or part in "\ufe0e\ufe0f")


# The order of the parts


def _runs(clusters: Sequence[_Cluster]) -> list[_Run]:
    """Return the runs of a line in the order in which they are seen, from left to right."""
    runs: list[_Run] = []
    for cluster, level in zip(clusters, _levels(clusters), strict=True):
        if runs and runs[-1].face is cluster.face and runs[-1].level == level:
            runs[-1] = _Run(runs[-1].text + cluster.text, cluster.face, level)
        else:
            runs.append(_Run(cluster.text, cluster.face, level))
    for level in range(max((run.level for run in runs), default=0), 0, -1):  # rule L2 of the algorithm
        begin = 0
        while begin < len(runs):
            end = begin
            while end < len(runs) and runs[end].level >= level:
                end += 1
            runs[begin:end] = runs[begin:end][::-1]
            begin = max(end, begin + 1)
    return runs


def _levels(clusters: Sequence[_Cluster]) -> list[int]:
    """Return the level of each cluster in a line from left to right, as names of files are shown.

    A short form of the Unicode Bidirectional Algorithm (Unicode Standard Annex 9): letters have a direction, numbers
    after Arabic or Hebrew go with it, and what is between two parts of one direction has that direction too.
    """
    kinds = [_direction(cluster) for cluster in clusters]
    strong = "L"
    for position, kind in enumerate(kinds):
        if kind in ("L", "R"):
            strong = kind
        elif kind == "N" and strong == "L":
            kinds[position] = "L"
    _resolve_brackets(clusters, kinds)
    levels = [{"L": 0, "R": 1, "N": 2}.get(kind, -1) for kind in kinds]
    begin = 0
    while begin < len(levels):
        end = begin
        while end < len(levels) and levels[end] < 0:
            end += 1
        inside = begin > 0 and end < len(levels) and min(levels[begin - 1], levels[end]) > 0
        levels[begin:end] = [int(inside)] * (end - begin)
        begin = end + 1
    return levels


def _resolve_brackets(clusters: Sequence[_Cluster], kinds: list[str]) -> None:
    """Give brackets the direction of what is in them, from right to left only if the text before is (rule N0)."""
    opened: list[tuple[str, int, str]] = []
    strong = "L"
    for position, cluster in enumerate(clusters):
        if kinds[position] in ("L", "R"):
            strong = kinds[position]
        if cluster.text in _BRACKETS:
            opened.append((_BRACKETS[cluster.text], position, strong))
        elif opened and cluster.text == opened[-1][0]:
            _, begin, before = opened.pop()
            inside = {*kinds[begin + 1 : position]} - {""}
            if "L" in inside:
                kinds[begin] = kinds[position] = "L"
            elif inside:
                kinds[begin] = kinds[position] = before


def _direction(cluster: _Cluster) -> str:
    """Return the direction of a cluster: L or R, N for a number, empty if it has none of its own."""
    if _is_escape(cluster):
        return "L"
    kind = unicodedata.bidirectional(cluster.text[0])
    return {"L": "L", "R": "R", "AL": "R", "EN": "N", "AN": "N"}.get(kind, "")


# Drawing


def _drawn_text(run: _Run) -> tuple[str, str | None]:
    """Return a run as Pillow draws it, and its direction.

    With raqm Pillow joins Arabic letters and the like, and draws from right to left. Without it, and in the font that
    comes with Pillow, clusters are reversed instead.
    """
    if run.face.font.layout_engine == ImageFont.Layout.RAQM:
        return run.text, "rtl" if run.level % 2 else "ltr"
    if run.level % 2 == 0:
        return run.text, None
    return "".join(_CLUSTER.findall(run.text)[::-1]).translate(_MIRRORED), None


def _width(run: _Run) -> float:
    """Return the width of a run in pixels."""
    text, direction = _drawn_text(run)
    return run.face.font.getlength(text, direction=direction) * run.face.scale


def _draw_runs(
    image: Image.Image, at: tuple[int, int], runs: Sequence[_Run], size: int, colour: tuple[int, int, int]
) -> None:
    draw = ImageDraw.Draw(image)
    left, baseline = float(at[0]), at[1] + bundled_face(size).font.getmetrics()[0]
    for run in runs:
        face, (text, direction) = run.face, _drawn_text(run)
        if face.size == face.own_size:
            draw.text(
                (left, baseline),
                text,
                fill=colour,
                font=face.font,
                anchor="ls",
                direction=direction,
                embedded_color=True,
            )
        else:
            # The glyphs have one size only: they are drawn in it, and then reduced.
            ascent, descent = face.font.getmetrics()
            width = max(1, round(face.font.getlength(text, direction=direction)))
            glyphs = Image.new("RGBA", (width, ascent + descent))
            ImageDraw.Draw(glyphs).text(
                (0, ascent), text, fill=colour, font=face.font, anchor="ls", direction=direction, embedded_color=True
            )
            reduced = (max(1, round(width * face.scale)), max(1, round((ascent + descent) * face.scale)))
            glyphs = glyphs.resize(reduced, Image.Resampling.LANCZOS)
            image.paste(glyphs, (round(left), baseline - round(ascent * face.scale)), glyphs)
        left += _width(run)
