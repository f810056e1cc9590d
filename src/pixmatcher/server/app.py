"""The ASGI application: routes, errors, and what all requests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from fastapi.concurrency import run_in_threadpool

from .._cores import usable_cores
from .._version import __version__
from ._admission import Admission
from ._collections import ServedCollections
from ._job_runner import JobRunner
from ._metrics import MetricsMiddleware
from ._middleware import add_protection
from ._problems import add_handlers, problem_responses
from ._routes import categories, collections, docs, embeddings, health, items, jobs, search, store
from ._state import ServerState
from ._tokens import reads
from .settings import ServerSettings

_FETCHES = 8
"""The most URLs that one process fetches at once."""


def create_app(settings: ServerSettings) -> FastAPI:
    """Return the application of a service with these settings.

    Raises `PixMatcherError` if the token file cannot be used.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state: ServerState = app.state.server
        state.jobs.start()
        state.readiness.start(state.collections)
        yield
        await run_in_threadpool(state.jobs.close)
        await run_in_threadpool(state.readiness.close)
        state.fetches.close()
        state.admission.close()
        state.collections.close()

    app = FastAPI(
        title="PixMatcher",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from the network
        redoc_url=None,
        redirect_slashes=False,
    )
    threads = usable_cores()
    app.state.server = ServerState(
        settings,
        ServedCollections(settings.collections),
        admission=Admission("work", threads, settings.limits.waiting, settings.limits.seconds),
        fetches=Admission("fetch", _FETCHES, settings.limits.waiting, settings.limits.seconds),
        jobs=JobRunner(settings),
    )
    add_handlers(app)
    add_protection(app, settings, app.state.server.streams)
    app.add_middleware(MetricsMiddleware)  # around the others, so that their refusals count
    for open_routes in (health, docs):
        app.include_router(open_routes.router)
    for routes in (collections, items, search, categories, embeddings, jobs, store):
        app.include_router(
            routes.router,
            dependencies=[Depends(reads)],
            responses=problem_responses(400, 401, 403, 408, 413, 415, 421, 503),
        )
    return app
