"""What every store does with what callers give: names of spaces, query vectors, whole numbers, ids, names of labels."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import SupportsIndex

import numpy as np
import numpy.typing as npt

from ..errors import CollectionError
from ..records import Space


def space_named(spaces: Mapping[str, Space], name: str) -> Space:
    """Return the space of this name. Raises `CollectionError` if it does not exist."""
    try:
        return spaces[name]
    except KeyError:
        raise CollectionError(
            f"The space {name!r} does not exist in this collection", f"choose one of {', '.join(spaces)}."
        ) from None


def query_vector(vector: npt.ArrayLike, space: Space) -> npt.NDArray[np.float32]:
    """Return the query vector (dimension,) as float32. Raises `CollectionError` if it does not fit the space."""
    try:
        with np.errstate(over="ignore"):
            query = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        query = np.empty(0, np.float32)
    # No score may exceed the range of float32, whatever is stored.
    greatest_score = np.abs(query).sum(dtype=np.float64) * np.finfo(np.float16).max
    if query.shape != (space.dimension,) or not greatest_score < np.finfo(np.float32).max:
        raise CollectionError(
            f"The vector does not fit the space {space.name}: give a vector of {space.dimension} finite values, "
            "none of them huge."
        )
    return query


def whole_number(value: SupportsIndex, name: str) -> int:
    """Return a whole number as an int. Raises `CollectionError` with the `name` of the value if it is not one."""
    try:
        return operator.index(value)
    except TypeError:
        raise CollectionError(f"The {name} must be a whole number, not {value!r}.") from None


def evenly_spaced(ids: npt.NDArray[np.int64], count: int) -> list[int]:
    """Return up to `count` of ids (N,), evenly spaced in their order."""
    chosen: list[int] = (ids if len(ids) <= count else ids[np.arange(count) * len(ids) // count]).tolist()
    return chosen


def labels_named(names: Mapping[str, str], texts: AbstractSet[str]) -> set[str]:
    """Return the labels whose name is one of these texts, in full or in a part between commas."""
    return {label for label, name in names.items() if not texts.isdisjoint({name, *map(str.strip, name.split(","))})}
