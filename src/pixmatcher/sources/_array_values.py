"""The values that belong to the rows of saved embeddings: uris and categories, from .npy or JSON files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._urls import is_file_url, is_url, path_of_file_url
from ..errors import InvalidImageError, QueryError, SourceError
from ..images import open_regular_file
from ._npy import open_npy

MAX_TEXT = 10_000
"""Longest category or uri, in characters."""
_JSON_BYTES_A_ROW = 1024
"""A JSON file may have this many bytes for each row, and some more; a longer one cannot hold one value for each row."""

_UNPICKLE_TEXTS = "numpy.save(PATH, numpy.load(PATH, allow_pickle=True).astype(str))"


def read_strings(path: str, rows: int, what: str) -> list[str]:
    """Return one string for each row from a .npy file, a JSON list, or a JSON object of row numbers and strings.

    Raises `SourceError` if the file cannot be read or has a different number of values.
    """
    values: list[Any]
    if path.lower().endswith(".npy"):
        array = open_npy(path, _UNPICKLE_TEXTS)
        if len(array.shape) != 1 or array.dtype.kind not in "USiu" or array.dtype.itemsize > 4 * MAX_TEXT:
            raise SourceError(f"{path} is not a list of strings: save one {what} a row with numpy.save.")
        _check_count(path, array.shape[0], rows, what)
        texts = array.read(slice(None))
        # NumPy accepts characters beyond Unicode, on which Python fails later.
        if array.dtype.kind == "U" and array.dtype.itemsize and _beyond_unicode(texts):
            raise SourceError(f"{path} has invalid text: save one {what} a row with numpy.save.")
        values = texts.tolist()
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    found = read_json(path, (rows + 1024) * _JSON_BYTES_A_ROW)
    if not isinstance(found, (list, dict)):
        raise SourceError(f"{path} is not a list: write a JSON list with one {what} a row.")
    _check_count(path, len(found), rows, what)
    values = found if isinstance(found, list) else [found.get(str(row)) for row in range(rows)]
    for row, value in enumerate(values):
        if value is None and what == "category":
            values[row] = ""
        elif not isinstance(value, str) or len(value) > MAX_TEXT:
            raise SourceError(f"{path} has no {what} for the row {row}: write a JSON list with one string a row.")
    return values


def _beyond_unicode(texts: npt.NDArray[np.str_]) -> bool:
    characters = np.frombuffer(texts.tobytes(), texts.dtype.str[0] + "u4")
    return bool((characters > sys.maxunicode).any())


def _check_count(path: str, count: int, rows: int, what: str) -> None:
    if count != rows:
        raise SourceError(f"{path} has {count:,} values for {rows:,} embeddings: give the file with one {what} a row.")


def read_json(path: str, most_bytes: int) -> Any:
    """Return the content of a JSON file. Raises `SourceError` if it cannot be read, is too long or not valid."""
    try:
        with open_regular_file(path) as file:
            data = file.read(most_bytes + 1)
    except (OSError, InvalidImageError) as error:
        raise SourceError(f"{path} cannot be read ({error}): name a JSON file.") from error
    if len(data) > most_bytes:
        raise SourceError(f"{path} is larger than {most_bytes:,} bytes: it cannot belong to these embeddings.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON ({error}): write it again.") from error


def absolute_uri(uri: str, below: str) -> str:
    """Return an absolute uri: a URL or an absolute path as it is, a name joined to the URL or folder `below`.

    The URL of a file becomes its path; one of another machine stays as it is.
    """
    if is_file_url(uri):
        with contextlib.suppress(QueryError):
            uri = path_of_file_url(uri)
    if (uri.startswith("/") and uri.isascii() and "//" not in uri) or not is_valid_uri(uri):
        return uri
    # Undecodable bytes become what a collection returns for them.
    uri = os.fsdecode(os.fsencode(uri))
    if is_url(uri):
        return uri
    if is_url(below) and not uri.startswith("/"):
        return f"{below.rstrip('/')}/{uri}"
    return "/" + os.path.normpath(os.path.join(below, uri)).lstrip("/")


def is_valid_uri(uri: str) -> bool:
    """Return whether a collection can store a text as a uri."""
    try:
        return bool(uri) and "\0" not in uri and len(uri) <= MAX_TEXT and bool(os.fsencode(uri))
    except UnicodeEncodeError:
        return False


def clean_text(text: str) -> str:
    """Return the text with invalid Unicode replaced by question marks."""
    return text.encode("utf-8", "replace").decode()


class RowUris(Sequence[str]):
    """The uris of rows without a list of uris: the path of the file, "#", and the row number."""

    def __init__(self, path: str, rows: int) -> None:
        self._path, self._rows = path, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: Any) -> Any:
        return f"{self._path}#{range(self._rows)[row]}"
