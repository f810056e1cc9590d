"""What the index of a space is wanted to be, and what was measured of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .._files import replacing
from ..errors import CollectionError

MEASURED_K = 10
"""Recall is the share of so many nearest rows that are found."""


@dataclass(frozen=True)
class Aim:
    """A wanted recall@10, above 0 and at most 1, and how many bytes of memory an index may take; None for any."""

    recall: float = 0.95
    memory: int | None = None

    def __post_init__(self) -> None:
        """Raises `CollectionError` if no index can be so."""
        if not (isinstance(self.recall, float) and 0 < self.recall <= 1):
            raise CollectionError(f"A recall is a number above 0 and up to 1, not {self.recall}.")
        if self.memory is not None and not (type(self.memory) is int and self.memory > 0):
            raise CollectionError(f"The memory is a number of bytes above 0, not {self.memory}.")

    def with_told(self, recall: float | None, memory: int | None) -> Aim:
        """The same with what is told of it; a memory of 0 is any."""
        return Aim(self.recall if recall is None else recall, self.memory if memory is None else memory or None)


@dataclass(frozen=True)
class Measured:
    """What an index was trained on, and its operating point.

    `trained_on` rows, `changed` rows since it was measured, `lists` a query looks at, `candidates` that are compared
    exactly, the `recall` that this has, and the one that was `wanted`.
    """

    trained_on: int
    changed: int = 0
    lists: int = 1
    candidates: int = 50
    recall: float | None = None
    wanted: float = 0.95

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Measured:
        """From what JSON has. Raises `ValueError` or `TypeError` if it is not that."""
        made = cls(**values)  # type: ignore[arg-type]
        for field in fields(made):
            value = getattr(made, field.name)
            if field.name in ("recall", "wanted"):
                if not isinstance(value, float):
                    raise ValueError("no recall")
            elif type(value) is not int or not 0 <= value < 2**50:
                raise ValueError("no number")
        if not (made.lists and made.candidates and made.trained_on):
            raise ValueError("no operating point")
        return made

    def after(self, changes: int) -> Measured:
        """The same, after so many more rows came or went."""
        return replace(self, changed=self.changed + changes)


def read_aim(path: Path) -> Aim:
    """The aim in a file, or the usual one if there is none that makes sense."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError, CollectionError):
        return Aim(**json.loads(path.read_bytes()))
    return Aim()


def save_aim(path: Path, aim: Aim) -> None:
    """Write an aim in one step. Raises `OSError` as the disk does."""
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as file:
        file.write(json.dumps(asdict(aim)).encode())
