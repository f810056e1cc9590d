"""Evaluation by labelled images, and by the names of their labels."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from .._cores import usable_cores
from .._progress import ProgressCallback
from ..collection import Failure, ReadableStore
from ..encoders import Encoder, Runtime, with_encoders
from ..errors import QueryError
from ..indexing import AnySource
from ..records import Space
from ..searching import image_encoder, text_encoder
from ..sources import Entry, Source, Unusable, open_source
from ._encoding import EncodedImages, Float32, encode_images, encode_texts
from ._metrics import Float64, Ints, average_precision_at, best_columns, mean, precision_at, r_precision
from ._results import CategoryMetrics, Evaluation, QueryMetrics, metric_names
from ._scores import score_blocks

_logger = logging.getLogger("pixmatcher.evaluation")


def evaluate(
    collection: ReadableStore,
    queries: AnySource,
    *,
    k: int = 10,
    space: str | None = None,
    allow_private: bool = False,
    encoders: Sequence[Encoder] = (),
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Evaluate a collection with the images of a source, and with the names of their labels, as queries.

    `queries` is a source or its spec. An item is relevant if it has the label of the query. The item that is the query
    itself, by its uri or its content, is left out. A query image that cannot be used is in `failures` and never
    ends the evaluation. URLs of private and loopback addresses are refused unless `allow_private`.
    A collection that was made with encoder objects needs them again: `encoders`.

    Raises `QueryError` if there is nothing to compare or `k` is below 1, `SourceError` if the source cannot be read,
    `EncoderError` or `CollectionError` if the collection cannot answer.
    """
    started = time.monotonic()
    if k < 1:
        raise QueryError(f"The number of results must be 1 or more, not {k}.")
    source = open_source(os.fspath(queries)) if isinstance(queries, (str, os.PathLike)) else queries
    runtime = with_encoders(runtime, encoders)
    encoder, image_space = image_encoder(collection.encoders, space=space, runtime=runtime)
    selected = _select(source, _labels_of(collection))
    labels = sorted({entry.label for entry in selected.entries if entry.label is not None})
    names = _first_names(selected.known_labels, {**collection.label_names(), **source.label_names()})
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="pixmatcher") as executor:
        images = encode_images(
            *(source, selected.entries, encoder, image_space, executor),
            allow_private=allow_private,
            progress=progress,
        )
        texts = None
        with suppress(QueryError):  # no space supports texts
            text_side = text_encoder(collection.encoders, space=space, runtime=runtime)
            texts = text_side[1], encode_texts([names[label] for label in labels], *text_side, executor)

    with collection.snapshot():  # the same state for all blocks of queries
        items = _labelled_items(collection, images)
        image_labels = [selected.entries[position].label or "" for position in images.positions]
        measured = _measure(collection, image_space, items, images.vectors, image_labels, k, items.own_columns)
        text_metrics = None
        if texts is not None:
            text_metrics = _mean_metrics(texts[0], _measure(collection, texts[0], items, texts[1], labels, k), k)
    seconds = time.monotonic() - started
    _logger.info("Evaluated %d images and %d labels in %.1f s", len(measured.values), len(labels), seconds)
    return Evaluation(
        collection=collection.path,
        queries=source.spec,
        k=k,
        items=len(items.ids),
        images=_mean_metrics(image_space, measured, k),
        texts=text_metrics,
        categories=_categories(measured, names, k),
        names=names,
        unlabelled=selected.unlabelled,
        unknown_labels=len(selected.unknown),
        unknown_queries=selected.unknown.total(),
        without_relevant=len(images.positions) - len(measured.values),
        failures=selected.failures + images.failures,
        seconds=seconds,
    )


def _labels_of(collection: ReadableStore) -> set[str]:
    """Return the labels of a collection. Raises `QueryError` if it has none."""
    labels = set(collection.label_counts()) - {""}
    if not labels:
        raise QueryError(
            f"{collection.path} has no labelled images: index a source with labels, which `pixmatcher sources` shows."
        )
    return labels


@dataclass
class _Selected:
    """The entries of a source that can be queries, and how many others there are."""

    known_labels: set[str]
    entries: list[Entry] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    unlabelled: int = 0


def _select(source: Source, known_labels: set[str]) -> _Selected:
    """Return the entries of a source whose labels are known. Raises `QueryError` without one."""
    selected = _Selected(known_labels)
    for found in source.scan():
        if isinstance(found, Unusable):
            selected.failures.append(Failure(found.uri, found.reason, found.detail))
        elif not found.label:
            selected.unlabelled += 1
        elif found.label not in known_labels:
            selected.unknown[found.label] += 1
        else:
            selected.entries.append(found)
    if not selected.entries:
        what = "whose labels the collection has" if selected.unknown else "with labels"
        raise QueryError(f"{source.spec} has no images {what}: name a source like those of the collection.")
    return selected


def _first_names(labels: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each label: its first name, up to a comma, or else the label itself."""
    return {label: names.get(label, "").partition(",")[0].strip() or label for label in labels}


@dataclass(frozen=True)
class _Items:
    """The labelled items: `ids` (N,) int64, ascending, and `labels` (N,) int64 as positions in `names`.

    `own_columns` has for the number of a query the columns of the items that are the query image itself.
    """

    ids: Ints
    labels: Ints
    names: list[str]
    own_columns: dict[int, list[int]]


def _labelled_items(collection: ReadableStore, images: EncodedImages) -> _Items:
    by_uri: dict[str, list[int]] = {}
    by_content: dict[str, list[int]] = {}
    for query, (uri, content_hash) in enumerate(zip(images.uris, images.hashes, strict=True)):
        by_uri.setdefault(uri, []).append(query)
        by_content.setdefault(content_hash, []).append(query)
    ids: list[int] = []
    labels: list[int] = []
    codes: dict[str, int] = {}
    own_columns: dict[int, list[int]] = {}
    for item in collection.items():
        if not item.label:
            continue
        for query in {*by_uri.get(item.uri, ()), *by_content.get(item.content_hash, ())}:
            own_columns.setdefault(query, []).append(len(ids))
        ids.append(item.id)
        labels.append(codes.setdefault(item.label, len(codes)))
    return _Items(np.array(ids, np.int64), np.array(labels, np.int64), [*codes], own_columns)


@dataclass(frozen=True)
class _Measured:
    """The four metrics (Q, 4) of each query that has relevant items, its label, and the wrong labels of each label."""

    labels: list[str]
    values: Float64
    wrong: dict[str, Counter[str]]


def _measure(
    collection: ReadableStore,
    space: Space,
    items: _Items,
    vectors: Float32,
    labels: Sequence[str],
    k: int,
    own_columns: Mapping[int, Sequence[int]] | None = None,
) -> _Measured:
    """Rank all items for each query (Q, D) with its label, except the items that are the query itself."""
    own_columns = own_columns or {}
    codes = {name: code for code, name in enumerate(items.names)}
    query_codes = np.array([codes.get(label, -1) for label in labels], np.int64)
    relevant = np.append(np.bincount(items.labels, minlength=len(codes)), 0)[query_codes]  # 0 for a label without items
    for query, columns in own_columns.items():
        relevant[query] -= np.count_nonzero(items.labels[columns] == query_codes[query])
    used = np.flatnonzero(relevant)
    values = np.zeros((len(used), 4))
    extra_numbers = 3 * min(k, len(items.ids))  # of average_precision_at
    wrong: dict[str, Counter[str]] = {}
    for start, scores in score_blocks(collection, space, items.ids, vectors[used], extra_numbers=extra_numbers):
        queries = used[start : start + len(scores)]
        depth = min(max(k, int(relevant[queries].max())), len(items.ids))
        relevance = np.zeros((len(queries), depth), np.bool_)
        for row, query in enumerate(queries.tolist()):
            left_out = own_columns.get(query, ())
            scores[row, list(left_out)] = -np.inf  # these rank last, after all ranks that k and R count
            found = items.labels[best_columns(scores[row], depth)][: len(items.ids) - len(left_out)]
            relevance[row, : len(found)] = found == query_codes[query]
            others = (items.names[code] for code in found[:k].tolist() if code != query_codes[query])
            wrong.setdefault(labels[query], Counter()).update(others)
        of_block = relevant[queries]
        values[start : start + len(queries)] = np.column_stack(
            [
                precision_at(relevance, 1),
                precision_at(relevance, k),
                average_precision_at(relevance, k, of_block),
                r_precision(relevance, of_block),
            ]
        )
    return _Measured([labels[query] for query in used.tolist()], values, wrong)


def _mean_metrics(space: Space, measured: _Measured, k: int) -> QueryMetrics | None:
    """Return the mean metrics of the queries in a space; None without queries."""
    return QueryMetrics.of(space, metric_names(k), measured.values) if len(measured.values) else None


def _categories(measured: _Measured, names: Mapping[str, str], k: int) -> list[CategoryMetrics]:
    """Return the metrics of the queries of each label, in the order of the labels."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(measured.labels):
        rows.setdefault(label, []).append(row)
    categories = []
    for label in sorted(rows):
        metrics = dict(zip(metric_names(k), mean(measured.values[rows[label]]).tolist(), strict=True))
        # Equally frequent labels are sorted by name.
        wrong = sorted(measured.wrong[label].items(), key=lambda pair: (-pair[1], pair[0]))
        shares = {other: count / (k * len(rows[label])) for other, count in wrong}
        categories.append(CategoryMetrics(label, names[label], len(rows[label]), metrics, shares))
    return categories
