"""The state of each image and each host in `fetch_many`, and what to do after a failure."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import httpx

from ..errors import FetchError
from ._connections import Limits, parse_url

T = TypeVar("T")

CONNECT_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
"""The pause before the second try; it doubles from try to try."""


class Job(Limits, Generic[T]):
    """The fetch of one image, and the limits of the URL that is tried."""

    def __init__(
        self, key: T, urls: Sequence[str], seconds: float, max_bytes: int, reserve: Callable[[Job[T], int], float]
    ) -> None:
        super().__init__("", seconds, max_bytes, CONNECT_SECONDS)
        self.key = key
        self.urls = deque(urls)
        self.target: httpx.URL
        self.tries = 0
        self.seconds_left = seconds
        self.spare_seconds = 0.0
        """The seconds that are reserved for the URLs after this one."""
        self.started = 0.0
        self.bytes_in_memory = 0
        """The bytes of its body that were received and not yet taken."""
        self._reserve = reserve

    def next_url(self) -> None:
        """Continue with the next URL. Raises `FetchError` if it is not a valid URL."""
        seconds = self.seconds_left + self.spare_seconds
        self.seconds = self.seconds_left = seconds / len(self.urls)
        self.spare_seconds = seconds - self.seconds
        self.redirects = self.tries = 0
        self.forget_cookies()
        self.url = self.urls.popleft()
        self.target = parse_url(self.url)

    def received(self, count: int) -> None:
        # It is not the fault of the server if this has to wait for memory.
        self.deadline += self._reserve(self, count)


class Host(Generic[T]):
    """The images to fetch from one host, and how it has answered so far."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.jobs: deque[Job[T]] = deque()
        """The jobs that wait for a connection."""
        self.active = 0
        """The number of its jobs that are being fetched."""
        self.limit = float(limit)
        """The number of images to fetch at once; smaller after a failure."""
        self.is_ready = False
        """Whether it is in the queue of the hosts from which the next job is taken."""
        self.last_answer = 0.0
        """The time of its last answer; 0 if it has never answered."""
        self.setbacks = 0
        """How often it was paused since its last answer."""
        self.paused_at = 0.0
        """The time when it was paused for the last time."""
        self.paused_until = 0.0
        self.given_up: FetchError | None = None
        """The error for which it was given up."""


def is_busy(error: FetchError) -> bool:
    """Return whether the server asks for fewer requests."""
    return error.transient and (error.retry_after is not None or error.reason == "HTTP 429")


def is_silent(error: FetchError) -> bool:
    """Return whether the host did not answer at all."""
    return error.reason == "took too long" or (
        error.transient and error.reason in ("host does not answer", "host not known")
    )


def pause(times: int) -> float:
    """Return the seconds to wait after the first, second ... failure in a row; they vary by chance."""
    return _PAUSE_SECONDS * 2.0 ** (times - 1) * random.uniform(0.75, 1.25)


def host_given_up(job: Limits, host: Host[T]) -> FetchError:
    """Return the error of a job whose host was given up."""
    assert host.given_up is not None
    detail = f"{host.name} was given up: {host.given_up.detail or host.given_up.reason}"
    return FetchError(f"{job.url} was not fetched ({detail}): try again later.", host.given_up.reason, detail)


def without_traceback(error: FetchError) -> FetchError:
    """Return the error without its traceback, which would keep the variables of all functions, bodies too."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
