"""Evaluation: how well a collection answers queries of which it is known what is right.

What each figure means, and where it comes from, is told in docs/explanations/evaluation.md.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._cores import usable_cores
from .._files import check_writable
from .._progress import Progress, ProgressCallback
from ..collection import Collection, Failure, Item
from ..encoders import Encoder, Runtime, with_encoders
from ..errors import PixMatcherError, QueryError, SourceError
from ..images import fit_image, open_image
from ..indexing import AnySource
from ..indexing.reading import Turn, as_completed, in_batches, read_entry, reason_of, take_turns
from ..records import Space
from ..searching import image_encoder, text_encoder
from ..sources import Entry, Source, Unusable, open_source
from ..sources.text_tables import first_row, read_rows

Bools = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES = 1000
"""Resamples of the queries from which an interval is made."""
CONFIDENCE = 95
"""Per cent of the resamples that lie in an interval."""
RECALL_AT = (1, 5, 10)
MOST_CONFUSED = 5
"""Pairs of labels that a report names."""
_SEED = 0
_SCORE_BYTES = 128 << 20
"""Bytes of the scores that are in memory at once: of a block of queries against all rows."""
_ROWS_AT_ONCE = 16384
_TEXTS_AT_ONCE = 64


# The metrics, of relevance (Q, D) bool: whether what a query has at each rank, best first, is relevant to it


def precision_at(relevance: Bools, k: int) -> Float64:
    """The share of the first `k` ranks that is relevant (Q,); a rank with nothing on it counts as not relevant."""
    shares: Float64 = relevance[:, :k].sum(axis=1) / k
    return shares


def average_precision_at(relevance: Bools, k: int, relevant: npt.ArrayLike) -> Float64:
    """AP@k (Q,): the sum of the precisions at the ranks up to `k` that are relevant, over min(R, k).

    `relevant` (Q,) is R, the number of items that are relevant to each query, found or not. 0 where R is 0.
    """
    first = relevance[:, :k]
    precisions = first.cumsum(axis=1) / np.arange(1, first.shape[1] + 1)
    most = np.minimum(np.asarray(relevant), k)
    average: Float64 = (precisions * first).sum(axis=1) / np.maximum(most, 1)
    return average


def r_precision(relevance: Bools, relevant: npt.ArrayLike) -> Float64:
    """The share of the first R ranks that is relevant (Q,), for `relevant` (Q,) R of each query. 0 where R is 0."""
    wanted = np.asarray(relevant)
    # As a mask, since R, which may be near the number of all items, is another for each query.
    counted = relevance & (np.arange(relevance.shape[1]) < wanted[:, None])
    shares: Float64 = counted.sum(axis=1) / np.maximum(wanted, 1)
    return shares


def recall_at(ranks: npt.ArrayLike, k: int) -> Float64:
    """Whether the one right image is among the first `k` (Q,), 0 or 1, by `ranks` (Q,), which count from 1."""
    return (np.asarray(ranks) <= k).astype(np.float64)


def best_columns(scores: npt.NDArray[np.floating[Any]], depth: int) -> Ints:
    """The columns of the best scores (N,), best first (min(depth, N),); equal scores in the order of the columns.

    Of scores (Q, N) those of each row (Q, min(depth, N)).
    """
    if scores.ndim > 1:
        return np.stack([best_columns(row, depth) for row in scores])
    count = len(scores)
    candidates: npt.NDArray[np.intp] = np.arange(count)
    if depth < count:
        # All that tie for the last place are candidates, so that the first of them wins.
        candidates = np.flatnonzero(scores >= np.partition(scores, count - depth)[count - depth])
    columns: Ints = candidates[np.argsort(-scores[candidates], kind="stable")[:depth]]
    return columns


def mean(values: Float64) -> Float64:
    """The mean over queries (F,) of values (Q, F)."""
    means: Float64 = values.mean(axis=0)
    return means


def median(values: Float64) -> Float64:
    """The median over queries (F,) of values (Q, F)."""
    medians: Float64 = np.median(values, axis=0)
    return medians


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[[Float64], Float64] = mean,
    *,
    resamples: int = RESAMPLES,
    seed: int = _SEED,
) -> tuple[Float64, Float64]:
    """The 95 % interval of a statistic over queries, by the percentile bootstrap: its low and high end, both (F,).

    `values` (Q, F) are F figures of each query; whole queries are drawn, with replacement, the same for all figures.
    `statistic` makes (F,) of (Q, F). Raises `ValueError` if there is no query.
    """
    table = np.asarray(values, dtype=np.float64)
    if not len(table):
        raise ValueError("There are no values to draw from.")
    rng = np.random.default_rng(seed)
    # One resample at a time: all at once would be a thousand times the queries.
    drawn = [statistic(table[rng.integers(0, len(table), len(table))]) for _ in range(resamples)]
    low, high = np.percentile(drawn, [(100 - CONFIDENCE) / 2, (100 + CONFIDENCE) / 2], axis=0)
    return low, high


# What comes out


@dataclass(frozen=True)
class Figure:
    """A figure over all queries, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        return {"value": round(self.value, 4), "low": round(self.low, 4), "high": round(self.high, 4)}


@dataclass(frozen=True)
class Figures:
    """The figures of one kind of queries, by their names, the space that answered and the number of queries."""

    space: str
    queries: int
    figures: Mapping[str, Figure]

    def as_json(self) -> dict[str, Any]:
        figures = {name: figure.as_json() for name, figure in self.figures.items()}
        return {"space": self.space, "queries": self.queries, "figures": figures}


@dataclass(frozen=True)
class CategoryFigures:
    """What the image queries of one label reach.

    `wrong` are the other labels among the first k hits, each with its share of these hits, the most frequent first.
    """

    label: str
    name: str
    queries: int
    figures: Mapping[str, float]
    wrong: Mapping[str, float]


@dataclass(frozen=True)
class Confusion:
    """How often images of one label find another one: its share of the first k hits."""

    name: str
    other_name: str
    share: float

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "other_name": self.other_name, "share": round(self.share, 4)}


@dataclass(frozen=True)
class Evaluation:
    """What queries with labels reach against the labelled items of a collection.

    `names` has what each label is called.
    `texts` is None where no encoder knows texts, `images` where no image query is left. `unlabelled` query images
    have no label, those of `unknown_queries` one of the `unknown_labels` that no item of the collection has, and of
    `alone` no item but the query itself has the label: all these are left out. `failures` are the query images that
    cannot be used.
    """

    collection: Path
    queries: str
    k: int
    items: int
    images: Figures | None
    texts: Figures | None
    categories: list[CategoryFigures] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)
    unlabelled: int = 0
    unknown_labels: int = 0
    unknown_queries: int = 0
    alone: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def confusions(self, most: int) -> list[Confusion]:
        """The labels that are most confused, at most so many pairs, the most confused first."""
        pairs = [(share, c.name, self.names[wrong]) for c in self.categories for wrong, share in c.wrong.items()]
        pairs.sort(key=lambda pair: (-pair[0], *pair[1:]))
        return [Confusion(name, other, share) for share, name, other in pairs[:most]]

    def as_json(self) -> dict[str, Any]:
        """The form in which every face prints it; the categories are left to their csv."""
        return {
            "collection": str(self.collection),
            "queries": self.queries,
            "k": self.k,
            "items": self.items,
            "took_s": round(self.seconds, 2),
            "images": self.images and self.images.as_json(),
            "texts": self.texts and self.texts.as_json(),
            "most_confused": [confusion.as_json() for confusion in self.confusions(MOST_CONFUSED)],
            "left_out": {
                "unlabelled": self.unlabelled,
                "unknown_labels": self.unknown_labels,
                "of_unknown_labels": self.unknown_queries,
                "alone_with_their_label": self.alone,
            },
            "failures": _failures_as_json(self.failures),
        }


@dataclass(frozen=True)
class CaptionEvaluation:
    """How far up the images of captions come. `failures` are the lines of the csv that cannot be used."""

    collection: Path
    captions: str
    items: int
    figures: Figures | None
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The form in which every face prints it."""
        return {
            "collection": str(self.collection),
            "captions": self.captions,
            "items": self.items,
            "took_s": round(self.seconds, 2),
            "texts": self.figures and self.figures.as_json(),
            "failures": _failures_as_json(self.failures),
        }


def _failures_as_json(failures: Sequence[Failure]) -> list[dict[str, str]]:
    return [{"uri": failure.uri, "reason": failure.reason, "detail": failure.detail} for failure in failures]


# Queries with labels


def evaluate(
    collection: Collection,
    queries: AnySource,
    *,
    k: int = 10,
    space: str | None = None,
    allow_private: bool = False,
    encoders: Sequence[Encoder] = (),
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Evaluate the images of a source, and the names of their labels, against the labelled items of a collection.

    The source may be named by its spec. An item is relevant if it has the label of the query. The item that is the
    query itself, by its uri or its content, is left out. A query image that cannot be used is in `failures` and never
    ends the run. URLs of private and loopback addresses are refused unless `allow_private`.

    Raises `QueryError` if there is nothing to compare or `k` is below 1, `SourceError` if the source cannot be read,
    `EncoderError` or `CollectionError` if the collection cannot answer.
    """
    started = time.monotonic()
    if k < 1:
        raise QueryError(f"The number of results must be 1 or more, not {k}.")
    if isinstance(queries, (str, os.PathLike)):
        queries = open_source(os.fspath(queries))
    runtime = with_encoders(runtime, encoders)
    encoder, image_space = image_encoder(collection.encoders, space=space, runtime=runtime)
    known = set(collection.label_counts()) - {""}
    if not known:
        raise QueryError(
            f"{collection.path} has no labelled images: index a source with labels, which `pixmatcher sources` shows."
        )
    entries: list[Entry] = []
    failures: list[Failure] = []
    unknown: Counter[str] = Counter()
    unlabelled = 0
    for found in queries.scan():
        if isinstance(found, Unusable):
            failures.append(Failure(found.uri, found.reason, found.detail))
        elif not found.label:
            unlabelled += 1
        elif found.label not in known:
            unknown[found.label] += 1
        else:
            entries.append(found)
    if not entries:
        what = "whose labels the collection has" if unknown else "with labels"
        raise QueryError(f"{queries.spec} has no images {what}: name a source like those of the collection.")

    labels = sorted({entry.label for entry in entries if entry.label is not None})
    names = _first_names(known, {**collection.label_names(), **queries.label_names()})
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="pixmatcher") as executor:
        images = _encode_images(queries, entries, encoder, image_space, executor, allow_private, progress)
        texts = None
        with suppress(QueryError):  # no space knows texts
            text_side = text_encoder(collection.encoders, space=space, runtime=runtime)
            texts = text_side[1], _encode_texts([names[label] for label in labels], *text_side, executor)

    with collection.snapshot():  # one state for all blocks of queries
        items = _labelled_items(collection, images)
        measured = _measure(
            collection,
            image_space,
            items,
            images.vectors,
            [entries[i].label or "" for i in images.positions],
            k,
            items.own,
        )
        text_figures = None
        if texts is not None:
            text_measured = _measure(collection, texts[0], items, texts[1], labels, k)
            text_figures = _figures(texts[0], text_measured, k)
    return Evaluation(
        collection=collection.path,
        queries=queries.spec,
        k=k,
        items=len(items.ids),
        images=_figures(image_space, measured, k),
        texts=text_figures,
        categories=_categories(measured, names, k),
        names=names,
        unlabelled=unlabelled,
        unknown_labels=len(unknown),
        unknown_queries=unknown.total(),
        alone=len(images.positions) - len(measured.values),
        failures=failures + images.failures,
        seconds=time.monotonic() - started,
    )


def _first_names(labels: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """What each label is called: its first name, up to a comma, or else the label itself."""
    return {label: names.get(label, "").partition(",")[0].strip() or label for label in labels}


@dataclass(frozen=True)
class _Images:
    """Query images that could be encoded, in the order of the source: vectors (Q, dimension) float32."""

    positions: list[int]
    """Of each its place in the list of entries."""
    uris: list[str]
    hashes: list[str]
    vectors: Float32
    failures: list[Failure]


def _encode_images(
    source: Source,
    entries: Sequence[Entry],
    encoder: Encoder,
    space: Space,
    executor: ThreadPoolExecutor,
    allow_private: bool,
    progress: ProgressCallback | None,
) -> _Images:
    """Decode and encode the images of entries with all cores; as when indexing, each thread does both."""
    vectors = np.empty((len(entries), space.dimension), np.float32)
    hashes: dict[int, str] = {}
    failures: dict[int, Failure] = {}

    def work(batch: Sequence[Turn]) -> int:
        positions, pixels = [], []
        for turn in batch:
            try:
                with read_entry(source, turn) as read:
                    opened = open_image(read.data, min_side=encoder.recipe.min_side, rotation=turn.entry.rotation)
                    pixels.append(fit_image(opened, encoder.recipe))
            except Exception as error:  # one file must never end the run
                failures[turn.number] = Failure(turn.entry.uri, *reason_of(error))
            else:
                positions.append(turn.number)
                hashes[turn.number] = read.content_hash
        if pixels:
            vectors[positions] = encoder.encode_images(np.stack(pixels))[space.name]
        return len(batch)

    done = 0
    turns = take_turns(source, entries, encoder.batch_size, allow_private=allow_private)
    with closing(turns), closing(as_completed(executor, work, turns, 2 * usable_cores())) as finished:
        for count in finished:
            done += count
            if progress:
                progress(Progress("Encoding queries", done, len(entries), "images"))
    positions = sorted(hashes)
    return _Images(
        positions,
        [entries[position].uri for position in positions],
        [hashes[position] for position in positions],
        vectors if len(positions) == len(entries) else vectors[positions],
        [failures[position] for position in sorted(failures)],
    )


def _encode_texts(
    texts: Sequence[str],
    encoder: Encoder,
    space: Space,
    executor: ThreadPoolExecutor,
    progress: ProgressCallback | None = None,
) -> Float32:
    """Embed texts with all cores: (T, dimension) float32."""
    done, parts = 0, []
    for part in executor.map(encoder.encode_texts, in_batches(texts, _TEXTS_AT_ONCE)):
        parts.append(part[space.name])
        done += len(parts[-1])
        if progress:
            progress(Progress("Encoding captions", done, len(texts), "captions"))
    return np.concatenate(parts)


# Items and scores


@dataclass(frozen=True)
class _Items:
    """The labelled items: ids (N,) int64, ascending, and labels (N,) int64 as positions in `names`."""

    ids: Ints
    labels: Ints
    names: list[str]
    own: dict[int, list[int]]
    """The columns of the items that each query itself is, by the number of the query."""


def _labelled_items(collection: Collection, images: _Images) -> _Items:
    by_uri: dict[str, list[int]] = {}
    by_content: dict[str, list[int]] = {}
    for query, (uri, content_hash) in enumerate(zip(images.uris, images.hashes, strict=True)):
        by_uri.setdefault(uri, []).append(query)
        by_content.setdefault(content_hash, []).append(query)
    ids: list[int] = []
    labels: list[int] = []
    codes: dict[str, int] = {}
    own: dict[int, list[int]] = {}
    for item in collection.items():
        if not item.label:
            continue
        for query in {*by_uri.get(item.uri, ()), *by_content.get(item.content_hash, ())}:
            own.setdefault(query, []).append(len(ids))
        ids.append(item.id)
        labels.append(codes.setdefault(item.label, len(codes)))
    return _Items(np.array(ids, np.int64), np.array(labels, np.int64), [*codes], own)


def _score_blocks(
    collection: Collection, space: Space, ids: Ints, vectors: Float32, *, most: int = 0
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the scores (block, N) float32 of vectors (Q, dimension) against the items `ids` (N,), in blocks of queries.

    With each goes the number of its first query. The next block takes the place of the last, so memory is bounded,
    also where the caller has `most` numbers of each query beside its scores.
    """
    size = max(1, _SCORE_BYTES // (4 * max(1, len(ids)) + 8 * most))
    scores = np.empty((min(size, len(vectors)), len(ids)), np.float32)
    for start in range(0, len(vectors), size):
        block = vectors[start : start + size]
        for first in range(0, len(ids), _ROWS_AT_ONCE):
            columns = slice(first, first + _ROWS_AT_ONCE)
            scores[: len(block), columns] = block @ collection.embeddings(ids[columns].tolist(), space.name).T
        yield start, scores[: len(block)]


@dataclass(frozen=True)
class _Measured:
    """The four figures of each query that has something relevant, values (Q, 4); of each label what was wrong."""

    labels: list[str]
    values: Float64
    wrong: dict[str, Counter[str]]


def _measure(
    collection: Collection,
    space: Space,
    items: _Items,
    vectors: Float32,
    labels: Sequence[str],
    k: int,
    own: Mapping[int, Sequence[int]] | None = None,
) -> _Measured:
    """Rank all items for each query (Q, dimension) of these labels, but for those that are the query itself."""
    own = own or {}
    codes = {name: code for code, name in enumerate(items.names)}
    wanted = np.array([codes.get(label, -1) for label in labels], np.int64)
    relevant = np.append(np.bincount(items.labels, minlength=len(codes)), 0)[wanted]  # of what is gone, 0
    for query, columns in own.items():
        relevant[query] -= np.count_nonzero(items.labels[columns] == wanted[query])
    used = np.flatnonzero(relevant)
    values = np.zeros((len(used), 4))
    most = 3 * min(k, len(items.ids))  # of average_precision_at
    wrong: dict[str, Counter[str]] = {}
    for start, scores in _score_blocks(collection, space, items.ids, vectors[used], most=most):
        queries = used[start : start + len(scores)]
        depth = min(max(k, int(relevant[queries].max())), len(items.ids))
        relevance = np.zeros((len(queries), depth), np.bool_)
        for row, query in enumerate(queries.tolist()):
            left_out = own.get(query, ())
            scores[row, list(left_out)] = -np.inf  # last, and so behind all that R and k count
            found = items.labels[best_columns(scores[row], depth)][: len(items.ids) - len(left_out)]
            relevance[row, : len(found)] = found == wanted[query]
            others = (items.names[code] for code in found[:k].tolist() if code != wanted[query])
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


def figure_names(k: int) -> tuple[str, str, str, str]:
    """What the figures of queries with labels are called."""
    return "precision@1", f"precision@{k}", f"mAP@{k}", "R-precision"


def _figures(space: Space, measured: _Measured, k: int) -> Figures | None:
    if not len(measured.values):
        return None
    low, high = bootstrap_interval(measured.values)
    figures = _with_ends(figure_names(k), mean(measured.values), low, high)
    return Figures(space.name, len(measured.values), figures)


def _with_ends(names: Sequence[str], values: Float64, low: Float64, high: Float64) -> dict[str, Figure]:
    columns = zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Figure(*ends) for name, ends in zip(names, columns, strict=True)}


def _categories(measured: _Measured, names: Mapping[str, str], k: int) -> list[CategoryFigures]:
    """What the queries of each label reach, in the order of the labels."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(measured.labels):
        rows.setdefault(label, []).append(row)
    found = []
    for label in sorted(rows):
        figures = dict(zip(figure_names(k), mean(measured.values[rows[label]]).tolist(), strict=True))
        # Of those that are as frequent, the first by name comes first.
        wrong = sorted(measured.wrong[label].items(), key=lambda pair: (-pair[1], pair[0]))
        shares = {other: count / (k * len(rows[label])) for other, count in wrong}
        found.append(CategoryFigures(label, names[label], len(rows[label]), figures, shares))
    return found


def save_categories(evaluation: Evaluation, path: Path) -> None:
    """Write what each category reaches as csv in UTF-8: label, name, queries, figures, most frequent wrong label.

    Raises `PixMatcherError` if the file cannot be written.
    """
    names = [*dict.fromkeys(figure_names(evaluation.k))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["label", "name", "queries", *names, "wrong_label"])
    for category in evaluation.categories:
        figures = [f"{category.figures[name]:.4f}" for name in names]
        writer.writerow([category.label, category.name, category.queries, *figures, next(iter(category.wrong), "")])
    check_writable(path)
    try:
        path.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise PixMatcherError(f"{path} cannot be written ({error.strerror or error}): name another file.") from error


# Captions


def evaluate_captions(
    collection: Collection,
    captions: str | os.PathLike[str],
    *,
    space: str | None = None,
    encoders: Sequence[Encoder] = (),
    runtime: Runtime | None = None,
    progress: ProgressCallback | None = None,
) -> CaptionEvaluation:
    """Search all items of a collection by each caption of a csv, and see at which rank the image of the caption is.

    The csv has the columns image and caption. An image is named by its path, relative to the folder of the csv or to
    the current one, by the uri of an item or by its file name. Copies of an image, of the same content, count as it.
    A line that cannot be used is in `failures`.

    Raises `QueryError` if the csv cannot be read or no encoder knows texts, `EncoderError` or `CollectionError` if the
    collection cannot answer.
    """
    started = time.monotonic()
    path = Path(captions)
    runtime = with_encoders(runtime, encoders)
    encoder, text_space = text_encoder(collection.encoders, space=space, runtime=runtime)
    lines, unreadable = _read_captions(path)
    with collection.snapshot():  # one state from the names of the images to the scores
        ids, targets, unusable = _captioned(collection, path, lines)
        asked = [(line.caption, target) for line, target in zip(lines, targets, strict=True) if target is not None]
        figures = None
        if asked:
            with ThreadPoolExecutor(usable_cores(), thread_name_prefix="pixmatcher") as executor:
                vectors = _encode_texts([caption for caption, _ in asked], encoder, text_space, executor, progress)
            wanted = np.array([target for _, target in asked])
            figures = _caption_figures(text_space, _ranks(collection, text_space, ids, vectors, wanted))
    failures = unreadable + unusable
    return CaptionEvaluation(collection.path, str(path), len(ids), figures, failures, time.monotonic() - started)


@dataclass(frozen=True)
class _Caption:
    line: int
    image: str
    caption: str


def _read_captions(path: Path) -> tuple[list[_Caption], list[Failure]]:
    """The captions of a csv, and the lines that cannot be read."""
    wanted = "give a csv in UTF-8 with the columns image and caption"
    lines: list[_Caption] = []
    failures: list[Failure] = []
    try:
        rows = read_rows(str(path), ",")
        _, header = first_row(rows, str(path))
        columns = {name.strip(): position for position, name in enumerate(header)}
        if not {"image", "caption"} <= set(columns):
            raise QueryError(f"{path} lacks the columns: {wanted}.")
        for row in rows:
            if isinstance(row, Unusable):
                failures.append(Failure(row.uri, row.reason, row.detail))
            else:
                number, fields = row
                lines.append(_Caption(number, fields[columns["image"]].strip(), fields[columns["caption"]].strip()))
    except SourceError as error:
        raise QueryError(f"{str(error).rstrip('.')}; {wanted}.") from error
    if not lines and not failures:
        raise QueryError(f"{path} has no captions: {wanted}.")
    return lines, failures


def _captioned(
    collection: Collection, path: Path, lines: Sequence[_Caption]
) -> tuple[Ints, list[int | None], list[Failure]]:
    """The ids of all items (N,) int64, the column of the image of each line or None, and why there is none."""
    folder = os.path.dirname(os.path.abspath(path))
    ways = [(os.path.abspath(os.path.join(folder, line.image)), os.path.abspath(line.image)) for line in lines]
    # Only what the csv speaks of is kept of the items.
    uris = {uri for way in ways for uri in way} | {line.image for line in lines}
    names = {os.path.basename(line.image) for line in lines}
    ids: list[int] = []
    by_uri: dict[str, Item] = {}
    by_name: dict[str, dict[str, Item]] = {}
    for item in collection.items():
        ids.append(item.id)
        if item.uri in uris:
            by_uri[item.uri] = item
        name = os.path.basename(item.uri)
        if name in names:
            # Copies of one image are one; a third and later content adds nothing to there being several.
            contents = by_name.setdefault(name, {})
            if len(contents) < 2:
                contents.setdefault(item.content_hash, item)
    found: list[Item | None] = []
    failures: list[Failure] = []
    for line, way in zip(lines, ways, strict=True):
        match = next((by_uri[uri] for uri in (*way, line.image) if uri in by_uri), None)
        named = by_name.get(line.image, {})
        if match is None and len(named) == 1:
            (match,) = named.values()
        reason = ""
        if not line.image or not line.caption:
            reason = "no caption" if line.image else "no image named"
        elif match is None:
            reason = "several images of this name" if named else "not in the collection"
        if reason:
            failures.append(Failure(line.image or str(path), reason, f"line {line.line}"))
        found.append(None if reason else match)
    first: dict[str, int] = dict.fromkeys((item.content_hash for item in found if item), -1)
    for column, item in enumerate(collection.items()):
        if first.get(item.content_hash) == -1:
            first[item.content_hash] = column
    return np.array(ids, np.int64), [None if item is None else first[item.content_hash] for item in found], failures


def _ranks(collection: Collection, space: Space, ids: Ints, vectors: Float32, wanted: Ints) -> Ints:
    """The rank (Q,) that the item of the column `wanted` (Q,) has for each query, from 1; equals rank by id."""
    ranks = np.empty(len(vectors), np.int64)
    for start, scores in _score_blocks(collection, space, ids, vectors):
        for row, column in enumerate(wanted[start : start + len(scores)].tolist()):
            own = scores[row, column]
            before = np.count_nonzero(scores[row] > own) + np.count_nonzero(scores[row, :column] == own)
            ranks[start + row] = 1 + before
    return ranks


def _caption_figures(space: Space, ranks: Ints) -> Figures:
    recalls = np.column_stack([recall_at(ranks, k) for k in RECALL_AT])
    column = ranks[:, None].astype(np.float64)
    figures = _with_ends([f"recall@{k}" for k in RECALL_AT], mean(recalls), *bootstrap_interval(recalls))
    figures |= _with_ends(["median rank"], median(column), *bootstrap_interval(column, median))
    return Figures(space.name, len(ranks), figures)
