"""Fetch an image from a URL that a user gave, without becoming a way into the private network."""

from __future__ import annotations

from contextlib import closing

MAX_BYTES = 25 << 20
TIMEOUT_SECONDS = 10.0


def fetch(
    url: str,
    *,
    allow_private: bool = False,
    timeout: float = TIMEOUT_SECONDS,
    max_bytes: int = MAX_BYTES,
) -> bytes:
    """Return what lies at `url`, an http or https URL, within `timeout` seconds in all.

    A host name is resolved once and its checked addresses are those connected to, at every redirect, so that a name
    cannot answer with a public address first and a private one then. Proxies are not used, for the same reason.

    Raises `FetchError` if the URL is refused (other scheme; private, loopback or reserved address unless
    `allow_private`), cannot be reached, answers anything but success, a web page, or more than `max_bytes`.
    """
    from ._connections import Connections, Limits, parse_url

    limits = Limits(url, timeout, max_bytes)
    target = parse_url(url)
    with closing(Connections(allow_private=allow_private)) as connections:
        while True:
            answer = connections.get(target, limits)
            if isinstance(answer, bytes):
                return answer
            target = answer
