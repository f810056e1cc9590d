"""The ASGI application: routes, errors, and what all requests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from .._version import __version__
from ._collections import ServedCollections
from ._metrics import MetricsMiddleware
from ._problems import add_handlers
from ._routes import collections, health, items
from ._state import ServerState
from .settings import ServerSettings


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application of a service with these settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state: ServerState = app.state.server
        yield
        state.collections.close()

    app = FastAPI(title="PixMatcher", version=__version__, lifespan=lifespan)
    app.state.server = ServerState(settings, ServedCollections(settings.collections))
    add_handlers(app)
    app.add_middleware(MetricsMiddleware)
    app.include_router(health.router)
    app.include_router(collections.router)
    app.include_router(items.router)
    return app
