"""Collections: folders on disk that hold items, embeddings, and an index for each space."""

from .collection import CATALOG_NAME, FOLDER_NAME, Collection
from .items import Failure, Hit, Item, Problem

__all__ = ["CATALOG_NAME", "FOLDER_NAME", "Collection", "Failure", "Hit", "Item", "Problem"]
