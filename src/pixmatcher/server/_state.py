"""What all requests share, and the parameters of routes that are made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from ..collection import Store
from ._admission import Admission
from ._collections import ServedCollections
from ._job_runner import JobRunner
from ._readiness import Readiness
from ._thumbnail_cache import ThumbnailCache
from .settings import ServerSettings


@dataclass
class ServerState:
    """What all requests of one process share."""

    settings: ServerSettings
    collections: ServedCollections
    admission: Admission
    """Where queries are encoded and searched, and collections are read."""
    fetches: Admission
    """Where images are fetched from URLs."""
    jobs: JobRunner
    job_listeners: set[object] = field(default_factory=set)
    """The clients that receive events of jobs now."""
    streams: set[Callable[[], None]] = field(default_factory=set)
    """What ends each answer that lasts as long as its client listens."""
    thumbnails: ThumbnailCache = field(default_factory=ThumbnailCache)
    readiness: Readiness = field(default_factory=Readiness)


async def _state_of(request: Request) -> ServerState:  # async, since FastAPI would start other functions in a thread
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_state_of)]
"""The state of the service, as a parameter of a route."""


async def _in_thread(request: Request, state: State) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    until = state.admission.time_limit()

    async def run(work: Callable[[], Any]) -> Any:
        return await state.admission.run(work, request, until)

    return run


InThread = Annotated[Callable[[Callable[[], Any]], Awaitable[Any]], Depends(_in_thread)]
"""Calls work in one of the threads for queries, where it waits with the others; as a parameter of a route.

Raises `ProblemError` as `Admission.run`.
"""

CollectionName = Annotated[str, Path(description="The name of a collection.", alias="collection")]


def _store_of(collection: CollectionName, state: State) -> Store:
    return state.collections.get(collection)


ServedStore = Annotated[Store, Depends(_store_of)]
"""The collection that the path names, as a parameter of a route."""
