"""What to search for: texts, images and items, wanted and unwanted; from Python, from a command line or from JSON."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._urls import (
    bytes_of_data_url,
    is_data_url,
    is_file_url,
    is_url,
    path_of_file_url,
    shown_data_url,
)
from ..errors import InvalidImageError, QueryError
from ..images import DEFAULT_MAX_PIXELS, is_allowed_extension
from ..net.fetch import MAX_BYTES, fetch

if TYPE_CHECKING:
    from ..images import ImageSource

MAX_TEXT_CHARACTERS = 10_000
_PATH_START = re.compile(r"/|\.\.?/|~/|\\\\|[a-zA-Z]:[/\\]")
"""Matches the beginning of a path, also of one of Windows; no text begins so."""
_MAX_ID = 2**63 - 1
"""The greatest id that a catalog can have."""


@dataclass(frozen=True)
class QueryPart:
    """One part of a query: a text, an image, or an item of the collection by its id; with its weight in the sum.

    Raises `QueryError` if it is not exactly one of these, the text is blank or too long, or the weight is not a number
    above 0.
    """

    text: str | None = None
    image: ImageSource | None = None
    item: int | None = None
    weight: float = 1.0
    image_name: str | None = None
    """The name of the image in results; by default its path."""

    def __post_init__(self) -> None:
        if (self.text is not None) + (self.image is not None) + (self.item is not None) != 1:
            raise QueryError("A part of a query is one text, one image or the id of one item: give one of them.")
        if self.text is not None:
            if not self.text.strip():
                raise QueryError("A text of the query is empty: write what to search for, or leave it out.")
            _check_length(self.text)
        if self.item is not None and not 0 <= self.item <= _MAX_ID:
            raise QueryError(f"No image of this collection has the id {self.item}.")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise QueryError(f"The weight of a part must be a number above 0, not {self.weight}.")

    @property
    def name(self) -> str | dict[str, Any]:
        """The part as results show it: a text, or an object with its image or id, and its weight if that is not 1."""
        weight = {} if self.weight == 1 else {"weight": self.weight}
        if self.text is not None:
            return {"text": self.text, **weight} if weight else self.text
        if self.item is not None:
            return {"id": self.item, **weight}
        return {"image": self.known_image_name or "(image)", **weight}

    @property
    def known_image_name(self) -> str | None:
        """`image_name`, or else the path of the image; None if the image has no name."""
        return _known_name(self.image, self.image_name)


@dataclass(frozen=True)
class Query:
    """What to search for: a text, an image, or the weighted sum of both; and further parts, wanted and unwanted.

    With a text and an image, `text_weight` (0 to 1) is the share of the text in the sum, and the share of the image is
    the rest. A text or an image alone has the weight 1. A blank text beside something else that is wanted is ignored.

    Raises `QueryError` if nothing is wanted, or the text is too long.
    """

    text: str | None = None
    image: ImageSource | None = None
    text_weight: float = 0.5
    image_name: str | None = None
    """The name of the image in results; by default its path."""
    note: str = ""
    """What to know about how the query was read; results show it."""
    wanted: tuple[QueryPart, ...] = ()
    """Further parts that results should be like."""
    unwanted: tuple[QueryPart, ...] = ()
    """Parts that results should not be like."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """The most pixels of an image of the query."""

    def __post_init__(self) -> None:
        if self.text is None or not self.text.strip():
            if self.image is None and not self.wanted:
                if self.unwanted:
                    raise QueryError("The query has only unwanted parts: give a text, an image or an item to find too.")
                raise QueryError("The query is empty: give a text, an image path or an image URL.")
            object.__setattr__(self, "text", None)  # the way to set a field of a frozen dataclass
        if self.text is not None:
            _check_length(self.text)
        if not 0 <= self.text_weight <= 1:
            raise QueryError(f"The weight of the text must be between 0 and 1, not {self.text_weight}.")

    @property
    def parts(self) -> list[tuple[QueryPart, float]]:
        """All parts with their weights in the sum; those of unwanted parts are below 0."""
        mixed = self.text is not None and self.image is not None
        parts = []
        if self.text is not None:
            parts.append((QueryPart(self.text), self.text_weight if mixed else 1.0))
        if self.image is not None:
            part = QueryPart(image=self.image, image_name=self.image_name)
            parts.append((part, 1 - self.text_weight if mixed else 1.0))
        parts += [(part, part.weight) for part in self.wanted]
        return parts + [(part, -part.weight) for part in self.unwanted]

    @property
    def texts(self) -> list[str]:
        """The texts of all parts."""
        return [part.text for part, _ in self.parts if part.text is not None]

    def without_texts(self, texts: Iterable[str]) -> Query | None:
        """Return the query without the parts that are one of these texts; None if nothing wanted remains."""
        left_out = {*texts}
        text = None if self.text in left_out else self.text
        wanted = tuple(part for part in self.wanted if part.text not in left_out)
        if text is None and self.image is None and not wanted:
            return None
        unwanted = tuple(part for part in self.unwanted if part.text not in left_out)
        return replace(self, text=text, wanted=wanted, unwanted=unwanted)

    @property
    def name(self) -> str | dict[str, Any]:
        """The query as results show it: its text, the name of its image, or an object with the names of its parts."""
        image = None if self.image is None else self.known_image_name or "(image)"
        if self.wanted or self.unwanted:
            names: dict[str, Any] = {
                "text": self.text,
                "image": image,
                "want": [part.name for part in self.wanted],
                "avoid": [part.name for part in self.unwanted],
            }
            return {key: value for key, value in names.items() if value}
        if image is None:
            return self.text or ""
        return image if self.text is None else {"text": self.text, "image": image}

    @property
    def known_image_name(self) -> str | None:
        """`image_name`, or else the path of the image; None if the image has no name."""
        return _known_name(self.image, self.image_name)


def _known_name(image: ImageSource | None, name: str | None) -> str | None:
    return os.fspath(image) if name is None and isinstance(image, (str, os.PathLike)) else name


def _check_length(text: str) -> None:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise QueryError(f"The text is longer than {MAX_TEXT_CHARACTERS:,} characters: shorten it.")


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


def query_from_json(
    values: object,
    *,
    allow_private: bool = False,
    resolve: Callable[[str], ImageSource] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Query:
    """Return the query that a JSON object describes: `text`, `image` (path or URL) or both, and `text_weight`.

    `want` and `avoid` are lists of further parts: a text, or an object with one of `text`, `image` and `id`, and
    perhaps a `weight`. `resolve` returns the image that a string refers to, by default `resolve_image`.

    Raises `QueryError` if it describes none, and as `resolve` does.
    """
    if not isinstance(values, dict) or not {"text", "image", "want", "avoid"} & set(values):
        raise QueryError('A query in JSON is an object like {"text": "a cat"} or {"image": "cat.jpg"}.')

    def image_of(reference: str) -> ImageSource:
        return resolve_image(reference, allow_private) if resolve is None else resolve(reference)

    text, image, weight = values.get("text"), values.get("image"), values.get("text_weight", 0.5)
    if not isinstance(text, (str, type(None))) or not isinstance(image, (str, type(None))):
        raise QueryError("The text and the image of a query in JSON must be strings.")
    if not _is_number(weight):
        raise QueryError("text_weight must be a number between 0 and 1.")
    wanted, unwanted = (_parts_from_json(values, key, image_of) for key in ("want", "avoid"))
    if image is None:
        return Query(text, wanted=wanted, unwanted=unwanted, max_pixels=max_pixels)
    return Query(
        text,
        image_of(image),
        weight,
        image_name=image_name_of(image),
        wanted=wanted,
        unwanted=unwanted,
        max_pixels=max_pixels,
    )


def name_from_json(values: Mapping[str, Any]) -> Any:
    """Return the name of a query in JSON that failed: its text or its image, or else all of it."""
    name = values.get("text") or values.get("image")
    return image_name_of(name) if isinstance(name, str) else name or dict(values)


def _parts_from_json(values: dict[str, Any], key: str, image_of: Callable[[str], ImageSource]) -> tuple[QueryPart, ...]:
    """Return the parts that the list `key` of a JSON object describes."""
    parts = values.get(key)
    if parts is None:
        return ()
    if not isinstance(parts, list):
        raise QueryError(f'{key} must be a list of parts like "a cat", {{"image": "cat.jpg"}} or {{"id": 5}}.')
    return tuple(_part_from_json(part, image_of) for part in parts)


def _part_from_json(values: object, image_of: Callable[[str], ImageSource]) -> QueryPart:
    if isinstance(values, str):
        return QueryPart(values)
    if not isinstance(values, dict):
        raise QueryError('A part of a query in JSON is a text, or an object like {"image": "cat.jpg"} or {"id": 5}.')
    text, image, item, weight = (values.get(key) for key in ("text", "image", "id", "weight"))
    if not isinstance(text, (str, type(None))) or not isinstance(image, (str, type(None))):
        raise QueryError("The text and the image of a part in JSON must be strings.")
    if item is not None and (isinstance(item, bool) or not isinstance(item, int)):
        raise QueryError("The id of a part in JSON must be a whole number.")
    if weight is not None and not _is_number(weight):
        raise QueryError("The weight of a part in JSON must be a number above 0.")
    source = None if image is None else image_of(image)
    name = None if image is None else image_name_of(image)
    return QueryPart(text, source, item, 1.0 if weight is None else weight, image_name=name)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
