"""Collections: folders on disk that hold items, embeddings, and an index for each space."""

from .collection import Collection
from .files import CATALOG_NAME, FOLDER_NAME
from .items import Failure, Hit, Item, Neighbour, Problem

__all__ = ["CATALOG_NAME", "FOLDER_NAME", "Collection", "Failure", "Hit", "Item", "Neighbour", "Problem"]
