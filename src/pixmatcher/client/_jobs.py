"""Jobs of a service: started, followed by their events, and stopped."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import httpx

from .._progress import Progress, ProgressCallback, Unit
from .._text import printable
from ..errors import CollectionError
from ._connection import Connection
from ._errors import error_of
from .wire import of_type

_MAX_EVENT_BYTES = 16 << 20
_MAX_BREAKS = 30
"""Connections that may break one after the other, each before an event, until the client gives up."""
_SECONDS_BETWEEN_LOOKS = 1.0
_ENDED = ("done", "failed", "stopped")


def run_job(
    connection: Connection, method: str, route: str, values: Any, progress: ProgressCallback | None
) -> dict[str, Any]:
    """Start a job, wait for its end, and return its report.

    An exception of `progress`, and Ctrl-C, stop the job; a service that is away does not. Raises the error of the job,
    and `CollectionError` if somebody else stopped it or the service is away for long.
    """
    job = _checked(connection, connection.json(method, route, values))
    job_id = job["id"]
    try:
        for job in _states(connection, job_id):
            made = _progress_of(job)
            if progress is not None and made is not None:
                progress(made)
    except CollectionError:
        raise
    except BaseException:
        with contextlib.suppress(CollectionError, KeyboardInterrupt):
            connection.json("DELETE", f"/v1/jobs/{job_id}")
        raise
    state, url = job["state"], connection.address.url
    if state == "failed":
        raise error_of(job.get("error") or {}, url)
    if state != "done":
        raise CollectionError(f"The job for {url} was stopped, what it stored stays stored", "run the command again.")
    report: dict[str, Any] = job.get("report") or {}
    return report


def _checked(connection: Connection, job: Any) -> dict[str, Any]:
    """Return a job. Raises `CollectionError` if the service sent something else."""
    try:
        job_id, _ = of_type(of_type(job, dict)["id"], str), of_type(job["state"], str)
        if not (job_id.isascii() and job_id.isalnum()):
            raise ValueError("the id of a job has letters and digits")
        for name in ("error", "report"):
            if job.get(name) is not None:
                of_type(job[name], dict)
    except (ValueError, TypeError, KeyError) as error:
        raise connection.not_valid(error) from error
    checked: dict[str, Any] = job
    return checked


def _states(connection: Connection, job_id: str) -> Iterator[dict[str, Any]]:
    """Yield the job whenever it changes; the last time at its end.

    If the connection breaks, such as when the service restarts, events are asked for again from the last one.
    """
    last_id, breaks = "", 0
    while True:
        try:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
            with connection.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
                if response.status_code == 200:
                    for event_id, found in _events(response):
                        job = _checked(connection, found)
                        last_id, breaks = event_id, 0
                        yield job
                        if job["state"] in _ENDED:
                            return
                elif response.status_code not in (204, 429, 502, 503, 504):
                    connection.raise_for(response)
        except httpx.TransportError:
            pass
        breaks += 1
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        # Too many listeners, an end that was not seen, a proxy that ends streams, or the service is away.
        try:
            job = _checked(connection, connection.json("GET", f"/v1/jobs/{job_id}"))
        except CollectionError:
            if breaks > _MAX_BREAKS:
                raise
            continue
        yield job
        if job["state"] in _ENDED:
            return


def _events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Yield the id and the data of each server-sent event; a stream that is not valid ends."""
    fields: dict[str, str] = {}
    for line in _lines(response):
        if not line:
            if "data" in fields:
                event_id = fields.get("id", "")
                try:
                    values = json.loads(fields["data"])
                except (ValueError, RecursionError):
                    return
                yield event_id if event_id.isalnum() and event_id.isascii() else "", values
            fields = {}
            continue
        name, _, value = line.partition(":")
        fields[name] = value.removeprefix(" ")


def _lines(response: httpx.Response) -> Iterator[str]:
    """Yield the lines of a stream; a line that is too long ends them."""
    buffer = b""
    for part in response.iter_raw():
        *whole, buffer = (buffer + part).split(b"\n")
        if len(buffer) > _MAX_EVENT_BYTES:
            return
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _progress_of(job: Mapping[str, Any]) -> Progress | None:
    """Return the progress of a job, checked; None if there is none yet."""
    values = job.get("progress")
    if not isinstance(values, dict):
        return None
    stage, done, total, unit = (values.get(name) for name in ("stage", "done", "total", "unit"))
    if not isinstance(stage, str) or type(done) is not int or not isinstance(total, (int, type(None))):
        return None
    known: dict[Any, Unit] = {name: name for name in get_args(Unit)}
    return Progress(printable(stage[:200]), max(0, done), total, known.get(unit, "steps"))
