"""Sources, and the jobs that index them, forget them or watch them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel, ConfigDict, Field

from ..._text import name_as_unicode
from ...collection import ForgetsSources, KeepsFolderNotes, Store, UsedByProcesses, WritableStore
from .._job_runner import JobRunner
from .._jobs import ENDED, Job
from .._problems import ProblemError, problem_responses
from .._source_check import check_new_source, full_spec
from .._state import CollectionName, ServedStore, State
from .._tokens import ClientId, writes

# These routes do not wait with the queries: they read the sources of a collection and a small table, and who looks
# after a job or stops it must not be refused because many search.
router = APIRouter(prefix="/v1", tags=["jobs"])

_MOST_LISTENERS = 64
"""Clients that receive the events of jobs at the same time, of each process of the service."""
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_SIGNS = 15.0
"""The longest silence of a stream of events: proxies close connections that are silent for a minute."""
_RETRY_SECONDS = 10

_Text = Annotated[str, Field(min_length=1, max_length=4096)]
JobId = Annotated[str, Path(description="The id of a job.", pattern="^[0-9a-f]{32}$")]


class IndexRequest(BaseModel):
    """What to index."""

    model_config = ConfigDict(extra="forbid")

    sources: Annotated[list[_Text], Field(min_length=1, max_length=100)] | None = None
    """Folders of the service's machine, or other sources with a prefix; without them, the collection's own sources."""
    retry_failed: bool = False
    """Whether to try all images again that failed before."""
    exclude: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(max_length=1000)] | None = None
    """For folders: patterns in the syntax of .gitignore of what is left out. They are kept for later runs."""
    hidden: bool | None = None
    """For folders: whether names that begin with a dot are indexed too. It is kept for later runs."""


class WatchRequest(BaseModel):
    """How to watch the sources of a collection."""

    model_config = ConfigDict(extra="forbid")

    every: Annotated[float, Field(ge=1, le=86400)] = 60.0
    """The seconds after which all sources are looked through, whether a change was noticed or not."""


class CollectionSource(BaseModel):
    """A source of a collection."""

    source: str
    exclude: list[str]
    """The patterns of what is left out; only folders have some."""
    hidden: bool
    """Whether names that begin with a dot are indexed."""
    forgotten: list[str]
    """Folders and files, relative to the source, that were removed from the collection and stay removed."""


class CollectionSources(BaseModel):
    """The sources of a collection, in the order in which they were first indexed."""

    sources: list[CollectionSource]


class Jobs(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Job]


_JOB_HEADERS: dict[int | str, dict[str, Any]] = {
    202: {"headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}}}
}


def _accepted(job: Job, response: Response) -> Job:
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


def _writable(store: Store) -> WritableStore:
    if not isinstance(store, WritableStore):
        raise ProblemError(422, "not possible in this collection", "This collection can only be searched.")
    return store


def _changed_by_jobs(store: Store) -> WritableStore:
    writable = _writable(store)
    if isinstance(store, UsedByProcesses) and store.one_process:
        raise ProblemError(
            422,
            "not possible in this collection",
            "Only the process of the service can use this collection: index it while the service is stopped.",
        )
    return writable


@router.get("/collections/{collection}/sources", responses=problem_responses(404, 422, 503))
def list_sources(store: ServedStore) -> CollectionSources:
    """List the sources of a collection."""
    listed = []
    for spec in _writable(store).sources():
        exclude, hidden, forgotten = [], False, []
        if isinstance(store, KeepsFolderNotes) and os.path.isabs(spec):
            notes = store.folder_notes(spec)
            exclude, hidden = [*map(name_as_unicode, notes.exclude)], notes.hidden
            forgotten = [*map(name_as_unicode, notes.forgotten)]
        listed.append(
            CollectionSource(source=name_as_unicode(spec), exclude=exclude, hidden=hidden, forgotten=forgotten)
        )
    return CollectionSources(sources=listed)


@router.post(
    "/collections/{collection}/sources",
    status_code=202,
    responses={**_JOB_HEADERS, **problem_responses(403, 404, 422, 429, 503, 507)},
    dependencies=[Depends(writes)],
)
def index_sources(
    collection: CollectionName,
    store: ServedStore,
    state: State,
    client: ClientId,
    response: Response,
    request: IndexRequest,
) -> Job:
    """Start a job that indexes sources, or refreshes the sources that the collection has.

    A source that the collection does not have must be inside one of the folders that the service allows.
    """
    own = _changed_by_jobs(store).sources()
    sources = None if request.sources is None else [full_spec(source) for source in request.sources]
    for source in sources or ():
        if source not in own:
            check_new_source(source, state.settings.source_folders, state.settings.allow_urls)
    asked: dict[str, Any] = request.model_dump(exclude_none=True)
    if sources is not None:
        asked["sources"] = sources
    return _accepted(state.jobs.add(collection, "index", asked, client), response)


@router.delete(
    "/collections/{collection}/sources",
    status_code=202,
    responses={**_JOB_HEADERS, **problem_responses(404, 422, 429, 503, 507)},
    dependencies=[Depends(writes)],
)
def forget_source(
    collection: CollectionName,
    store: ServedStore,
    state: State,
    client: ClientId,
    response: Response,
    source: Annotated[str, Query(min_length=1, max_length=4096, description="A source, or a folder or file of one.")],
) -> Job:
    """Start a job that removes a source, or a folder or file of one, with its items. No file is deleted."""
    _changed_by_jobs(store)
    if not isinstance(store, ForgetsSources):
        raise ProblemError(422, "not possible in this collection", "The store of this collection forgets no sources.")
    source = full_spec(source)
    own = store.sources()
    if source not in own and not any(source.startswith(os.path.join(spec, "")) for spec in own if os.path.isabs(spec)):
        raise ProblemError(
            404, "no such source", "The collection has no such source: GET on this address lists its sources."
        )
    return _accepted(state.jobs.add(collection, "forget", {"source": source}, client), response)


@router.post(
    "/collections/{collection}/watch",
    status_code=202,
    responses={**_JOB_HEADERS, **problem_responses(404, 422, 429, 503, 507)},
    dependencies=[Depends(writes)],
)
def watch_collection(
    collection: CollectionName,
    store: ServedStore,
    state: State,
    client: ClientId,
    response: Response,
    request: WatchRequest | None = None,
) -> Job:
    """Start a job that indexes changes of the sources seconds after they happen, until it is stopped.

    If the collection is watched already, that job is the answer. After a restart of the service the job goes on.
    """
    _changed_by_jobs(store)
    return _accepted(state.jobs.add(collection, "watch", (request or WatchRequest()).model_dump(), client), response)


@router.get("/jobs", responses=problem_responses(503))
def list_jobs(state: State) -> Jobs:
    """List the jobs, the newest first; those that have ended are kept for 30 days, and 200 of them at most."""
    return Jobs(jobs=state.jobs.jobs())


@router.get("/jobs/{job_id}", responses=problem_responses(404, 422, 503))
def show_job(job_id: JobId, state: State) -> Job:
    """Return a job: its state, its progress and, at its end, its report or why it failed."""
    return state.jobs.find(job_id).job


@router.delete("/jobs/{job_id}", responses=problem_responses(404, 422, 503, 507), dependencies=[Depends(writes)])
def stop_job(job_id: JobId, state: State) -> Job:
    """Stop a job. What it has stored stays stored. A job that runs has the state `running` until its process ends."""
    return state.jobs.stop(job_id)


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "The job has ended, and the client knows it."},
        **problem_responses(404, 422, 429, 503),
    },
)
async def stream_job(
    job_id: JobId,
    state: State,
    last_event_id: Annotated[str | None, Header(description="The id of the last event that was received.")] = None,
) -> Response:
    """Send the job as server-sent events whenever it changes: `progress`, and at its end `end`, which is the last."""
    record = await run_in_threadpool(state.jobs.find, job_id)
    if last_event_id == str(record.change) and record.job.state in ENDED:
        return Response(status_code=204)  # tells the client not to connect again
    listeners: set[object] = state.job_listeners
    if len(listeners) >= _MOST_LISTENERS:
        raise ProblemError(
            429,
            "too many listeners",
            f"{_MOST_LISTENERS} clients receive events already: try again later, or ask for /v1/jobs/{job_id} now and "
            "then.",
            {"Retry-After": str(_RETRY_SECONDS)},
        )
    return StreamingResponse(
        _events(state.jobs, job_id, last_event_id, listeners),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    jobs: JobRunner, job_id: str, last_event_id: str | None, listeners: set[object]
) -> AsyncIterator[bytes]:
    """Yield the events of a job, and now and then a comment, until it ends, the client leaves or the service stops."""
    listener = object()
    listeners.add(listener)
    try:
        yield format_sse_event(retry=1000 * 2, comment="events of a job")
        sent = time.monotonic()
        while not jobs.stopping.is_set():
            try:
                record = await run_in_threadpool(jobs.find, job_id)
            except ProblemError:
                return  # the job was removed, or its record cannot be read now: the client asks again
            if str(record.change) != last_event_id:
                last_event_id = str(record.change)
                ended = record.job.state in ENDED
                yield format_sse_event(
                    data_str=record.job.model_dump_json(), event="end" if ended else "progress", id=last_event_id
                )
                sent = time.monotonic()
                if ended:
                    return
            elif time.monotonic() - sent > _SECONDS_BETWEEN_SIGNS:
                yield KEEPALIVE_COMMENT
                sent = time.monotonic()
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        listeners.discard(listener)
