"""Collections: folders on disk that hold items, embeddings, and an index for each space."""

from .collection import FOLDER_NAME, Collection
from .items import Failure, Hit, Item, Problem

__all__ = ["FOLDER_NAME", "Collection", "Failure", "Hit", "Item", "Problem"]
