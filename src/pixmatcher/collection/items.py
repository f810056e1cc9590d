"""What a collection stores of an image, and what its methods return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from .._text import as_unicode, name_as_unicode


@dataclass(frozen=True)
class Item:
    """One image of a collection.

    `uri` is an absolute path or a URL; a relative path is relative to the folder that the collection is in. `version`
    is the source's token for this state of the file: if it changes, the file is read again. `content_hash` is the
    SHA-256 of the file's bytes in hexadecimal, with "+90" and the like if the source says that it must be rotated.
    `bytes` is the length of the file, `width` and `height` are pixels, dates are ISO 8601. `missing` is the greatest
    share of the picture, from 0 to 1, that can be missing, if the end of its file is, or else None. `details` are
    further texts of the source, such as "author" and "license". The collection sets the `id` and the date `added`.
    """

    uri: str
    content_hash: str = ""
    version: str = ""
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    label: str | None = None
    caption: str | None = None
    modified: str | None = None
    taken: str | None = None
    missing: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)
    added: str | None = None
    id: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return all fields as a JSON object; its texts are valid Unicode, and the uri still names the file."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        details = {as_unicode(name): as_unicode(text) for name, text in self.details.items()}
        return {"id": self.id, **values, "uri": name_as_unicode(self.uri), "details": details}


@dataclass(frozen=True)
class Failure:
    """An image that could not be indexed: `reason` is a short fixed phrase to count by, `detail` says more."""

    uri: str
    reason: str
    detail: str = ""
    version: str = ""


@dataclass(frozen=True)
class Hit:
    """An item found by a query. `rank` counts from 1; a higher `score` is nearer."""

    rank: int
    score: float
    item: Item


@dataclass(frozen=True)
class Problem:
    """Something that `Collection.verify` found damaged: the part, what is damaged, and what to do about it."""

    part: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Neighbour:
    """A labelled item near a query: its label, its score, and the item itself if it is the nearest of that label."""

    label: str
    score: float
    item: Item | None


@dataclass(frozen=True)
class CollectionState:
    """A state of a collection, so that later changes can be counted.

    `generation` counts the changes to the rows of embeddings. `items` is the number of items, `last_id` the greatest id
    and `row_count` the number of rows that were ever stored.
    """

    generation: int
    items: int
    last_id: int
    row_count: int


class Changes(NamedTuple):
    """How many items were added, removed, and changed (a new image at the same uri)."""

    added: int
    removed: int
    changed: int


@dataclass(frozen=True)
class IndexDescription:
    """The index of a space: its kind, and the measured share of the 10 nearest items that it finds, if it is known."""

    kind: str
    recall: float | None


@dataclass(frozen=True)
class TuningPoint:
    """A way to use an index: the lists that a query visits, the recall@10 with them, milliseconds for a query."""

    lists: int
    recall: float
    ms: float
    chosen: bool


@dataclass(frozen=True)
class IndexTuning:
    """What a store measured of the index of a space: its kind, the number of its rows, the recall@10 of a search.

    `ms` and `exact_ms` are median milliseconds for a query, with the index and with a comparison of all rows. `points`
    were measured to choose one of them; () if all rows are always compared.
    """

    kind: str
    rows: int
    recall: float
    ms: float
    exact_ms: float
    points: tuple[TuningPoint, ...] = ()
