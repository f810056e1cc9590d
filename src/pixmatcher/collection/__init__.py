"""Collections: folders on disk that hold items, their embeddings, and an index for each space.

May import `vector_index`, and the modules that every package may import.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names
from ..records import CATALOG_NAME, FOLDER_NAME
from ._indexes import SpaceIndexes
from ._names import delete_collection
from ._spaces import evenly_spaced, labels_named, query_vector, space_named, whole_number
from .collection import Collection
from .filters import Filter
from .items import (
    Changes,
    CollectionState,
    Failure,
    Hit,
    IndexDescription,
    IndexTuning,
    Item,
    Neighbour,
    Problem,
    TuningPoint,
)
from .stores import (
    CalibratedStore,
    Comparison,
    CreatedByIndexing,
    DescribesIndexes,
    ForgetsSources,
    KeepsFolderNotes,
    PendingWork,
    ReadableStore,
    Store,
    TunedStore,
    UsedByProcesses,
    VerifiesItself,
    WritableStore,
    open_collection,
    open_named_store,
)

if TYPE_CHECKING:
    from ._comparison import ComparisonResult, SourceComparison, StoredItems
    from ._description import CollectionDescription, describe_collection
    from ._forgetting import ToForget, find_to_forget, forgetting
    from ._manifest import records_as_json, records_from_json, records_of
    from ._reencoding import Reencoding
    from ._storing import check_item, stored_embeddings, with_content_of
    from ._summary import MEGAPIXEL_LIMITS, ItemSummary, summarize_items

# A search does not need these modules, so they are imported when one of their names is first used.
_MODULES = {
    "_comparison": ("ComparisonResult", "SourceComparison", "StoredItems"),
    "_description": ("CollectionDescription", "describe_collection"),
    "_forgetting": ("ToForget", "find_to_forget", "forgetting"),
    "_manifest": ("records_as_json", "records_from_json", "records_of"),
    "_reencoding": ("Reencoding",),
    "_storing": ("check_item", "stored_embeddings", "with_content_of"),
    "_summary": ("MEGAPIXEL_LIMITS", "ItemSummary", "summarize_items"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "CATALOG_NAME",
    "FOLDER_NAME",
    "MEGAPIXEL_LIMITS",
    "CalibratedStore",
    "Changes",
    "Collection",
    "CollectionDescription",
    "CollectionState",
    "Comparison",
    "ComparisonResult",
    "CreatedByIndexing",
    "DescribesIndexes",
    "Failure",
    "Filter",
    "ForgetsSources",
    "Hit",
    "IndexDescription",
    "IndexTuning",
    "Item",
    "ItemSummary",
    "KeepsFolderNotes",
    "Neighbour",
    "PendingWork",
    "Problem",
    "ReadableStore",
    "Reencoding",
    "SourceComparison",
    "SpaceIndexes",
    "Store",
    "StoredItems",
    "ToForget",
    "TunedStore",
    "TuningPoint",
    "UsedByProcesses",
    "VerifiesItself",
    "WritableStore",
    "check_item",
    "delete_collection",
    "describe_collection",
    "evenly_spaced",
    "find_to_forget",
    "forgetting",
    "labels_named",
    "open_collection",
    "open_named_store",
    "query_vector",
    "records_as_json",
    "records_from_json",
    "records_of",
    "space_named",
    "stored_embeddings",
    "summarize_items",
    "whole_number",
    "with_content_of",
]
