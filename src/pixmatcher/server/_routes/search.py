"""Search by texts, images, items and vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ...collection import Store
from ...errors import PixMatcherError, QueryError
from ...searching import (
    CategoryResult,
    EmbeddedQuery,
    Query,
    SearchOptions,
    SearchResult,
    name_from_json,
    query_as_json,
    search,
    search_embedded,
)
from .._answer_models import SearchAnswer
from .._metrics import count_query, query_kind
from .._problems import problem_of, problem_responses
from .._requests import (
    BatchBody,
    SearchBody,
    check_query,
    json_bytes,
    json_response,
    load_query,
    options_of,
    read_body,
    request_schema,
)
from .._state import CollectionName, ServerState, State

router = APIRouter(prefix="/v1/collections/{collection}", tags=["search"])

PROBLEMS = problem_responses(400, 403, 404, 408, 413, 415, 422, 429, 503)
"""What all routes that answer queries may fail with."""

_GREATEST_VALUE = 1e6
"""The greatest value of a vector of a client; embeddings have values up to 1, and scores must stay finite."""


class FailedQuery(BaseModel):
    """Why a query of a batch has no results."""

    query: Any
    error: str
    reason: str


class BatchAnswer(BaseModel):
    """The results of the queries, in their order."""

    results: list[SearchAnswer | FailedQuery]


@router.post(
    "/search",
    openapi_extra=request_schema(SearchBody, form=True),
    responses={200: {"model": SearchAnswer}, **PROBLEMS},
    response_class=Response,
)
async def search_collection(collection: CollectionName, request: Request, state: State) -> Response:
    """Find the items nearest to a query of texts, images and items, or to a vector."""
    until = state.admission.time_limit()
    state.collections.reference(collection)
    read = await read_body(request, state, SearchBody, until)
    body: SearchBody = read.body
    options = options_of(body, state)
    if body.vector is not None:
        if body.text is not None or body.image is not None or body.want or body.avoid:
            raise QueryError("A vector is searched for alone: leave out the texts and images, or the vector.")
        vector = body.vector

        def answer() -> bytes:
            result = state.collections.use(collection, lambda store: _search_vector(store, vector, options))
            count_query("vector", result.space)
            return json_bytes(shown_result(state, result))
    else:
        check_query(body, state)
        make_query = await load_query(body, read.uploads, request, state, until)

        def answer() -> bytes:
            return json_bytes(_answer(state, collection, make_query, options))

    return Response(await state.admission.run(answer, request, until), media_type="application/json")


def _search_vector(store: Store, values: list[float], options: SearchOptions) -> SearchResult:
    """Return the result of a search for an embedding. Raises `QueryError` if it does not fit."""
    vector = np.array(values, np.float64)
    if np.abs(vector).max() > _GREATEST_VALUE:
        raise QueryError("A value of the vector is too large: embeddings have the length 1.")
    if options.space is None and len(store.spaces) > 1:
        raise QueryError(f"Name the space of the vector: {', '.join(store.spaces)}.")
    space = options.space or next(iter(store.spaces))
    embedded = EmbeddedQuery(space, vector.astype(np.float32), "")
    return search_embedded(store, embedded, options, name="(vector)")


@router.post(
    "/search/batch",
    openapi_extra=request_schema(BatchBody, form=True),
    responses={200: {"model": BatchAnswer}, **PROBLEMS},
    response_class=Response,
)
async def search_collection_batch(collection: CollectionName, request: Request, state: State) -> Response:
    """Answer several queries; one that fails has its reason, and the others are answered."""
    until = state.admission.time_limit()
    state.collections.reference(collection)
    read = await read_body(request, state, BatchBody, until)
    body: BatchBody = read.body
    options = options_of(body, state)
    results = []
    with state.admission.place():
        for each in body.queries:
            try:
                check_query(each, state)
                make_query = await load_query(each, read.uploads, request, state, until)
                answer = partial(_answer, state, collection, make_query, options)
                # One after the other, so that a large batch leaves threads to other clients.
                results.append(await state.admission.run_in_place(answer, request, until))
            except PixMatcherError as error:
                problem = problem_of(error)
                if problem.status in (408, 429) or problem.status >= 500:
                    raise
                name = query_as_json(name_from_json(each.model_dump(exclude_unset=True)))
                detail = state.collections.without_paths(problem.detail)
                results.append({"query": name, "error": detail, "reason": problem.reason})
    return json_response({"results": results})


def _answer(
    state: ServerState, collection: str, make_query: Callable[[], Query], options: SearchOptions
) -> dict[str, Any]:
    query = make_query()
    result = state.collections.use(collection, lambda store: search(store, query, options))
    count_query(query_kind(query), result.space)
    return shown_result(state, result)


def shown_result(state: ServerState, result: SearchResult | CategoryResult) -> dict[str, Any]:
    """Return a result as JSON; its note, which may quote an error, has no path of a collection."""
    values = result.as_json()
    if "note" in values:
        values["note"] = state.collections.note_for_clients(values["note"])
    return values
