"""Stores that answer whole queries, such as the client of a service: no encoder is then needed on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

from ..collection import Collection

if TYPE_CHECKING:
    from ..collection import Item, Store
    from ._search import SearchResult
    from .categories import CategoryResult
    from .options import SearchOptions
    from .query import Query


@runtime_checkable
class AnswersQueries(Protocol):
    """What a store may have too: it embeds queries itself, and has the pictures of its items.

    `search`, `search_similar`, `search_batch` and `classify` give such a store the whole query, and use no encoder.
    Paths of its items and sources are paths of another machine: no file of this machine is opened for them.
    """

    def answer_query(self, query: Query, options: SearchOptions) -> SearchResult:
        """Return what `search` returns."""

    def answer_similar(self, item_id: int, options: SearchOptions) -> SearchResult:
        """Return what `search_similar` returns."""

    def answer_categories(self, query: Query, *, k: int, space: str | None) -> CategoryResult:
        """Return what `classify` returns."""

    def picture(self, item: Item, side: int) -> bytes | None:
        """Return the image of an item as a file, upright and about `side` pixels wide or high; None if it has none."""


def answers_queries(store: Store) -> TypeGuard[AnswersQueries]:
    """Return whether a store is an `AnswersQueries`. A `Collection` is none, which is known without a look at it."""
    return not isinstance(store, Collection) and isinstance(store, AnswersQueries)
