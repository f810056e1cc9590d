"""The options of a search, which all faces and functions share."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace

from ..collection import Filter
from ..errors import QueryError

DEFAULT_RESULTS = 12


@dataclass(frozen=True)
class SearchOptions:
    """How to search a collection.

    Raises `QueryError` if `k` is not a whole number of 1 or more, or `min_score` is not a number.
    """

    k: int = DEFAULT_RESULTS
    """The number of results."""
    min_score: float | None = None
    """The lowest score of a result; by default, all scores count."""
    space: str | None = None
    """The embedding space to search; by default, the query decides."""
    filter: Filter | None = None
    """Which items may be found; by default, all."""
    exact: bool = False
    """Whether to compare the query with every embedding instead of asking the index, which may miss some."""

    def __post_init__(self) -> None:
        try:
            k = operator.index(self.k)
        except TypeError:
            raise QueryError(f"The number of results must be a whole number, not {self.k!r}.") from None
        if k < 1:
            raise QueryError(f"The number of results must be 1 or more, not {k}.")
        if self.min_score is not None and not _is_number(self.min_score):
            raise QueryError(f"The lowest score must be a number, not {self.min_score!r}.")
        object.__setattr__(self, "k", k)  # NumPy's integers too become an int


def with_k(options: SearchOptions | None, k: int | None) -> SearchOptions:
    """Return the options, or the default options, with another number of results if `k` is given."""
    options = options or SearchOptions()
    return options if k is None else replace(options, k=k)


def _is_number(value: object) -> bool:
    try:
        return not math.isnan(value)  # type: ignore[arg-type]
    except TypeError:
        return False
