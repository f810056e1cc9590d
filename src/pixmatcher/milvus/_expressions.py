"""Conditions in the language of Milvus: https://milvus.io/docs/boolean.md."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..collection.filters import Filter, comparable_date

_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
"""The escapes that both Milvus and Milvus Lite know; all other characters stand for themselves."""


def quoted(text: str) -> str:
    """Return a text as a string literal, whatever is in it."""
    return f'"{text.translate(_ESCAPES)}"'


def one_of(field: str, values: Iterable[str]) -> str:
    """Return the condition that a field of texts has one of these values."""
    return f"{field} in [{', '.join(map(quoted, sorted(values)))}]"


def all_of(*conditions: str) -> str:
    """Return the condition that all of these that are not empty are met."""
    return " and ".join(f"({condition})" for condition in conditions if condition)


def below(field: str, folder: str) -> str:
    """Return the condition that a field has the path or URL of something in a folder or below it."""
    start = stored_name(os.path.join(folder, ""))
    # What begins so sorts between that and the same with the last character, a slash, raised by one.
    return f"{field} >= {quoted(start)} and {field} < {quoted(start[:-1] + '0')}"


def stored_name(name: str) -> str:
    """Return a path or URL as it is stored: in valid Unicode, so that another name never becomes the same.

    A byte that is not Unicode becomes U+001A and its code in hexadecimal, and U+001A itself is doubled.
    """
    if name.isascii() and _MARK not in name:
        return name
    return "".join(
        f"{_MARK}{ord(c):04x}" if "\ud800" <= c <= "\udfff" else _MARK * 2 if c == _MARK else c for c in name
    )


def shown_name(stored: str) -> str:
    """Return the path or URL that `stored_name` stored."""
    if _MARK not in stored:
        return stored
    shown, position = [], 0
    while position < len(stored):
        character = stored[position]
        if character != _MARK:
            shown.append(character)
            position += 1
        elif stored[position + 1 : position + 2] == _MARK:
            shown.append(_MARK)
            position += 2
        else:
            shown.append(chr(int(stored[position + 1 : position + 5], 16)))
            position += 5
    return "".join(shown)


_MARK = "\x1a"


def filter_condition(filter: Filter, labels: Iterable[str]) -> str:
    """Return the condition of a filter; `labels` are those that its labels mean."""
    after, before = comparable_date(filter.after), comparable_date(filter.before)
    return all_of(
        "" if filter.labels is None else all_of("labelled == true", one_of("label", labels)),
        "" if filter.folder is None else below("uri", filter.folder),
        "" if after is None else f"date >= {quoted(after)}",
        "" if before is None else f'date != "" and date < {quoted(before)}',
        "" if filter.min_width is None else f"width >= {filter.min_width}",
        "" if filter.min_height is None else f"height >= {filter.min_height}",
    )
