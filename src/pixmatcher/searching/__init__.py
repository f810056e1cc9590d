"""Searching: a query becomes a vector, and the vector hits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..collection import Collection, Filter, Hit
from ..encoders import Runtime
from ..errors import PixMatcherError, QueryError
from .query import Query, embed_query, query_from_json


@dataclass(frozen=True)
class SearchResult:
    """The hits of a query, best first, the space that answered and the time it took in milliseconds."""

    query: Any
    space: str
    took_ms: float
    hits: list[Hit]
    note: str = ""
    """Why another space answered than usual, if one did."""

    def as_json(self) -> dict[str, Any]:
        """The form in which every face prints it."""
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
    collection: Collection,
    query: Query | str,
    *,
    k: int = 12,
    min_score: float | None = None,
    space: str | None = None,
    where: Filter | None = None,
    exact: bool = False,
    runtime: Runtime | None = None,
) -> SearchResult:
    """Find the k items of a collection nearest to a query; a string is a text query.

    The `space` is chosen by the query, unless one is named; where its encoder cannot be used on this machine, the next
    one answers, and `note` tells so. With `where`, only items that meet it count; with `exact`, no index is trusted.

    Raises `QueryError`, `InvalidImageError` or `EncoderError` if the query cannot be answered.
    """
    started = time.perf_counter()
    if isinstance(query, str):
        query = Query(query)
    embedded = embed_query(query, collection.encoders, space=space, runtime=runtime)
    hits = collection.search(embedded.vector, space=embedded.space, k=k, min_score=min_score, where=where, exact=exact)
    return SearchResult(query.name, embedded.space, (time.perf_counter() - started) * 1000, hits, embedded.note)


def search_like(
    collection: Collection,
    item_id: int,
    *,
    k: int = 12,
    min_score: float | None = None,
    space: str | None = None,
    where: Filter | None = None,
    exact: bool = False,
) -> SearchResult:
    """Find the k items nearest to an item of the collection, by its stored embedding; it is itself among them.

    The space is the one named, or else the first made for images only, if there is one. Raises `CollectionError` if
    there is no such item or space.
    """
    started = time.perf_counter()
    space = space or min(collection.spaces.values(), key=lambda each: each.text).name
    (vector,) = collection.embeddings([item_id], space)
    hits = collection.search(vector, space=space, k=k, min_score=min_score, where=where, exact=exact)
    return SearchResult(item_id, space, (time.perf_counter() - started) * 1000, hits)


_WEAK_BELOW = {("lite", True): 0.2, ("lite", False): 0.3}
"""By encoder, and whether its space knows texts. Of `lite` what is unrelated scores below these; see
docs/explanations/lite.md."""


def is_weak(collection: Collection, result: SearchResult) -> bool:
    """Whether the hits are likely not what was looked for. Of encoders whose scores are not known, nobody can tell."""
    for record in collection.encoders:
        for space in record.spaces:
            if space.name == result.space:
                best = max((hit.score for hit in result.hits), default=0.0)
                return best < _WEAK_BELOW.get((record.name, space.text), float("-inf"))
    return False


def search_batch(
    collection: Collection,
    lines: Iterable[str],
    *,
    k: int = 12,
    min_score: float | None = None,
    space: str | None = None,
    where: Filter | None = None,
    exact: bool = False,
    allow_private: bool = False,
    runtime: Runtime | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer one query a line, in order: a result as JSON, or `{"query": ..., "error": ...}` for a line that fails.

    A line is a text, or a JSON object with `text`, `image` or both. A byte order mark before the first is passed over.
    """
    for number, line in enumerate(lines):
        text = (line.removeprefix("\ufeff") if number == 0 else line).strip()
        shown: Any = text
        try:
            if text.startswith("{"):
                values = _json_object(text)
                shown = values.get("text") or values.get("image") or text
                query = query_from_json(values, allow_private=allow_private)
            else:
                query = Query(text)
            found = search(
                collection, query, k=k, min_score=min_score, space=space, where=where, exact=exact, runtime=runtime
            )
            yield found.as_json()
        except PixMatcherError as error:
            yield {"query": shown, "error": str(error)}


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise QueryError('This is no valid JSON: write an object like {"text": "a cat"}.') from None
    assert isinstance(values, dict)  # it begins with a brace
    return values
