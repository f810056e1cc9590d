"""The command that offers a collection to language models: mcp."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..errors import PixMatcherError, QueryError
from ._app import SEARCH, command
from ._opening import runtime_of
from ._options import BackendOption, CollectionOption, DeviceOption, OfflineOption


@command("mcp", example="pixmatcher mcp -c ~/Pictures", panel=SEARCH)
def mcp_command(
    collection: CollectionOption = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve over HTTP, instead of on standard input and output.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="With --http: the address to serve; others than loopback addresses need --token-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --http: the port; 0 for any free one.")] = 8601,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --http: serve only clients that send a token of this file."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With --http: a host name under which clients call it; repeat the option for several.",
            show_default=False,
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch the image URLs that clients give; public addresses only.")
    ] = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Offer a collection to language models as tools (Model Context Protocol): search, and see images."""
    if any(find_spec(name) is None for name in ("mcp", "fastapi", "httptools")):
        raise PixMatcherError("The tools need more packages: install them with pip install 'pixmatcher[mcp]'.")
    if not http and (token_file is not None or allowed_host):
        raise QueryError("--token-file and --allowed-host work with --http only.")
    from .._logging import show_log
    from ..collection import Collection
    from ..server.mcp import ToolSettings, serve_http, serve_stdio

    show_log()
    reference = collection if collection is not None else str(Collection.find())
    settings = ToolSettings(runtime_of(backend, device, offline), allow_urls)
    if http:

        def print_ready(url: str) -> None:
            print(f"The tools are served at {url}. Stop with Ctrl-C.", file=sys.stderr, flush=True)

        serve_http(
            reference,
            settings,
            host=host,
            port=port,
            token_file=token_file,
            allowed_hosts=allowed_host or (),
            on_ready=print_ready,
        )
    else:
        serve_stdio(reference, settings)
