"""Collections: folders on disk that hold items, embeddings, and an index for each space."""

from ._names import CATALOG_NAME, FOLDER_NAME, delete_collection
from .collection import Collection
from .filters import Filter
from .items import Failure, Hit, Item, Neighbour, Problem

__all__ = [
    "CATALOG_NAME",
    "FOLDER_NAME",
    "Collection",
    "Failure",
    "Filter",
    "Hit",
    "Item",
    "Neighbour",
    "Problem",
    "delete_collection",
]
