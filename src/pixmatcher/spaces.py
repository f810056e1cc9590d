"""The description of an embedding space, shared by encoders, which fill it, and collections, which store it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Space:
    """A named embedding space: its dimension, and whether texts can be embedded in it."""

    name: str
    dimension: int
    text: bool = False
