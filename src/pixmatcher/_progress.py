"""Progress of long work: one type for all packages, the command line and the web app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Unit: TypeAlias = Literal["bytes", "captions", "images", "queries", "rows", "steps"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of one stage of a task is done."""

    stage: str
    """What is being done, for people: "Indexing", "Downloading", or the name of a file that is downloaded."""
    done: int
    """How many units are done, from 0 to `total`."""
    total: int | None
    """How many units the stage has, or None if that is not known."""
    unit: Unit
    """What `done` and `total` count."""


ProgressCallback: TypeAlias = Callable[[Progress], object]
"""A function that long work calls with its progress, in the thread of the caller. What it raises ends the work."""


def with_stage(progress: ProgressCallback | None, stage: str) -> ProgressCallback | None:
    """Return a callback that passes progress on under another stage name; None if `progress` is None."""
    if progress is None:
        return None
    return lambda made: progress(replace(made, stage=stage))
