"""Patterns in the syntax of .gitignore files, which say what of a folder is left out.

The syntax is that of https://git-scm.com/docs/gitignore. pathspec translates a pattern to a regular expression, except
for sets of characters, which it does not read as git does. Each folder and file is decided for itself, from the top
down, and nothing below a folder that is left out is looked at, as git does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

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
_SPECIAL = re.compile(r"\\?(\s)|\\.|\[([!^]?)(\]?(?:\[:[a-z]*:\]|\[(?!:[a-z]*:\])|\\.|[^][\\])*)\]|\[", re.DOTALL)
"""White space, another character after a backslash, a set of characters, or the beginning of a set without its end."""
_MEMBER = re.compile(r"\[:([a-z]*):\]|\\?(.)(?:-(?!\])\\?(.))?", re.DOTALL)
_STAND_IN = "\ud800"
"""What pathspec gets in place of a set of characters; the name of a file cannot have it."""

_FOLDERS, _FIRST_FOLDERS = "(?:/.+)?", "^(?:.+/)?"
"""What pathspec makes of `/**` and of `**/`."""
_BETWEEN_ASTERISKS = re.compile(r"\[\^/\]\*((?:\\.|\[\^/\](?!\*)|[^][\\/(){}.*+?^$|])+)(?=\[\^/\]\*)", re.DOTALL)
"""An asterisk, and the characters up to the next one in the same name."""


@dataclass(frozen=True)
class _Pattern:
    """One line of an ignore file."""

    excludes: bool
    """False for a line that begins with !, which takes in again what an earlier line leaves out."""
    folders_only: bool
    anywhere: bool
    """Whether it is compared with the name alone, in every folder below."""
    below: bool
    """Whether the expression describes a folder, and everything below it matches."""
    expression: re.Pattern[str]

    def matches(self, path: str, name: str, is_folder: bool) -> bool:
        """Return whether it matches a path relative to the folder of the pattern; `name` is the end of the path."""
        if self.folders_only and not is_folder:
            return False
        match = self.expression.search if self.below else self.expression.fullmatch
        return match(name if self.anywhere else path) is not None


@dataclass(frozen=True)
class IgnoreRules:
    """The patterns of one ignore file, or of the command line."""

    base: str
    """The folder to which the patterns are relative, with a slash at the end."""
    patterns: tuple[_Pattern, ...]
    """Those that count most are first."""

    @classmethod
    def parse(cls, folder: str, lines: Iterable[str]) -> IgnoreRules:
        """Return the rules of lines that are relative to a folder. As in git, a line that cannot match is skipped."""
        found = [pattern for line in lines if (pattern := _parse(line)) is not None]
        return cls(folder.rstrip("/") + "/", tuple(reversed(found)))


def is_excluded(rules: Iterable[IgnoreRules], path: str, is_folder: bool) -> bool:
    """Return whether rules, those that count most first, leave out a path whose folders they do not leave out."""
    name = path.rpartition("/")[2]
    for each in rules:
        relative = path[len(each.base) :]
        for pattern in each.patterns:
            if pattern.matches(relative, name, is_folder):
                return pattern.excludes
    return False


def _parse(line: str) -> _Pattern | None:
    """Return the pattern of a line, or None for a comment and for what can match nothing."""
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    text = line.removesuffix("\r")
    stripped = text.rstrip(" ")
    escapes = len(stripped) - len(stripped.rstrip("\\"))
    text = stripped + " " if len(stripped) < len(text) and escapes % 2 else stripped
    # With a slash at its end, pathspec would match the paths below a folder, and not the folder.
    folders_only = text.endswith("/")
    text = text.removesuffix("/")
    sets = list[str]()

    def stand_in(special: re.Match[str]) -> str:
        if special[1] is not None:
            sets.append(re.escape(special[1]))
        elif special[3] is not None:
            sets.append(_set(special[2] != "", special[3]))
        elif special[0] == "[":
            raise ValueError(line)
        else:
            return special[0]
        return _STAND_IN

    try:
        translated, excludes = GitIgnoreSpecPattern.pattern_to_regex(_SPECIAL.sub(stand_in, text))
    except ValueError:  # pathspec raises a subclass of it
        return None
    if translated is None or excludes is None or _STAND_IN in line:
        return None
    # With the group `ps_d`, an expression describes the path to its end, or else to a slash that has more after it.
    below = "(?P<ps_d>" not in translated
    given = iter(sets)
    expression = re.sub(_STAND_IN, lambda _: next(given), _without_backtracking(translated))
    return _Pattern(excludes, folders_only, "/" not in text, below, re.compile(expression, re.DOTALL))


def _set(negated: bool, members: str) -> str:
    """Return the regular expression of a set of characters. Raises `ValueError` for an unknown class."""
    parts = list[str]()
    for name, low, high in _MEMBER.findall(members):
        if not low:
            if name not in _CLASSES:
                raise ValueError(members)
            parts.append(_CLASSES[name])
        elif not high or low <= high:
            parts.append(f"{re.escape(low)}-{re.escape(high or low)}")
    if not parts:
        return "[^/]" if negated else "(?!.)."
    return f"(?!/)[{'^' if negated else ''}{''.join(parts)}]"


def _without_backtracking(expression: str) -> str:
    """Return an equivalent of an expression of pathspec that a hostile pattern or name cannot make slow.

    What is between two asterisks, or between two `**`, matches at the first place possible. No other place is tried, as
    whatever follows it there also follows it here.
    """
    numbers = count()

    def atomic(part: str) -> str:
        number = next(numbers)  # as (?>...) in Python 3.11
        return f"(?=(?P<part{number}>{part}))(?P=part{number})"

    expression = re.sub(r"(?:\[\^/\]\*)+", "[^/]*", expression)
    expression = _BETWEEN_ASTERISKS.sub(lambda match: atomic(f"[^/]*?{match[1]}"), expression)
    first, *between = expression.split(_FOLDERS)
    if between:
        *between, last = between
        if first.startswith(_FIRST_FOLDERS):
            first = "^" + atomic(f"(?:.+?/)??{first.removeprefix(_FIRST_FOLDERS)}(?=/)")
        expression = "".join([first, *(atomic(f"(?:/.+?)??{part}(?=/)") for part in between), _FOLDERS, last])
    return expression
