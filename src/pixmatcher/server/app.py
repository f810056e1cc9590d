"""The ASGI application: routes, errors, and what all requests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from .._version import __version__
from ._collections import ServedCollections
from ._middleware import add_protection
from ._problems import add_handlers
from ._routes import docs, health
from ._state import ServerState
from .settings import ServerSettings


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application of a service with these settings.

    Raises `PixMatcherError` if the token file cannot be used.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state: ServerState = app.state.server
        yield
        state.collections.close()

    app = FastAPI(
        title="PixMatcher",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from the network
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.server = ServerState(settings, ServedCollections(settings.collections))
    add_handlers(app)
    add_protection(app, settings, app.state.server.streams)
    app.include_router(health.router)
    app.include_router(docs.router)
    return app
