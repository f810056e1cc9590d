"""Fetch an image from a URL that a user gave, without giving access to the private network."""

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
    """Return the content of an http or https URL; `timeout` is the limit in seconds for all requests together.

    A host name is resolved once, and connections go to the addresses that were checked, at every redirect. So a name
    cannot have a public address when it is checked and a private one when it is used. Proxies are not used, for the
    same reason.

    Raises `FetchError` if the URL is refused (other scheme; private, loopback or reserved address unless
    `allow_private`), cannot be reached, or answers with an error, a web page, or more than `max_bytes`.
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
