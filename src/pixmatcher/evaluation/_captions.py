"""Evaluation by captions: at which rank a search for a caption finds the image that the caption describes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._cores import usable_cores
from .._progress import ProgressCallback
from ..collection import Failure, Item, ReadableStore
from ..encoders import Encoder, Runtime, with_encoders
from ..errors import QueryError, SourceError
from ..records import Space
from ..searching import text_encoder
from ..sources import Unusable
from ..sources.text_tables import first_row, read_rows
from ._encoding import encode_texts
from ._metrics import Ints, median, recall_at
from ._results import CaptionEvaluation, QueryMetrics
from ._scores import ranks_of

_logger = logging.getLogger("pixmatcher.evaluation")

_RECALL_DEPTHS = (1, 5, 10)


def evaluate_captions(
    collection: ReadableStore,
    captions: str | os.PathLike[str],
    *,
    space: str | None = None,
    encoders: Sequence[Encoder] = (),
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> CaptionEvaluation:
    """Search all items of a collection with each caption of a csv file; measure the rank of the image of the caption.

    The csv file has the columns image and caption. An image is given by its path, relative to the folder of the csv
    file or to the current folder, by the uri of an item, or by its file name. Copies of an image, with the same
    content, count as the image. A row that cannot be used is in `failures`. A collection that was made with
    encoder objects needs them again: `encoders`.

    Raises `QueryError` if the csv file cannot be read or no encoder supports texts, `EncoderError` or `CollectionError`
    if the collection cannot answer.
    """
    started = time.monotonic()
    path = Path(captions)
    runtime = with_encoders(runtime, encoders)
    encoder, text_space = text_encoder(collection.encoders, space=space, runtime=runtime)
    rows, unreadable = _read_captions(path)
    with collection.snapshot():  # the same state for the names of the images and for the scores
        ids, columns, unusable = _find_images(collection, path, rows)
        used = [(row.caption, column) for row, column in zip(rows, columns, strict=True) if column is not None]
        metrics = None
        if used:
            with ThreadPoolExecutor(usable_cores(), thread_name_prefix="pixmatcher") as executor:
                vectors = encode_texts([caption for caption, _ in used], encoder, text_space, executor, progress)
            right = np.array([column for _, column in used])
            metrics = _metrics(text_space, ranks_of(collection, text_space, ids, vectors, right))
    seconds = time.monotonic() - started
    _logger.info("Evaluated %d captions in %.1f s", len(used), seconds)
    return CaptionEvaluation(collection.path, str(path), len(ids), metrics, unreadable + unusable, seconds)


@dataclass(frozen=True)
class _CaptionRow:
    line: int
    image: str
    caption: str


def _read_captions(path: Path) -> tuple[list[_CaptionRow], list[Failure]]:
    """Return the captions of a csv file, and the rows that cannot be read."""
    remedy = "give a csv with the columns image and caption"
    captions: list[_CaptionRow] = []
    failures: list[Failure] = []
    try:
        rows = read_rows(str(path), names=("image",))
        _, header = first_row(rows, str(path))
        columns = {name.strip(): position for position, name in enumerate(header)}
        if not {"image", "caption"} <= set(columns):
            raise QueryError(f"{path} lacks the columns: {remedy}.")
        for row in rows:
            if isinstance(row, Unusable):
                failures.append(Failure(row.uri, row.reason, row.detail))
            else:
                line, fields = row
                image, caption = fields[columns["image"]].strip(), fields[columns["caption"]].strip()
                captions.append(_CaptionRow(line, image, caption))
    except SourceError as error:
        raise QueryError(f"{str(error).rstrip('.')}; {remedy}.") from error
    if not captions and not failures:
        raise QueryError(f"{path} has no captions: {remedy}.")
    return captions, failures


def _find_images(
    collection: ReadableStore, path: Path, rows: Sequence[_CaptionRow]
) -> tuple[Ints, list[int | None], list[Failure]]:
    """Find the item of each row: return all ids (N,) int64, the column of each row's item among them, and the failures.

    The column is None if the row cannot be used. If items have the same content, the column is that of the first.
    """
    folder = os.path.dirname(os.path.abspath(path))
    absolute = [(os.path.abspath(os.path.join(folder, row.image)), os.path.abspath(row.image)) for row in rows]
    # Only the items that the csv file names are kept in memory.
    uris = {uri for paths in absolute for uri in paths} | {row.image for row in rows}
    names = {os.path.basename(row.image) for row in rows}
    ids: list[int] = []
    by_uri: dict[str, Item] = {}
    by_name: dict[str, dict[str, Item]] = {}
    for item in collection.items():
        ids.append(item.id)
        if item.uri in uris:
            by_uri[item.uri] = item
        name = os.path.basename(item.uri)
        if name in names:
            # Copies of an image count as one. Two different contents are enough to make a name ambiguous.
            contents = by_name.setdefault(name, {})
            if len(contents) < 2:
                contents.setdefault(item.content_hash, item)
    found: list[Item | None] = []
    failures: list[Failure] = []
    for row, paths in zip(rows, absolute, strict=True):
        match = next((by_uri[uri] for uri in (*paths, row.image) if uri in by_uri), None)
        named = by_name.get(row.image, {})
        if match is None and len(named) == 1:
            (match,) = named.values()
        reason = ""
        if not row.image or not row.caption:
            reason = "no caption" if row.image else "no image named"
        elif match is None:
            reason = "several images of this name" if named else "not in the collection"
        if reason:
            failures.append(Failure(row.image or str(path), reason, f"line {row.line}"))
        found.append(None if reason else match)
    first: dict[str, int] = dict.fromkeys((item.content_hash for item in found if item), -1)
    for column, item in enumerate(collection.items()):
        if first.get(item.content_hash) == -1:
            first[item.content_hash] = column
    return np.array(ids, np.int64), [None if item is None else first[item.content_hash] for item in found], failures


def _metrics(space: Space, ranks: Ints) -> QueryMetrics:
    """Return recall@k and the median rank of the right images, given their ranks (Q,) from 1."""
    names = [f"recall@{k}" for k in _RECALL_DEPTHS]
    recalls = QueryMetrics.of(space, names, np.column_stack([recall_at(ranks, k) for k in _RECALL_DEPTHS]))
    median_rank = QueryMetrics.of(space, ["median rank"], ranks[:, None].astype(np.float64), median)
    return QueryMetrics(space.name, len(ranks), {**recalls.metrics, **median_rank.metrics})
