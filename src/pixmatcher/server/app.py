"""The ASGI application: routes, errors, and what all requests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool

from .._cores import usable_cores
from .._version import __version__
from ._admission import Admission
from ._collections import ServedCollections
from ._job_runner import JobRunner
from ._problems import add_handlers
from ._routes import categories, embeddings, health, jobs, search, store
from ._state import ServerState
from .settings import ServerSettings

_FETCHES = 8
"""The most URLs that one process fetches at once."""


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application of a service with these settings."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state: ServerState = app.state.server
        state.jobs.start()
        yield
        await run_in_threadpool(state.jobs.close)
        state.fetches.close()
        state.admission.close()
        state.collections.close()

    app = FastAPI(title="PixMatcher", version=__version__, lifespan=lifespan)
    threads = max(1, usable_cores() // settings.workers)
    app.state.server = ServerState(
        settings,
        ServedCollections(settings.collections),
        JobRunner(settings),
        admission=Admission(threads, settings.limits.waiting, settings.limits.seconds),
        fetches=Admission(_FETCHES, settings.limits.waiting, settings.limits.seconds),
    )
    add_handlers(app)
    for routes in (health, search, categories, embeddings, jobs, store):
        app.include_router(routes.router)
    return app
