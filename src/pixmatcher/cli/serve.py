"""The commands of the service: serve, and those that manage its tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from .._cores import usable_cores
from .._text import printable
from ..errors import PixMatcherError, QueryError
from ._app import SERVICE, command, tokens_app
from ._options import MegapixelsOption, PrivateHostsOption, pixels_of
from ._output import print_pairs

_MOST_WORKERS = 8
"""The most processes that answer requests if their number is not given: each needs some 250 MB."""

TokenFileOption = Annotated[Path, typer.Option("--file", metavar="FILE", help="The token file.")]


@command("serve", example="pixmatcher serve -c ~/Pictures", panel=SERVICE)
def serve_command(
    collections: Annotated[
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            metavar="[NAME=]COLLECTION",
            help="A collection to serve, and its name in URLs; repeat the option for several. By default, the nearest "
            "collection in or above the current folder, with the name of its folder.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for all. Others than loopback need a token file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 for a free one.")] = 8600,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer only clients with a token of this file; `tokens add` makes them.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="The number of processes that answer requests; by default one for each core, but at most 8.",
            show_default=False,
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch the image URLs that clients give as queries.")
    ] = False,
    allow_private_hosts: PrivateHostsOption = False,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--origin",
            metavar="ORIGIN",
            help="A web site whose scripts may use the service (CORS), such as https://example.org.",
            show_default=False,
        ),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="HOST",
            help="A host name under which the service may be called, besides localhost. By default, any, but on "
            "loopback only localhost.",
            show_default=False,
        ),
    ] = None,
    sources: Annotated[
        list[Path] | None,
        typer.Option(
            "--sources",
            metavar="FOLDER",
            help="A folder that clients may index, with all below it. By default, only the sources that the "
            "collections have already.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The folder for jobs; by default, a folder of the user.", show_default=False
        ),
    ] = None,
    max_body: Annotated[
        float, typer.Option(min=0.001, metavar="MB", help="Refuse requests with more megabytes.")
    ] = 32.0,
    max_megapixels: MegapixelsOption = 128.0,
    max_results: Annotated[int, typer.Option(min=1, metavar="N", help="The most results of a search.")] = 1000,
    max_batch: Annotated[int, typer.Option(min=1, metavar="N", help="The most queries of a batch.")] = 256,
    max_waiting: Annotated[
        int, typer.Option(min=0, metavar="N", help="The most queries that wait; more are asked to try again later.")
    ] = 128,
    max_connections: Annotated[
        int, typer.Option(min=1, metavar="N", help="The most connections of each process.")
    ] = 512,
    max_seconds: Annotated[
        float, typer.Option(min=0.1, max=86400, metavar="SECONDS", help="The longest time for a request.")
    ] = 30.0,
) -> None:
    """Serve collections over HTTP, for teams and other programs."""
    from ..server import Limits, ServerSettings
    from ..server.serve import LOOPBACK_HOSTS, check_installed, is_loopback, open_socket, run_service
    from ..server.settings import locate_collections

    check_installed()
    if not math.isfinite(max_body) or not math.isfinite(max_seconds):
        raise QueryError("--max-body and --max-seconds must be numbers.")
    loopback = is_loopback(host)
    if token_file is None and not loopback:
        raise PixMatcherError(
            f"Without tokens, everybody who can reach {printable(host)} could read and change the collections: name a "
            "token file with --token-file, which `pixmatcher tokens add NAME --scope read --file FILE` makes."
        )
    workers = workers or min(usable_cores(), _MOST_WORKERS)
    limits = Limits(
        body_bytes=int(max_body * 1e6),
        image_pixels=pixels_of(max_megapixels),
        results=max_results,
        batch=max_batch,
        waiting=max_waiting,
        connections=max_connections,
        seconds=max_seconds,
    )
    settings = ServerSettings(
        locate_collections(collections or (), workers),
        token_file=None if token_file is None else token_file.absolute(),
        limits=limits,
        allow_urls=allow_urls,
        allow_private=allow_private_hosts,
        origins=tuple(origins or ()),
        hosts=(*LOOPBACK_HOSTS, *(hosts or ())) if loopback or hosts else (),
        source_folders=tuple(folder.absolute() for folder in sources or ()),
        state_folder=None if state is None else state.absolute(),
        workers=workers,
    )
    with open_socket(host, port) as listening:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}"

        def report_ready() -> None:
            print_pairs(
                [("address", address), ("collections", ", ".join(settings.collections)), ("API", f"{address}/docs")]
            )
            print("Stop with Ctrl-C.", flush=True)

        raise typer.Exit(run_service(settings, listening, report_ready))


@command("add", tokens_app, example="pixmatcher tokens add website --scope read --file tokens.txt")
def tokens_add_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who gets the token, such as the name of a program.")],
    scope: Annotated[str, typer.Option(metavar="read|write", help="What it allows; write includes read.")],
    file: TokenFileOption,
    days: Annotated[
        float | None,
        typer.Option(min=0, max=36500, metavar="N", help="Let it expire after so many days.", show_default=False),
    ] = None,
) -> None:
    """Make a token and print it; the file keeps only a hash of it, so it cannot be shown again."""
    from ..server.tokens import SCOPES, add_token

    known = next((each for each in SCOPES if each == scope), None)
    if known is None:
        raise QueryError(f"There is no scope {scope!r}: write read or write.")
    print(add_token(file, name, known, days=days))


@command("list", tokens_app, example="pixmatcher tokens list --file tokens.txt")
def tokens_list_command(file: TokenFileOption) -> None:
    """Show the names of the tokens, what they allow and when they expire."""
    from ..server.tokens import read_tokens

    pairs = []
    for token in read_tokens(file):
        until = "" if token.until is None else f", until {token.until:%Y-%m-%d %H:%M} UTC"
        pairs.append((token.name, f"{token.scope}{until}"))
    print_pairs(pairs)


@command("remove", tokens_app, example="pixmatcher tokens remove website --file tokens.txt")
def tokens_remove_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the token.")], file: TokenFileOption
) -> None:
    """Remove a token: a service that runs refuses it a second later."""
    from ..server.tokens import remove_token

    remove_token(file, name)
