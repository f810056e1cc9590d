"""Work for requests runs in few threads beside the event loop; only so many requests may wait, and none too long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from ._metrics import work_gauges
from ._problems import ProblemError

_T = TypeVar("_T")

_RETRY_SECONDS = 1
"""When a client should try again; the work that waits is usually done by then."""


class Admission:
    """A pool of threads with a limit on the work that waits for them."""

    def __init__(self, name: str, threads: int, waiting: int, seconds: float) -> None:
        """`name` is the one in metrics; `seconds` is the longest time for a request, with all its work."""
        self._all_work, self._running_work = work_gauges(name)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pixmatcher-work")
        self.threads = threads
        self._most = threads + waiting
        self._seconds = seconds
        self._admitted = 0
        self._lock = threading.Lock()

    def time_limit(self) -> float:
        """Return when a request that begins now must be answered, by the clock of the event loop."""
        return asyncio.get_running_loop().time() + self._seconds

    async def run(self, work: Callable[[], _T], request: Request, until: float) -> _T:
        """Return `work()`, which one of the threads calls; errors are raised as it raises them.

        `until` is the value of `time_limit`. Work that has not begun by then, or whose client is gone, is not begun.
        The body of the request must have been read.

        Raises `ProblemError` if too many wait, the time limit is over, or the client is gone.
        """
        self._admit()
        return await self._run(work, request, until, self._release)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Take one place for all of `run_in_place` in the block. Raises `ProblemError` if too many wait."""
        self._admit()
        try:
            yield
        finally:
            self._release()

    async def run_in_place(self, work: Callable[[], _T], request: Request, until: float) -> _T:
        """Return `work()` as `run` does, in a block of `place`."""
        return await self._run(work, request, until, None)

    async def _run(
        self, work: Callable[[], _T], request: Request, until: float, release: Callable[[], None] | None
    ) -> _T:
        future = self._pool.submit(self._counted, work)
        if release is not None:
            # Not when the client stops waiting: the thread works on.
            future.add_done_callback(lambda _: release())
        try:
            return await self._result(future, request, until, watch=self._admitted > self.threads)
        finally:
            future.cancel()  # without effect on work that has begun

    def _counted(self, work: Callable[[], _T]) -> _T:
        with self._running_work.track_inprogress():
            return work()

    def _admit(self) -> None:
        with self._lock:
            if self._admitted >= self._most:
                raise ProblemError(
                    429,
                    "too many requests",
                    "Too many requests wait at the moment: try again later.",
                    {"Retry-After": str(_RETRY_SECONDS)},
                )
            self._admitted += 1
        self._all_work.inc()

    def _release(self) -> None:
        with self._lock:
            self._admitted -= 1
        self._all_work.dec()

    async def _result(self, future: Future[_T], request: Request, until: float, watch: bool) -> _T:
        """Return the result of the work; with `watch`, stop waiting when the client is gone."""
        result = asyncio.wrap_future(future)
        awaited: set[asyncio.Future[Any]] = {result}
        gone = asyncio.ensure_future(_wait_until_gone(request)) if watch else None
        if gone is not None:
            awaited.add(gone)
        remaining = max(0.0, until - asyncio.get_running_loop().time())
        try:
            await asyncio.wait(awaited, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if gone is not None and not gone.done():
                gone.cancel()
        if result.done():
            return result.result()
        result.cancel()
        if gone is not None and gone.done():
            raise ProblemError(408, "client gone", "The client closed the connection before it had the answer.")
        raise ProblemError(
            503,
            "time limit",
            f"The answer took longer than {self._seconds:g} seconds: try again later, or ask for less.",
            {"Retry-After": str(_RETRY_SECONDS)},
        )

    def close(self) -> None:
        """Wait for the work that has begun; other work is not begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
