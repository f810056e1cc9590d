"""What all requests share, and the parameters of routes that are made from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Path, Request

from ..collection import Store
from ._collections import ServedCollections
from .settings import ServerSettings


@dataclass
class ServerState:
    """What all requests of one process share."""

    settings: ServerSettings
    collections: ServedCollections
    streams: set[Callable[[], None]] = field(default_factory=set)
    """What ends each answer that lasts as long as its client listens."""


def _state_of(request: Request) -> ServerState:
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(_state_of)]
"""The state of the service, as a parameter of a route."""

CollectionName = Annotated[str, Path(description="The name of a collection.", alias="collection")]


def _store_of(collection: CollectionName, state: State) -> Store:
    return state.collections.get(collection)


ServedStore = Annotated[Store, Depends(_store_of)]
"""The collection that the path names, as a parameter of a route."""
