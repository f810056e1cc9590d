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
    return app
