"""The command that starts the web app: app."""

from __future__ import annotations

from typing import Annotated

import typer

from .._text import printable
from ..errors import NoCollectionError
from ._app import SEARCH, command
from ._output import print_pairs


@command("app", example="pixmatcher app -c ~/Pictures", panel=SEARCH)
def app_command(
    collections: Annotated[
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            metavar="PATH",
            help="A collection to show; repeat the option for several. By default, the nearest collection in or above "
            "the current folder; if there is none, the app offers to create one.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port of the app, which only this machine can reach.")
    ] = 8501,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the app in a browser.")] = True,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Make the app public through Ngrok: everybody with the password sees the collections."
        ),
    ] = False,
) -> None:
    """Open the web app: search by image and by text, see the map and the collection."""
    from ..web import serve

    serve.check_installed()
    from ..web.collection_list import collection_here, locate_all

    paths = locate_all(collections) if collections else collection_here()
    if share and not paths:
        raise NoCollectionError("There is no collection here to share: name one with -c.")
    serve.check_port(port)
    tunnel, password = None, ""
    if share:
        from ..web.share import new_password, open_tunnel

        tunnel, password = open_tunnel(port), new_password()
        names = ", ".join(printable(str(path)) for path in paths)
        print(f"Everybody who has the address and the password can now see {names}:")
        print_pairs([("address", tunnel.url), ("password", password)])
        print("Indexing is switched off while the app is shared. Stop with Ctrl-C.", flush=True)
    raise typer.Exit(serve.run_app(paths, port=port, browser=browser, tunnel=tunnel, password=password))
