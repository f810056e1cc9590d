"""What both the routes and the tools answer, for their schemas."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class HitAnswer(BaseModel):
    """An item that was found; a higher score is nearer."""

    rank: int
    score: float
    probability: float | None = None
    """The probability to be what was asked for, if the space has a calibration for such queries."""
    id: int
    uri: str
    label: str | None
    caption: str | None = None
    missing: float | None = None
    """The share of the picture that is missing at the end of a file that is cut short."""
    details: dict[str, Any] | None = None


class SearchAnswer(BaseModel):
    """The hits of a query, best first; the same JSON as that of the command line."""

    query: Any
    space: str
    took_ms: float
    hits: list[HitAnswer]
    weak: bool | None = None
    """Whether even the best hit is probably not what was asked for."""
    note: str | None = None


class EncoderDescription(BaseModel):
    """An encoder of a collection."""

    name: str
    fingerprint: str
    spaces: list[str]


class SpaceDescription(BaseModel):
    """An embedding space of a collection, and its index."""

    name: str
    dimension: int
    text: bool
    """Whether texts can be searched in it."""
    index: str | None
    recall: float | None
    """The measured share of the 10 nearest items that the index finds; null if it compares all, or is not built."""


class SourceDescription(BaseModel):
    """A source of a collection."""

    source: str
    exclude: list[str] | None = None
    hidden: bool | None = None
    forgotten: list[str] | None = None
    passed_over: dict[str, dict[str, int]] | None = None


class Contents(BaseModel):
    """What is in a collection; null stands for what is not known."""

    count: int
    failed: int | None
    incomplete: int | None
    labels: int | None
    formats: dict[str, int]
    sources: list[SourceDescription]
    encoders: list[EncoderDescription]
    spaces: list[SpaceDescription]
    bytes: int | None
    unfinished_encoders: list[EncoderDescription]


class LabelCount(BaseModel):
    """A label, its name if it has one, and the number of items that have it."""

    label: str
    name: str | None
    count: int
