"""Metrics for Prometheus, of one process or of several workers together. No value of a label is chosen by clients.

With several workers, each keeps its counts in files of one folder. prometheus-client reads the environment variable
that names it when it is imported.
"""

from __future__ import annotations

import os
import time
from collections import Counter as Counts
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import PixMatcherError
from ..searching import Query
from ._collections import ServedCollections
from ._job_runner import JobRunner
from .settings import METRICS_VARIABLE

MEDIA_TYPE = CONTENT_TYPE_LATEST

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NO_ROUTE = "none"
"""Stands for the route of a request that fits none, so that the paths of clients make no labels."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

disable_created_metrics()  # type: ignore[no-untyped-call]  # the times of creation double the answer
_registry = CollectorRegistry()
_requests = Counter(
    "pixmatcher_requests", "Requests that were answered.", ("route", "method", "status"), registry=_registry
)
_request_seconds = Histogram(
    "pixmatcher_request_seconds",
    "Time from the first byte of a request to the end of its answer.",
    ("route",),
    buckets=_SECONDS,
    registry=_registry,
)
_requests_running = Gauge(
    "pixmatcher_requests_running", "Requests under way.", multiprocess_mode="livesum", registry=_registry
)
_received = Counter("pixmatcher_received_bytes", "Bytes of the bodies of requests.", registry=_registry)
_sent = Counter("pixmatcher_sent_bytes", "Bytes of the bodies of answers.", registry=_registry)
_refused = Counter("pixmatcher_refused", "Requests that were refused because of the load (429).", registry=_registry)
_queries = Counter("pixmatcher_queries", "Queries that were answered.", ("kind", "space"), registry=_registry)

_work = Gauge(
    "pixmatcher_work",
    "Queries and thumbnails (work), or images of URLs (fetch), that threads are at or that wait for one.",
    ("pool",),
    multiprocess_mode="livesum",
    registry=_registry,
)
_work_running = Gauge(
    "pixmatcher_work_running",
    "Those of them that threads are at.",
    ("pool",),
    multiprocess_mode="livesum",
    registry=_registry,
)


def work_gauges(pool: str) -> tuple[Gauge, Gauge]:
    """Return the gauge of the work that was admitted to a pool of threads, and that of the work under way."""
    return _work.labels(pool), _work_running.labels(pool)


def count_query(kind: str, space: str) -> None:
    """Count an answered query. `kind` is vector or that of `query_kind`; the space is one of a collection."""
    _queries.labels(kind, space).inc()


def query_kind(query: Query) -> str:
    """Return text, image or item for a query that consists of such parts, else mixture."""
    kinds = {
        "text" if part.text is not None else "item" if part.item is not None else "image" for part, _ in query.parts
    }
    return kinds.pop() if len(kinds) == 1 else "mixture"


class MetricsMiddleware:
    """Counts requests, their time and their bytes. It is the outermost one, so that it sees every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # Looking up a label takes longer than counting.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        received = sent = status = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_counted(message: Message) -> None:
            nonlocal sent, status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        _requests_running.inc()
        try:
            await self._app(scope, receive_counted, send_counted)
        finally:
            _requests_running.dec()
            self._count(scope, status, time.perf_counter() - started)
            _received.inc(received)
            _sent.inc(sent)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path_format", _NO_ROUTE)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key = (route, method, status)
        counter = self._counters.get(key)
        if counter is None:
            # 0 stands for a request that was given up before its answer began.
            counter = self._counters[key] = _requests.labels(route, method, str(status))
        counter.inc()
        histogram = self._histograms.get(route)
        if histogram is None:
            histogram = self._histograms[route] = _request_seconds.labels(route)
        histogram.observe(seconds)
        if status == 429:
            _refused.inc()


class CountedState(Protocol):
    """What the metrics of the service's state are made from; `ServerState` is one."""

    collections: ServedCollections
    jobs: JobRunner


def metrics_text(state: CountedState) -> bytes:
    """Return all metrics in the format of Prometheus: those of all workers, and those of the collections and jobs."""
    now = CollectorRegistry()
    now.register(_StateCollector(state))
    if os.environ.get(METRICS_VARIABLE):
        counted = CollectorRegistry()
        multiprocess.MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        now.register(_WorkersCollector(Path(os.environ[METRICS_VARIABLE])))
    else:
        counted = _registry
        ProcessCollector(registry=now)
    return generate_latest(counted) + generate_latest(now)


class _StateCollector:
    """The numbers of items and jobs, which are read when they are asked for."""

    def __init__(self, state: CountedState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        collections = self._state.collections
        available = GaugeMetricFamily(
            "pixmatcher_collection_available", "Whether a collection can be read now.", labels=("collection",)
        )
        items = GaugeMetricFamily("pixmatcher_items", "Items of a collection.", labels=("collection",))
        for name in collections.names:
            try:
                items.add_metric((name,), collections.read(name, len))
                available.add_metric((name,), 1)
            except PixMatcherError:
                available.add_metric((name,), 0)
        yield available
        yield items
        counts = Counts[str]()
        with suppress(PixMatcherError):  # the other metrics say more than none, on a full disk above all
            counts.update(job.state for job in self._state.jobs.jobs())
        jobs = GaugeMetricFamily("pixmatcher_jobs", "Jobs that are known, by state.", labels=("state",))
        for state, count in sorted(counts.items()):
            jobs.add_metric((state,), count)
        yield jobs


class _WorkersCollector:
    """Memory and processor time of all workers together, under the names that one process has."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; on systems without /proc, the number of workers only."""
        workers = {int(file.stem.rpartition("_")[2]) for file in self._folder.glob("counter_*.db")}
        memory = seconds = 0.0
        alive = 0
        for pid in workers:
            with suppress(OSError, ValueError, IndexError):
                # The name of the program in brackets may hold anything.
                fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
                alive += 1
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                memory += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        yield GaugeMetricFamily("pixmatcher_workers", "Processes that answer requests.", alive or len(workers))
        if alive:
            yield GaugeMetricFamily("process_resident_memory_bytes", "Memory of all workers, in bytes.", memory)
            yield CounterMetricFamily("process_cpu_seconds", "Processor time of all workers, in seconds.", seconds)
