"""What runs, what waits, and what clients get when it is too much."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from pixmatcher.server import Limits, ServerSettings, create_app
from pixmatcher.server._admission import Admission
from pixmatcher.server._problems import ProblemError

PATIENCE = 30.0
SEARCH = "/v1/collections/photos/search"


def request_of(gone: asyncio.Event | None = None) -> Request:
    """Return a request whose client is there until `gone` is set."""

    async def receive() -> dict[str, Any]:
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive)


def run(steps: Callable[[Admission], Awaitable[None]], **settings: Any) -> None:
    """Run the steps of a test with an admission."""

    async def inner() -> None:
        admission = Admission(**{"name": "work", "threads": 1, "waiting": 1, "seconds": PATIENCE} | settings)
        try:
            await asyncio.wait_for(steps(admission), PATIENCE)
        finally:
            admission.close()

    asyncio.run(inner())


async def occupy(admission: Admission) -> tuple[threading.Event, asyncio.Task[bool]]:
    """Give a thread work that ends when the event is set."""
    gate = threading.Event()
    until = admission.time_limit() + PATIENCE
    work = asyncio.ensure_future(admission.run(lambda: gate.wait(PATIENCE), request_of(), until))
    await asyncio.sleep(0)  # the task takes its place
    return gate, work


def test_results_and_errors_come_back() -> None:
    async def steps(admission: Admission) -> None:
        until = admission.time_limit()
        assert await admission.run(lambda: 5, request_of(), until) == 5
        with pytest.raises(ZeroDivisionError):
            await admission.run(lambda: 1 // 0, request_of(), until)
        with admission.place():
            assert await admission.run_in_place(lambda: 6, request_of(), until) == 6

    run(steps)


def test_more_than_may_wait_is_refused_and_admitted_later() -> None:
    async def steps(admission: Admission) -> None:
        gate, first = await occupy(admission)
        second = asyncio.ensure_future(admission.run(lambda: 2, request_of(), admission.time_limit()))
        await asyncio.sleep(0)
        with pytest.raises(ProblemError) as caught:
            await admission.run(lambda: 3, request_of(), admission.time_limit())
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) > 0
        with pytest.raises(ProblemError), admission.place():
            raise AssertionError("there is no place")
        gate.set()
        assert (await first, await second) == (True, 2)
        assert await admission.run(lambda: 4, request_of(), admission.time_limit()) == 4

    run(steps)


def test_work_that_waits_too_long_is_not_begun() -> None:
    async def steps(admission: Admission) -> None:
        gate, first = await occupy(admission)
        begun = threading.Event()
        with pytest.raises(ProblemError) as caught:
            await admission.run(begun.set, request_of(), admission.time_limit())
        assert (caught.value.status, caught.value.reason) == (503, "time limit")
        gate.set()
        await first
        await admission.run(lambda: None, request_of(), admission.time_limit() + PATIENCE)
        assert not begun.is_set()

    run(steps, seconds=0.05)


def test_work_for_a_client_that_is_gone_is_not_begun() -> None:
    async def steps(admission: Admission) -> None:
        gate, first = await occupy(admission)
        gone = asyncio.Event()
        begun = threading.Event()
        second = asyncio.ensure_future(admission.run(begun.set, request_of(gone), admission.time_limit()))
        gone.set()
        with pytest.raises(ProblemError, match="closed the connection"):
            await second
        gate.set()
        await first
        await admission.run(lambda: None, request_of(), admission.time_limit())
        assert not begun.is_set()

    run(steps)


def test_a_thread_that_works_on_after_the_time_limit_keeps_its_place() -> None:
    async def steps(admission: Admission) -> None:
        gate = threading.Event()
        with pytest.raises(ProblemError, match="longer than"):
            await admission.run(lambda: gate.wait(PATIENCE), request_of(), admission.time_limit())
        with pytest.raises(ProblemError) as caught:
            await admission.run(lambda: 1, request_of(), admission.time_limit())
        assert caught.value.status == 429
        gate.set()
        while True:  # until the thread has ended its work
            try:
                assert await admission.run(lambda: 2, request_of(), admission.time_limit() + PATIENCE) == 2
                return
            except ProblemError:
                await asyncio.sleep(0.01)

    run(steps, seconds=0.05, waiting=0)


@pytest.mark.parametrize(
    ("limits", "status", "reason"),
    [
        (Limits(waiting=0), 429, "too many requests"),
        (Limits(waiting=5, seconds=0.2), 503, "time limit"),
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (SEARCH, {"text": "a cat"}),
        (SEARCH + "/batch", {"queries": [{"text": "a cat"}]}),
        ("/v1/embeddings", {"input": "a cat", "model": "lite"}),
    ],
)
def test_routes_over_load(photos: Path, limits: Limits, status: int, reason: str, path: str, body: Any) -> None:
    async def inner(app: FastAPI) -> None:
        admission = app.state.server.admission
        gate = threading.Event()
        until = admission.time_limit() + PATIENCE
        work = [
            asyncio.ensure_future(admission.run(lambda: gate.wait(PATIENCE), request_of(), until))
            for _ in range(admission.threads)
        ]
        await asyncio.sleep(0)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            refused = await client.post(path, json=body)
            assert refused.status_code == status
            assert refused.json()["reason"] == reason
            assert int(refused.headers["retry-after"]) > 0
            assert (await client.get("/healthz")).status_code == 200
            gate.set()
            await asyncio.gather(*work)
            while (answer := await client.post(path, json=body)).status_code in (429, 503):
                await asyncio.sleep(0.01)  # the first text loads the encoder, which may take longer than the limit
            assert answer.status_code == 200

    app = create_app(ServerSettings({"photos": str(photos)}, limits=limits))
    try:
        asyncio.run(asyncio.wait_for(inner(app), PATIENCE))
    finally:
        app.state.server.admission.close()
        app.state.server.collections.close()
