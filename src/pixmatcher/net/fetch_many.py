"""Fetch many images from many hosts at once, politely and within limits, and return them in the order they arrive."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Sequence
from itertools import islice

from ..errors import FetchError
from ._jobs import T
from ._scheduler import Scheduler
from .fetch import MAX_BYTES

SECONDS = 20.0
CONNECTIONS = 64
PER_HOST = 16
"""A host that answers after 50 ms gives 300 images a second with 16 connections, about as many as two cores encode."""
_LOOKAHEAD = 1000
"""Requests that are taken ahead, so that a slow host does not keep the others waiting."""

logger = logging.getLogger(__package__)


def fetch_all(
    requests: Iterable[tuple[T, Sequence[str]]],
    *,
    batch_size: int,
    allow_private: bool = False,
    seconds: float = SECONDS,
    max_bytes: int = MAX_BYTES,
    connections: int = CONNECTIONS,
    per_host: int = PER_HOST,
) -> Generator[list[tuple[T, bytes | FetchError]], None, None]:
    """Fetch images, each from the first of its URLs that gives it, and yield them in the order in which they arrive.

    A request is any key that identifies the image, and one or more URLs. Requests are taken as needed, in the
    thread of the caller, about a thousand ahead. Yields lists of up to `batch_size` images. At least about once a
    second a list is yielded, even a short or empty one, so that the caller can store its images. Close the generator
    to end early.

    An image may take `seconds` in all, without the pauses between tries, and have `max_bytes`. Up to `connections`
    requests run at once, `per_host` of them to one host (and port); a host that asks for fewer requests gets fewer.
    Temporary failures are retried after a pause that doubles from try to try, or as long as the server asks. A host
    that does not answer is given up. All bodies in memory have about 128 MB at most.

    An image that cannot be fetched is yielded as a `FetchError`, as `fetch.fetch` raises it; its `reason` is a short
    fixed phrase. No image ends the run; the errors of `requests` are raised.
    """
    scheduler: Scheduler[T] = Scheduler(allow_private, seconds, max_bytes, connections, per_host)
    window = max(_LOOKAHEAD, 2 * batch_size)
    remaining = iter(requests)
    started, fetched, failed = time.monotonic(), 0, 0
    try:
        while True:
            for key, urls in islice(remaining, window - scheduler.pending):
                scheduler.add(key, urls)
            if not scheduler.pending:
                return
            taken = scheduler.take(batch_size)
            failures = sum(isinstance(outcome, FetchError) for _, outcome in taken)
            fetched, failed = fetched + len(taken) - failures, failed + failures
            yield taken
    finally:
        scheduler.close()
        logger.info("fetched %d images, %d failed, in %.1f s", fetched, failed, time.monotonic() - started)
