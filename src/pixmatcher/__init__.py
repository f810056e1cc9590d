"""PixMatcher finds your own images by example or by sentence, offline and in milliseconds.

from pixmatcher import Collection, index, search
index("photos")
with Collection.open("photos") as collection:
    for hit in search(collection, "a cat asleep", k=5).hits:
        print(f"{hit.score:.2f} {hit.item.uri}")
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from ._lazy import lazy_names
from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .client import Client
    from .collection import Collection, Failure, Filter, Hit, Item, Problem, Store, WritableStore, open_collection
    from .encoders import Encoder, Runtime, load_encoder, register_encoder
    from .encoders.torch.features import FeatureExtractor, text_to_vector
    from .errors import (
        ClusterError,
        CollectionError,
        CollectionLockedError,
        CollectionUpgradedError,
        EncoderError,
        FetchError,
        InvalidImageError,
        OutdatedCollectionError,
        PixMatcherError,
        QueryError,
        ShardError,
        SourceError,
        StorageError,
        UnreadableTextError,
    )
    from .evaluation import Evaluation, evaluate
    from .export import export_arrays, export_parquet
    from .images import (
        ALLOWED_EXTENSIONS,
        Recipe,
        is_allowed_extension,
        open_image,
        preprocess_image,
        preprocess_images,
    )
    from .indexing import (
        IndexReport,
        MergeReport,
        ShardReport,
        UpgradeReport,
        index,
        index_shard,
        merge_shards,
        upgrade,
    )
    from .records import Calibration, Entry, Space
    from .searching import Category, CategoryResult, Query, QueryPart, SearchOptions, SearchResult, classify, search
    from .sources import Source, Unusable

logging.getLogger(__name__).addHandler(logging.NullHandler())  # without it, Python itself prints warnings
if os.environ.get("PIXMATCHER_LOG"):
    from ._logging import show_log_as

    show_log_as(os.environ["PIXMATCHER_LOG"])

# Names are imported when they are first used, so that `import pixmatcher` costs next to nothing.
_MODULES = {
    "client": ("Client",),
    "collection": (
        "Collection",
        "Failure",
        "Filter",
        "Hit",
        "Item",
        "Problem",
        "Store",
        "WritableStore",
        "open_collection",
    ),
    "encoders": ("Encoder", "Runtime", "load_encoder", "register_encoder"),
    "encoders.torch.features": ("FeatureExtractor", "text_to_vector"),
    "errors": (
        "ClusterError",
        "CollectionError",
        "CollectionLockedError",
        "CollectionUpgradedError",
        "EncoderError",
        "FetchError",
        "InvalidImageError",
        "OutdatedCollectionError",
        "PixMatcherError",
        "QueryError",
        "ShardError",
        "SourceError",
        "StorageError",
        "UnreadableTextError",
    ),
    "evaluation": ("Evaluation", "evaluate"),
    "export": ("export_arrays", "export_parquet"),
    "images": (
        "ALLOWED_EXTENSIONS",
        "Recipe",
        "is_allowed_extension",
        "open_image",
        "preprocess_image",
        "preprocess_images",
    ),
    "indexing": (
        "IndexReport",
        "MergeReport",
        "ShardReport",
        "UpgradeReport",
        "index",
        "index_shard",
        "merge_shards",
        "upgrade",
    ),
    "records": ("Calibration", "Entry", "Space"),
    "searching": (
        "Category",
        "CategoryResult",
        "Query",
        "QueryPart",
        "SearchOptions",
        "SearchResult",
        "classify",
        "search",
    ),
    "sources": ("Source", "Unusable"),
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ALLOWED_EXTENSIONS",
    "Calibration",
    "Category",
    "CategoryResult",
    "Client",
    "ClusterError",
    "Collection",
    "CollectionError",
    "CollectionLockedError",
    "CollectionUpgradedError",
    "Encoder",
    "EncoderError",
    "Entry",
    "Evaluation",
    "Failure",
    "FeatureExtractor",
    "FetchError",
    "Filter",
    "Hit",
    "IndexReport",
    "InvalidImageError",
    "Item",
    "MergeReport",
    "OutdatedCollectionError",
    "PixMatcherError",
    "Problem",
    "Query",
    "QueryError",
    "QueryPart",
    "Recipe",
    "Runtime",
    "SearchOptions",
    "SearchResult",
    "ShardError",
    "ShardReport",
    "Source",
    "SourceError",
    "Space",
    "StorageError",
    "Store",
    "UnreadableTextError",
    "Unusable",
    "UpgradeReport",
    "WritableStore",
    "classify",
    "evaluate",
    "export_arrays",
    "export_parquet",
    "index",
    "index_shard",
    "is_allowed_extension",
    "load_encoder",
    "merge_shards",
    "open_collection",
    "open_image",
    "preprocess_image",
    "preprocess_images",
    "register_encoder",
    "search",
    "text_to_vector",
    "upgrade",
]
