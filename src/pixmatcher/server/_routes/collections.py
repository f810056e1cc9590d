"""The collections of the service, and what is in each."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from ..._text import as_unicode, name_as_unicode
from ...collection import Collection, Store, UsedByProcesses, WritableStore, describe_collection
from .._problems import ProblemError, problem_responses
from .._requests import json_response
from .._state import CollectionName, State

router = APIRouter(prefix="/v1/collections", tags=["collections"])


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


class Description(BaseModel):
    """What is in a collection; null stands for what is not known."""

    name: str
    writable: bool
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


class LabelList(BaseModel):
    """The labels of a collection, the most frequent first."""

    labels: list[LabelCount]


class FailureDescription(BaseModel):
    """An image that could not be indexed."""

    uri: str
    reason: str
    detail: str


class FailureList(BaseModel):
    """The images that could not be indexed."""

    failures: list[FailureDescription]


@router.get("", responses={200: {"model": CollectionList}})
def list_collections(state: State) -> Response:
    """List the collections. One that cannot be read now is listed too, with this state."""
    return json_response({"collections": [_summary(state, name) for name in state.collections.names]})


@router.get("/{collection}", responses={200: {"model": Description}, **problem_responses(404, 503)})
def describe(collection: CollectionName, state: State) -> Response:
    """Say what is in a collection, as `pixmatcher info --json` does."""

    def read(store: Store) -> dict[str, Any]:
        return {"name": collection, "writable": is_writable(store), **describe_collection(store).as_json()}

    return json_response(state.collections.read(collection, read))


@router.get("/{collection}/labels", responses={200: {"model": LabelList}, **problem_responses(404, 501, 503)})
def list_labels(collection: CollectionName, state: State) -> Response:
    """List the labels of a collection with the number of their items, the most frequent first."""

    def read(store: Store) -> list[dict[str, Any]]:
        names = store.label_names()
        counts: dict[str, int] = method_of(store, "label_counts")()
        return [{"label": as_unicode(each), "name": names.get(each), "count": n} for each, n in counts.items()]

    return json_response({"labels": state.collections.read(collection, read)})


@router.get("/{collection}/failures", responses={200: {"model": FailureList}, **problem_responses(404, 501, 503)})
def list_failures(collection: CollectionName, state: State) -> Response:
    """List the images that could not be indexed."""

    def read(store: Store) -> list[dict[str, str]]:
        return [
            {"uri": name_as_unicode(each.uri), "reason": each.reason, "detail": as_unicode(each.detail)}
            for each in method_of(store, "failures")()
        ]

    return json_response({"failures": state.collections.read(collection, read)})


def is_writable(store: Store) -> bool:
    """Return whether sources can be indexed into a collection. A job needs a process of its own for that."""
    if not isinstance(store, WritableStore) or (isinstance(store, UsedByProcesses) and store.one_process):
        return False
    return not isinstance(store, Collection) or os.access(store.path, os.W_OK)


def method_of(store: Store, name: str) -> Any:
    """Return a method that `Collection` has, and a store of another package may have. Raises `ProblemError`."""
    method = getattr(store, name, None)
    if method is None:
        raise ProblemError(501, "not supported by this store", "The store of this collection cannot list this.")
    return method


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
