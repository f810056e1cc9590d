"""Search for many queries, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .._text import as_unicode
from ..collection import Store
from ..encoders import Encoder, Runtime, with_encoders
from ..errors import PixMatcherError, QueryError
from ._search import query_as_json, search
from .options import SearchOptions, with_k
from .query import image_name_of, name_from_json, parse_line, query_from_json


def search_batch(
    collection: Store,
    lines: Iterable[str],
    options: SearchOptions | None = None,
    *,
    k: int | None = None,
    allow_private: bool = False,
    encoders: Sequence[Encoder] = (),
    runtime: Runtime | None = None,
) -> Iterator[dict[str, Any]]:
    """Answer one query a line, in order: a result as JSON, or `{"query": ..., "error": ...}` if the line fails.

    A line is the path of a file or a URL, which is an image, a JSON object as `query_from_json` reads it, or else a
    text. Blank lines are passed over, and a byte order mark before the first line is ignored. With `allow_private`,
    image URLs may have private addresses.
    """
    options = with_k(options, k)
    runtime = with_encoders(runtime, encoders)
    for number, line in enumerate(lines):
        text = (line.removeprefix("\ufeff") if number == 0 else line).strip()
        if not text:
            continue
        name: Any = image_name_of(text)
        try:
            if text.startswith("{"):
                values = _json_object(text)
                name = name_from_json(values)
                query = query_from_json(values, allow_private=allow_private)
            else:
                query = parse_line(text, allow_private=allow_private)
            yield search(collection, query, options, runtime=runtime).as_json()
        except PixMatcherError as error:
            yield {"query": query_as_json(name), "error": as_unicode(str(error))}


def _json_object(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise QueryError('This is not valid JSON: write an object like {"text": "a cat"}.') from None
    assert isinstance(values, dict)  # it begins with a brace
    return values
