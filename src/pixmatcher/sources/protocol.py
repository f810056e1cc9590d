"""The protocols that a source implements, and what its list of images consists of."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol, runtime_checkable

from ..errors import FetchError
from ..records import EncoderRecord, Entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Unusable:
    """Something that should be an image of the source but cannot be one, or a folder or file that cannot be read.

    `reason` is a short fixed phrase, so that reports can count by it; `detail` says more.
    """

    uri: str
    reason: str
    detail: str = ""
    contents_unknown: bool = False
    """Whether it is unknown which images exist at `uri` and below it. Items there stay in the collection."""


class Source(Protocol):
    """A place that lists its images and opens each of them."""

    spec: str
    """The name of this source in a collection; `open_source(spec)` returns an equal source."""
    folder: str | None
    """The folder of its images, in which a collection of this source alone is created; None for other places."""
    remote: bool
    """Whether its entries have `urls`, from which the images are fetched."""
    thumbnails: bool
    """Whether a collection keeps thumbnails, because the images may not be available when results are shown."""

    def scan(self) -> Iterator[Entry | Unusable]:
        """Yield the images without opening them. Raises `SourceError` if the source as a whole cannot be read."""

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        """Open an image without `urls` for reading; the file is seekable. Raises `InvalidImageError` if that fails."""

    def label_names(self) -> Mapping[str, str]:
        """Return the name of each label if labels are codes, otherwise an empty mapping."""


@runtime_checkable
class FetchesAhead(Source, Protocol):
    """A source that reads several images over the network at once, before they are needed."""

    def fetch_ahead(
        self, entries: Iterable[tuple[int, Entry]], batch_size: int
    ) -> Generator[list[tuple[tuple[int, Entry], bytes | FetchError]], None, None]:
        """Read the images of numbered entries, and yield them in any order, in lists of up to `batch_size`.

        An image that cannot be read is yielded as a `FetchError`. A list may be empty while images are being read.
        """


@runtime_checkable
class HoldsEmbeddings(Source, Protocol):
    """A source that holds embeddings, so that no image is decoded or encoded.

    The version of an entry is the SHA-256 of its embeddings, in hexadecimal.
    """

    describes: tuple[EncoderRecord, ...]
    """The encoders that made the embeddings, each with the spaces that the source holds."""
    batch_size: int
    """The number of embeddings to request in one call."""

    def embeddings(self, uris: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the embeddings of entries that `scan` has listed: for each space (N, dimension) float32.

        Raises `SourceError` if they can no longer be read. Several threads may call it at the same time.
        """
