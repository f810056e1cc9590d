"""Who may call the service: the tokens of the token file, and the scopes that routes need."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from ..errors import PixMatcherError
from ._problems import ProblemError
from .tokens import Token, find_token, read_tokens

_log = logging.getLogger("pixmatcher.server")

SCOPE_KEY = "pixmatcher.scope"
"""Where the ASGI scope of a request keeps what its token allows; absent if the service needs no token."""

CLIENT_KEY = "pixmatcher.client"
"""Where it keeps who asks: the name of the token, or without tokens the address."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
"""What answers without a token. The schema is that of the public source code, and names no collection."""

_CHALLENGE = 'Bearer realm="PixMatcher"'
_CHECK_SECONDS = 1.0
"""Time between two looks at the token file."""


class TokenFile:
    """The tokens of a file, which is read again when it changes."""

    def __init__(self, file: Path) -> None:
        """Read the file. Raises `PixMatcherError` if it cannot be used."""
        self._file = file
        self._identity = self._failed = _identity(file)
        """The version of the file that was read last, and that which could not be read last."""
        self._tokens = read_tokens(file)
        self._next_check = time.monotonic() + _CHECK_SECONDS

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Token:
        """Return the token that a request brings. Raises `ProblemError` if it brings none that is valid."""
        scheme, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise ProblemError(
                401,
                "token missing",
                "The service needs a token: send it in the header Authorization: Bearer TOKEN.",
                {"www-authenticate": _CHALLENGE},
            )
        token = find_token(self._current(), secret.strip())
        expired = token is not None and token.until is not None and token.until <= datetime.now(timezone.utc)
        if token is None or expired:
            raise ProblemError(
                401,
                "token expired" if expired else "token not valid",
                f"The token {'has expired' if expired else 'is not valid'}: ask who runs the service for another one.",
                {"www-authenticate": f'{_CHALLENGE}, error="invalid_token"'},
            )
        return token

    def _current(self) -> list[Token]:
        """Return the tokens of the file as it is now, or the last ones that were valid."""
        now = time.monotonic()
        if now < self._next_check:
            return self._tokens
        self._next_check = now + _CHECK_SECONDS
        identity = _identity(self._file)
        if identity != self._identity:
            try:
                self._tokens = read_tokens(self._file)
                self._identity = identity
                _log.info("the token file has changed and is read again")
            except PixMatcherError as error:
                # It is tried again: what prevents reading may pass, and a token that was removed must not stay valid.
                if identity != self._failed:
                    _log.error("the token file has changed, and the tokens from before stay valid: %s", error)
                self._failed = identity
        return self._tokens


def _identity(file: Path) -> tuple[int, ...] | None:
    """Return what differs when a file was changed or replaced; None if it cannot be found."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


_scheme = HTTPBearer(
    auto_error=False, description="A token of the service's token file. The scope `write` includes `read`."
)


async def reads(_: object = Security(_scheme)) -> None:
    """Say in the schema that a route needs a token; `Depends(reads)`.

    Each valid token may read, and whether it is valid was checked before the request was read.
    """


async def writes(request: Request, _: object = Security(_scheme)) -> None:
    """Let a route be called only with a token that may write; `Depends(writes)`."""
    if request.scope.get(SCOPE_KEY, "write") != "write":
        raise ProblemError(
            403,
            "scope missing",
            "The token may only read: this needs a token with the scope write.",
            {"www-authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="write"'},
        )


async def _client_of(request: Request) -> str:
    client: str = request.scope.get(CLIENT_KEY, "")
    return client


ClientId = Annotated[str, Depends(_client_of)]
"""Who asks, by the token or the address; as a parameter of a route."""
