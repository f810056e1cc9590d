"""Answers that are files, with validators and ranges (RFC 9110)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import IO
from urllib.parse import quote

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from ._problems import Problem, problem_response

_log = logging.getLogger("pixmatcher.server")

_BLOCK = 256 << 10
_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.ASCII | re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._ ()+-]")

PICTURE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
}
"""A browser shows the file as an image and as nothing else, whatever it contains besides."""


def inline_disposition(name: str) -> str:
    """Return the header Content-Disposition that shows a file, and saves it under its name."""
    plain = _UNSAFE.sub("_", name)
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def is_not_modified(request: Request, tag: str) -> bool:
    """Return whether the client has the version of this entity tag already (If-None-Match)."""
    known = request.headers.get("if-none-match")
    if known is None:
        return False
    return known.strip() == "*" or tag in {each.strip().removeprefix("W/") for each in known.split(",")}


def bytes_response(request: Request, data: bytes, media_type: str, headers: Mapping[str, str], tag: str) -> Response:
    """Return bytes as a response, or 304 if the client has them already."""
    headers = {**headers, "ETag": tag}
    if is_not_modified(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=media_type)


class FileResponse(Response):
    """An open file, or the one range of it that the client asks for; the file is closed in the end.

    Several ranges at once, and ranges that are not valid, get the whole file, as RFC 9110 allows; a range behind its
    end gets 416.
    """

    def __init__(
        self, request: Request, file: IO[bytes], size: int, media_type: str, headers: Mapping[str, str], tag: str
    ) -> None:
        self._file = file
        self._left = 0
        headers = {**headers, "ETag": tag, "Accept-Ranges": "bytes"}
        if is_not_modified(request, tag):
            super().__init__(status_code=304, headers=headers)
            return
        start, end, status = 0, size, 200
        given = request.headers.get("range") if request.method in ("GET", "HEAD") else None
        if given is not None and request.headers.get("if-range", tag).strip() == tag:
            found = _requested_range(given, size)
            if found is not None:
                start, end = found
                status = 206 if start < end else 416
        if status == 416:
            detail = f"The file has {size} bytes: ask for a range inside it."
            problem = Problem(title="Range Not Satisfiable", status=416, detail=detail, reason="range not satisfiable")
            refused = problem_response(problem, {"Content-Range": f"bytes */{size}"})
            super().__init__(refused.body, 416, headers=dict(refused.headers))
            return
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        super().__init__(
            status_code=status, headers={**headers, "Content-Length": str(end - start)}, media_type=media_type
        )
        self._start, self._left = start, end - start

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file in blocks; it is read outside the event loop.

        The blocks do not wait with the queries: one takes well under a millisecond, a slow client takes few of them,
        and a file that was begun is to be sent to its end.
        """
        with self._file as file:
            if not self._left or scope["method"] == "HEAD":
                await super().__call__(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await run_in_threadpool(file.seek, self._start)
            while self._left:
                block = await run_in_threadpool(file.read, min(_BLOCK, self._left))
                if not block:
                    # The file became shorter. Without the promised length, the server closes the connection.
                    _log.warning("a file became shorter while it was sent")
                    return
                self._left -= len(block)
                await send({"type": "http.response.body", "body": block, "more_body": self._left > 0})


def _requested_range(given: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the end of the range that a client asks for; None if there is not exactly one.

    The range is empty if the file has none of its bytes.
    """
    match = _RANGE.fullmatch(given.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
