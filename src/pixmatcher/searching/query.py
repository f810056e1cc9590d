"""What to search for: a text, an image, or both; from Python, from a command line or from JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._urls import is_file_url, is_url, path_of_file_url
from ..errors import InvalidImageError, QueryError
from ..images import is_allowed_extension
from ..net.fetch import MAX_BYTES, fetch

if TYPE_CHECKING:
    from ..images import ImageSource

MAX_TEXT_CHARACTERS = 10_000


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

    `-` is an image on standard input, a URL is fetched, the path of a file is an image, and anything else is text, also
    a word that happens to be the name of a folder. Text and an image together make a mixed query. With `allow_private`,
    URLs may have private addresses.

    Raises `QueryError` if a path does not exist or is a folder, `FetchError` if a URL cannot be fetched.
    """
    texts = [argument for argument in arguments if not _refers_to_image(argument)]
    images = [argument for argument in arguments if _refers_to_image(argument)]
    if len(images) > 1:
        raise QueryError("A query has one image at most: search for each image separately, or use --batch.")
    text = " ".join(texts) if texts else None
    if not images:
        return Query(text)
    image = _read_standard_input() if images[0] == "-" else resolve_image(images[0], allow_private)
    return Query(text, image, image_name=images[0])


def _refers_to_image(argument: str) -> bool:
    """Return whether an argument of the command line is an image: it is a file or a URL, or it looks like a path."""
    return (
        argument in ("-", ".", "..")
        or is_url(argument)
        or is_file_url(argument)
        or os.path.isfile(argument)
        or is_allowed_extension(argument)
        or argument.startswith(("/", "./", "../"))
        or os.path.isdir(os.path.dirname(argument))
    )


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

    The URL of a file on this machine (`file:///path`) is its path. Raises `QueryError` if the file does not exist or is
    a folder, `FetchError` as `fetch` does.
    """
    if is_file_url(reference):
        reference = _path_of(reference)
    elif is_url(reference):
        return fetch(reference, allow_private=allow_private)
    if not os.path.lexists(reference):
        return _read_from_archive(reference)
    if os.path.isdir(reference):
        raise QueryError(f"{reference!r} is a folder, not an image: index it, or give the path of an image in it.")
    return Path(reference)


def _path_of(url: str) -> str:
    """Return the path that the URL of a file names. Raises `QueryError` if it names none."""
    try:
        return path_of_file_url(url)
    except ValueError as error:
        raise QueryError(f"{url} cannot be read: {error}.") from None


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
    return Query(text, resolve_image(image, allow_private), weight, image_name=image)
