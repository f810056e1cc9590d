"""Data that packages pass to each other: descriptions of spaces and encoders, and the images that a source lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Space:
    """A named embedding space, its dimension, and whether it supports text queries."""

    name: str
    dimension: int
    text: bool = False


class DescribesEncoder(Protocol):
    """The name, fingerprint and spaces of an encoder, which collections record."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def spaces(self) -> Sequence[Space]: ...


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder as a collection, or a file of saved embeddings, records it; `fingerprint` is "" if it is not known.

    `folder` is the folder of the collection, for messages; it is "" if another store or a file records it.
    """

    name: str
    fingerprint: str
    spaces: tuple[Space, ...]
    folder: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class Entry:
    """An image as a source lists it.

    `version` is a token that changes whenever the image may have changed; `modified` is an ISO 8601 date. A remote
    image has `urls`: it is fetched from the first one that works. Any other image is opened by its source. `rotation`
    are the degrees (90, 180, 270) by which it must be rotated counterclockwise, if its file has no orientation.
    `details` are more texts to show with it, such as its "author", "license" and "title".
    """

    uri: str
    version: str
    modified: str | None = None
    label: str | None = None
    caption: str | None = None
    urls: tuple[str, ...] = ()
    rotation: int = 0
    details: Mapping[str, str] = field(default_factory=dict)
