"""What to search for: a text, an image, or both; from Python, from a command line or from JSON."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._urls import (
    bytes_of_data_url,
    is_data_url,
    is_file_url,
    is_url,
    path_of_file_url,
    shown_data_url,
)
from ..errors import InvalidImageError, QueryError
from ..images import is_allowed_extension
from ..net.fetch import MAX_BYTES, fetch

if TYPE_CHECKING:
    from ..images import ImageSource

MAX_TEXT_CHARACTERS = 10_000
_PATH_START = re.compile(r"/|\.\.?/|~/|\\\\|[a-zA-Z]:[/\\]")
"""Matches the beginning of a path, also of one of Windows; no text begins so."""


@dataclass(frozen=True)
class Query:
    """What to search for: a text, an image, or the weighted sum of both.

    With a text and an image, `text_weight` (0 to 1) is the share of the text in the sum. A blank text beside an image
    is ignored.

    Raises `QueryError` if there is neither a text nor an image, or the text is too long.
    """

    text: str | None = None
    image: ImageSource | None = None
    text_weight: float = 0.5
    image_name: str | None = None
    """The name of the image in results; by default its path."""
    note: str = ""
    """What to know about how the query was read; results show it."""

    def __post_init__(self) -> None:
        if self.text is None or not self.text.strip():
            if self.image is None:
                raise QueryError("The query is empty: give a text, an image path or an image URL.")
            object.__setattr__(self, "text", None)  # the way to set a field of a frozen dataclass
        if self.text is not None and len(self.text) > MAX_TEXT_CHARACTERS:
            raise QueryError(f"The text is longer than {MAX_TEXT_CHARACTERS:,} characters: shorten it.")
        if not 0 <= self.text_weight <= 1:
            raise QueryError(f"The weight of the text must be between 0 and 1, not {self.text_weight}.")

    @property
    def name(self) -> str | dict[str, str]:
        """The query as results show it: its text, the name of its image, or both."""
        if self.image is None:
            return self.text or ""
        image = self.known_image_name or "(image)"
        return image if self.text is None else {"text": self.text, "image": image}

    @property
    def known_image_name(self) -> str | None:
        """`image_name`, or else the path of the image; None if the image has no name."""
        if self.image_name is None and isinstance(self.image, (str, os.PathLike)):
            return os.fspath(self.image)
        return self.image_name


def parse_query(arguments: Sequence[str], *, allow_private: bool = False) -> Query:
    """Return the query that the arguments of a command line describe.

    `-` is an image on standard input, a URL is fetched, the path of a file is an image, also in quotes, and so is what
    looks like a path. Anything else is text, also a word that happens to be the name of a folder, and several words
    that end like the name of a file that does not exist; the query has a note then. Text and an image together make a
    mixed query. With `allow_private`, URLs may have private addresses.

    Raises `QueryError` if a path does not exist or is a folder, `FetchError` if a URL cannot be fetched.
    """
    if len(arguments) > 1 and os.path.isfile(joined := " ".join(arguments)):
        arguments = [joined]  # a name with spaces, without quotes
    images = [argument for argument in arguments if argument == "-" or _refers_to_image(argument)]
    if len(images) > 1:
        raise QueryError("A query has one image at most: search for each image separately, or use --batch.")
    texts = [argument for argument in arguments if argument not in images]
    text = " ".join(texts) if texts else None
    if not images:
        return Query(text, note=_note_of_missing_file(text or ""))
    image = _read_standard_input() if images[0] == "-" else resolve_image(images[0], allow_private)
    return Query(text, image, image_name=image_name_of(images[0]))


def parse_line(line: str, *, allow_private: bool = False) -> Query:
    """Return the query that a line describes: a URL or the path of a file is an image, anything else a text.

    A text that looks like the path of a file that does not exist gets a note. Raises as `parse_query`.
    """
    if is_url(line) or is_file_url(line) or is_data_url(line) or _is_file(_path_of(line)):
        return Query(image=resolve_image(line, allow_private), image_name=image_name_of(line))
    return Query(line, note=_note_of_missing_file(line))


def _refers_to_image(argument: str) -> bool:
    """Return whether an argument of the command line is an image: it is a file or a URL, or it looks like a path."""
    if is_url(argument) or is_file_url(argument) or is_data_url(argument):
        return True
    path = _path_of(argument)
    return (
        path in (".", "..")
        or os.path.isfile(path)
        or _PATH_START.match(path) is not None
        or os.path.isdir(os.path.dirname(path))
        or (_ends_like_a_file(path) and ("/" in path or len(path.split()) == 1))
    )


def _ends_like_a_file(text: str) -> bool:
    """Return whether a text ends with a name with the extension of an image; an extension alone is none."""
    return is_allowed_extension(text) and not os.path.splitext(os.path.basename(text))[0].endswith(" ")


def _is_file(path: str) -> bool:
    """Return whether a path is that of a file, or looks like that of an image inside a file, such as a tar file."""
    if os.path.isfile(path) or not _ends_like_a_file(path):
        return os.path.isfile(path)
    above = os.path.dirname(path)
    while above and above != os.path.dirname(above) and not os.path.lexists(above):
        above = os.path.dirname(above)
    return os.path.isfile(above)


def _note_of_missing_file(text: str) -> str:
    """Return a note that a text was not read as a path; empty if it does not look like one."""
    path = _path_of(text)
    if not _ends_like_a_file(path) and not _PATH_START.match(path):
        return ""
    return f"There is no file {path!r}, so the words were searched for as a text."


def _path_of(text: str) -> str:
    """Return a text as a path: without the spaces and quotes around it, `~` replaced by the home folder."""
    if os.path.isfile(text):
        return text
    path = text.strip()
    for quote in "'\"":
        if len(path) > 2 and path[0] == path[-1] == quote:
            path = path[1:-1]
            break
    return os.path.expanduser(path) if path.startswith("~/") else path


def image_name_of(reference: str) -> str:
    """Return the name of an image in results by the path or URL that refers to it; a data URL is cut short."""
    return shown_data_url(reference) if is_data_url(reference) else reference


def _read_standard_input() -> bytes:
    if sys.stdin is None:  # Python sets this if it is closed
        raise QueryError("Standard input is closed: give the path of the image.")
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise QueryError(f"Standard input cannot be read ({error.strerror}): give the path of the image.") from error
    if len(data) > MAX_BYTES:
        raise QueryError(f"The image on standard input is larger than {MAX_BYTES >> 20} MB: give its path.")
    return data


def resolve_image(reference: str, allow_private: bool = False) -> ImageSource:
    """Return the image that a path or URL refers to: a path, or the bytes of a fetched or archived file.

    The URL can also be one of a file on this machine, or contain the data of the image.
    Raises `QueryError` if the file does not exist or is a folder, `FetchError` as `fetch` does.
    """
    if is_data_url(reference):
        return bytes_of_data_url(reference, MAX_BYTES)
    if is_file_url(reference):
        reference = path_of_file_url(reference)
    elif is_url(reference):
        return fetch(reference, allow_private=allow_private)
    path = _path_of(reference)
    if not os.path.lexists(path):
        return _read_from_archive(path)
    if os.path.isdir(path):
        raise QueryError(f"{path!r} is a folder, not an image: index it, or give the path of an image in it.")
    return Path(path)


def _read_from_archive(path: str) -> bytes:
    """Return the image inside a zip or tar file: the path is that of the archive, then the name of the image in it."""
    from ..sources.archives import open_path

    try:
        with open_path(path) as file:
            return file.read()
    except InvalidImageError as error:
        if error.reason == "missing":
            raise QueryError(f"The file {path!r} does not exist: check the path.") from error
        raise


def query_from_json(values: object, *, allow_private: bool = False) -> Query:
    """Return the query that a JSON object describes: `text`, `image` (path or URL) or both, and `text_weight`.

    Raises `QueryError` if it describes none, and as `resolve_image` does.
    """
    if not isinstance(values, dict) or not {"text", "image"} & set(values):
        raise QueryError('A query in JSON is an object like {"text": "a cat"} or {"image": "cat.jpg"}.')
    text, image, weight = values.get("text"), values.get("image"), values.get("text_weight", 0.5)
    if not isinstance(text, (str, type(None))) or not isinstance(image, (str, type(None))):
        raise QueryError("The text and the image of a query in JSON must be strings.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise QueryError("text_weight must be a number between 0 and 1.")
    if image is None:
        return Query(text)
    return Query(text, resolve_image(image, allow_private), weight, image_name=image_name_of(image))
