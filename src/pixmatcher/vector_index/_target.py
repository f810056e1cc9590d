"""The recall and memory that an index should have, and the measurements of a trained index."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._files import replacing
from ..errors import CollectionError

MEASURED_K = 10
"""Recall is measured as recall@10: the share of the 10 nearest rows that a search finds."""

MAX_CODED_VALUES = 512
MIN_CODED_VALUES = 16
_MAX_NUMBER = 2**50
_BYTES_BESIDE_CODE = 16
"""Bytes of a row besides its code: 8 for its number, up to 8 for gaps and lists."""


@dataclass(frozen=True)
class IndexTarget:
    """The recall@10 that an index should reach (above 0, up to 1), and the bytes of memory it may use; None for any."""

    recall: float = 0.95
    memory: int | None = None

    def __post_init__(self) -> None:
        """Raise `CollectionError` if no index can have these values."""
        if not (isinstance(self.recall, float) and 0 < self.recall <= 1):
            raise CollectionError(f"A recall is a number above 0 and up to 1, not {self.recall}.")
        if self.memory is not None and not (type(self.memory) is int and self.memory > 0):
            raise CollectionError(f"The memory is a number of bytes above 0, not {self.memory}.")

    def with_values(self, recall: float | None, memory: int | None) -> IndexTarget:
        """Return a copy with another recall or memory, where given; a memory of 0 means any."""
        return IndexTarget(self.recall if recall is None else recall, self.memory if memory is None else memory or None)


@dataclass(frozen=True)
class OperatingPoint:
    """A setting for searches in a trained index, with what it gives and costs.

    A query visits the lists within its `reach`, see `lowest_within`: so many `lists` on average. It compares so many
    `candidates` exactly. `recall` is the mean recall@10 of the queries, `standard_error` that of this mean, and `cost`
    what a query reads, in arbitrary units. Without a reach, as in files of version 0.1.0, each query visits `lists`.
    """

    lists: int = 1
    candidates: int = 50
    recall: float | None = None
    reach: float | None = None
    standard_error: float = 0.0
    cost: float = 0.0
    texts: bool = False
    """Whether it was measured with texts."""

    @property
    def lower_bound(self) -> float:
        """The lower end of the one-sided 95 % confidence interval of the recall (normal approximation)."""
        return (self.recall or 0.0) - 1.64 * self.standard_error

    def as_json(self) -> dict[str, int | float | None]:
        """Return what a search needs, as it is stored at the end of an index file."""
        return {"lists": self.lists, "candidates": self.candidates, "recall": self.recall, "reach": self.reach}

    @classmethod
    def from_json(cls, values: Mapping[str, object], *, texts: bool = False) -> OperatingPoint:
        """Return the point that `as_json` wrote. Raises `ValueError`, `TypeError` or `KeyError` if damaged."""
        lists, candidates, recall, reach = values["lists"], values["candidates"], values["recall"], values.get("reach")
        if type(lists) is not int or type(candidates) is not int or not isinstance(recall, float):
            raise ValueError("A number is missing.")
        if not (reach is None or (isinstance(reach, float) and 0 <= reach < math.inf)):
            raise ValueError("The reach is not a number.")
        if not (0 < lists < _MAX_NUMBER and 0 < candidates < _MAX_NUMBER):
            raise ValueError("A number is out of range.")
        return cls(lists, candidates, recall, reach, texts=texts)


@dataclass(frozen=True)
class Calibration:
    """The training and the chosen operating points of a trained index.

    `trained_on` is a number of rows, `changed` the rows added or removed since the last measurement. Queries use the
    point for `images`, but those further away than `texts_below` the one for `texts`, if there is one: a cosine of the
    query and its nearest centre. `target_recall` is the recall that was asked for.
    """

    trained_on: int
    changed: int = 0
    images: OperatingPoint = OperatingPoint()
    texts: OperatingPoint | None = None
    texts_below: float = -1.0
    target_recall: float = 0.95

    @property
    def recall(self) -> float | None:
        """The recall@10 that was measured: the lower one of those of images and texts."""
        recalls = [point.recall for point in (self.images, self.texts) if point and point.recall is not None]
        return min(recalls) if recalls else None

    def as_json(self) -> dict[str, object]:
        """Return the values as they are stored at the end of an index file."""
        return {
            "trained_on": self.trained_on,
            "changed": self.changed,
            **self.images.as_json(),
            "texts": self.texts and self.texts.as_json(),
            "texts_below": self.texts_below,
            "wanted": self.target_recall,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Return the calibration that `as_json` wrote. Raises `ValueError`, `TypeError` or `KeyError` if damaged."""
        trained_on, changed, target_recall = values["trained_on"], values["changed"], values["wanted"]
        below = values.get("texts_below", -1.0)
        if not (isinstance(target_recall, float) and isinstance(below, float) and -1 <= below <= 1):
            raise ValueError("The recall is not a number.")
        if not (type(trained_on) is type(changed) is int and 0 < trained_on < _MAX_NUMBER):
            raise ValueError("A number is missing.")
        if not 0 <= changed < _MAX_NUMBER:
            raise ValueError("A number is out of range.")
        texts = OperatingPoint.from_json(values["texts"], texts=True) if values.get("texts") else None
        return cls(trained_on, changed, OperatingPoint.from_json(values), texts, below, target_recall)

    def after(self, changes: int) -> Calibration:
        """Return a copy that counts so many more rows as added or removed."""
        return replace(self, changed=self.changed + changes)


def target_path(index_path: Path) -> Path:
    """Return the path of the file with the target of the index file `index_path`."""
    return index_path.with_suffix(".aim")


def read_target(path: Path) -> IndexTarget:
    """Return the target in a file, or the default target if the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError, CollectionError):
        return IndexTarget(**json.loads(path.read_bytes()))
    return IndexTarget()


def save_target(path: Path, target: IndexTarget) -> None:
    """Write a target to a file in one step. Raises `OSError` if the disk fails."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps({"recall": target.recall, "memory": target.memory}).encode())


def check_memory_limit(row_count: int, target: IndexTarget) -> None:
    """Raise `CollectionError` if an index of `row_count` rows cannot fit into the memory of the target."""
    least = row_count * (_BYTES_BESIDE_CODE + MIN_CODED_VALUES // 4)
    if target.memory is not None and target.memory < least:
        raise CollectionError(
            f"{row_count:,} images need more memory for an index: allow {math.ceil(least / 1e6):,}M or more."
        )


def coded_values(dimension: int, row_count: int, target: IndexTarget) -> int:
    """Return how many values of a row get a code, an even number: as many as are useful and fit into the memory."""
    most = min(MAX_CODED_VALUES, dimension + dimension % 2)
    if target.memory is None:
        return most
    affordable = (target.memory // max(row_count, 1) - _BYTES_BESIDE_CODE) * 4 // 2 * 2
    return max(min(most, affordable), min(most, MIN_CODED_VALUES))
