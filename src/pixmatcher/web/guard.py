"""What of Streamlit's own interface answers while the app is shared: the pages ask for the password, it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .share import shared_password

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_CORE = "_stcore"
_OPEN = {"health", "host-config", "stream", "bidi-components"}
"""What a page needs before the password was given: is the server there, how to reach it, its constant scripts."""

_admitted: set[str] = set()


def admit(session_id: str) -> None:
    """Let a visitor who gave the password upload files."""
    _admitted.add(session_id)


def may_pass(path: str) -> bool:
    """Whether a path may be answered in a shared app. Figures of the server are nobody's; who did not give the password
    could fill the memory with uploads."""
    parts = path.split("/")
    if _CORE not in parts:
        return True
    named, *rest = [*parts[parts.index(_CORE) + 1 :], ""]
    return named in _OPEN or (named == "upload_file" and rest[0] in _admitted)


class Guard:
    """ASGI middleware that answers 404 to what may not pass while the app is shared."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and shared_password() is not None and not may_pass(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._app(scope, receive, send)
