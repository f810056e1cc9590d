"""The embeddings of query images and query texts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._cores import usable_cores
from .._progress import Progress, ProgressCallback
from ..collection import Failure
from ..encoders import Encoder, choose_devices
from ..images import fit_image, open_image
from ..indexing.reading import WorkItem, as_completed, failure_reason, in_batches, read_entry, work_batches
from ..records import Space
from ..sources import Entry, Source

Float32 = npt.NDArray[np.float32]

_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class EncodedImages:
    """The query images that could be encoded, in the order of the source, and the failures of the others.

    `positions` are their places in the list of entries, `vectors` (Q, D) float32 their embeddings.
    """

    positions: list[int]
    uris: list[str]
    hashes: list[str]
    vectors: Float32
    failures: list[Failure]


def encode_images(
    source: Source,
    entries: Sequence[Entry],
    encoder: Encoder,
    space: Space,
    executor: Executor,
    *,
    allow_private: bool,
    progress: ProgressCallback | None,
) -> EncodedImages:
    """Read, decode and encode the images of entries with all cores. An image that cannot be used is a failure."""
    vectors = np.empty((len(entries), space.dimension), np.float32)
    hashes: dict[int, str] = {}
    failures: dict[int, Failure] = {}

    def work(batch: Sequence[WorkItem]) -> int:
        positions, pixels = [], []
        for item in batch:
            try:
                with read_entry(source, item) as read:
                    opened = open_image(read.data, min_side=encoder.recipe.min_side, rotation=item.entry.rotation)
                    pixels.append(fit_image(opened, encoder.recipe))
            except Exception as error:  # a single file must never end the evaluation
                failures[item.number] = Failure(item.entry.uri, *failure_reason(error))
            else:
                positions.append(item.number)
                hashes[item.number] = read.content_hash
        if pixels:
            vectors[positions] = encoder.encode_images(np.stack(pixels))[space.name]
        return len(batch)

    choose_devices([encoder], len(entries))
    done = 0
    batches = work_batches(source, entries, encoder.batch_size, allow_private=allow_private)
    with closing(batches), closing(as_completed(executor, work, batches, 2 * usable_cores())) as finished:
        for count in finished:
            done += count
            if progress:
                progress(Progress("Encoding queries", done, len(entries), "images"))
    positions = sorted(hashes)
    return EncodedImages(
        positions,
        [entries[position].uri for position in positions],
        [hashes[position] for position in positions],
        vectors if len(positions) == len(entries) else vectors[positions],
        [failures[position] for position in sorted(failures)],
    )


def encode_texts(
    texts: Sequence[str],
    encoder: Encoder,
    space: Space,
    executor: Executor,
    progress: ProgressCallback | None = None,
) -> Float32:
    """Return the embeddings (T, D) float32 of texts, computed with all cores."""
    done, parts = 0, []
    for part in executor.map(encoder.encode_texts, in_batches(texts, _TEXTS_AT_ONCE)):
        parts.append(part[space.name])
        done += len(parts[-1])
        if progress:
            progress(Progress("Encoding captions", done, len(texts), "captions"))
    return np.concatenate(parts)
