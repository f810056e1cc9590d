"""How the service and the client write items, hits, vectors and results in JSON. Nothing is rounded.

Functions `..._as_json` write; functions `..._from_json` read what another machine sent, and raise `ValueError`,
`TypeError` or `KeyError` if it is not of this form.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from .._text import as_unicode
from .._urls import bytes_of_data_url, is_data_url
from ..collection import CollectionDescription, Failure, Hit, IndexDescription, Item, Neighbour
from ..errors import (
    CollectionError,
    CollectionLockedError,
    EncoderError,
    FetchError,
    InvalidImageError,
    NoCollectionError,
    OutdatedCollectionError,
    PixMatcherError,
    QueryError,
    SourceError,
    StorageError,
    UnreadableTextError,
)
from ..records import Calibration, EncoderRecord, FolderNotes, Space
from ..searching import Category, CategoryResult, Query, QueryPart, SearchResult

if TYPE_CHECKING:
    from ..indexing import IndexReport

VERSION = 1
"""The version of this form. A client refuses a service of a greater one."""

STATUS_OF_ERROR: tuple[tuple[type[PixMatcherError], int, str], ...] = (
    (InvalidImageError, 422, ""),  # these have reasons of their own
    (FetchError, 422, ""),
    (UnreadableTextError, 422, "text not readable"),
    (QueryError, 422, "query not valid"),
    (OutdatedCollectionError, 503, "collection outdated"),
    (EncoderError, 503, "encoder not available"),
    (SourceError, 422, "source not valid"),
    (NoCollectionError, 404, "no such collection"),
    (CollectionLockedError, 409, "collection locked"),
    (StorageError, 507, "disk full or failing"),
    (CollectionError, 422, "not possible in this collection"),
    (PixMatcherError, 422, "not possible"),
)
"""The status of an error, and the reason if the error has none. The first class that fits decides."""
ERROR_OF_STATUS: dict[int, type[PixMatcherError]] = {
    **dict.fromkeys((400, 403, 413, 422), QueryError),
    **{status: kind for kind, status, _ in STATUS_OF_ERROR if kind in (CollectionLockedError, StorageError)},
}
"""The class of a problem that names none, as those of the service alone; of any other status, `CollectionError`."""

_T = TypeVar("_T")

_ITEM_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("uri", "content_hash", "version"), (str,)),
    **dict.fromkeys(("format", "label", "caption", "modified", "taken", "added"), (str, type(None))),
    **dict.fromkeys(("bytes", "width", "height"), (int, type(None))),
    "missing": (float, int, type(None)),
    "details": (dict,),
    "id": (int,),
}
_FAILURE_FIELDS = dict.fromkeys((field.name for field in fields(Failure)), (str,))
_DATA = "data:;base64,"
_FLOAT, _INTEGER = np.dtype("<f4"), np.dtype("<i8")


def item_as_json(item: Item) -> dict[str, Any]:
    """Return all fields of an item."""
    return {name: getattr(item, name) for name in _ITEM_FIELDS} | {"details": dict(item.details)}


def item_from_json(values: Any) -> Item:
    """Return the item of these values."""
    checked = _checked(values, _ITEM_FIELDS)
    if not all(isinstance(text, str) for text in checked["details"].values()):
        raise TypeError("the details of an item are texts")
    return Item(**checked)


def failure_as_json(failure: Failure) -> dict[str, Any]:
    """Return all fields of a failure."""
    return {name: getattr(failure, name) for name in _FAILURE_FIELDS}


def failure_from_json(values: Any) -> Failure:
    """Return the failure of these values."""
    return Failure(**_checked(values, _FAILURE_FIELDS))


def hits_as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return hits, best first."""
    return [{"score": hit.score, "item": item_as_json(hit.item)} for hit in hits]


def hits_from_json(values: Any) -> list[Hit]:
    """Return the hits of these values."""
    rows = [of_type(each, dict) for each in of_type(values, list)]
    return [Hit(rank, float(row["score"]), item_from_json(row["item"])) for rank, row in enumerate(rows, start=1)]


def neighbours_as_json(neighbours: Sequence[Neighbour]) -> list[dict[str, Any]]:
    """Return labelled items near a vector."""
    return [
        {"label": each.label, "score": each.score, "item": None if each.item is None else item_as_json(each.item)}
        for each in neighbours
    ]


def neighbours_from_json(values: Any) -> list[Neighbour]:
    """Return the labelled items of these values."""
    return [
        Neighbour(
            of_type(row["label"], str),
            float(row["score"]),
            None if row["item"] is None else item_from_json(row["item"]),
        )
        for row in of_type(values, list)
    ]


def result_as_json(result: SearchResult) -> dict[str, Any]:
    """Return a result without its query, which the client has."""
    unreadable = result.unreadable
    return {
        "space": result.space,
        "hits": hits_as_json(result.hits),
        "note": result.note,
        "calibration": None if result.calibration is None else calibration_as_json(result.calibration),
        "unreadable": unreadable and {"encoder": unreadable.encoder, "language": unreadable.language},
    }


def result_from_json(values: Any, query: Any, took_ms: float) -> SearchResult:
    """Return the result of these values, for a query as results show it, and the time that it took."""
    values = of_type(values, dict)
    calibration, unreadable = values["calibration"], values["unreadable"]
    return SearchResult(
        query,
        of_type(values["space"], str),
        took_ms,
        hits_from_json(values["hits"]),
        of_type(values["note"], str),
        None if calibration is None else calibration_from_json(calibration),
        None
        if unreadable is None
        else UnreadableTextError(of_type(unreadable["encoder"], str), of_type(unreadable["language"], str)),
    )


def categories_as_json(result: CategoryResult) -> dict[str, Any]:
    """Return the labels of an image without its query, which the client has."""
    return {
        "space": result.space,
        "note": result.note,
        "categories": [
            {"score": each.score, "label": each.label, "name": each.name, "example": item_as_json(each.example)}
            for each in result.categories
        ],
    }


def categories_from_json(values: Any, query: Any, took_ms: float) -> CategoryResult:
    """Return the labels of these values, for a query as results show it, and the time that it took."""
    values = of_type(values, dict)
    categories = [
        Category(
            rank,
            float(row["score"]),
            of_type(row["label"], str),
            of_type(row["name"], str),
            item_from_json(row["example"]),
        )
        for rank, row in enumerate(of_type(values["categories"], list), start=1)
    ]
    return CategoryResult(query, of_type(values["space"], str), took_ms, categories, of_type(values["note"], str))


def report_from_json(values: Any, collection: Path) -> IndexReport:
    """Return the report of a job that indexed, of a collection at this place.

    It lists the first failures alone, and not what is missing of incomplete images.
    """
    from ..indexing import IndexReport  # most commands do not need it

    values = of_type(values, dict)
    numbers = ("total", "added", "changed", "moved", "removed", "unchanged", "remembered")
    failures = [
        Failure(of_type(row["uri"], str), of_type(row["reason"], str), of_type(row["detail"], str))
        for row in of_type(values["failures"], list)
    ]
    return IndexReport(
        collection,
        **{name: of_type(values[name], int) for name in numbers},
        failures=failures,
        incomplete=[Item(of_type(uri, str)) for uri in of_type(values["incomplete_uris"], list)],
        passed_over={
            of_type(kind, str): {"": of_type(number, int)}
            for kind, number in of_type(values["passed_over"], dict).items()
        },
        notes=[of_type(note, str) for note in of_type(values["notes"], list)],
        seconds=float(values["seconds"]),
    )


def folder_notes_from_json(values: Any, source: str) -> FolderNotes:
    """Return the notes of a source from the list of all sources; empty ones if it is not listed."""
    for row in of_type(values["sources"], list):
        if row["source"] == source:
            return _notes_of(row)
    return FolderNotes()


def description_from_json(values: Any, encoders: Sequence[EncoderRecord]) -> CollectionDescription:
    """Return the description of a collection with these encoders."""
    numbers = {name: _count_or_none(values[name]) for name in ("failed", "incomplete", "labels", "bytes")}
    spaces = {space.name: space for record in encoders for space in record.spaces}
    unfinished = [
        EncoderRecord(of_type(row["name"], str), of_type(row["fingerprint"], str), ())
        for row in of_type(values["unfinished_encoders"], list)
    ]
    return CollectionDescription(
        of_type(values["count"], int),
        tuple(encoders),
        spaces,
        {of_type(row["source"], str): _notes_of(row) for row in of_type(values["sources"], list)},
        formats={of_type(name, str): of_type(n, int) for name, n in of_type(values["formats"], dict).items()},
        indexes={
            of_type(row["name"], str): IndexDescription(
                of_type(row["index"], str), None if row["recall"] is None else float(row["recall"])
            )
            for row in of_type(values["spaces"], list)
            if row["index"] is not None and row["name"] in spaces
        },
        unfinished_encoders=tuple(unfinished),
        **numbers,
    )


def _count_or_none(value: Any) -> int | None:
    return None if value is None else of_type(value, int)


def _notes_of(row: Mapping[str, Any]) -> FolderNotes:
    """Return the notes of a source; those that are not given are empty."""
    exclude, forgotten = (
        tuple(of_type(text, str) for text in row.get(name) or ()) for name in ("exclude", "forgotten")
    )
    passed_over = {
        of_type(kind, str): {of_type(extension, str): of_type(n, int) for extension, n in counts.items()}
        for kind, counts in (row.get("passed_over") or {}).items()
    }
    return FolderNotes(exclude, bool(row.get("hidden")), forgotten, passed_over=passed_over)


def calibration_as_json(calibration: Calibration) -> dict[str, float]:
    """Return the numbers of a calibration."""
    return {field.name: getattr(calibration, field.name) for field in fields(Calibration)}


def calibration_from_json(values: Any) -> Calibration:
    """Return the calibration of these values."""
    values = of_type(values, dict)
    return Calibration(**{field.name: float(values[field.name]) for field in fields(Calibration)})


def encoders_as_json(encoders: Sequence[EncoderRecord]) -> list[dict[str, Any]]:
    """Return the encoders of a collection with their spaces."""
    return [
        {
            "name": record.name,
            "fingerprint": record.fingerprint,
            "spaces": [{"name": one.name, "dimension": one.dimension, "text": one.text} for one in record.spaces],
        }
        for record in encoders
    ]


def encoders_from_json(values: Any) -> tuple[EncoderRecord, ...]:
    """Return the encoders of these values."""
    return tuple(
        EncoderRecord(
            of_type(row["name"], str),
            of_type(row["fingerprint"], str),
            tuple(
                Space(of_type(one["name"], str), of_type(one["dimension"], int), of_type(one["text"], bool))
                for one in of_type(row["spaces"], list)
            ),
        )
        for row in of_type(values, list)
    )


def query_as_json(query: Query, file_of: Callable[[QueryPart], bytes]) -> dict[str, Any]:
    """Return a query with the data of its images. `file_of` returns the file of the image of a part.

    The names of images are for messages. Texts are in valid Unicode; `require_unicode` refuses others before.
    """
    values: dict[str, Any] = {"text": query.text, "text_weight": query.text_weight, "note": as_unicode(query.note)}
    if query.image is not None:
        values |= _image_as_json(QueryPart(image=query.image, image_name=query.image_name), file_of)
    for key, parts in (("want", query.wanted), ("avoid", query.unwanted)):
        values[key] = [
            {"text": part.text, "id": part.item, "weight": part.weight}
            | ({} if part.image is None else _image_as_json(part, file_of))
            for part in parts
        ]
    return values


def _image_as_json(part: QueryPart, file_of: Callable[[QueryPart], bytes]) -> dict[str, Any]:
    name = part.known_image_name
    return {
        "image": _DATA + base64.b64encode(file_of(part)).decode(),
        "image_name": None if name is None else as_unicode(name),
    }


def query_from_json(values: Mapping[str, Any], max_bytes: int, max_pixels: int) -> Query:
    """Return the query of checked values. An image is a data URL: nothing else is opened or fetched.

    Raises `QueryError` if the query is not valid, or an image is no data URL or larger than `max_bytes`.
    """

    def image_of(url: str | None) -> bytes | None:
        if url is None:
            return None
        if not is_data_url(url):
            raise QueryError("An image of a query is sent as a data URL: data:;base64,...")
        return b"" if url == _DATA else bytes_of_data_url(url, max_bytes)  # an empty file has an error of its own

    wanted, unwanted = (
        tuple(
            QueryPart(part["text"], image_of(part["image"]), part["id"], part["weight"], part["image_name"])
            for part in values[key]
        )
        for key in ("want", "avoid")
    )
    return Query(
        values["text"],
        image_of(values["image"]),
        values["text_weight"],
        values["image_name"],
        values["note"],
        wanted,
        unwanted,
        max_pixels,
    )


def vector_as_text(vector: npt.ArrayLike) -> str:
    """Return float32 values, little-endian, in base64. The values of several rows follow one another."""
    return base64.b64encode(np.ascontiguousarray(vector, _FLOAT).tobytes()).decode()


def vectors_from_text(text: Any, dimension: int) -> npt.NDArray[np.float32]:
    """Return the rows (N, dimension) float32 of `vector_as_text`. Raises `ValueError` if they are not whole."""
    return np.frombuffer(_bytes_of(text), _FLOAT).reshape(-1, dimension).astype(np.float32)


def ids_as_text(ids: npt.ArrayLike) -> str:
    """Return ids as 64-bit integers, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(ids, _INTEGER).tobytes()).decode()


def ids_from_text(text: Any) -> npt.NDArray[np.int64]:
    """Return the ids (N,) int64 of `ids_as_text`. Raises `ValueError` if they are not whole."""
    return np.frombuffer(_bytes_of(text), _INTEGER).astype(np.int64)


def _bytes_of(text: Any) -> bytes:
    try:
        return base64.b64decode(of_type(text, str), validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def of_type(value: Any, kind: type[_T]) -> _T:
    """Return a value that has this type. Raises `TypeError` if it has another one."""
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _checked(values: Any, types: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Return the fields that are known; a newer service may send more."""
    found = {name: of_type(values, dict)[name] for name in types}
    for name, value in found.items():
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise TypeError(f"{name} is a {type(value).__name__}")
    return found
