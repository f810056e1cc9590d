"""The descriptions of spaces and encoders, shared by encoders, which fill spaces, and collections, which store them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Space:
    """A named embedding space: its dimension, and whether texts can be embedded in it."""

    name: str
    dimension: int
    text: bool = False


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder as a collection, or a file of saved embeddings, remembers it; `fingerprint` is "" where not known."""

    name: str
    fingerprint: str
    spaces: tuple[Space, ...]
