"""Search a collection by text and by image: a query becomes one vector, and the vector finds the nearest items.

`Query` and `SearchOptions` say what to search for and how. `search` answers one query, `search_similar` starts from an
item of the collection, `search_batch` answers one query a line, and `classify` returns the most likely labels of an
image.

May import `images`, `net`, `encoders`, `sources` and `collection`.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from ._answering import AnswersQueries
from ._filter_checks import check_filter
from ._search import WEAK_NOTE, SearchResult, percent, query_as_json, search, search_embedded, search_similar
from .embedding import (
    EmbeddedQuery,
    EncoderFallback,
    embed_query,
    image_encoder,
    image_space,
    text_encoder,
    unusable_image,
)
from .options import SearchOptions, options_as_json, options_from_json
from .query import MAX_TEXT_CHARACTERS, Query, QueryPart, name_from_json, parse_query, query_from_json, resolve_image

if TYPE_CHECKING:
    from ._batch import search_batch
    from ._example_texts import example_texts
    from ._items import item_by_id
    from .categories import Category, CategoryResult, classify, nearest_categories
    from .pictures import OriginalFile, item_picture, open_original, original_file, original_picture

# A single search does not need these modules, so they are imported when one of their names is first used.
_MODULES = {
    "_batch": ("search_batch",),
    "_example_texts": ("example_texts",),
    "_items": ("item_by_id",),
    "categories": ("Category", "CategoryResult", "classify", "nearest_categories"),
    "pictures": ("OriginalFile", "item_picture", "open_original", "original_file", "original_picture"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "MAX_TEXT_CHARACTERS",
    "WEAK_NOTE",
    "AnswersQueries",
    "Category",
    "CategoryResult",
    "EmbeddedQuery",
    "EncoderFallback",
    "OriginalFile",
    "Query",
    "QueryPart",
    "SearchOptions",
    "SearchResult",
    "check_filter",
    "classify",
    "embed_query",
    "example_texts",
    "image_encoder",
    "image_space",
    "item_by_id",
    "item_picture",
    "name_from_json",
    "nearest_categories",
    "open_original",
    "options_as_json",
    "options_from_json",
    "original_file",
    "original_picture",
    "parse_query",
    "percent",
    "query_as_json",
    "query_from_json",
    "resolve_image",
    "search",
    "search_batch",
    "search_embedded",
    "search_similar",
    "text_encoder",
    "unusable_image",
]
