"""Restricts the HTTP routes of Streamlit itself while the app is shared.

The pages ask for the password, but Streamlit's own routes do not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .share import shared_password

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_STREAMLIT_ROUTES = "_stcore"
_OPEN_ROUTES = {"health", "host-config", "stream", "bidi-components"}
"""What a page needs before the visitor has entered the password. None of it shows any data."""

_admitted: set[str] = set()


def admit(session_id: str) -> None:
    """Allow uploads to the session of a visitor who has entered the password."""
    _admitted.add(session_id)


def is_allowed(path: str) -> bool:
    """Return whether a shared app may answer this path.

    The server's metrics stay closed. Uploads without the password could fill the memory.
    """
    parts = path.split("/")
    if _STREAMLIT_ROUTES not in parts:
        return True
    route, *rest = [*parts[parts.index(_STREAMLIT_ROUTES) + 1 :], ""]
    return route in _OPEN_ROUTES or (route == "upload_file" and rest[0] in _admitted)


class RouteGuard:
    """ASGI middleware that answers 404 to paths that are not allowed while the app is shared."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and shared_password() is not None and not is_allowed(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)
