"""The ASGI application: routes, errors, and what all requests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from .._version import __version__
from ._collections import ServedCollections
from ._job_runner import JobRunner
from ._problems import add_handlers
from ._routes import health, jobs, store
from ._state import ServerState
from .settings import ServerSettings


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application of a service with these settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state: ServerState = app.state.server
        state.jobs.start()
        yield
        await run_in_threadpool(state.jobs.close)
        state.collections.close()

    app = FastAPI(title="PixMatcher", version=__version__, lifespan=lifespan)
    app.state.server = ServerState(settings, ServedCollections(settings.collections), JobRunner(settings))
    add_handlers(app)
    app.include_router(health.router)
    app.include_router(jobs.router)
    app.include_router(store.router)
    return app
