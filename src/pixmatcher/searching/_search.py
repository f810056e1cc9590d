"""Search a collection for the items nearest to a query or to one of its own items."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from .._text import as_unicode, joined, name_as_unicode
from .._urls import without_password
from ..collection import Filter, Hit, Store
from ..encoders import Encoder, Runtime, with_encoders
from ..errors import QueryError, UnreadableTextError
from ..records import Calibration
from ._answering import answers_queries
from ._calibrations import calibration_of
from ._filter_checks import check_filter
from ._reopening import on_current
from .embedding import EmbeddedQuery, embed_query, text_space
from .options import SearchOptions, with_k
from .query import Query

WEAK_NOTE = "Nothing here is quite like that: these are the nearest images."

logger = logging.getLogger("pixmatcher.searching")


@dataclass(frozen=True)
class SearchResult:
    """The hits of a query, best first, the space that was searched, and the time this took in milliseconds."""

    query: Any
    space: str
    took_ms: float
    hits: list[Hit]
    note: str = ""
    """What to know about the result: nothing here is quite like the query, the text cannot be read, no image is in the
    folder of the filter, or another space than usual was searched and why. Empty if there is nothing of these."""
    calibration: Calibration | None = None
    """Turns the scores of this query into probabilities; None if that is not possible."""
    unreadable: UnreadableTextError | None = None
    """Why the text of the query was not searched for; None if it was."""

    @cached_property
    def probabilities(self) -> list[float] | None:
        """The probability of each hit to be what was asked for; None without a calibration."""
        if self.calibration is None:
            return None
        return [float(each) for each in self.calibration.probability([hit.score for hit in self.hits])]

    @property
    def weak(self) -> bool:
        """Whether even the best hit is probably not what was asked for; False without a calibration or a hit."""
        if self.calibration is None or not self.probabilities:
            return False
        return max(self.probabilities) < self.calibration.weak_below

    def as_json(self) -> dict[str, Any]:
        """Return the result as the JSON object that the command line and the web app show."""
        probabilities: Sequence[float | None] = self.probabilities or [None] * len(self.hits)
        values = {
            "query": query_as_json(self.query),
            "space": self.space,
            "took_ms": round(self.took_ms, 2),
            "hits": [_hit_as_json(*pair) for pair in zip(self.hits, probabilities, strict=True)],
        }
        if self.calibration is not None:
            values["weak"] = self.weak
        return values | {"note": as_unicode(self.note)} if self.note else values


def percent(probability: float) -> int:
    """Return a probability as people see it: per cent, from 1 to 99, since no hit is certain."""
    return min(99, max(1, round(100 * probability)))


def query_as_json(query: Any) -> Any:
    """Return the name of a query, or the names of its parts, as valid Unicode."""
    if isinstance(query, Mapping):
        return {part: query_as_json(name) for part, name in query.items()}
    if isinstance(query, list):
        return [query_as_json(name) for name in query]
    return name_as_unicode(query) if isinstance(query, str) else query


def _hit_as_json(hit: Hit, probability: float | None) -> dict[str, Any]:
    item = hit.item
    values: dict[str, Any] = {"rank": hit.rank, "score": round(hit.score, 4)}
    if probability is not None:
        values["probability"] = round(probability, 2)
    values |= {"id": item.id, "uri": name_as_unicode(item.uri), "label": item.label}
    if item.caption is not None:
        values["caption"] = item.caption
    if item.missing is not None:
        values["missing"] = round(item.missing, 4)
    if item.details:
        values["details"] = dict(item.details)
    return values


def search(
    collection: Store,
    query: Query | str,
    options: SearchOptions | None = None,
    *,
    k: int | None = None,
    encoders: Sequence[Encoder] = (),
    runtime: Runtime | None = None,
) -> SearchResult:
    """Find the items of a collection that are nearest to a query; a string is a text query.

    `k` is short for `SearchOptions(k=k)`. If the options name no space, the query decides: an image alone is searched
    in the first space for images only, a text in the first space that supports text. If the encoder of that space
    cannot be used on this machine, the next one is used, and the `note` of the result says why. A text that no encoder
    can read has no hits, and the `note` says so. A collection that was made with encoder objects needs them again:
    `encoders`. A store that is an `AnswersQueries` embeds the query itself, and uses neither these nor `runtime`.

    A collection that was upgraded after it was opened is opened again for each query. Raises `QueryError`,
    `InvalidImageError` or `EncoderError` if the query cannot be answered, `OutdatedCollectionError` if the collection
    was made with another version of its encoder.
    """
    started = time.perf_counter()
    options = with_k(options, k)
    if isinstance(query, str):
        query = Query(query)
    if answers_queries(collection):
        return collection.answer_query(query, options)
    runtime = with_encoders(runtime, encoders)
    try:
        find = partial(_embed_and_search, query, options, runtime, started)
        embedded, embedded_at, result = on_current(collection, find)
    except UnreadableTextError as error:
        space = text_space(collection.encoders, options.space).name
        took_ms = (time.perf_counter() - started) * 1000
        note = joined(query.note, str(error))
        return SearchResult(query.name, space, took_ms, [], note, unreadable=error)
    logger.debug(
        "query of the text %r and the image %r: space %s of the encoder %s; query embedded in %.4f s, index searched "
        "in %.4f s, %d hits",
        query.text or "",
        without_password(query.known_image_name or ""),
        embedded.space,
        embedded.encoder,
        embedded_at - started,
        time.perf_counter() - embedded_at,
        len(result.hits),
    )
    return result


def search_embedded(
    collection: Store,
    embedded: EmbeddedQuery,
    options: SearchOptions,
    *,
    name: Any,
    started: float | None = None,
    runtime: Runtime | None = None,
) -> SearchResult:
    """Find the items nearest to a query that `embed_query` has embedded; the space of the options is not used.

    `name` is the query as the result shows it, `started` the value of `time.perf_counter` from which its time counts.
    """
    started = time.perf_counter() if started is None else started
    calibration = calibration_of(collection, embedded.space, embedded.kind, runtime)
    hits = collection.search(
        embedded.vector,
        space=embedded.space,
        k=options.k,
        min_score=_lowest_score(options, calibration),
        filter=options.filter,
        exact=options.exact,
    )
    note = embedded.note or (_note_of_filter(collection, options.filter) if not hits else "")
    took_ms = (time.perf_counter() - started) * 1000
    result = SearchResult(name, embedded.space, took_ms, hits, note, calibration, embedded.unreadable)
    if not result.weak:
        return result
    return replace(result, note=joined(result.note, WEAK_NOTE))


def _lowest_score(options: SearchOptions, calibration: Calibration | None) -> float | None:
    """Return the lowest score of a hit: that of the options, or that of their lowest probability if it is higher."""
    if options.min_probability is None:
        return options.min_score
    if calibration is None:
        raise QueryError(
            "The scores of this query have no probabilities: search for one text or one image by an encoder with a "
            "calibration, or give a lowest score instead."
        )
    least = calibration.score(options.min_probability)
    return least if options.min_score is None else max(least, options.min_score)


def _note_of_filter(collection: Store, filter: Filter | None) -> str:
    """Return why no item can pass a filter, if a name in it does not occur in the collection."""
    try:
        check_filter(collection, filter, look_at_disk=False)
    except QueryError as error:
        return str(error)
    return ""


def _embed_and_search(
    query: Query, options: SearchOptions, runtime: Runtime | None, started: float, store: Store
) -> tuple[EmbeddedQuery, float, SearchResult]:
    """Return the embedded query, the time when it was embedded, and the result."""
    embedded = embed_query(query, store.encoders, space=options.space, runtime=runtime, stored=store.embeddings)
    embedded_at = time.perf_counter()
    result = search_embedded(store, embedded, options, name=query.name, started=started, runtime=runtime)
    if query.note:
        result = replace(result, note=joined(query.note, result.note))
    return embedded, embedded_at, result


def search_similar(
    collection: Store,
    item_id: int,
    options: SearchOptions | None = None,
    *,
    k: int | None = None,
    encoders: Sequence[Encoder] = (),
) -> SearchResult:
    """Find the items nearest to an item of the collection by its stored embedding; the item itself is among them.

    If the options name no space, the first space for images only is searched, or the first space if there is none. No
    encoder is used; `encoders`, if the collection was made with encoder objects, are asked for their calibrations only.
    Raises `CollectionError` if the item or the space does not exist.
    """
    started = time.perf_counter()
    options = with_k(options, k)
    if answers_queries(collection):
        return collection.answer_similar(item_id, options)
    find = partial(_search_near_item, item_id, options, with_encoders(None, encoders), started)
    result = on_current(collection, find)
    logger.debug(
        "similar to item %d: space %s; index searched in %.4f s, %d hits",
        item_id,
        result.space,
        result.took_ms / 1000,
        len(result.hits),
    )
    return result


def _search_near_item(
    item_id: int, options: SearchOptions, runtime: Runtime | None, started: float, store: Store
) -> SearchResult:
    """Return the result of a search for items near another one."""
    space = options.space or min(store.spaces.values(), key=lambda each: each.text).name
    (vector,) = store.embeddings([item_id], space)
    embedded = EmbeddedQuery(space, vector, "", kind="image")
    return search_embedded(store, embedded, options, name=item_id, started=started, runtime=runtime)
