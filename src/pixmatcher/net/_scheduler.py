"""The threads that fetch many images, and the order in which they do it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Generic

import httpx

from .._urls import without_password
from ..errors import FetchError
from ._connections import Connections
from ._jobs import CONNECT_SECONDS, Host, Job, T, host_given_up, is_busy, is_silent, pause, without_traceback

THREAD_NAME = "pixmatcher-fetching"
_MAX_MEMORY = 128 << 20
"""Bytes of all bodies that are being received, or were received and not yet taken."""
_TAKE_SECONDS = 1.0
_TRIES = 3
_TRIES_IF_BUSY = 6
"""A server that asks for fewer requests may do so until it gets only one at a time."""
_LONGEST_PAUSE = 60.0
_SETBACKS = 5
"""A host is given up after so many in a row."""
_SETBACKS_IF_SILENT = 2
"""The same for a host that has never answered and is slow to fail: a list may have many hosts that no longer exist."""
_MAX_HOSTS = 10_000

logger = logging.getLogger(__package__)


class Scheduler(Generic[T]):
    """The threads that fetch, and the state that they share.

    No thread sleeps for an image or a host: a job or host that has to wait is in a heap until its time has come.
    """

    def __init__(self, allow_private: bool, seconds: float, max_bytes: int, max_threads: int, per_host: int) -> None:
        self.pending = 0
        """The number of jobs that were added and not yet taken."""
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._connections = Connections(allow_private=allow_private, max_idle=max_threads)
        self._max_threads = max_threads
        self._per_host = per_host
        self._hosts: dict[bytes, Host[T]] = {}
        self._ready: deque[Host[T]] = deque()
        """The hosts from which a job can be started; each gives one job and goes to the end."""
        self._delayed: list[tuple[float, int, Host[T], Job[T] | None]] = []
        """A heap, by time, of the jobs that wait, and (with None) of the hosts that are paused."""
        self._numbers = count()
        self._done: deque[tuple[Job[T], bytes | FetchError]] = deque()
        self._wanted = 1
        """How many results the caller waits for."""
        self._memory_used = 0
        self._waiting_for_memory = 0
        """The number of threads that wait for memory."""
        self._may_exceed: Job[T] | None = None
        """The only job that may receive more when the memory is used up, so that there is always one that can end."""
        self._threads = 0
        self._idle = 0
        self._is_waking = False
        """Whether a thread was woken or started that does not run yet."""
        self._has_timer = False
        """Whether a thread waits for the first of `_delayed`."""
        self._closed = False
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._timer = threading.Condition(self._lock)
        self._results = threading.Condition(self._lock)
        self._memory = threading.Condition(self._lock)

    # Called in the thread of the caller

    def add(self, key: T, urls: Sequence[str]) -> None:
        """Add one image to fetch, from the first of `urls` that gives it."""
        job = Job(key, urls, self._seconds, self._max_bytes, self._reserve)
        with self._lock:
            self.pending += 1
            self._try_next_url(
                job, FetchError("The image has no URL: give one or more URLs.", "not a URL", "the image has no URL")
            )
            self._wake_thread()

    def take(self, max_count: int) -> list[tuple[T, bytes | FetchError]]:
        """Return up to `max_count` images that are done; fewer after a second, or if there is no memory for more."""
        deadline = time.monotonic() + _TAKE_SECONDS
        with self._lock:
            self._wanted = min(max_count, self.pending)
            while not self._is_enough() and (seconds := deadline - time.monotonic()) > 0:
                self._results.wait(seconds)
            taken = [self._done.popleft() for _ in range(min(max_count, len(self._done)))]
            self.pending -= len(taken)
            self._free_memory(sum(job.bytes_in_memory for job, _ in taken))
        return [(job.key, outcome) for job, outcome in taken]

    def close(self) -> None:
        """End all threads and close all connections."""
        with self._lock:
            self._closed = True
            for condition in (self._work, self._timer, self._memory):
                condition.notify_all()
        self._connections.close()

    # Called in the threads that fetch

    def _fetch_jobs(self) -> None:
        """Fetch jobs until no more are left; each thread runs this."""
        while (taken := self._next_job()) is not None:
            host, job = taken
            outcome: bytes | httpx.URL | FetchError
            try:
                outcome = self._connections.get(job.target, job)
            except FetchError as error:
                outcome = without_traceback(error)
            except Exception as error:  # one image must never end the run
                detail = f"{type(error).__name__}: {error}"
                outcome = FetchError(f"{job.url} cannot be fetched ({detail}).", "cannot be fetched", detail)
            with self._lock:
                self._handle_outcome(host, job, outcome)
            del taken, host, job, outcome  # keep no body in memory while this waits

    def _next_job(self) -> tuple[Host[T], Job[T]] | None:
        """Wait for a job that can be started; return None when this is closed."""
        with self._lock:
            self._is_waking = False
            while not self._closed:
                now = time.monotonic()
                while self._delayed and self._delayed[0][0] <= now:
                    _, _, host, waited = heappop(self._delayed)
                    if waited is not None:
                        self._requeue(waited, host)
                    self._update_ready(host)
                if self._ready:
                    host = self._ready.popleft()
                    host.is_ready = False
                    job = host.jobs.popleft()
                    host.active += 1
                    self._update_ready(host)
                    self._wake_thread()
                    job.started = now
                    job.deadline = now + job.seconds_left
                    return host, job
                if self._delayed and not self._has_timer:
                    self._has_timer = True
                    self._timer.wait(self._delayed[0][0] - now)
                    self._has_timer = False
                else:
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                self._is_waking = False
        return None

    def _reserve(self, job: Job[T], count: int) -> float:
        """Wait until there is memory for `count` bytes more; return the seconds that this took."""
        started = 0.0
        with self._lock:
            while (
                self._memory_used + count > _MAX_MEMORY
                and (self._done or self._may_exceed not in (None, job))  # the caller will take what is done
                and not self._closed
            ):
                started = started or time.monotonic()
                self._waiting_for_memory += 1
                self._results.notify()
                self._memory.wait()
                self._waiting_for_memory -= 1
            if self._memory_used + count > _MAX_MEMORY:
                self._may_exceed = job
            self._memory_used += count
            job.bytes_in_memory += count
        return time.monotonic() - started if started else 0.0

    # Called in any thread that holds the lock

    def _handle_outcome(self, host: Host[T], job: Job[T], outcome: bytes | httpx.URL | FetchError) -> None:
        """Store the result of a request, or try again, or follow a redirect."""
        now = time.monotonic()
        host.active -= 1
        job.seconds_left = job.deadline - now
        if self._may_exceed is job:
            self._may_exceed = None
        if isinstance(outcome, FetchError):
            self._free_memory(job.bytes_in_memory)
            job.bytes_in_memory = 0
            job.tries += 1
            busy = is_busy(outcome)
            self._judge_host(host, job, outcome, now)
            max_tries = _TRIES_IF_BUSY if busy else _TRIES
            if outcome.transient and job.tries < max_tries and job.seconds_left > 0 and host.given_up is None:
                logger.debug("retry %s: %s", without_password(job.url), outcome.reason)
                self._delay(host.paused_until if busy else now + pause(job.tries), host, job)
            else:
                self._try_next_url(job, outcome)
        else:
            host.last_answer = now
            host.setbacks = 0
            host.limit = min(self._per_host, host.limit + 1 / host.limit)
            if isinstance(outcome, bytes):
                self._complete(job, outcome)
            else:
                job.target = outcome
                self._requeue(job, self._host(outcome))
        self._update_ready(host)

    def _judge_host(self, host: Host[T], job: Job[T], error: FetchError, now: float) -> None:
        """Pause a host that is busy or silent, and ask less of it; give it up if that has not helped."""
        busy = is_busy(error)
        if not busy and not is_silent(error):
            host.last_answer = now
            host.setbacks = 0
            return
        if job.started < (host.paused_at if busy else max(host.paused_at, host.last_answer)):
            return  # the request is older than what is known of the host
        host.setbacks += 1
        host.limit = max(1.0, host.limit / 2)
        host.paused_at = now
        seconds = pause(host.setbacks) if error.retry_after is None else error.retry_after
        host.paused_until = now + min(seconds, _LONGEST_PAUSE)
        if host.is_ready:
            host.is_ready = False
            self._ready.remove(host)
        never_answered = not host.last_answer and now - job.started >= CONNECT_SECONDS / 2
        max_setbacks = _SETBACKS_IF_SILENT if never_answered and not busy else _SETBACKS
        if host.setbacks < max_setbacks and seconds <= _LONGEST_PAUSE:
            logger.debug("pause %s for %.1f s: %s", host.name, seconds, error.reason)
            self._delay(host.paused_until, host, None)
        else:
            logger.info("give up %s: %s", host.name, error.reason)
            host.given_up = error
            left, host.jobs = host.jobs, deque()
            for other in left:
                self._try_next_url(other, host_given_up(other, host))

    def _try_next_url(self, job: Job[T], failure: FetchError) -> None:
        """Continue with the next URL of a job; if there is none, `failure` is its result."""
        while job.urls:
            try:
                job.next_url()
            except FetchError as error:
                failure = without_traceback(error)
                continue
            host = self._host(job.target)
            if host.given_up is None:
                host.jobs.append(job)
                self._update_ready(host)
                return
            failure = host_given_up(job, host)
        self._complete(job, failure)

    def _requeue(self, job: Job[T], host: Host[T]) -> None:
        """Queue a job that was started before, ahead of those that were not."""
        if host.given_up is None:
            host.jobs.appendleft(job)
            self._update_ready(host)
        else:
            self._try_next_url(job, host_given_up(job, host))

    def _complete(self, job: Job[T], outcome: bytes | FetchError) -> None:
        """Store the result of a job."""
        self._done.append((job, outcome))
        if self._is_enough():
            self._results.notify()

    def _is_enough(self) -> bool:
        """Return whether the caller is to get the results: all that it waits for, or all that fit into the memory."""
        return len(self._done) >= (min(1, self._wanted) if self._waiting_for_memory else self._wanted)

    def _delay(self, until: float, host: Host[T], job: Job[T] | None) -> None:
        """Put a job, or without one the host, into the heap of those that wait."""
        number = next(self._numbers)
        heappush(self._delayed, (until, number, host, job))
        if self._delayed[0][1] == number:
            self._timer.notify()

    def _update_ready(self, host: Host[T]) -> None:
        """Put a host into the queue of ready hosts if one of its jobs can be started."""
        if host.jobs and not host.is_ready and host.active < int(host.limit) and time.monotonic() >= host.paused_until:
            host.is_ready = True
            self._ready.append(host)

    def _wake_thread(self) -> None:
        """Wake or start one more thread if there is work for it; that thread does the same for the next one."""
        if self._is_waking or not (self._ready or (self._delayed and not self._has_timer)):
            return
        self._is_waking = True
        if self._idle:
            self._work.notify()
        elif self._has_timer:
            self._timer.notify()
        elif self._threads < self._max_threads:
            try:
                threading.Thread(target=self._fetch_jobs, name=THREAD_NAME, daemon=True).start()
            except RuntimeError:  # the system allows no more threads
                if not self._threads:
                    raise
                self._max_threads = self._threads
                self._is_waking = False
            else:
                self._threads += 1
        else:
            self._is_waking = False  # all threads are busy

    def _free_memory(self, count: int) -> None:
        self._memory_used -= count
        if count:
            self._memory.notify_all()

    def _host(self, url: httpx.URL) -> Host[T]:
        """Return the host of a URL; old hosts without jobs are forgotten if there are too many."""
        host = self._hosts.get(url.netloc)
        if host is None:
            if len(self._hosts) >= _MAX_HOSTS:
                waiting = {id(host) for _, _, host, _ in self._delayed}
                self._hosts = {n: h for n, h in self._hosts.items() if h.jobs or h.active or id(h) in waiting}
            host = self._hosts[url.netloc] = Host(url.netloc.decode("ascii"), self._per_host)
        return host
