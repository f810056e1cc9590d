"""Turn a query into one vector of one space: choose the space, load its encoder, embed text and image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..encoders import load_recorded, reads_text, text_language
from ..errors import (
    EncoderError,
    FetchError,
    InvalidImageError,
    PixMatcherError,
    QueryError,
    StorageError,
    UnreadableTextError,
)
from .query import Query

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..encoders import Encoder, Runtime
    from ..images import ImageSource
    from ..records import EncoderRecord, QueryKind, Space


@dataclass(frozen=True)
class EncoderFallback:
    """Why another encoder is used than the preferred one. `str()` of it is a message for the user."""

    preferred: str
    """The name of the encoder that cannot be used."""
    used: str
    """The name of the encoder that is used instead."""
    error: PixMatcherError
    """Why the preferred encoder cannot be used."""

    def __str__(self) -> str:
        if isinstance(self.error, UnreadableTextError):
            return f"The encoder {self.used} is used, because {self.preferred} cannot read this text."
        return f"The encoder {self.used} is used, because {self.preferred} cannot be used here. {self.error}"


@dataclass(frozen=True)
class EmbeddedQuery:
    """A query as a vector (dimension,) float32 of a space, made by the encoder of that name."""

    space: str
    vector: npt.NDArray[np.float32]
    encoder: str
    fallback: EncoderFallback | None = None
    """Why another encoder was used than the preferred one; None if the preferred one was used."""
    kind: QueryKind | None = None
    """Whether the vector is that of a text or of an image; None for a weighted sum of both."""
    unreadable: UnreadableTextError | None = None
    """Why the text beside an image was left out; None if it was not."""

    @property
    def note(self) -> str:
        """What the user should know about the choice of the encoder and the text; empty if there is nothing."""
        left_out = "" if self.unreadable is None else f"Only the image was searched for. {self.unreadable}"
        return " ".join(str(part) for part in (self.fallback, left_out) if part)


def embed_query(
    query: Query, encoders: Sequence[EncoderRecord], *, space: str | None = None, runtime: Runtime | None = None
) -> EmbeddedQuery:
    """Return the vector of a query in a space of a collection with these encoders.

    Without `space`, an image alone is embedded in the space that `image_encoder` chooses, a text (alone or with an
    image) in the space that `text_encoder` chooses. If the encoder of that space cannot be used on this machine, the
    next one is used, and the result has a `fallback`; so if it cannot read the text. A text beside an image that no
    encoder can read is left out, and the result is `unreadable`.

    Raises `UnreadableTextError` if the preferred encoder cannot read a text alone, nor can another one answer;
    `EncoderError` if the preferred encoder cannot be used otherwise, nor can another one answer; `QueryError` if no
    space fits the query or the text is not valid Unicode; `InvalidImageError` if the image cannot be used.
    """
    candidates = _image_spaces(encoders, space) if query.text is None else _text_spaces(encoders, space)
    errors: dict[str, PixMatcherError] = {}
    for record, chosen in candidates:
        if record.name in errors:  # an encoder with several spaces
            continue
        try:
            vector = _embed(query, load_recorded([record], runtime)[0], chosen)
        except (EncoderError, FetchError, StorageError, UnreadableTextError) as error:
            errors[record.name] = error
            continue
        fallbacks = [EncoderFallback(name, record.name, _root_error(error)) for name, error in errors.items()]
        return EmbeddedQuery(chosen.name, vector, record.name, fallbacks[0] if fallbacks else None, _kind(query))
    first, *others = errors.values()
    unreadable = next((error for error in (first, *others) if isinstance(error, UnreadableTextError)), None)
    if unreadable is not None and query.image is not None:
        embedded = embed_query(replace(query, text=None), encoders, space=space, runtime=runtime)
        return replace(embedded, unreadable=unreadable)
    if not others or first is unreadable:
        raise first
    raise EncoderError(f"None of the encoders of this collection can be used here. {first}") from first


def _kind(query: Query) -> QueryKind | None:
    if query.text is not None and query.image is not None:
        return None
    return "image" if query.text is None else "text"


def _root_error(error: PixMatcherError) -> PixMatcherError:
    """Return the error without the words that `load_recorded` adds to it."""
    return error.__cause__ if isinstance(error.__cause__, EncoderError) else error


def _embed(query: Query, encoder: Encoder, space: Space) -> npt.NDArray[np.float32]:
    """Return the vector (dimension,) of the query: of its text, of its image, or their weighted sum.

    Raises `UnreadableTextError` if the encoder cannot read the text.
    """
    if query.text is not None and not reads_text(encoder, query.text):
        raise UnreadableTextError(encoder.name, text_language(encoder))
    image_vector = None if query.image is None else _embed_image(query, query.image, encoder, space)
    if query.text is None:
        assert image_vector is not None
        return image_vector
    text_vector: npt.NDArray[np.float32] = encoder.encode_texts([query.text])[space.name][0]
    if image_vector is None:
        return text_vector
    return query.text_weight * text_vector + (1 - query.text_weight) * image_vector


def _embed_image(query: Query, image: ImageSource, encoder: Encoder, space: Space) -> npt.NDArray[np.float32]:
    from ..images import fit_image, open_image

    try:
        opened = open_image(image, min_side=encoder.recipe.min_side)
    except InvalidImageError as error:
        raise unusable_image(query, error) from error
    embeddings = encoder.encode_images(fit_image(opened, encoder.recipe)[None])[space.name]
    vector: npt.NDArray[np.float32] = embeddings[0]
    return vector


def unusable_image(query: Query, error: InvalidImageError) -> InvalidImageError:
    """Return the error for an image that cannot be opened as the error of the query that it belongs to."""
    name = query.known_image_name or "The image"
    if name == "-" and isinstance(query.image, bytes):
        name = "The image on standard input"
    why = f"{error.reason}: {error.detail}" if error.detail else error.reason
    message = f"{name} cannot be used as a query ({why}): choose another image."
    return InvalidImageError(error.reason, error.detail, message=message)


def image_encoder(
    encoders: Sequence[EncoderRecord], *, space: str | None = None, runtime: Runtime | None = None
) -> tuple[Encoder, Space]:
    """Return the encoder and the space for an image query.

    That is the given space, or else the first space for images only, or else the first space. No other encoder is
    loaded. Raises `QueryError` if the space does not exist, and as `load_recorded` does.
    """
    record, chosen = _image_spaces(encoders, space)[0]
    return load_recorded([record], runtime)[0], chosen


def image_space(encoders: Sequence[EncoderRecord], space: str | None = None) -> Space:
    """Return the space that `image_encoder` chooses, and load no encoder. Raises `QueryError` if it does not exist."""
    return _image_spaces(encoders, space)[0][1]


def _image_spaces(encoders: Sequence[EncoderRecord], space: str | None) -> list[tuple[EncoderRecord, Space]]:
    """Return the spaces for a search by image, the preferred one first: those for images only come first."""
    return sorted(_spaces_of(encoders, space), key=lambda pair: pair[1].text)


def text_encoder(
    encoders: Sequence[EncoderRecord], *, space: str | None = None, runtime: Runtime | None = None
) -> tuple[Encoder, Space]:
    """Return the encoder and the space for a text query: the given space, or else the first that supports text.

    No other encoder is loaded. Raises `QueryError` if the space does not exist or does not support text, and as
    `load_recorded` does.
    """
    record, chosen = _text_spaces(encoders, space)[0]
    return load_recorded([record], runtime)[0], chosen


def text_space(encoders: Sequence[EncoderRecord], space: str | None = None) -> Space:
    """Return the space that `text_encoder` chooses, and load no encoder. Raises `QueryError` as it does."""
    return _text_spaces(encoders, space)[0][1]


def _text_spaces(encoders: Sequence[EncoderRecord], space: str | None) -> list[tuple[EncoderRecord, Space]]:
    """Return the spaces in which a text can be searched, the preferred one first. Raises `QueryError` without one."""
    if found := [pair for pair in _spaces_of(encoders, space) if pair[1].text]:
        return found
    if space is not None:
        raise QueryError(f"The space {space} does not support text: search it by image, or choose another space.")
    names = ", ".join(record.name for record in encoders)
    raise QueryError(f"No encoder of this collection supports text ({names}): search it by image.")


def _spaces_of(encoders: Sequence[EncoderRecord], space: str | None) -> list[tuple[EncoderRecord, Space]]:
    pairs = [(record, each) for record in encoders for each in record.spaces]
    chosen = [pair for pair in pairs if space in (None, pair[1].name)]
    if not chosen:
        names = ", ".join(each.name for _, each in pairs)
        raise QueryError(f"The space {space!r} does not exist in this collection: choose one of {names}.")
    return chosen
