"""The collections of the service, and what is in each."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from ..._text import as_unicode, name_as_unicode
from ...collection import Collection, Store, UsedByProcesses, WritableStore, describe_collection
from .._answer_models import Contents, LabelCount
from .._pages import AskedPage, failures_page, method_of, page_by_place, page_limit, slices_of
from .._problems import ProblemError, problem_responses
from .._requests import json_response
from .._state import CollectionName, InThread, State

router = APIRouter(prefix="/v1/collections", tags=["collections"])

_USUAL_ENTRIES = 1000
_PROBLEMS_OF_PAGES = problem_responses(404, 422, 429, 501, 503)


class CollectionSummary(BaseModel):
    """A collection of the service."""

    name: str
    state: str
    """`ready`, or `not available` while it cannot be read; then the other values are null or empty."""
    count: int | None
    """The number of items."""
    encoders: list[str]
    spaces: list[str]
    writable: bool | None
    """Whether sources can be indexed into it."""


class CollectionList(BaseModel):
    """The collections of the service, in the order in which they were given."""

    collections: list[CollectionSummary]


class Description(Contents):
    """What is in a collection of the service; null stands for what is not known."""

    name: str
    writable: bool


class LabelList(BaseModel):
    """Labels of a collection, the most frequent first, and the cursor of the next page; null after the last one."""

    labels: list[LabelCount]
    next: str | None


class FailureDescription(BaseModel):
    """An image that could not be indexed."""

    uri: str
    reason: str
    detail: str


class FailureList(BaseModel):
    """Images that could not be indexed, and the cursor of the next page; null after the last one."""

    failures: list[FailureDescription]
    next: str | None


@router.get("", responses={200: {"model": CollectionList}, **problem_responses(429)})
async def list_collections(state: State, in_thread: InThread) -> Response:
    """List the collections. One that cannot be read now is listed too, with this state."""
    names = state.collections.names
    return json_response({"collections": await in_thread(lambda: [_summary(state, name) for name in names])})


@router.get("/{collection}", responses={200: {"model": Description}, **problem_responses(404, 429, 503)})
async def describe(collection: CollectionName, state: State, in_thread: InThread) -> Response:
    """Say what is in a collection, as `pixmatcher info --json` does."""

    def read(store: Store) -> dict[str, Any]:
        return {"name": collection, "writable": is_writable(store), **describe_collection(store).as_json()}

    return json_response(await in_thread(partial(state.collections.read, collection, read)))


@router.get("/{collection}/labels", responses={200: {"model": LabelList}, **_PROBLEMS_OF_PAGES})
async def list_labels(collection: CollectionName, state: State, in_thread: InThread, asked: AskedPage) -> Response:
    """List the labels of a collection with the number of their items, the most frequent first, a page at a time."""
    limit = page_limit(asked.limit, _USUAL_ENTRIES, state.settings.limits)

    def read(store: Store) -> dict[str, Any]:
        names = store.label_names()
        counts: dict[str, int] = method_of(store, "label_counts")()
        page = page_by_place(slices_of([*counts.items()]), asked.cursor, limit)
        labels = [{"label": as_unicode(each), "name": names.get(each), "count": n} for each, n in page.values]
        return {"labels": labels, "next": page.next}

    return json_response(await in_thread(partial(state.collections.read, collection, read)))


@router.get("/{collection}/failures", responses={200: {"model": FailureList}, **_PROBLEMS_OF_PAGES})
async def list_failures(collection: CollectionName, state: State, in_thread: InThread, asked: AskedPage) -> Response:
    """List the images that could not be indexed, a page at a time."""
    limit = page_limit(asked.limit, _USUAL_ENTRIES, state.settings.limits)

    def read(store: Store) -> dict[str, Any]:
        page = failures_page(store, asked.cursor, limit)
        failures = [
            {"uri": name_as_unicode(each.uri), "reason": each.reason, "detail": as_unicode(each.detail)}
            for each in page.values
        ]
        return {"failures": failures, "next": page.next}

    return json_response(await in_thread(partial(state.collections.read, collection, read)))


def is_writable(store: Store) -> bool:
    """Return whether sources can be indexed into a collection. A job needs a process of its own for that."""
    if not isinstance(store, WritableStore) or (isinstance(store, UsedByProcesses) and store.one_process):
        return False
    return not isinstance(store, Collection) or os.access(store.path, os.W_OK)


def _summary(state: State, name: str) -> dict[str, Any]:
    def read(store: Store) -> dict[str, Any]:
        return {
            "name": name,
            "state": "ready",
            "count": len(store),
            "encoders": [each.name for each in store.encoders],
            "spaces": [*store.spaces],
            "writable": is_writable(store),
        }

    try:
        return state.collections.read(name, read)
    except ProblemError:
        none: dict[str, Any] = {"count": None, "encoders": [], "spaces": [], "writable": None}
        return {"name": name, "state": "not available", **none}
