"""What the client in Python asks for: a collection's methods one by one, with values that are not rounded.

Other programs are better served by the other routes: these may change with the version of `pixmatcher.Client`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...client import wire
from ...collection import CollectionState, Filter, Store, query_vector, space_named
from ...errors import CollectionError
from ...records import Calibrations
from ...searching import Query as SearchQuery
from ...searching import (
    SearchOptions,
    classify,
    item_picture,
    options_from_json,
    search,
    search_similar,
)
from .._problems import ProblemError, problem_responses
from .._requests import check_folder
from .._state import CollectionName, ServedStore, ServerState, State

router = APIRouter(
    prefix="/v1/collections/{collection}/store",
    tags=["client"],
    responses=problem_responses(401, 403, 404, 413, 422, 429, 503),
)

_MOST_ROWS = 1000
_Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Ids = Annotated[list[_Id], Field(max_length=_MOST_ROWS)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]
_Vector = Annotated[str, Field(max_length=1 << 20, description="float32 values, little-endian, in base64.")]


def _encodable(text: str) -> str:
    """Return a text as it is. Raises `ValueError` if it has a lone surrogate that stands for no byte of a file name."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


def _without_null(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path has no null character")
    return path


_Text = Annotated[str, AfterValidator(_encodable)]
_Path = Annotated[_Text, AfterValidator(_without_null)]
_JSON: dict[str, Any] = {"response_class": Response}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class FilterBody(_Strict):
    """The conditions of a filter."""

    labels: list[_Text] | None = None
    folder: _Path | None = None
    after: _Text | None = None
    before: _Text | None = None
    min_width: int | None = None
    min_height: int | None = None


class OptionsBody(_Strict):
    """The options of a search."""

    k: _Count = 12
    min_score: float | None = None
    min_probability: float | None = None
    space: _Text | None = None
    filter: FilterBody | None = None
    exact: bool = False


class PartBody(_Strict):
    """A part of a query: a text, an image or the id of an item."""

    text: _Text | None = None
    image: str | None = None
    image_name: _Text | None = None
    id: int | None = None
    weight: float = 1.0


class QueryBody(_Strict):
    """A query; its images are data URLs, and their names are for messages."""

    text: _Text | None = None
    image: str | None = None
    image_name: _Text | None = None
    text_weight: float = 0.5
    note: _Text = ""
    want: list[PartBody] = []
    avoid: list[PartBody] = []


class QueryRequest(_Strict):
    """A query with the options of its search."""

    query: QueryBody
    options: OptionsBody = OptionsBody()


class SimilarRequest(_Strict):
    """An item with the options of the search for similar ones."""

    id: _Id
    options: OptionsBody = OptionsBody()


class CategoriesRequest(_Strict):
    """An image whose labels are asked for."""

    query: QueryBody
    k: _Count = 5
    space: _Text | None = None


class VectorRequest(_Strict):
    """An embedding with the options of its search, which name its space."""

    vector: _Vector
    options: OptionsBody


class LabelledRequest(_Strict):
    """An embedding whose labelled neighbours are asked for."""

    vector: _Vector
    space: _Text
    k: _Count
    labels: _Count


class EmbeddingsRequest(_Strict):
    """The items whose embeddings are asked for."""

    ids: _Ids
    space: _Text


class ItemsRequest(_Strict):
    """The items that are asked for."""

    ids: _Ids


class TextsRequest(_Strict):
    """The texts that labels are compared with."""

    texts: Annotated[list[_Text], Field(max_length=_MOST_ROWS)]


class FolderRequest(_Strict):
    """A folder of the service's machine."""

    folder: _Path


class SourceRequest(_Strict):
    """A source, or a folder or file of one."""

    source: _Path


class ChangesRequest(_Strict):
    """A state of the collection: its generation, number of items, greatest id and number of rows."""

    state: Annotated[list[_Id], Field(min_length=4, max_length=4)]


@router.get("", **_JSON)
def describe(store: ServedStore) -> Response:
    """Return the encoders and the state of the collection."""
    known = getattr(store, "state", None)
    state = asdict(known()) if known else {"generation": 0, "items": len(store), "last_id": 0, "row_count": 0}
    return _answer(
        {
            "version": wire.VERSION,
            "encoders": wire.encoders_as_json(store.encoders),
            "encoded_since": getattr(store, "encoded_since", 0),
            "state": state,
        }
    )


@router.post("/query", **_JSON)
async def answer_query(name: CollectionName, http: Request, state: State, request: QueryRequest) -> Response:
    """Answer a query."""
    options = _options(request.options, state)

    def work(store: Store) -> Any:
        return wire.result_as_json(search(store, _query(request.query, state), options))

    return await _worked(name, http, state, work)


@router.post("/similar", **_JSON)
async def answer_similar(name: CollectionName, http: Request, state: State, request: SimilarRequest) -> Response:
    """Return the items nearest to an item."""
    options = _options(request.options, state)
    return await _worked(
        name, http, state, lambda store: wire.result_as_json(search_similar(store, request.id, options))
    )


@router.post("/categories", **_JSON)
async def answer_categories(name: CollectionName, http: Request, state: State, request: CategoriesRequest) -> Response:
    """Return the most likely labels of an image."""
    _check_count(request.k, state)

    def work(store: Store) -> Any:
        return wire.categories_as_json(classify(store, _query(request.query, state), k=request.k, space=request.space))

    return await _worked(name, http, state, work)


@router.post("/search", **_JSON)
async def search_vector(name: CollectionName, http: Request, state: State, request: VectorRequest) -> Response:
    """Return the items nearest to an embedding."""
    options = _options(request.options, state)
    space = options.space
    if space is None:
        raise CollectionError("The space of the embedding is missing: name one in the options.")

    def work(store: Store) -> Any:
        hits = store.search(
            _vector(store, request.vector, space),
            space=space,
            k=options.k,
            min_score=options.min_score,
            filter=options.filter,
            exact=options.exact,
        )
        return wire.hits_as_json(hits)

    return await _worked(name, http, state, work)


@router.post("/nearest-labelled", **_JSON)
async def nearest_labelled(name: CollectionName, http: Request, state: State, request: LabelledRequest) -> Response:
    """Return the labelled items nearest to an embedding."""
    _check_count(request.k, state)
    _check_count(request.labels, state)

    def work(store: Store) -> Any:
        vector = _vector(store, request.vector, request.space)
        found = store.nearest_labelled(vector, space=request.space, k=request.k, labels=request.labels)
        return wire.neighbours_as_json(found)

    return await _worked(name, http, state, work)


@router.post("/embeddings", **_JSON)
async def embeddings(name: CollectionName, http: Request, state: State, request: EmbeddingsRequest) -> Response:
    """Return the embeddings of items, one row after the other."""
    return await _worked(
        name, http, state, lambda store: {"rows": wire.vector_as_text(store.embeddings(request.ids, request.space))}
    )


@router.post("/items", **_JSON)
def items_by_id(store: ServedStore, request: ItemsRequest) -> Response:
    """Return the items of these ids, in the order of the ids; ids that do not exist are left out."""
    found = _method(store, "items_by_id")(request.ids)
    return _answer([wire.item_as_json(found[item_id]) for item_id in dict.fromkeys(request.ids) if item_id in found])


@router.get("/ids", **_JSON)
def ids(store: ServedStore) -> Response:
    """Return the ids of all items, ascending, as 64-bit integers, little-endian."""
    return Response(wire.ids_as_bytes(_method(store, "ids")()), media_type="application/octet-stream")


@router.get("/labels", **_JSON)
def labels(store: ServedStore) -> Response:
    """Return the number of items of each label, and the names of labels, in their order."""
    counts: dict[str, int] = getattr(store, "label_counts", dict)()
    return _answer({"counts": [*counts.items()], "names": [*store.label_names().items()]})


@router.post("/labels-called", **_JSON)
def labels_called(store: ServedStore, request: TextsRequest) -> Response:
    """Return the labels that equal one of the texts or have it as their name."""
    return _answer(sorted(store.labels_called(request.texts)))


@router.get("/calibrations", **_JSON)
def calibrations(store: ServedStore) -> Response:
    """Return the calibrations of scores of the collection."""
    found: Calibrations = getattr(store, "calibrations", dict)()
    return _answer(
        {space: {kind: wire.calibration_as_json(one) for kind, one in kinds.items()} for space, kinds in found.items()}
    )


@router.get("/failures", **_JSON)
def failures(store: ServedStore) -> Response:
    """Return the images that could not be indexed."""
    return _answer([*map(wire.failure_as_json, _method(store, "failures")())])


@router.get("/incomplete", **_JSON)
def incomplete(store: ServedStore) -> Response:
    """Return the items of files whose end is missing."""
    return _answer([*map(wire.item_as_json, _method(store, "incomplete")())])


@router.get("/sources", **_JSON)
def sources(store: ServedStore) -> Response:
    """Return the specs of the sources."""
    return _answer(_method(store, "sources")())


@router.get("/formats", **_JSON)
def formats(store: ServedStore) -> Response:
    """Return the number of items of each image format, in their order."""
    return _answer([*_method(store, "format_counts")().items()])


@router.get("/folders", **_JSON)
def folders(store: ServedStore) -> Response:
    """Return the folders that contain items directly."""
    return _answer(sorted(_method(store, "item_folders")()))


@router.post("/has-items-in", **_JSON)
def has_items_in(store: ServedStore, request: FolderRequest) -> Response:
    """Return whether an item is in a folder or below it."""
    check_folder(request.folder)
    folder = Filter(folder=request.folder).folder
    return _answer({"found": _method(store, "has_items_in")(folder)})


@router.post("/count-to-forget", **_JSON)
def count_to_forget(store: ServedStore, request: SourceRequest) -> Response:
    """Return how many items would be removed with a source, or with a folder or file of one."""
    return _answer({"count": _method(store, "count_to_forget")(request.source)})


@router.post("/changes", **_JSON)
def changes(store: ServedStore, request: ChangesRequest) -> Response:
    """Return how many items were added, removed and changed since a state."""
    return _answer([*_method(store, "changes_since")(CollectionState(*request.state))])


@router.get("/thumbnails/{content_hash}", **_JSON)
def thumbnail(store: ServedStore, content_hash: Annotated[str, Path(max_length=100)]) -> Response:
    """Return the thumbnail that is stored for a content, a small JPEG."""
    return _picture(store.thumbnail(content_hash))


@router.get("/pictures/{id}", **_JSON)
async def picture(
    name: CollectionName,
    http: Request,
    state: State,
    item_id: Annotated[_Id, Path(alias="id")],
    side: Annotated[int, Query(ge=16, le=2048)] = 256,
) -> Response:
    """Return the image of an item as a JPEG of at most `side` pixels; or else its thumbnail."""
    most = state.settings.limits.image_pixels

    def work(store: Store) -> Response:
        found = _method(store, "items_by_id")([item_id])
        image = item_picture(found[item_id], store, side, max_pixels=most) if item_id in found else None
        if image is None:
            return _picture(None)
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=90)
        return _picture(file.getvalue())

    until = state.admission.time_limit()
    return await state.admission.run(lambda: state.collections.use(name, work), http, until)


async def _worked(collection: str, http: Request, state: ServerState, work: Callable[[Store], Any]) -> Response:
    """Return as JSON what one of the threads for queries does with the collection."""
    until = state.admission.time_limit()
    return await state.admission.run(lambda: _answer(state.collections.use(collection, work)), http, until)


def _answer(values: Any) -> Response:
    # Names of files that are not valid Unicode are written as escapes, which the client turns back into such names.
    return Response(json.dumps(values).encode("ascii"), media_type="application/json")


def _picture(data: bytes | None) -> Response:
    if data is None:
        raise ProblemError(404, "no picture", "There is no picture of this item or content.")
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(data, media_type="image/jpeg", headers=headers)


def _method(store: Store, name: str) -> Callable[..., Any]:
    method: Callable[..., Any] | None = getattr(store, name, None)
    if method is None:
        raise CollectionError("The store of this collection cannot list that: ask the author of its package.")
    return method


def _query(body: QueryBody, state: ServerState) -> SearchQuery:
    limits = state.settings.limits
    parts = (body.text is not None) + (body.image is not None) + len(body.want) + len(body.avoid)
    if parts > limits.parts:
        raise ProblemError(422, "too many parts", f"A query has at most {limits.parts} texts and images.")
    return wire.query_from_json(body.model_dump(), limits.body_bytes, limits.image_pixels)


def _options(body: OptionsBody, state: ServerState) -> SearchOptions:
    _check_count(body.k, state)
    check_folder(None if body.filter is None else body.filter.folder)
    return options_from_json(body.model_dump(exclude_none=True))


def _check_count(count: int, state: ServerState) -> None:
    most = state.settings.limits.results
    if count > most:
        raise ProblemError(422, "too many results", f"A search has at most {most:,} results, not {count:,}.")


def _vector(store: Store, text: str, space: str) -> npt.NDArray[np.float32]:
    dimension = space_named(store.spaces, space).dimension
    try:
        rows = wire.vectors_from_text(text, dimension)
    except ValueError:
        rows = np.empty((0, dimension), np.float32)
    if len(rows) != 1:
        raise CollectionError(f"The embedding must have {dimension} values of the space {space}, in base64.")
    return query_vector(rows[0], space_named(store.spaces, space))
