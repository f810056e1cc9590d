"""Sources: where images come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol, runtime_checkable

from ..errors import SourceError
from ..spaces import EncoderRecord

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Entry:
    """An image that a source has now.

    `version` is a token that changes whenever the image may have changed; `modified` is an ISO 8601 date. A remote
    image has `urls`, at which it is fetched, the next where one fails; any other is opened by its source. `rotation`
    are the degrees (90, 180, 270) by which it must be turned counterclockwise, if its file does not tell that itself.
    `details` is what else there is to show of it, such as its "author", "license" and "title".
    """

    uri: str
    version: str
    modified: str | None = None
    label: str | None = None
    caption: str | None = None
    urls: tuple[str, ...] = ()
    rotation: int = 0
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unusable:
    """Something that looks like an image of the source but cannot be one, or a folder that cannot be looked into.

    With `hides_entries` nobody knows what is at `uri` and below: items there stay.
    """

    uri: str
    reason: str
    detail: str = ""
    hides_entries: bool = False


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


@dataclass(frozen=True)
class SourceKind:
    """A kind of source that a spec names by its prefix, `PREFIX:REST`."""

    prefix: str
    example: str
    """What to type behind `pixmatcher index`."""
    description: str
    open: Callable[[str], Source]
    """Makes the source of the rest of a spec."""


def _open_folder(rest: str) -> Source:
    from .folder import FolderSource

    return FolderSource(rest)


def _open_tiny_imagenet(rest: str) -> Source:
    from .tiny_imagenet import TinyImageNetSource

    return TinyImageNetSource(rest)


def _open_open_images(rest: str) -> Source:
    from .open_images import OpenImagesSource

    return OpenImagesSource(rest)


def _open_urls(rest: str) -> Source:
    from .urls import UrlListSource

    return UrlListSource(rest)


def _open_webdataset(rest: str) -> Source:
    from .webdataset import WebDatasetSource

    return WebDatasetSource(rest)


def _open_arrays(rest: str) -> Source:
    from .arrays import ArraysSource

    return ArraysSource(rest)


KINDS = (
    SourceKind("folder", "~/Pictures", "a folder of image files, with the folders below it", _open_folder),
    SourceKind(
        "tiny-imagenet",
        "'tiny-imagenet:tiny-imagenet-200.zip?split=val' -c tiny",
        "Tiny ImageNet, unpacked or the zip file as it is; split train (the default), val, test or all",
        _open_tiny_imagenet,
    ),
    SourceKind(
        "open-images",
        "'open-images:open-images-v7?split=validation' -c open",
        "Open Images, fetched: the folder of its csv files, or its image list alone; split train, validation or test",
        _open_open_images,
    ),
    SourceKind(
        "urls",
        "'urls:photos.csv?url=link&caption=title' -c photos",
        "a list of URLs, fetched: txt, csv, tsv, json, jsonl or parquet with a column url and, if you like, caption, "
        "label, id; each can be chosen; ?base=https://host/folder/ goes before names without host",
        _open_urls,
    ),
    SourceKind(
        "webdataset",
        "'webdataset:laion/{00000..00012}.tar' -c laion",
        "tar files of images with captions, as img2dataset writes them: one, several ({a..b}, *) or a folder of them",
        _open_webdataset,
    ),
    SourceKind(
        "arrays",
        "arrays:embeddings.npy --categories categories.npy --uris uris.json --encoder lite -c saved",
        "saved embeddings, as `pixmatcher export arrays` writes them, or of MobileNetV3 or CLIP",
        _open_arrays,
    ),
)


def open_source(spec: str) -> Source:
    """The source that `spec` names: `KIND:REST` for one of `KINDS`, or the path of a folder.

    Raises `SourceError` if there is none.
    """
    prefix, colon, rest = spec.partition(":")
    if colon and not os.path.lexists(spec):
        for kind in KINDS:
            if kind.prefix == prefix:
                if not rest:
                    raise SourceError(f"{spec} names no place: write it like `pixmatcher index {kind.example}`.")
                return kind.open(rest)
    return _open_folder(spec)
