"""Turn a query into one vector of one space: choose the space, load its encoder, embed the parts, combine them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

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
from .query import Query, QueryPart

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..encoders import Encoder, Runtime
    from ..records import EncoderRecord, QueryKind, Space

    Vector: TypeAlias = npt.NDArray[np.float32]
    StoredEmbeddings: TypeAlias = Callable[[Iterable[int], str], Vector]


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
    """Whether the vector is that of a text or of an image; None for a sum of several parts."""
    unreadable: UnreadableTextError | None = None
    """Why a text beside other parts was left out; None if none was."""

    @property
    def note(self) -> str:
        """What the user should know about the choice of the encoder and the text; empty if there is nothing."""
        rest = "the image" if self.kind == "image" else "the rest of the query"
        left_out = "" if self.unreadable is None else f"Only {rest} was searched for. {self.unreadable}"
        return " ".join(str(part) for part in (self.fallback, left_out) if part)


def embed_query(
    query: Query,
    encoders: Sequence[EncoderRecord],
    *,
    space: str | None = None,
    runtime: Runtime | None = None,
    stored: StoredEmbeddings | None = None,
) -> EmbeddedQuery:
    """Return the vector of a query in a space of a collection with these encoders.

    Without `space`, a query without a text is embedded in the space that `image_encoder` chooses, one with a text in
    the space that `text_encoder` chooses. If the encoder of that space cannot be used on this machine, the next one is
    used, and the result has a `fallback`; so if it cannot read the text. A text beside other wanted parts that no
    encoder can read is left out, and the result is `unreadable`. `stored` is the method `embeddings` of the collection,
    for the parts that are items of it.

    Raises `UnreadableTextError` if the preferred encoder cannot read a text alone, nor can another one answer;
    `EncoderError` if the preferred encoder cannot be used otherwise, nor can another one answer; `QueryError` if no
    space fits the query or the text is not valid Unicode; `InvalidImageError` if an image cannot be used;
    `CollectionError` if an item does not exist.
    """
    parts = query.parts
    texts = query.texts
    encoded = any(part.item is None for part, _ in parts)
    unreadable_texts: list[str] = []
    errors: dict[str, PixMatcherError] = {}
    for record, chosen in _text_spaces(encoders, space) if texts else _image_spaces(encoders, space):
        if record.name in errors:  # an encoder with several spaces
            continue
        try:
            encoder = load_recorded([record], runtime)[0] if encoded else None
            if encoder is not None and (found := [text for text in texts if not reads_text(encoder, text)]):
                unreadable_texts = unreadable_texts or found
                raise UnreadableTextError(encoder.name, text_language(encoder))
            vectors = _embed_parts(query, parts, encoder, chosen, stored)
        except (EncoderError, FetchError, StorageError, UnreadableTextError) as error:
            errors[record.name] = error
            continue
        vector = combine_vectors(vectors, [weight for _, weight in parts], unit=bool(query.wanted or query.unwanted))
        fallbacks = [EncoderFallback(name, record.name, _root_error(error)) for name, error in errors.items()]
        return EmbeddedQuery(chosen.name, vector, record.name, fallbacks[0] if fallbacks else None, _kind(parts))
    first, *others = errors.values()
    unreadable = next((error for error in (first, *others) if isinstance(error, UnreadableTextError)), None)
    if unreadable is not None and (rest := query.without_texts(unreadable_texts)) is not None:
        embedded = embed_query(rest, encoders, space=space, runtime=runtime, stored=stored)
        return replace(embedded, unreadable=unreadable)
    if not others or first is unreadable:
        raise first
    raise EncoderError(f"None of the encoders of this collection can be used here. {first}") from first


def combine_vectors(vectors: Sequence[Vector], weights: Sequence[float], *, unit: bool) -> Vector:
    """Return the sum of vectors (dimension,) with their weights; a single vector is returned as it is.

    With `unit`, the vectors are first made of length 1, and so is the sum. Without, the sum keeps its length, on which
    the scores of a text and an image together depend. This is the only place where the parts of a query become one
    vector; better ways to combine them are to be measured, and belong here.

    Raises `QueryError` if the parts cancel each other.
    """
    import numpy as np

    if len(vectors) == 1:
        return vectors[0]
    if unit:
        vectors = [_unit(vector) for vector in vectors]
        largest = max(map(abs, weights))
        weights = [weight / largest for weight in weights]
    total = weights[0] * vectors[0]
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        total = total + weight * vector
    if not unit:
        return total
    if np.linalg.norm(total) < _LEAST_LENGTH:
        raise QueryError("The wanted and the unwanted parts of the query cancel each other: change one of them.")
    return _unit(total)


_LEAST_LENGTH = 1e-3
"""A shorter sum, relative to the greatest weight, consists of rounding errors."""


def _unit(vector: Vector) -> Vector:
    import numpy as np

    scaled: Vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return scaled


def _kind(parts: Sequence[tuple[QueryPart, float]]) -> QueryKind | None:
    if len(parts) > 1:
        return None
    return "image" if parts[0][0].text is None else "text"


def _root_error(error: PixMatcherError) -> PixMatcherError:
    """Return the error without the words that `load_recorded` adds to it."""
    return error.__cause__ if isinstance(error.__cause__, EncoderError) else error


def _embed_parts(
    query: Query,
    parts: Sequence[tuple[QueryPart, float]],
    encoder: Encoder | None,
    space: Space,
    stored: StoredEmbeddings | None,
) -> list[Vector]:
    """Return the vector (dimension,) of each part. Without an encoder, all parts are items."""
    items = [part.item for part, _ in parts if part.item is not None]
    if items and stored is None:
        raise QueryError("The query has items of a collection, and there is no collection here: give texts and images.")
    of_items = iter(stored(items, space.name)) if items and stored is not None else iter(())
    texts = [part.text for part, _ in parts if part.text is not None]
    of_texts = iter(encoder.encode_texts(texts)[space.name]) if texts and encoder is not None else iter(())
    vectors: list[Vector] = []
    for part, _ in parts:
        if part.image is not None:
            assert encoder is not None
            vectors.append(_embed_image(part, encoder, space, query.max_pixels))
        else:
            vectors.append(next(of_items if part.text is None else of_texts))
    return vectors


def _embed_image(part: QueryPart, encoder: Encoder, space: Space, max_pixels: int) -> Vector:
    from ..images import fit_image, open_image

    image = part.image
    assert image is not None
    try:
        opened = open_image(image, min_side=encoder.recipe.min_side, max_pixels=max_pixels)
    except InvalidImageError as error:
        raise unusable_image(part, error) from error
    embeddings = encoder.encode_images(fit_image(opened, encoder.recipe)[None])[space.name]
    vector: Vector = embeddings[0]
    return vector


def unusable_image(part: QueryPart, error: InvalidImageError) -> InvalidImageError:
    """Return the error for an image that cannot be opened as the error of the query that it is a part of."""
    name = part.known_image_name or "The image"
    if name == "-" and isinstance(part.image, bytes):
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
