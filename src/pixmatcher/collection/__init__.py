"""Collections: folders on disk that hold items, their embeddings, and an index for each space.

May import `vector_index`, and the modules that every package may import.
"""

from ._comparison import ComparisonResult, SourceComparison, StoredItems
from ._indexes import SpaceIndexes
from ._names import CATALOG_NAME, FOLDER_NAME, delete_collection
from ._spaces import query_vector, space_named
from ._summary import MEGAPIXEL_LIMITS, ItemSummary, summarize_items
from .collection import Collection
from .filters import Filter
from .items import Changes, CollectionState, Failure, Hit, Item, Neighbour, Problem
from .stores import Comparison, Store, WritableStore, open_collection, open_named_store

__all__ = [
    "CATALOG_NAME",
    "FOLDER_NAME",
    "MEGAPIXEL_LIMITS",
    "Changes",
    "Collection",
    "CollectionState",
    "Comparison",
    "ComparisonResult",
    "Failure",
    "Filter",
    "Hit",
    "Item",
    "ItemSummary",
    "Neighbour",
    "Problem",
    "SourceComparison",
    "SpaceIndexes",
    "Store",
    "StoredItems",
    "WritableStore",
    "delete_collection",
    "open_collection",
    "open_named_store",
    "query_vector",
    "space_named",
    "summarize_items",
]
