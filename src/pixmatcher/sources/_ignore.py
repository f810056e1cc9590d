"""Patterns in the syntax of .gitignore files, which say what of a folder is left out.

The syntax is that of https://git-scm.com/docs/gitignore. Each folder and file is decided for itself, from the top down,
and nothing below a folder that is left out is looked at, as git does it. A pattern is matched in a time of at most its
length times that of the path: no backtracking.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

IGNORE_FILE = ".pixmatcherignore"

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_CLASS_NAME = re.compile(r"\[:([a-z]+):\]")


@dataclass(frozen=True)
class _Pattern:
    """One line of an ignore file."""

    excludes: bool
    """False for a line that begins with !, which takes in again what an earlier line leaves out."""
    folders_only: bool
    anywhere: bool
    """Whether it is compared with the name alone, in every folder below."""
    segments: tuple[_Segment | None, ...]
    """The parts between slashes; None is **, which matches any number of them."""

    def matches(self, names: Sequence[str], is_folder: bool) -> bool:
        """Return whether it matches a path, given as its names below the folder of the pattern."""
        if self.folders_only and not is_folder:
            return False
        if self.anywhere:
            segment = self.segments[0]
            return segment is None or segment.matches(names[-1])
        return _match_path(self.segments, names)


class _Segment:
    """A part of a pattern between slashes, split at its asterisks into pieces of fixed lengths."""

    def __init__(self, pieces: Sequence[str | re.Pattern[str] | None], lengths: Sequence[int]) -> None:
        self._pieces, self._lengths = pieces, lengths
        self._literal = pieces[0] if len(pieces) == 1 and isinstance(pieces[0], str) else None

    def matches(self, name: str) -> bool:
        if self._literal is not None:
            return name == self._literal
        last = len(self._pieces) - 1
        if last == 0:
            return len(name) == self._lengths[0] and self._found_at(0, name, 0)
        end = len(name) - self._lengths[last]
        if self._lengths[0] > end or not self._found_at(0, name, 0) or not self._found_at(last, name, end):
            return False
        position = self._lengths[0]
        for number in range(1, last):
            found = self._find(number, name, position, end)
            if found < 0:
                return False
            position = found + self._lengths[number]
        return True

    def _found_at(self, number: int, name: str, position: int) -> bool:
        piece = self._pieces[number]
        if isinstance(piece, str):
            return name.startswith(piece, position)
        return piece is not None and piece.match(name, position) is not None

    def _find(self, number: int, name: str, start: int, end: int) -> int:
        piece = self._pieces[number]
        if isinstance(piece, str):
            return name.find(piece, start, end)
        found = piece.search(name, start, end) if piece is not None else None
        return -1 if found is None else found.start()


def _match_path(segments: Sequence[_Segment | None], names: Sequence[str]) -> bool:
    """Return whether segments match all names; only the last ** before a difference is extended."""
    at = position = 0
    resume: tuple[int, int] | None = None
    while position < len(names):
        if at < len(segments):
            segment = segments[at]
            if segment is None:
                if at == len(segments) - 1:
                    return True  # at the end, ** needs one name or more
                at += 1
                resume = at, position
                continue
            if segment.matches(names[position]):
                at += 1
                position += 1
                continue
        if resume is None:
            return False
        at, position = resume[0], resume[1] + 1
        resume = at, position
    return at == len(segments)


@dataclass(frozen=True)
class IgnoreRules:
    """The patterns of one ignore file, or of the command line."""

    base: str
    """The folder to which the patterns are relative, with a slash at the end."""
    patterns: tuple[_Pattern, ...]

    @classmethod
    def parse(cls, folder: str, lines: Iterable[str]) -> IgnoreRules:
        """Return the rules of lines that are relative to a folder. As in git, a line that cannot match is skipped."""
        found = (_parse(line) for line in lines)
        return cls(folder.rstrip("/") + "/", tuple(pattern for pattern in found if pattern is not None))


def is_excluded(rules: Iterable[IgnoreRules], path: str, is_folder: bool) -> bool:
    """Return whether rules, those that count most first, leave out a path whose folders they do not leave out."""
    for each in rules:
        names = path[len(each.base) :].split("/")
        for pattern in reversed(each.patterns):
            if pattern.matches(names, is_folder):
                return pattern.excludes
    return False


def _parse(line: str) -> _Pattern | None:
    text = line.rstrip("\r\n")
    stripped = text.rstrip(" ")
    escapes = len(stripped) - len(stripped.rstrip("\\"))
    text = stripped + " " if len(stripped) < len(text) and escapes % 2 else stripped
    if text.startswith("#"):
        return None
    excludes = not text.startswith("!")
    text = text if excludes else text[1:]
    folders_only = text.endswith("/")
    text = text.removesuffix("/")
    anywhere = "/" not in text
    text = text.removeprefix("/")
    if not text:
        return None
    segments = list[_Segment | None]()
    for part in text.split("/"):
        if part == "**" and not anywhere:
            if not segments or segments[-1] is not None:
                segments.append(None)
            continue
        segment = _segment(part)
        if segment is None:
            return None
        segments.append(segment)
    return _Pattern(excludes, folders_only, anywhere, tuple(segments))


def _segment(text: str) -> _Segment | None:
    """Return a part of a pattern, or None if it can match nothing: a bracket or an escape without its end."""
    pieces: list[list[str]] = [[]]
    plain: list[list[str] | None] = [[]]
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append([])
                plain.append([])
            continue
        literals = plain[-1]
        if character == "?":
            pieces[-1].append(".")
            plain[-1] = None
        elif character == "[":
            found = _bracket(text, position)
            if found is None:
                return None
            expression, position = found
            pieces[-1].append(expression)
            plain[-1] = None
        else:
            if character == "\\":
                if position == len(text):
                    return None
                character = text[position]
                position += 1
            pieces[-1].append(re.escape(character))
            if literals is not None:
                literals.append(character)
    compiled = [
        "".join(letters) if letters is not None else re.compile("".join(piece), re.DOTALL)
        for piece, letters in zip(pieces, plain, strict=True)
    ]
    return _Segment(compiled, [len(piece) for piece in pieces])


def _bracket(text: str, position: int) -> tuple[str, int] | None:
    """Return the regular expression of the bracket that is open at `position`, and where it ends; None if it does not.

    The result matches one character, or none at all, such as [z-a].
    """
    negated = text[position : position + 1] in ("!", "^")
    position += negated
    parts, first = list[str](), True
    while True:
        if position >= len(text):
            return None
        if text[position] == "]" and not first:
            break
        first = False
        if name := _CLASS_NAME.match(text, position):
            if name[1] not in _CLASSES:
                return None
            parts.append(_CLASSES[name[1]])
            position = name.end()
            continue
        low, position = _bracket_character(text, position)
        high = low
        if text[position : position + 1] == "-" and text[position + 1 : position + 2] not in ("]", ""):
            high, position = _bracket_character(text, position + 1)
        if not low or not high:
            return None
        if low <= high:
            parts.append(f"{re.escape(low)}-{re.escape(high)}")
    if not parts:
        return ("." if negated else "(?!.)."), position + 1
    return f"[{'^' if negated else ''}{''.join(parts)}]", position + 1


def _bracket_character(text: str, position: int) -> tuple[str, int]:
    """Return the character of a bracket at a position, perhaps after a backslash, and the position after it."""
    if text[position] == "\\":
        position += 1
    return text[position : position + 1], position + 1
