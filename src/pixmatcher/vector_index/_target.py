"""The recall and memory that an index should have, and the measurements of a trained index."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .._files import replacing
from ..errors import CollectionError

MEASURED_K = 10
"""Recall is measured as recall@10: the share of the 10 nearest rows that a search finds."""

MAX_CODED_VALUES = 512
MIN_CODED_VALUES = 16
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
class Calibration:
    """The training and the chosen operating point of a trained index.

    `trained_on` is a number of rows, `changed` the rows added or removed since the last measurement, `lists` how many
    lists a query visits, `candidates` how many rows are compared exactly, `recall` the recall@10 that was measured with
    these, and `target_recall` the one that was asked for.
    """

    trained_on: int
    changed: int = 0
    lists: int = 1
    candidates: int = 50
    recall: float | None = None
    target_recall: float = 0.95

    def as_json(self) -> dict[str, int | float | None]:
        """Return the values as they are stored at the end of an index file."""
        return {
            "trained_on": self.trained_on,
            "changed": self.changed,
            "lists": self.lists,
            "candidates": self.candidates,
            "recall": self.recall,
            "wanted": self.target_recall,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Calibration:
        """Return the calibration that `as_json` wrote. Raises `ValueError`, `TypeError` or `KeyError` if damaged."""
        numbers = [values[name] for name in ("trained_on", "changed", "lists", "candidates")]
        trained_on, changed, lists, candidates = (number for number in numbers if type(number) is int)
        recall, target_recall = values["recall"], values["wanted"]
        if not (isinstance(recall, float) and isinstance(target_recall, float)):
            raise ValueError("The recall is not a number.")
        if not all(0 <= number < 2**50 for number in (trained_on, changed, lists, candidates)):
            raise ValueError("A number is out of range.")
        if not (lists and candidates and trained_on):
            raise ValueError("There is no operating point.")
        return cls(trained_on, changed, lists, candidates, recall, target_recall)

    def after(self, changes: int) -> Calibration:
        """Return a copy that counts so many more rows as added or removed."""
        return replace(self, changed=self.changed + changes)


@dataclass(frozen=True)
class OperatingPoint:
    """A setting for searches in a trained index, with its recall and cost.

    `lists` and `candidates` are as in `Calibration`, `recall` is the mean recall@10 of the queries, `standard_error`
    that of this mean, and `cost` what a query reads, in arbitrary units.
    """

    lists: int
    candidates: int
    recall: float
    standard_error: float
    cost: float

    @property
    def lower_bound(self) -> float:
        """The lower end of the one-sided 95 % confidence interval of the recall (normal approximation)."""
        return self.recall - 1.64 * self.standard_error


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
