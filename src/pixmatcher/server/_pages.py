"""Long lists in pages: each has the cursor of the next one, and no answer or memory grows with the collection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from ..collection import Failure, Item, Store
from ._problems import ProblemError
from .settings import Limits

_T = TypeVar("_T")

GREATEST_LIMIT = 2**63 - 1

Cursor = Annotated[str | None, Field(pattern="^[0-9]{1,19}$", description="The value `next` of the page before.")]


class PageQuery(BaseModel):
    """Which page of a list is asked for."""

    cursor: Cursor = None
    limit: Annotated[int | None, Field(ge=1, le=GREATEST_LIMIT, description="The most entries of the page.")] = None


AskedPage = Annotated[PageQuery, Query()]
"""The page that a client asks for, as a parameter of a route."""


@dataclass(frozen=True)
class Page(Generic[_T]):
    """A part of a list, and the cursor of the next part; None after the last one."""

    values: Sequence[_T]
    next: str | None


def page_limit(limit: int | None, usual: int, limits: Limits) -> int:
    """Return the most entries of a page that is asked for. Raises `ProblemError` if the service allows fewer."""
    if limit is None:
        return min(usual, limits.results)
    if limit > limits.results:
        raise ProblemError(422, "limit too high", f"A page has at most {limits.results} entries.")
    return limit


def page_by_place(read: Callable[[int, int], Sequence[_T]], cursor: str | None, limit: int) -> Page[_T]:
    """Return a page of a list. `read(start, limit)` returns up to `limit` entries after the first `start` ones."""
    start = min(int(cursor or 0), GREATEST_LIMIT - limit - 1)
    values = read(start, limit + 1)  # one more says whether another page follows
    return Page(values[:limit], str(start + limit) if len(values) > limit else None)


def page_by_id(
    read: Callable[[int, int], Sequence[_T]], cursor: str | None, limit: int, id_of: Callable[[_T], int]
) -> Page[_T]:
    """Return a page of a list in the order of ids. `read(after_id, limit)` returns the first entries above an id."""
    # Ids of a vector database have up to 19 digits; no id is greater than the greatest number of 64 bits.
    values = read(min(int(cursor or 0), GREATEST_LIMIT), limit + 1)
    return Page(values[:limit], str(id_of(values[limit - 1])) if len(values) > limit else None)


def slices_of(values: Sequence[_T]) -> Callable[[int, int], Sequence[_T]]:
    """Return what `page_by_place` reads with, for a list that is there as a whole."""
    return lambda start, limit: values[start : start + limit]


def failures_page(store: Store, cursor: str | None, limit: int) -> Page[Failure]:
    """Return a page of the failures of a collection."""
    read = getattr(store, "failures_page", None) or slices_of(method_of(store, "failures")())
    return page_by_place(read, cursor, limit)


def incomplete_page(store: Store, cursor: str | None, limit: int) -> Page[Item]:
    """Return a page of the incomplete items of a collection."""

    def read(after: int, limit: int) -> Sequence[Item]:
        return [item for item in method_of(store, "incomplete")() if item.id > after][:limit]

    return page_by_id(getattr(store, "incomplete_page", None) or read, cursor, limit, lambda item: item.id)


def ids_page(store: Store, cursor: str | None, limit: int) -> Page[int]:
    """Return a page of the ids of a collection; its values are (N,) int64."""

    def read(after: int, limit: int) -> Any:
        ids = method_of(store, "ids")()
        return ids[ids > after][:limit]

    return page_by_id(getattr(store, "ids_page", None) or read, cursor, limit, int)


def method_of(store: Store, name: str) -> Any:
    """Return a method that `Collection` has, and a store of another package may have. Raises `ProblemError`."""
    method = getattr(store, name, None)
    if method is None:
        raise ProblemError(501, "not supported by this store", "The store of this collection cannot list this.")
    return method
