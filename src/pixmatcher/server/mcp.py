"""The collection as tools of the Model Context Protocol (MCP), over standard streams or over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, PaginatedRequestParams
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from .._cores import usable_cores
from .._version import __version__
from ..collection import open_collection
from ..errors import PixMatcherError
from ._collections import ServedCollections
from ._mcp_tools import INSTRUCTIONS, ToolSettings, call_tool, failure, list_tools
from ._middleware import RequestGuard
from ._problems import ProblemError, problem_of, problem_response
from ._tokens import TokenFile
from .serve import LOOPBACK_HOSTS, is_loopback, open_socket, run_server, server_of
from .settings import Limits, ServerSettings

__all__ = ["PATH", "CollectionTools", "ToolSettings", "create_http_app", "create_server", "serve_http", "serve_stdio"]

PATH = "/mcp"
MOST_CALLS = 64
"""The most calls at once, with those that wait for a thread; with more, clients are asked to try again later."""
_BODY_BYTES = 36 << 20
"""The most bytes of a request: an image of the greatest size in base64, and the rest."""
_NAME = "served"  # as it is in "the collection served"

_ONLY_POST = ProblemError(
    405,
    "method not allowed",
    "Only POST is answered here: the server sends no messages but answers.",
    {"Allow": "POST"},
)

_log = logging.getLogger("pixmatcher.server")


class CollectionTools:
    """The tools of one collection. Calls run in a few threads, so that the event loop stays free."""

    def __init__(self, reference: str, settings: ToolSettings) -> None:
        """Open the collection: a folder, or NAME:REST. Raises `CollectionError` if that is not possible."""
        self._settings = settings
        open_collection(reference).close()  # what is wrong is reported here, and to clients only that it is not there
        self._collections = ServedCollections({_NAME: reference})
        self._limiter = anyio.CapacityLimiter(max(2, usable_cores()))
        self._calls = 0

    async def list(self) -> ListToolsResult:
        """Return the tools."""
        return ListToolsResult(tools=list_tools(self._settings))

    async def call(self, name: str, arguments: dict[str, Any] | None) -> CallToolResult:
        """Return what a tool answers; an error of the library is an answer too."""
        if self._calls >= MOST_CALLS:
            return failure(PixMatcherError("Too many calls wait already: try again in a few seconds."))
        self._calls += 1
        try:
            return await anyio.to_thread.run_sync(partial(self._call, name, arguments), limiter=self._limiter)
        finally:
            self._calls -= 1

    def _call(self, name: str, arguments: dict[str, Any] | None) -> CallToolResult:
        try:
            store = self._collections.get(_NAME)
            try:
                return call_tool(store, name, arguments, self._settings)
            except PixMatcherError:
                # The collection may have been replaced or upgraded while it was searched.
                current = self._collections.get(_NAME)
                if current is store:
                    raise
                return call_tool(current, name, arguments, self._settings)
        except PixMatcherError as error:
            return failure(error)
        except Exception:
            _log.exception("the tool %s failed", name)
            return failure(PixMatcherError("The tool failed: this is a defect, please report it with the log."))

    def close(self) -> None:
        """Close the collection."""
        self._collections.close()


def create_server(tools: CollectionTools) -> Server[Any]:
    """Return the server of the protocol with these tools; it has no transport yet."""

    async def on_list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return await tools.list()

    async def on_call_tool(_: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        return await tools.call(params.name, params.arguments)

    return Server(
        "pixmatcher",
        version=__version__,
        title="PixMatcher",
        instructions=INSTRUCTIONS,
        on_list_tools=on_list_tools,
        on_call_tool=on_call_tool,
    )


def serve_stdio(reference: str, settings: ToolSettings) -> None:
    """Serve a collection on standard input and output until the input ends.

    Only the protocol is written to standard output; what else is printed there goes to standard error. Raises
    `CollectionError` if the collection cannot be opened.
    """
    tools = CollectionTools(reference, settings)
    server = create_server(tools)

    async def run() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    try:
        anyio.run(run)
    finally:
        tools.close()


def create_http_app(tools: CollectionTools, settings: ServerSettings) -> ASGIApp:
    """Return the ASGI application that serves the tools at `PATH`, over streamable HTTP.

    Hosts, origins, tokens and limits are checked as the service does, by the settings; their collections are not used.
    Raises `PixMatcherError` if the token file cannot be used.
    """
    logging.getLogger("mcp.server.streamable_http").addFilter(_is_worth_logging)
    # Tools remember nothing between calls, so a client needs no session, and one that disappears leaves nothing.
    protocol = create_server(tools).streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        json_response=True,
        max_request_body_size=settings.limits.body_bytes,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the guard checks more
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] != "POST":
            # A client may ask by GET for a stream of messages, of which there are none: each would keep a connection.
            await problem_response(problem_of(_ONLY_POST), _ONLY_POST.headers)(scope, receive, send)
        else:
            await protocol(scope, receive, send)

    tokens = None if settings.token_file is None else TokenFile(settings.token_file)
    return RequestGuard(app, settings, tokens, set())


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Return False for the traceback that the package mcp logs when a client has left before its request was read."""
    return not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnect))


def serve_http(
    reference: str,
    settings: ToolSettings,
    *,
    host: str,
    port: int,
    token_file: Path | None = None,
    allowed_hosts: Sequence[str] = (),
    on_ready: Callable[[str], None],
) -> None:
    """Serve a collection over HTTP until the process gets SIGINT or SIGTERM.

    Without a token file, only a loopback address is accepted. Requests under other names than `allowed_hosts` and those
    of this machine are refused; without such names, a service with tokens accepts all. `on_ready` is called with the
    URL when requests can be sent. Raises `PixMatcherError` if the address or the token file cannot be used,
    `CollectionError` if the collection cannot be opened.
    """
    loopback = is_loopback(host)
    if token_file is None and not loopback:
        raise PixMatcherError(
            f"Without tokens, only this machine is served: add --token-file FILE to serve {host}, or leave out --host."
        )
    hosts = (*LOOPBACK_HOSTS, *allowed_hosts) if loopback or allowed_hosts else ()
    limits = Limits(body_bytes=_BODY_BYTES)
    tools = CollectionTools(reference, settings)
    try:
        app = create_http_app(tools, ServerSettings({}, token_file, limits, hosts=hosts))
        with open_socket(host, port) as listening:
            name = f"[{host}]" if ":" in host else host
            url = f"http://{name}:{listening.getsockname()[1]}{PATH}"
            run_server(server_of(app, limits, lambda: on_ready(url)), listening)
    finally:
        tools.close()
