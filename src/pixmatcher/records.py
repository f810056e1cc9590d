"""Data that packages share: spaces, encoders, calibrations of scores, entries of sources, the files of a collection."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from ._locks import PID_ENDING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

QueryKind: TypeAlias = Literal["text", "image"]
"""What a query consists of. A calibration holds for the scores of one kind, in one space."""


@dataclass(frozen=True)
class Space:
    """A named embedding space, its dimension, and whether it supports text queries."""

    name: str
    dimension: int
    text: bool = False


class DescribesEncoder(Protocol):
    """The name, fingerprint and spaces of an encoder, which collections record."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def spaces(self) -> Sequence[Space]: ...


@dataclass(frozen=True)
class EncoderRecord:
    """An encoder as a collection, or a file of saved embeddings, records it; `fingerprint` is "" if it is not known.

    `folder` is the folder of the collection, for messages; it is "" if another store or a file records it.
    """

    name: str
    fingerprint: str
    spaces: tuple[Space, ...]
    folder: str = field(default="", compare=False, repr=False)


WEAK_BELOW = 0.2
"""If even the best hit is less probable than this, the collection has probably nothing like the query.

How it was chosen: docs/explanations/scores.md.
"""


@dataclass(frozen=True)
class Calibration:
    """Turns scores into probabilities: 1 / (1 + exp(-(slope * score + intercept))).

    The probability is that of a hit to be what was asked for. The form is that of J. Platt: Probabilistic outputs for
    support vector machines, 1999. `pixmatcher.evaluation.calibration` fits and measures it.
    """

    slope: float
    intercept: float
    weak_below: float = WEAK_BELOW
    """If even the best hit is less probable than this, nothing is like the query."""

    def probability(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the probability of each score, float64 of the same shape."""
        import numpy as np

        logits = self.slope * np.asarray(scores, np.float64) + self.intercept
        probabilities: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(logits / 2))  # the same, without overflow
        return probabilities

    def score(self, probability: float) -> float:
        """Return the score of a probability from 0 to 1; infinite for these two.

        The slope is above 0, so higher scores are more probable.
        """
        if probability <= 0 or probability >= 1:
            return math.inf if probability >= 1 else -math.inf
        return (math.log(probability / (1 - probability)) - self.intercept) / self.slope


Calibrations: TypeAlias = Mapping[str, Mapping[QueryKind, Calibration]]
"""The calibrations of an encoder or a collection: name of the space -> kind of query -> calibration."""


@dataclass(frozen=True)
class Entry:
    """An image as a source lists it.

    `version` is a token that changes whenever the image may have changed; `modified` is an ISO 8601 date. A remote
    image has `urls`: it is fetched from the first one that works. Any other image is opened by its source. `rotation`
    are the degrees (90, 180, 270) by which it must be rotated counterclockwise, if its file has no orientation.
    `details` are more texts to show with it, such as its "author", "license" and "title".
    """

    uri: str
    version: str
    modified: str | None = None
    label: str | None = None
    caption: str | None = None
    urls: tuple[str, ...] = ()
    rotation: int = 0
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderNotes:
    """What a collection keeps of a folder source from one run to the next. Paths are relative to the folder."""

    exclude: tuple[str, ...] = ()
    """Patterns in the syntax of .gitignore of files and folders that are left out."""
    hidden: bool = False
    """Whether files and folders are listed whose names begin with a dot."""
    forgotten: tuple[str, ...] = ()
    """Folders and files below it that were removed from the collection, and stay removed."""
    mounts: tuple[str, ...] = ()
    """Folders below it that were mount points of other disks."""
    passed_over: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many files the last run passed over: kind -> extension -> number."""
    judged: bytes = field(default=b"", repr=False)
    """Which files with unknown names are images; see `sources._judged`."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields as values of JSON, `judged` in base64."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "judged": base64.b64encode(self.judged).decode("ascii")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FolderNotes:
        """Return the notes from what `as_json` returned. Raises `ValueError` or `TypeError` if it is damaged."""
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists, "judged": base64.b64decode(values.get("judged", ""))})


FOLDER_NAME = ".pixmatcher"
MANIFEST_NAME = "collection.json"
CATALOG_NAME = "catalog.sqlite"
THUMBNAILS_NAME = "thumbnails.sqlite"
LOCK_NAME = "lock"
INDEX_LOCK_NAME = "index.lock"
MAPS_NAME = "maps"
COLLECTION_NAMES = frozenset(
    {MANIFEST_NAME, f"{MANIFEST_NAME}.new", LOCK_NAME, INDEX_LOCK_NAME, "vectors", "index", MAPS_NAME}
    | {LOCK_NAME + PID_ENDING, INDEX_LOCK_NAME + PID_ENDING}
    | {CATALOG_NAME + ending for ending in ("", "-wal", "-shm", "-journal")}
    | {THUMBNAILS_NAME + ending for ending in ("", "-journal")}
)
"""The names of all files and folders that a collection keeps in its folder."""
