"""Search a collection for the items nearest to a query or to one of its own items."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._urls import without_password
from ..collection import Hit, Store
from ..encoders import Encoder, Runtime, with_encoders
from ._reopening import on_current
from .embedding import EmbeddedQuery, embed_query
from .options import SearchOptions, with_k
from .query import Query

logger = logging.getLogger("pixmatcher.searching")


@dataclass(frozen=True)
class SearchResult:
    """The hits of a query, best first, the space that was searched, and the time this took in milliseconds."""

    query: Any
    space: str
    took_ms: float
    hits: list[Hit]
    note: str = ""
    """Why another space than usual was searched; empty if the usual one was."""

    def as_json(self) -> dict[str, Any]:
        """Return the result as the JSON object that the command line and the web app show."""
        values = {
            "query": self.query,
            "space": self.space,
            "took_ms": round(self.took_ms, 2),
            "hits": [_hit_as_json(hit) for hit in self.hits],
        }
        return values | {"note": self.note} if self.note else values


def _hit_as_json(hit: Hit) -> dict[str, Any]:
    item = hit.item
    values = {"rank": hit.rank, "score": round(hit.score, 4), "id": item.id, "uri": item.uri, "label": item.label}
    if item.caption is not None:
        values["caption"] = item.caption
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
    cannot be used on this machine, the next one is used, and the `note` of the result says why. A collection that was
    made with encoder objects needs them again: `encoders`.

    A collection that was upgraded after it was opened is opened again for each query. Raises `QueryError`,
    `InvalidImageError` or `EncoderError` if the query cannot be answered, `OutdatedCollectionError` if the collection
    was made with another version of its encoder.
    """
    started = time.perf_counter()
    options = with_k(options, k)
    if isinstance(query, str):
        query = Query(query)
    runtime = with_encoders(runtime, encoders)
    embedded, embedded_at, hits = on_current(collection, partial(_embed_and_search, query, options, runtime))
    ended = time.perf_counter()
    logger.debug(
        "query of the text %r and the image %r: space %s of the encoder %s; query embedded in %.4f s, index searched "
        "in %.4f s, %d hits",
        query.text or "",
        without_password(query.known_image_name or ""),
        embedded.space,
        embedded.encoder,
        embedded_at - started,
        ended - embedded_at,
        len(hits),
    )
    return SearchResult(query.name, embedded.space, (ended - started) * 1000, hits, embedded.note)


def _embed_and_search(
    query: Query, options: SearchOptions, runtime: Runtime | None, store: Store
) -> tuple[EmbeddedQuery, float, list[Hit]]:
    """Return the embedded query, the time when it was embedded, and the hits."""
    embedded = embed_query(query, store.encoders, space=options.space, runtime=runtime)
    embedded_at = time.perf_counter()
    return embedded, embedded_at, _search_store(store, embedded.vector, embedded.space, options)


def search_similar(
    collection: Store, item_id: int, options: SearchOptions | None = None, *, k: int | None = None
) -> SearchResult:
    """Find the items nearest to an item of the collection by its stored embedding; the item itself is among them.

    If the options name no space, the first space for images only is searched, or the first space if there is none.
    Raises `CollectionError` if the item or the space does not exist.
    """
    started = time.perf_counter()
    options = with_k(options, k)
    space, hits = on_current(collection, partial(_search_near_item, item_id, options))
    ended = time.perf_counter()
    logger.debug(
        "similar to item %d: space %s; index searched in %.4f s, %d hits", item_id, space, ended - started, len(hits)
    )
    return SearchResult(item_id, space, (ended - started) * 1000, hits)


def _search_near_item(item_id: int, options: SearchOptions, store: Store) -> tuple[str, list[Hit]]:
    """Return the space and the hits of a search for items near another one."""
    space = options.space or min(store.spaces.values(), key=lambda each: each.text).name
    (vector,) = store.embeddings([item_id], space)
    return space, _search_store(store, vector, space, options)


def _search_store(collection: Store, vector: Any, space: str, options: SearchOptions) -> list[Hit]:
    """Search a store with the options of a search."""
    return collection.search(
        vector,
        space=space,
        k=options.k,
        min_score=options.min_score,
        filter=options.filter,
        exact=options.exact,
    )


_UNRELATED_BELOW = {("lite", True): 0.2, ("lite", False): 0.3}
"""Scores below which an image is unrelated to the query, by encoder and by whether its space supports text.

How the values for `lite` were measured: docs/explanations/lite.md.
"""


def is_weak(collection: Store, result: SearchResult) -> bool:
    """Return whether even the best hit is probably unrelated to the query. False for encoders without a known limit."""
    for record in collection.encoders:
        for space in record.spaces:
            if space.name == result.space:
                best = max((hit.score for hit in result.hits), default=0.0)
                return best < _UNRELATED_BELOW.get((record.name, space.text), float("-inf"))
    return False
