"""The options of a search, which all faces and functions share."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..collection import Filter
from ..errors import QueryError

DEFAULT_RESULTS = 12


@dataclass(frozen=True)
class SearchOptions:
    """How to search a collection.

    Raises `QueryError` if `k` is not a whole number of 1 or more, `min_score` is not a number, or `min_probability` is
    not one from 0 to 1.
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
    min_probability: float | None = None
    """The lowest probability of a result to be what was asked for; by default, all results count."""

    def __post_init__(self) -> None:
        try:
            k = operator.index(self.k)
        except TypeError:
            raise QueryError(f"The number of results must be a whole number, not {self.k!r}.") from None
        if k < 1:
            raise QueryError(f"The number of results must be 1 or more, not {k}.")
        if self.min_score is not None and not _is_number(self.min_score):
            raise QueryError(f"The lowest score must be a number, not {self.min_score!r}.")
        lowest = self.min_probability
        if lowest is not None and not (_is_number(lowest) and 0 <= lowest <= 1):
            raise QueryError(f"The lowest probability must be a number from 0 to 1, not {lowest!r}.")
        object.__setattr__(self, "k", k)  # NumPy's integers too become an int


def with_k(options: SearchOptions | None, k: int | None) -> SearchOptions:
    """Return the options, or the default options, with another number of results if `k` is given."""
    options = options or SearchOptions()
    return options if k is None else replace(options, k=k)


def options_from_json(values: Mapping[str, Any]) -> SearchOptions:
    """Return the options that a JSON object describes: the fields of `SearchOptions`, and `filter` as an object too.

    Other fields are ignored. Raises `QueryError` or `CollectionError` if a value is not valid.
    """
    given = {field.name: values[field.name] for field in fields(SearchOptions) if values.get(field.name) is not None}
    if "filter" in given:
        given["filter"] = _filter_from_json(given["filter"])
    return SearchOptions(**given)


def _filter_from_json(values: object) -> Filter:
    names = [field.name for field in fields(Filter)]
    if not isinstance(values, Mapping) or not {*values} <= {*names}:
        raise QueryError(f"A filter in JSON is an object with some of these: {', '.join(names)}.")
    return Filter(**values)


def options_as_json(options: SearchOptions) -> dict[str, Any]:
    """Return the options as the JSON object that `options_from_json` reads, without what is not given."""
    values = {key: value for key, value in asdict(options).items() if value is not None}
    if options.filter is not None:
        values["filter"] = {key: value for key, value in asdict(options.filter).items() if value is not None}
    return values


def _is_number(value: object) -> bool:
    try:
        return not math.isnan(value)  # type: ignore[arg-type]
    except TypeError:
        return False
