"""What indexing asks of a source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol, runtime_checkable

from ..records import EncoderRecord, Entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Unusable:
    """Something that looks like an image of the source but cannot be one, or a folder that cannot be looked into.

    With `contents_unknown` nobody knows what is at `uri` and below: items there stay.
    """

    uri: str
    reason: str
    detail: str = ""
    contents_unknown: bool = False


class Source(Protocol):
    """A place that can list its images and open each."""

    spec: str
    """What names this source in a collection; `open_source(spec)` gives it back."""
    folder: str | None
    """The folder its images lie in, where a collection of it alone goes too; None for what is no folder."""
    remote: bool
    """Whether its images have `urls`."""
    thumbnails: bool
    """Whether thumbnails are to be kept, as its images may be out of reach when results are shown."""

    def scan(self) -> Iterator[Entry | Unusable]:
        """List the images without opening them. Raises `SourceError` if the source as a whole cannot be read."""

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        """Open an image without `urls` for reading, seekable. Raises `InvalidImageError` if that cannot be done."""

    def label_names(self) -> Mapping[str, str]:
        """What the labels are called, where labels are codes; empty otherwise."""


@runtime_checkable
class HoldsEmbeddings(Source, Protocol):
    """A source of embeddings that are there already: nothing is decoded or encoded.

    The version of an entry is the SHA-256 of its embeddings, in hexadecimal.
    """

    describes: tuple[EncoderRecord, ...]
    """The encoders that made the embeddings, and those of their spaces that are there."""
    batch_size: int
    """How many embeddings to ask for in one call."""

    def embeddings(self, uris: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """The embeddings of entries that `scan` listed: for each space (N, dimension) float32.

        Raises `SourceError` if they can no longer be read. May be called from several threads at once.
        """
