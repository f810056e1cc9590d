"""The most likely labels of an image."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ...searching import classify
from .._requests import (
    CategoriesBody,
    check_results,
    json_bytes,
    load_query,
    read_body,
    request_schema,
)
from .._state import CollectionName, State
from .search import PROBLEMS

router = APIRouter(prefix="/v1/collections/{collection}", tags=["search"])


class CategoryAnswer(BaseModel):
    """A label, its name, its share of the vote, and the uri of the nearest item with it."""

    rank: int
    score: float
    label: str
    name: str
    example: str


class CategoriesAnswer(BaseModel):
    """The most likely labels of an image, best first; the same JSON as that of the command line."""

    query: Any
    space: str
    took_ms: float
    categories: list[CategoryAnswer]
    note: str | None = None


@router.post(
    "/categories",
    openapi_extra=request_schema(CategoriesBody, form=True),
    responses={200: {"model": CategoriesAnswer}, **PROBLEMS},
    response_class=Response,
)
async def categories_of_image(collection: CollectionName, request: Request, state: State) -> Response:
    """Find the most likely labels of an image, from the labels of similar images."""
    until = state.admission.time_limit()
    state.collections.reference(collection)
    read = await read_body(request, state, CategoriesBody, until)
    body: CategoriesBody = read.body
    check_results(body.k, state)
    make_query = await load_query(body, read.uploads, request, state, until)

    def answer() -> bytes:
        query = make_query()
        result = state.collections.use(collection, lambda store: classify(store, query, k=body.k, space=body.space))
        return json_bytes(result.as_json())

    return Response(await state.admission.run(answer, request, until), media_type="application/json")
