"""Fetch many images from many hosts at once: in the order in which they come, politely, and within bounds."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from heapq import heappop, heappush
from itertools import count, islice
from typing import Generic, TypeVar

import httpx

from ..errors import FetchError
from ._connections import Connections, Limits, parse_url
from .fetch import MAX_BYTES

_T = TypeVar("_T")

SECONDS = 20.0
CONNECTIONS = 64
PER_HOST = 16
"""A host that answers after 50 ms gives 300 images a second with 16 connections, about as many as two cores encode."""
THREAD_NAME = "pixmatcher-fetching"
_WINDOW = 1000
"""Requests looked at ahead, so that one host's do not keep the others' waiting."""
_HELD_BYTES = 128 << 20
_YIELD_SECONDS = 1.0
_CONNECT_SECONDS = 5.0
_TRIES = 3
_TRIES_IF_BUSY = 6
"""A server that asks for fewer requests may do so until there is only one at a time."""
_PAUSE_SECONDS = 1.0
"""Before the second try; it doubles from try to try."""
_LONGEST_PAUSE = 60.0
_SETBACKS = 5
"""A host is given up after so many in a row."""
_SETBACKS_IF_SILENT = 2
"""The same if it has never answered and takes long not to: a list may have many hosts that are gone."""
_MOST_HOSTS = 10_000


def fetch_all(
    requests: Iterable[tuple[_T, Sequence[str]]],
    *,
    batch_size: int,
    allow_private: bool = False,
    seconds: float = SECONDS,
    max_bytes: int = MAX_BYTES,
    connections: int = CONNECTIONS,
    per_host: int = PER_HOST,
) -> Generator[list[tuple[_T, bytes | FetchError]], None, None]:
    """Fetch images, each from the first of its URLs that gives one, and yield them in the order in which they come.

    A request is whatever the caller knows the image by, and one or more URLs. Requests are taken as needed, in the
    thread of the caller, about a thousand ahead. Lists have up to `batch_size` images; about once a second there is
    one, however short, an empty one too, so that the caller can store what there is. Close the generator to end early.

    An image may take `seconds` in all, without the pauses between tries, and have `max_bytes`. There are up to
    `connections` at once, `per_host` of them to one host (and port); a host that asks for less gets less. What may
    pass is tried again after a pause that doubles from try to try, or as long as the server asks. A host to which
    nothing comes through is given up. Bodies under way and those not yet taken hold about 128 MB at most.

    What cannot be fetched is given as a `FetchError`: those of `fetch.fetch`, for all of which `reason` is a short
    fixed phrase. No image ends the run; what `requests` raises is raised.
    """
    downloads: _Downloads[_T] = _Downloads(allow_private, seconds, max_bytes, connections, per_host)
    window = max(_WINDOW, 2 * batch_size)
    remaining = iter(requests)
    try:
        while True:
            for key, urls in islice(remaining, window - downloads.pending):
                downloads.add(key, urls)
            if not downloads.pending:
                return
            yield downloads.take(batch_size)
    finally:
        downloads.close()


class _Job(Limits, Generic[_T]):
    """The fetch of one image, and what it may take from the URL that is tried."""

    def __init__(self, downloads: _Downloads[_T], key: _T, urls: Sequence[str]) -> None:
        super().__init__("", downloads.seconds, downloads.max_bytes, _CONNECT_SECONDS)
        self.downloads = downloads
        self.key = key
        self.urls = deque(urls)
        self.target: httpx.URL
        self.tries = 0
        self.seconds_left = downloads.seconds
        self.spare_seconds = 0.0
        """What is put by for the URLs after this one."""
        self.started = 0.0
        self.held = 0
        """Bytes of its body that are in memory."""

    def next_url(self) -> None:
        """Go on with the next URL. Raises `FetchError` if it is none."""
        seconds = self.seconds_left + self.spare_seconds
        self.seconds = self.seconds_left = seconds / len(self.urls)
        self.spare_seconds = seconds - self.seconds
        self.redirects = self.tries = 0
        self.url = self.urls.popleft()
        self.target = parse_url(self.url)

    def received(self, count: int) -> None:
        # It is not the server's fault if this has to wait.
        self.deadline += self.downloads.hold(self, count)


class _Host(Generic[_T]):
    """What there is to fetch from a host, and what is known of it."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.jobs: deque[_Job[_T]] = deque()
        self.active = 0
        self.limit = float(limit)
        self.listed = False
        """Whether it is among those from which the next job is taken."""
        self.answered = 0.0
        """When it answered for the last time."""
        self.setbacks = 0
        """How often it had to be paused since."""
        self.paused = 0.0
        """When it was paused for the last time."""
        self.paused_until = 0.0
        self.given_up: FetchError | None = None


class _Downloads(Generic[_T]):
    """The threads, and all they share.

    No thread sleeps for an image or a host: what has to wait lies in a heap until its time has come.
    """

    def __init__(self, allow_private: bool, seconds: float, max_bytes: int, most_threads: int, per_host: int) -> None:
        self.seconds = seconds
        self.max_bytes = max_bytes
        self.pending = 0
        """Requests that were added and not yet taken."""
        self._connections = Connections(allow_private=allow_private, most_idle=most_threads)
        self._most_threads = most_threads
        self._per_host = per_host
        self._hosts: dict[bytes, _Host[_T]] = {}
        self._ready: deque[_Host[_T]] = deque()
        """The hosts from which a job can be begun, in turns."""
        self._later: list[tuple[float, int, _Host[_T], _Job[_T] | None]] = []
        """A heap of what has to wait, by its time: a job, or else a host that is paused."""
        self._numbers = count()
        self._done: deque[tuple[_Job[_T], bytes | FetchError]] = deque()
        self._wanted = 1
        self._held = 0
        self._starved = 0
        """How many threads wait for memory."""
        self._first: _Job[_T] | None = None
        """The only job whose body grows when the memory is used up, so that there is always one which can end."""
        self._threads = 0
        self._idle = 0
        self._coming = False
        """Whether a thread was called that is not there yet."""
        self._timed = False
        """Whether a thread waits for the first of `_later`."""
        self._closed = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._timer = threading.Condition(self._lock)
        self._results = threading.Condition(self._lock)
        self._memory = threading.Condition(self._lock)

    # In the thread of the caller

    def add(self, key: _T, urls: Sequence[str]) -> None:
        job = _Job(self, key, urls)
        with self._lock:
            self.pending += 1
            self._advance(job, FetchError("There is no URL to fetch: give one.", "not a URL", "there is none"))
            self._call_thread()

    def take(self, most: int) -> list[tuple[_T, bytes | FetchError]]:
        """Up to `most` images that are done; fewer after a second, or if there is no memory for more."""
        deadline = time.monotonic() + _YIELD_SECONDS
        with self._lock:
            self._wanted = min(most, self.pending)
            while not self._is_enough() and (seconds := deadline - time.monotonic()) > 0:
                self._results.wait(seconds)
            taken = [self._done.popleft() for _ in range(min(most, len(self._done)))]
            self.pending -= len(taken)
            self._release(sum(job.held for job, _ in taken))
        return [(job.key, outcome) for job, outcome in taken]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for condition in (self._work, self._timer, self._memory):
                condition.notify_all()
        self._connections.close()

    # In the threads

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            host, job = taken
            outcome: bytes | httpx.URL | FetchError
            try:
                outcome = self._connections.get(job.target, job)
            except FetchError as error:
                outcome = _bare(error)
            except Exception as error:  # one image must never end the run
                detail = f"{type(error).__name__}: {error}"
                outcome = FetchError(f"{job.url} cannot be fetched ({detail}).", "cannot be fetched", detail)
            with self._lock:
                self._finish(host, job, outcome)
            del taken, host, job, outcome  # nothing is held while this waits

    def _next(self) -> tuple[_Host[_T], _Job[_T]] | None:
        """Wait for a job whose turn it is; None at the end."""
        with self._lock:
            self._coming = False
            while not self._closed:
                now = time.monotonic()
                while self._later and self._later[0][0] <= now:
                    _, _, host, waited = heappop(self._later)
                    if waited is not None:
                        self._queue(waited, host)
                    self._list(host)
                if self._ready:
                    host = self._ready.popleft()
                    host.listed = False
                    job = host.jobs.popleft()
                    host.active += 1
                    self._list(host)
                    self._call_thread()
                    job.started = now
                    job.deadline = now + job.seconds_left
                    return host, job
                if self._later and not self._timed:
                    self._timed = True
                    self._timer.wait(self._later[0][0] - now)
                    self._timed = False
                else:
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                self._coming = False
        return None

    def hold(self, job: _Job[_T], count: int) -> float:
        """Wait until there is room for that many bytes more; returns the seconds this took."""
        started = 0.0
        with self._lock:
            while (
                self._held + count > _HELD_BYTES
                and (self._done or self._first not in (None, job))  # what is done will be taken
                and not self._closed
            ):
                started = started or time.monotonic()
                self._starved += 1
                self._results.notify()
                self._memory.wait()
                self._starved -= 1
            if self._held + count > _HELD_BYTES:
                self._first = job
            self._held += count
            job.held += count
        return time.monotonic() - started if started else 0.0

    # In either, with the lock held

    def _finish(self, host: _Host[_T], job: _Job[_T], outcome: bytes | httpx.URL | FetchError) -> None:
        """Go on after one request of a job."""
        now = time.monotonic()
        host.active -= 1
        job.seconds_left = job.deadline - now
        if self._first is job:
            self._first = None
        if isinstance(outcome, FetchError):
            self._release(job.held)
            job.held = 0
            job.tries += 1
            busy = _is_busy(outcome)
            self._learn(host, job, outcome, now)
            most = _TRIES_IF_BUSY if busy else _TRIES
            if outcome.transient and job.tries < most and job.seconds_left > 0 and host.given_up is None:
                self._wait_until(host.paused_until if busy else now + _pause(job.tries), host, job)
            else:
                self._advance(job, outcome)
        else:
            host.answered = now
            host.setbacks = 0
            host.limit = min(self._per_host, host.limit + 1 / host.limit)
            if isinstance(outcome, bytes):
                self._settle(job, outcome)
            else:
                job.target = outcome
                self._queue(job, self._host(outcome))
        self._list(host)

    def _learn(self, host: _Host[_T], job: _Job[_T], error: FetchError, now: float) -> None:
        """Ask less of a host, after a pause, that asks for it or is silent; give it up if that has not helped."""
        busy = _is_busy(error)
        if not busy and not _is_silent(error):
            host.answered = now
            host.setbacks = 0
        elif job.started >= (host.paused if busy else max(host.paused, host.answered)):  # otherwise it is no news
            host.setbacks += 1
            host.limit = max(1.0, host.limit / 2)
            host.paused = now
            seconds = _pause(host.setbacks) if error.retry_after is None else error.retry_after
            host.paused_until = now + min(seconds, _LONGEST_PAUSE)
            if host.listed:
                host.listed = False
                self._ready.remove(host)
            silent = not host.answered and now - job.started >= _CONNECT_SECONDS / 2
            if (
                host.setbacks < (_SETBACKS_IF_SILENT if silent and not busy else _SETBACKS)
                and seconds <= _LONGEST_PAUSE
            ):
                self._wait_until(host.paused_until, host, None)
            else:
                host.given_up = error
                left, host.jobs = host.jobs, deque()
                for other in left:
                    self._advance(other, _given_up(other, host))

    def _advance(self, job: _Job[_T], failure: FetchError) -> None:
        """Go on with the job's next URL; if there is none, the job has failed."""
        while job.urls:
            try:
                job.next_url()
            except FetchError as error:
                failure = _bare(error)
                continue
            host = self._host(job.target)
            if host.given_up is None:
                host.jobs.append(job)
                self._list(host)
                return
            failure = _given_up(job, host)
        self._settle(job, failure)

    def _queue(self, job: _Job[_T], host: _Host[_T]) -> None:
        """Let a job that has begun go on, before those that have not."""
        if host.given_up is None:
            host.jobs.appendleft(job)
            self._list(host)
        else:
            self._advance(job, _given_up(job, host))

    def _settle(self, job: _Job[_T], outcome: bytes | FetchError) -> None:
        self._done.append((job, outcome))
        if self._is_enough():
            self._results.notify()

    def _is_enough(self) -> bool:
        """Whether the caller is to get what is done: as much as it wants, or no more can come because of the memory."""
        return len(self._done) >= (min(1, self._wanted) if self._starved else self._wanted)

    def _wait_until(self, when: float, host: _Host[_T], job: _Job[_T] | None) -> None:
        number = next(self._numbers)
        heappush(self._later, (when, number, host, job))
        if self._later[0][1] == number:
            self._timer.notify()

    def _list(self, host: _Host[_T]) -> None:
        """Put a host among those from which jobs are begun, if one can be."""
        if host.jobs and not host.listed and host.active < int(host.limit) and time.monotonic() >= host.paused_until:
            host.listed = True
            self._ready.append(host)

    def _call_thread(self) -> None:
        """Let one more thread come if there is something for it; it calls the next."""
        if self._coming or not (self._ready or (self._later and not self._timed)):
            return
        self._coming = True
        if self._idle:
            self._work.notify()
        elif self._timed:
            self._timer.notify()
        elif self._threads < self._most_threads:
            try:
                threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()
            except RuntimeError:  # the system allows no more
                if not self._threads:
                    raise
                self._most_threads = self._threads
                self._coming = False
            else:
                self._threads += 1
        else:
            self._coming = False  # all are busy

    def _release(self, count: int) -> None:
        """Give back memory."""
        self._held -= count
        if count:
            self._memory.notify_all()

    def _host(self, url: httpx.URL) -> _Host[_T]:
        host = self._hosts.get(url.netloc)
        if host is None:
            if len(self._hosts) >= _MOST_HOSTS:
                waiting = {id(host) for _, _, host, _ in self._later}
                self._hosts = {n: h for n, h in self._hosts.items() if h.jobs or h.active or id(h) in waiting}
            host = self._hosts[url.netloc] = _Host(url.netloc.decode("ascii"), self._per_host)
        return host


def _is_busy(error: FetchError) -> bool:
    """Whether the server asks for fewer requests."""
    return error.transient and (error.retry_after is not None or error.reason == "HTTP 429")


def _is_silent(error: FetchError) -> bool:
    """Whether nothing came through from the host."""
    return error.reason == "took too long" or (
        error.transient and error.reason in ("host does not answer", "host not known")
    )


def _pause(times: int) -> float:
    """Seconds to wait after the first, second ... time that something did not work."""
    return _PAUSE_SECONDS * 2.0 ** (times - 1) * random.uniform(0.75, 1.25)


def _given_up(job: Limits, host: _Host[_T]) -> FetchError:
    assert host.given_up is not None
    detail = f"{host.name} was given up: {host.given_up.detail or host.given_up.reason}"
    return FetchError(f"{job.url} was not fetched ({detail}): try again later.", host.given_up.reason, detail)


def _bare(error: FetchError) -> FetchError:
    """The error without its traceback, which holds on to all that the functions held, bodies too."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
