"""Find an item of any store by its id."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..errors import NoItemError

if TYPE_CHECKING:
    from ..collection import Item, Store

_NEAREST = 100


def item_by_id(store: Store, item_id: int) -> Item:
    """Return the item with an id. Raises `NoItemError` if there is none.

    A store of another package without the method `items_by_id` of `Collection` is searched with the embedding of the
    item, which finds it unless very many items have the same one.
    """
    find: Callable[[Iterable[int]], dict[int, Item]] | None = getattr(store, "items_by_id", None)
    if find is not None:
        found = find([item_id]).get(item_id)
    else:
        space = next(iter(store.spaces))
        (vector,) = store.embeddings([item_id], space)
        hits = store.search(vector, space=space, k=_NEAREST, exact=True)
        found = next((hit.item for hit in hits if hit.item.id == item_id), None)
    if found is None:
        raise NoItemError(item_id)
    return found
