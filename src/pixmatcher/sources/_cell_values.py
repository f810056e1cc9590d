"""The values in the cells of a list: from a text table, JSON or Parquet."""

from __future__ import annotations

from typing import Any, TypeAlias

from .text_tables import MAX_LINE

Value: TypeAlias = Any
"""A value of a row: text if it is from a text table, otherwise any value of JSON or Parquet."""


class TooLongError(ValueError):
    """A text is longer than a line of a table can be."""


def as_text(value: Value) -> str | None:
    """Return a value as text that can be stored; None if it is empty, or is not a single value.

    Raises `TooLongError` if the text is too long.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        if value is None or value != value or isinstance(value, (list, tuple, dict)):  # NaN is not itself
            return None
        value = str(value).lower() if isinstance(value, bool) else str(value)
    if len(value) > MAX_LINE:
        raise TooLongError
    if not value.isascii() or "\0" in value:  # JSON and Parquet can contain invalid text
        value = value.encode("utf-8", "replace").decode().replace("\0", "")
    return value.strip() or None


def as_list(column: Any) -> list[Value]:
    """Return the values of a Parquet column; text that is not UTF-8 as bytes."""
    import pyarrow

    try:
        values: list[Value] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def first_line(error: Exception) -> str:
    """Return the first line of the text of an error."""
    return (str(error) or type(error).__name__).partition("\n")[0]
