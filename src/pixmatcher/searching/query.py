"""Queries: a text, an image, or a weighted sum of them; each becomes one vector in one space."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..encoders import load_recorded
from ..errors import EncoderError, FetchError, InvalidImageError, PixMatcherError, QueryError, StorageError
from ..images import ImageSource, fit_image, is_allowed_extension, open_image
from ..net.fetch import MAX_BYTES, fetch, is_url

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..encoders import Encoder, Runtime
    from ..records import EncoderRecord, Space

MAX_TEXT_CHARACTERS = 10_000


@dataclass(frozen=True)
class Query:
    """What to look for. With a text and an image, `text_weight` (0 to 1) is the share of the text in the sum.

    A blank text beside an image counts as none.

    Raises `QueryError` if there is nothing to look for.
    """

    text: str | None = None
    image: ImageSource | None = None
    text_weight: float = 0.5
    image_name: str | None = None
    """How results name the image; by default its path."""

    def __post_init__(self) -> None:
        if self.text is None or not self.text.strip():
            if self.image is None:
                raise QueryError("The query is empty: give a text, an image path or an image URL.")
            object.__setattr__(self, "text", None)  # the class is frozen for others
        if self.text is not None and len(self.text) > MAX_TEXT_CHARACTERS:
            raise QueryError(f"The text is longer than {MAX_TEXT_CHARACTERS:,} characters: shorten it.")
        if not 0 <= self.text_weight <= 1:
            raise QueryError(f"The weight of the text must be between 0 and 1, not {self.text_weight}.")

    @property
    def name(self) -> str | dict[str, str]:
        """The query as results name it: its text, the name of its image, or both."""
        if self.image is None:
            return self.text or ""
        image = _name_of_image(self) or "(image)"
        return image if self.text is None else {"text": self.text, "image": image}


def parse_query(arguments: Sequence[str], *, allow_private: bool = False) -> Query:
    """The query that the words of a command line mean.

    `-` is an image on standard input, a URL is fetched, the path of a file is an image, anything else is text, a word
    that happens to name a folder too; text and an image make a mixed query. Raises `QueryError` for a path that does
    not exist or is a folder, `FetchError` for a URL that cannot be fetched.
    """
    texts = [argument for argument in arguments if not _means_image(argument)]
    images = [argument for argument in arguments if _means_image(argument)]
    if len(images) > 1:
        raise QueryError("A query has one image at most: search for each by itself, or use --batch.")
    text = " ".join(texts) if texts else None
    if not images:
        return Query(text)
    image = _standard_input() if images[0] == "-" else open_reference(images[0], allow_private)
    return Query(text, image, image_name=images[0])


def _standard_input() -> bytes:
    if sys.stdin is None:  # Python's way of saying that it is closed
        raise QueryError("Standard input is closed: give the image by its path.")
    try:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise QueryError(f"Standard input cannot be read ({error.strerror}): give the image by its path.") from error
    if len(data) > MAX_BYTES:
        raise QueryError(f"The image on standard input is larger than {MAX_BYTES >> 20} MB: give it by its path.")
    return data


def open_reference(reference: str, allow_private: bool = False) -> ImageSource:
    """The image that a path or URL refers to.

    Raises `QueryError` if there is no such file or it is a folder, `FetchError` as `fetch` does.
    """
    if is_url(reference):
        return fetch(reference, allow_private=allow_private)
    if not os.path.lexists(reference):
        return _inside_archive(reference)
    if os.path.isdir(reference):
        raise QueryError(f"{reference!r} is a folder, not an image: index it, or name an image in it.")
    return Path(reference)


def _inside_archive(path: str) -> bytes:
    """The image at a path that goes on behind the name of a zip or tar file, as the uris of such images do."""
    from ..sources.zipped import open_path

    try:
        with open_path(path) as file:
            return file.read()
    except InvalidImageError as error:
        if error.reason == "missing":
            raise QueryError(f"There is no file {path!r}: check the path.") from error
        raise


def query_from_json(values: object, *, allow_private: bool = False) -> Query:
    """The query of one JSON object: `text`, `image` (path or URL) or both, and perhaps `text_weight`."""
    if not isinstance(values, dict) or not {"text", "image"} & set(values):
        raise QueryError('A query in JSON is an object like {"text": "a cat"} or {"image": "cat.jpg"}.')
    text, image, weight = values.get("text"), values.get("image"), values.get("text_weight", 0.5)
    if not isinstance(text, (str, type(None))) or not isinstance(image, (str, type(None))):
        raise QueryError("The text and the image of a query in JSON must be strings.")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise QueryError("text_weight must be a number between 0 and 1.")
    if image is None:
        return Query(text)
    return Query(text, open_reference(image, allow_private), weight, image_name=image)


class Embedded(NamedTuple):
    """What a query became: the space of a collection that answers it, and its vector there, float32."""

    space: str
    vector: npt.NDArray[np.float32]
    passed_over: EncoderPassedOver | None = None
    """Where another space would have answered, whose encoder cannot be used here: why."""

    @property
    def note(self) -> str:
        """What to tell the user of that; empty where there is nothing to tell."""
        return "" if self.passed_over is None else str(self.passed_over)


@dataclass(frozen=True)
class EncoderPassedOver:
    """Why another encoder answers than the one that comes first. As a text: one for the user, with the remedy."""

    wanted: str
    """The name of the encoder that comes first."""
    used: str
    error: PixMatcherError

    def __str__(self) -> str:
        return f"The encoder {self.used} answers, as {self.wanted} cannot be used here. {self.error}"


def embed_query(
    query: Query, encoders: Sequence[EncoderRecord], *, space: str | None = None, runtime: Runtime | None = None
) -> Embedded:
    """The vector of a query in the space of a collection of these encoders that answers it.

    The space is the one asked for, or else chosen as by `image_encoder` for an image alone and `text_encoder` for a
    text, alone or with an image. Where its encoder cannot be used on this machine and no space was asked for, the next
    one answers, and the result tells so.

    Raises `EncoderError` if no encoder can be used, otherwise as these two do, `QueryError` if the text is not valid
    Unicode, `InvalidImageError` if the image cannot be used.
    """
    candidates = _image_spaces(encoders, space) if query.text is None else _text_spaces(encoders, space)
    errors: dict[str, PixMatcherError] = {}
    for record, chosen in candidates:
        if record.name in errors:  # of several spaces
            continue
        try:
            vector = _embed(query, load_recorded([record], runtime)[0], chosen)
        except (EncoderError, FetchError, StorageError) as error:
            errors[record.name] = error
            continue
        why = [EncoderPassedOver(wanted, record.name, _bare(error)) for wanted, error in errors.items()]
        return Embedded(chosen.name, vector, why[0] if why else None)
    first, *others = errors.values()
    if not others:
        raise first
    raise EncoderError(f"None of the encoders of this collection can be used here. {first}") from first


def _bare(error: PixMatcherError) -> PixMatcherError:
    """The error without what `load_recorded` says before it, that the collection was made with this encoder."""
    return error.__cause__ if isinstance(error.__cause__, EncoderError) else error


def _embed(query: Query, encoder: Encoder, space: Space) -> npt.NDArray[np.float32]:
    image_vector = None if query.image is None else _embed_image(query, query.image, encoder, space)
    if query.text is None:
        assert image_vector is not None
        return image_vector
    text_vector: npt.NDArray[np.float32] = encoder.encode_texts([query.text])[space.name][0]
    if image_vector is None:
        return text_vector
    return query.text_weight * text_vector + (1 - query.text_weight) * image_vector


def image_encoder(
    encoders: Sequence[EncoderRecord], *, space: str | None = None, runtime: Runtime | None = None
) -> tuple[Encoder, Space]:
    """What answers an image: the space asked for, or else the first made for images only, if there is one.

    The other encoders are not loaded. Raises `QueryError` if there is no such space, and as `load_recorded` does.
    """
    record, chosen = _image_spaces(encoders, space)[0]
    return load_recorded([record], runtime)[0], chosen


def image_space(encoders: Sequence[EncoderRecord], space: str | None = None) -> Space:
    """The space that `image_encoder` chooses; no encoder is loaded. Raises `QueryError` if there is no such space."""
    return _image_spaces(encoders, space)[0][1]


def _image_spaces(encoders: Sequence[EncoderRecord], space: str | None) -> list[tuple[EncoderRecord, Space]]:
    """What may answer an image, the best first."""
    return sorted(_spaces_of(encoders, space), key=lambda pair: pair[1].text)


def text_encoder(
    encoders: Sequence[EncoderRecord], *, space: str | None = None, runtime: Runtime | None = None
) -> tuple[Encoder, Space]:
    """What answers a text: the space asked for, or else the first that knows texts.

    The other encoders are not loaded. Raises `QueryError` if there is no such space or it does not know texts, and as
    `load_recorded` does.
    """
    record, chosen = _text_spaces(encoders, space)[0]
    return load_recorded([record], runtime)[0], chosen


def _text_spaces(encoders: Sequence[EncoderRecord], space: str | None) -> list[tuple[EncoderRecord, Space]]:
    """What may answer a text, the best first. Raises `QueryError` if nothing can."""
    if found := [pair for pair in _spaces_of(encoders, space) if pair[1].text]:
        return found
    if space is not None:
        raise QueryError(f"The space {space} knows no texts: search it by image, or choose another space.")
    raise QueryError("This collection has no encoder that knows texts: search it by image.")


def _spaces_of(encoders: Sequence[EncoderRecord], space: str | None) -> list[tuple[EncoderRecord, Space]]:
    pairs = [(record, each) for record in encoders for each in record.spaces]
    chosen = [pair for pair in pairs if space in (None, pair[1].name)]
    if not chosen:
        names = ", ".join(each.name for _, each in pairs)
        raise QueryError(f"The collection has no space {space!r}: choose one of {names}.")
    return chosen


def _embed_image(query: Query, image: ImageSource, encoder: Encoder, space: Space) -> npt.NDArray[np.float32]:
    try:
        opened = open_image(image, min_side=encoder.recipe.min_side)
    except InvalidImageError as error:
        name = _name_of_image(query) or "The image"
        if name == "-" and isinstance(image, bytes):
            name = "The image on standard input"
        # Only the message changes: who wants the reason and the detail finds them as they are for every image.
        error.args = (f"{name} cannot be used as a query ({error}): choose another image.",)
        raise
    embeddings = encoder.encode_images(fit_image(opened, encoder.recipe)[None])[space.name]
    vector: npt.NDArray[np.float32] = embeddings[0]
    return vector


def _name_of_image(query: Query) -> str | None:
    if query.image_name is None and isinstance(query.image, (str, os.PathLike)):
        return os.fspath(query.image)
    return query.image_name


def _means_image(argument: str) -> bool:
    """Whether a word of the command line means an image: it is a file, or it looks like a path, there or not."""
    return (
        argument in ("-", ".", "..")
        or is_url(argument)
        or os.path.isfile(argument)
        or is_allowed_extension(argument)
        or argument.startswith(("/", "./", "../"))
        or os.path.isdir(os.path.dirname(argument))
    )
