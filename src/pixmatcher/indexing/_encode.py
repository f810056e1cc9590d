"""Decode and encode: from the entries of a batch to items with embeddings, in the worker threads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from .._version import __version__
from ..collection import Failure, Item, PendingWork
from ..encoders import Encoder, choose_devices
from ..errors import InvalidImageError, SourceError
from ..images import (
    THUMBNAIL_SIDE,
    Recipe,
    date_in_name,
    decoder_versions,
    fit_image,
    make_thumbnail,
    open_image,
)
from ..sources import Entry, HoldsEmbeddings, Source
from .reading import WorkItem, failure_reason, read_entry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_log = logging.getLogger("pixmatcher.indexing")

STATE_UNKNOWN = {"cannot be read", "permission denied", "unexpected error", "out of memory"}
"""Reasons after which the image may be unchanged: its item stays, and every run tries again."""
_TOO_MANY_PIXELS = "too many pixels"


class DecoderCapabilities:
    """What this installation decodes an image with, as tokens that a collection stores with its failures.

    A failure is tried again when its token is not one of these any more: the token of a format has the version of the
    package that decodes it; that of an unknown format has the formats that can be decoded; that of a large image has
    the limit. Each has the version of PixMatcher. `str()` of it has a token on each line.
    """

    def __init__(self, max_pixels: int) -> None:
        versions = decoder_versions()
        installed = "+".join(package for package, version in versions.items() if version)
        self._of_pixels = f"{__version__} {max_pixels} pixels"
        self._of_unknown = f"{__version__} {installed}"
        self._of_decoder = {
            package: f"{__version__} {package} {version or 'missing'}" for package, version in versions.items()
        }

    def __str__(self) -> str:
        return "\n".join((self._of_pixels, self._of_unknown, *self._of_decoder.values()))

    def token(self, reason: str, decoder: str) -> str:
        """Return the token of a failure: of an image for which the package `decoder` is made, "" for none."""
        if reason == _TOO_MANY_PIXELS:
            return self._of_pixels
        return self._of_decoder.get(decoder, self._of_unknown)


def begin_to_load(executor: Executor, encoders: Sequence[Encoder], count: int) -> None:
    """Let the encoders choose their devices, while nothing else runs, and begin to load them in a worker thread.

    `count` is the number of images to encode.
    """
    choose_devices(encoders, count)
    executor.submit(load_for_run, encoders)


def load_for_run(encoders: Sequence[Encoder]) -> None:
    """Load what the run needs while other threads begin to decode. An error here is raised again at the first use."""
    for encoder in encoders:
        encoder.load_images()
    import_module("faiss")  # for the indexes that are saved at the end, when only one core has work


@dataclass(frozen=True)
class EncodeOptions:
    """The options of a run that concern single images; see `index`."""

    max_pixels: int
    thumbnails: bool
    allow_private: bool


@dataclass
class BatchResult:
    """The result of a batch of entries, to be stored."""

    encoded: list[Item] = field(default_factory=list)
    embeddings: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """For each space (N, dimension), a row for each item in `encoded`."""
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    """JPEG by content hash."""
    known: list[tuple[Item, Entry]] = field(default_factory=list)
    """Items without embeddings, because the collection has an image with the same content."""
    failed: list[Failure] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.encoded) + len(self.known) + len(self.failed)


@dataclass
class _DecodedImage:
    item: Item
    pixels: list[npt.NDArray[np.uint8]]
    """One array (H, W, 3) for each recipe."""
    thumbnail: bytes | None


class KeepsThumbnails(Protocol):
    """What `BatchEncoder` needs of a collection."""

    def thumbnail(self, content_hash: str) -> bytes | None: ...


class BatchEncoder:
    """Reads, decodes and encodes batches of entries. Several threads use it at the same time."""

    def __init__(
        self,
        collection: KeepsThumbnails,
        comparison: PendingWork,
        encoders: Sequence[Encoder],
        options: EncodeOptions,
    ) -> None:
        self.batch_size = max((encoder.batch_size for encoder in encoders), default=1)
        self.capabilities = DecoderCapabilities(options.max_pixels)
        self._collection = collection
        self._comparison = comparison
        self._encoders = encoders
        self._recipes: list[Recipe] = list(dict.fromkeys(encoder.recipe for encoder in encoders))
        self._min_side = max((recipe.min_side for recipe in self._recipes), default=1)
        self._options = options

    def process(self, source: Source, batch: Sequence[WorkItem], *, encode_known: bool = False) -> BatchResult:
        """Return the items and embeddings of a batch.

        An image whose content the collection has already is not encoded again, except with `encode_known`.
        """
        if isinstance(source, HoldsEmbeddings):
            return self._take_saved(source, [item.entry for item in batch], encode_known)
        result = BatchResult()
        decoded: list[_DecodedImage] = []
        for work_item in batch:
            try:
                found = self._decode(source, work_item, encode_known)
            except Exception as error:  # one file must never end the run
                decoder = error.decoder if isinstance(error, InvalidImageError) else ""
                result.failed.append(self._failure(source, work_item.entry, *failure_reason(error), decoder))
            else:
                if isinstance(found, Item):
                    result.known.append((found, work_item.entry))
                else:
                    decoded.append(found)
        result.encoded = [d.item for d in decoded]
        result.thumbnails = {d.item.content_hash: d.thumbnail for d in decoded if d.thumbnail is not None}
        if decoded:
            result.embeddings = self._encode(decoded)
        return result

    def _take_saved(self, source: HoldsEmbeddings, batch: Sequence[Entry], encode_known: bool) -> BatchResult:
        """Process a batch of a source that holds embeddings: the version of an entry is the hash of its embeddings."""
        result = BatchResult()
        known = set() if encode_known else self._comparison.known_contents([entry.version for entry in batch])
        taken = [entry for entry in batch if entry.version not in known]
        result.known = [(_new_item(entry, entry.version), entry) for entry in batch if entry.version in known]
        try:
            result.embeddings = source.embeddings([entry.uri for entry in taken])
            result.encoded = [_new_item(entry, entry.version) for entry in taken]
        except SourceError as error:
            result.failed = [self._failure(source, entry, "cannot be read", str(error)) for entry in taken]
        return result

    def _failure(self, source: Source, entry: Entry, reason: str, detail: str, decoder: str = "") -> Failure:
        """Return the failure of an entry; its version decides when the entry is tried again."""
        _log.debug("%s: %s (%s)", entry.uri, reason, detail)
        tried_always = source.remote or reason in STATE_UNKNOWN
        version = "" if tried_always else f"{entry.version} {self.capabilities.token(reason, decoder)}"
        return Failure(entry.uri, reason, detail, version)

    def _decode(self, source: Source, work_item: WorkItem, encode_known: bool) -> _DecodedImage | Item:
        """Read and decode an image; return only its item if the collection has an image with the same content."""
        entry = work_item.entry
        needs_thumbnail = source.thumbnails and self._options.thumbnails
        with read_entry(source, work_item) as read:
            item = replace(_new_item(entry, read.content_hash), bytes=read.bytes)
            needs_thumbnail = needs_thumbnail and self._collection.thumbnail(item.content_hash) is None
            if not (encode_known or needs_thumbnail) and self._comparison.known_contents([item.content_hash]):
                return replace(item, taken=date_in_name(entry.uri))
            opened = open_image(
                read.data,
                min_side=max(self._min_side, THUMBNAIL_SIDE if needs_thumbnail else 0),
                max_pixels=self._options.max_pixels,
                rotation=entry.rotation,
            )
        item = replace(
            item,
            width=opened.width,
            height=opened.height,
            format=opened.format,
            taken=opened.taken or date_in_name(entry.uri),
            missing=opened.missing,
        )
        thumbnail = make_thumbnail(opened.image) if needs_thumbnail else None
        return _DecodedImage(item, [fit_image(opened, recipe) for recipe in self._recipes], thumbnail)

    def _encode(self, decoded: Sequence[_DecodedImage]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the embeddings of decoded images: for each space (N, dimension) float32."""
        import numpy as np

        pixels = {
            recipe: np.stack([d.pixels[position] for d in decoded]) for position, recipe in enumerate(self._recipes)
        }
        embeddings: dict[str, npt.NDArray[np.float32]] = {}
        for encoder in self._encoders:
            embeddings.update(encoder.encode_images(pixels[encoder.recipe]))
        return embeddings


def _new_item(entry: Entry, content_hash: str) -> Item:
    return Item(
        entry.uri,
        content_hash,
        entry.version,
        label=entry.label,
        caption=entry.caption,
        modified=entry.modified,
        details=entry.details,
    )
