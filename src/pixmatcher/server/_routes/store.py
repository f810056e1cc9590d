"""What the client in Python asks for: a collection's methods one by one, with values that are not rounded.

Other programs are better served by the other routes: these may change with the version of `pixmatcher.Client`.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Depends, Path, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...client import wire
from ...collection import CollectionState, Filter, Store, query_vector, space_named
from ...errors import CollectionError
from ...records import Calibrations
from ...searching import Query as SearchQuery
from ...searching import (
    classify,
    item_picture,
    search,
    search_similar,
)
from .._answers import PICTURE_HEADERS
from .._metrics import count_query, query_kind
from .._pages import (
    Cursor,
    Page,
    failures_page,
    ids_page,
    incomplete_page,
    method_of,
    page_by_place,
    slices_of,
)
from .._problems import ProblemError, problem_responses
from .._requests import (
    MOST_PARTS,
    FilterBody,
    OptionsBody,
    PartBody,
    TextAndImageBody,
    check_folder,
    check_parts,
    check_results,
    options_of,
)
from .._state import CollectionName, InThread, ServerState, State

router = APIRouter(
    prefix="/v1/collections/{collection}/store",
    tags=["client"],
    responses=problem_responses(401, 403, 404, 413, 422, 429, 503),
)

_MOST_ROWS = 1000
_IDS_OF_PAGE = 100_000
_Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Ids = Annotated[list[_Id], Field(max_length=_MOST_ROWS)]
_Count = Annotated[int, Field(ge=1, lt=2**31)]
_Vector = Annotated[str, Field(max_length=1 << 20, description="float32 values, little-endian, in base64.")]


def _encodable(text: str) -> str:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("the text is not valid Unicode") from None
    return text


def _without_null(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path has no null character")
    return path


NamedText = Annotated[str, AfterValidator(_encodable)]
"""A text that may be the name of a file; a lone surrogate stands for a byte of it, or is refused."""
PathText = Annotated[NamedText, AfterValidator(_without_null)]
"""The path of a file or folder, or a URL."""

AskedCursor = Annotated[Cursor, Query()]

_JSON: dict[str, Any] = {"response_class": Response}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StorePartBody(PartBody):
    """A part of a query; its image is a data URL, and the name of it is for messages."""

    image_name: NamedText | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0


class StoreFilterBody(FilterBody):
    """The conditions of a filter; its folder may have a name that is not valid Unicode."""

    folder: PathText | None = None


class StoreOptionsBody(OptionsBody):
    """The options of a search."""

    filter: StoreFilterBody | None = None


_Parts = Annotated[list[StorePartBody], Field(max_length=MOST_PARTS)]


class StoreQueryBody(TextAndImageBody):
    """A query; its image is a data URL, and the name of it is for messages."""

    image_name: NamedText | None = None
    note: NamedText = ""
    want: _Parts = Field(default_factory=list)
    avoid: _Parts = Field(default_factory=list)


class QueryRequest(_Strict):
    """A query with the options of its search."""

    query: StoreQueryBody
    options: StoreOptionsBody = StoreOptionsBody()


class SimilarRequest(_Strict):
    """An item with the options of the search for similar ones."""

    id: _Id
    options: StoreOptionsBody = StoreOptionsBody()


class CategoriesRequest(_Strict):
    """An image whose labels are asked for."""

    query: StoreQueryBody
    k: _Count = 5
    space: NamedText | None = None


class VectorRequest(_Strict):
    """An embedding with the options of its search, which name its space."""

    vector: _Vector
    options: StoreOptionsBody


class LabelledRequest(_Strict):
    """An embedding whose labelled neighbours are asked for."""

    vector: _Vector
    space: NamedText
    k: _Count
    labels: _Count


class EmbeddingsRequest(_Strict):
    """The items whose embeddings are asked for."""

    ids: _Ids
    space: NamedText


class ItemsRequest(_Strict):
    """The items that are asked for."""

    ids: _Ids


class TextsRequest(_Strict):
    """The texts that labels are compared with."""

    texts: Annotated[list[NamedText], Field(max_length=_MOST_ROWS)]


class FolderRequest(_Strict):
    """A folder of the service's machine."""

    folder: PathText


class SourceRequest(_Strict):
    """A source, or a folder or file of one."""

    source: PathText


class ChangesRequest(_Strict):
    """A state of the collection: its generation, number of items, greatest id and number of rows."""

    state: Annotated[list[_Id], Field(min_length=4, max_length=4)]


async def _run_of(name: CollectionName, in_thread: InThread, state: State) -> Callable[[Callable[[Store], Any]], Any]:
    async def run(work: Callable[[Store], Any]) -> Response:
        response: Response = await in_thread(lambda: _answer(state.collections.use(name, work)))
        return response

    return run


Run = Annotated[Callable[[Callable[[Store], Any]], Awaitable[Response]], Depends(_run_of)]
"""Answers with what one of the threads for queries does with the collection that the path names."""


@router.get("", **_JSON)
async def describe(run: Run, state: State) -> Response:
    """Return the encoders and the state of the collection, and the most rows of a request."""

    def work(store: Store) -> dict[str, Any]:
        known = getattr(store, "state", None)
        return {
            "version": wire.VERSION,
            "encoders": wire.encoders_as_json(store.encoders),
            "encoded_since": getattr(store, "encoded_since", 0),
            "state": asdict(known() if known else CollectionState(0, len(store), 0, 0)),
            "most_rows": _most_rows(state),
        }

    return await run(work)


@router.post("/query", **_JSON)
async def answer_query(run: Run, state: State, request: QueryRequest) -> Response:
    """Answer a query."""
    options = options_of(request.options, state)

    def work(store: Store) -> Any:
        query = _query(request.query, state)
        result = search(store, query, options)
        count_query(query_kind(query), result.space)
        return _with_note(wire.result_as_json(result), state)

    return await run(work)


@router.post("/similar", **_JSON)
async def answer_similar(run: Run, state: State, request: SimilarRequest) -> Response:
    """Return the items nearest to an item."""
    options = options_of(request.options, state)

    def work(store: Store) -> Any:
        result = search_similar(store, request.id, options)
        count_query("item", result.space)
        return _with_note(wire.result_as_json(result), state)

    return await run(work)


@router.post("/categories", **_JSON)
async def answer_categories(run: Run, state: State, request: CategoriesRequest) -> Response:
    """Return the most likely labels of an image."""
    check_results(request.k, state)

    def work(store: Store) -> Any:
        result = classify(store, _query(request.query, state), k=request.k, space=request.space)
        return _with_note(wire.categories_as_json(result), state)

    return await run(work)


@router.post("/search", **_JSON)
async def search_vector(run: Run, state: State, request: VectorRequest) -> Response:
    """Return the items nearest to an embedding."""
    options = options_of(request.options, state)
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
        count_query("vector", space)
        return wire.hits_as_json(hits)

    return await run(work)


@router.post("/nearest-labelled", **_JSON)
async def nearest_labelled(run: Run, state: State, request: LabelledRequest) -> Response:
    """Return the labelled items nearest to an embedding."""
    check_results(request.k, state)
    check_results(request.labels, state)

    def work(store: Store) -> Any:
        vector = _vector(store, request.vector, request.space)
        found = store.nearest_labelled(vector, space=request.space, k=request.k, labels=request.labels)
        return wire.neighbours_as_json(found)

    return await run(work)


@router.post("/embeddings", **_JSON)
async def embeddings(run: Run, state: State, request: EmbeddingsRequest) -> Response:
    """Return the embeddings of items, one row after the other."""
    _check_ids(request.ids, state)
    return await run(lambda store: {"rows": wire.vector_as_text(store.embeddings(request.ids, request.space))})


@router.post("/items", **_JSON)
async def items_by_id(run: Run, state: State, request: ItemsRequest) -> Response:
    """Return the items of these ids, in the order of the ids; ids that do not exist are left out."""
    _check_ids(request.ids, state)

    def work(store: Store) -> Any:
        found = method_of(store, "items_by_id")(request.ids)
        return [wire.item_as_json(found[item_id]) for item_id in dict.fromkeys(request.ids) if item_id in found]

    return await run(work)


@router.get("/ids", **_JSON)
async def ids(run: Run, cursor: AskedCursor = None) -> Response:
    """Return a page of the ids of all items, ascending, as 64-bit integers, little-endian, in base64."""

    def work(store: Store) -> Any:
        page = ids_page(store, cursor, _IDS_OF_PAGE)
        return {"values": wire.ids_as_text(page.values), "next": page.next}

    return await run(work)


@router.get("/labels", **_JSON)
async def labels(run: Run, state: State, cursor: AskedCursor = None) -> Response:
    """Return a page of the labels with the number of their items, in their order."""

    def work(store: Store) -> Any:
        counts: dict[str, int] = getattr(store, "label_counts", dict)()
        return _page_as_json(page_by_place(slices_of([*counts.items()]), cursor, _most_rows(state)), list)

    return await run(work)


@router.get("/label-names", **_JSON)
async def label_names(run: Run, state: State, cursor: AskedCursor = None) -> Response:
    """Return a page of the labels that have a name, with their names, in their order."""

    def work(store: Store) -> Any:
        return _page_as_json(page_by_place(slices_of([*store.label_names().items()]), cursor, _most_rows(state)), list)

    return await run(work)


@router.post("/labels-called", **_JSON)
async def labels_called(run: Run, request: TextsRequest) -> Response:
    """Return the labels that equal one of the texts or have it as their name."""
    return await run(lambda store: sorted(store.labels_called(request.texts)))


@router.get("/calibrations", **_JSON)
async def calibrations(run: Run) -> Response:
    """Return the calibrations of scores of the collection."""

    def work(store: Store) -> Any:
        found: Calibrations = getattr(store, "calibrations", dict)()
        return {
            space: {kind: wire.calibration_as_json(one) for kind, one in kinds.items()}
            for space, kinds in found.items()
        }

    return await run(work)


@router.get("/failures", **_JSON)
async def failures(run: Run, state: State, cursor: AskedCursor = None) -> Response:
    """Return a page of the images that could not be indexed."""
    return await run(lambda store: _page_as_json(failures_page(store, cursor, _most_rows(state)), wire.failure_as_json))


@router.get("/incomplete", **_JSON)
async def incomplete(run: Run, state: State, cursor: AskedCursor = None) -> Response:
    """Return a page of the items of files whose end is missing."""
    return await run(lambda store: _page_as_json(incomplete_page(store, cursor, _most_rows(state)), wire.item_as_json))


@router.get("/sources", **_JSON)
async def sources(run: Run) -> Response:
    """Return the specs of the sources."""
    return await run(lambda store: method_of(store, "sources")())


@router.get("/formats", **_JSON)
async def formats(run: Run) -> Response:
    """Return the number of items of each image format, in their order."""
    return await run(lambda store: [*method_of(store, "format_counts")().items()])


@router.get("/folders", **_JSON)
async def folders(run: Run, state: State, cursor: AskedCursor = None) -> Response:
    """Return a page of the folders that contain items directly, sorted."""

    def work(store: Store) -> Any:
        found = sorted(method_of(store, "item_folders")())
        return _page_as_json(page_by_place(slices_of(found), cursor, _most_rows(state)), str)

    return await run(work)


@router.post("/has-items-in", **_JSON)
async def has_items_in(run: Run, request: FolderRequest) -> Response:
    """Return whether an item is in a folder or below it."""
    check_folder(request.folder)
    return await run(lambda store: {"found": method_of(store, "has_items_in")(Filter(folder=request.folder).folder)})


@router.post("/count-to-forget", **_JSON)
async def count_to_forget(run: Run, request: SourceRequest) -> Response:
    """Return how many items would be removed with a source, or with a folder or file of one."""
    return await run(lambda store: {"count": method_of(store, "count_to_forget")(request.source)})


@router.post("/changes", **_JSON)
async def changes(run: Run, request: ChangesRequest) -> Response:
    """Return how many items were added, removed and changed since a state."""
    return await run(lambda store: [*method_of(store, "changes_since")(CollectionState(*request.state))])


@router.get("/thumbnails/{content_hash}", **_JSON)
async def thumbnail(run: Run, content_hash: Annotated[str, Path(max_length=100)]) -> Response:
    """Return the thumbnail that is stored for a content, a small JPEG."""
    return await run(lambda store: _picture(store.thumbnail(content_hash)))


@router.get("/pictures/{id}", **_JSON)
async def picture(
    run: Run,
    state: State,
    item_id: Annotated[_Id, Path(alias="id")],
    side: Annotated[int, Query(ge=16, le=2048)] = 256,
) -> Response:
    """Return the image of an item as a JPEG of at most `side` pixels; or else its thumbnail."""
    most = state.settings.limits.image_pixels

    def work(store: Store) -> Response:
        found = method_of(store, "items_by_id")([item_id])
        image = item_picture(found[item_id], store, side, max_pixels=most) if item_id in found else None
        if image is None:
            return _picture(None)
        file = io.BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=90)
        return _picture(file.getvalue())

    return await run(work)


def _with_note(values: dict[str, Any], state: ServerState) -> dict[str, Any]:
    return values | {"note": state.collections.note_for_clients(values["note"])}


def _page_as_json(page: Page[Any], as_json: Callable[[Any], Any]) -> dict[str, Any]:
    return {"values": [*map(as_json, page.values)], "next": page.next}


def _answer(values: Any) -> Response:
    """Return values as JSON, and a response as it is."""
    if isinstance(values, Response):
        return values
    # Names of files that are not valid Unicode are written as escapes, which the client turns back into such names.
    return Response(json.dumps(values).encode("ascii"), media_type="application/json")


def _picture(data: bytes | None) -> Response:
    if data is None:
        raise ProblemError(404, "no picture", "There is no picture of this item or content.")
    headers = {**PICTURE_HEADERS, "Cache-Control": "private, max-age=3600"}
    return Response(data, media_type="image/jpeg", headers=headers)


def _most_rows(state: ServerState) -> int:
    return min(_MOST_ROWS, state.settings.limits.results)


def _check_ids(ids: list[int], state: ServerState) -> None:
    most = _most_rows(state)
    if len(ids) > most:
        raise ProblemError(422, "too many ids", f"Name at most {most} ids.")


def _query(body: StoreQueryBody, state: ServerState) -> SearchQuery:
    check_parts((body.text, body.image, *body.want, *body.avoid), state)
    limits = state.settings.limits
    return wire.query_from_json(body.model_dump(), limits.body_bytes, limits.image_pixels)


def _vector(store: Store, text: str, space: str) -> npt.NDArray[np.float32]:
    dimension = space_named(store.spaces, space).dimension
    try:
        rows = wire.vectors_from_text(text, dimension)
    except ValueError:
        rows = np.empty((0, dimension), np.float32)
    if len(rows) != 1:
        raise CollectionError(f"The embedding must have {dimension} values of the space {space}, in base64.")
    return query_vector(rows[0], space_named(store.spaces, space))
