"""The command that draws a collection in two dimensions: map."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .._text import joined, printable
from ._app import SEARCH, command
from ._opening import open_readable_store, runtime_of
from ._options import (
    BackendOption,
    CollectionOption,
    DeviceOption,
    OfflineOption,
    PrivateHostsOption,
)
from ._output import print_note
from ._progress import ProgressBars


@command("map", example="pixmatcher map map.html --method pca", panel=SEARCH)
def map_command(
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The file to save: a picture (.png, .svg, .pdf) or a web page (.html)."),
    ],
    collection: CollectionOption = None,
    method: Annotated[
        str, typer.Option(metavar="tsne|umap|pca", help="The method that computes the positions of the images.")
    ] = "tsne",
    space: Annotated[
        str | None, typer.Option(help="The embedding space to draw; by default, that of images.", show_default=False)
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            metavar="label|cluster",
            help="What the colours show; by default, labels if the images have any.",
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="TEXT|IMAGE", help="Mark the position of this query.", show_default=False)
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Compute the map again, even if one is stored.")] = False,
    allow_private_hosts: PrivateHostsOption = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Draw a map of the collection in two dimensions, with similar images close together."""
    from ..maps.plot import check_map_path, save_map_plot
    from ..maps.projection import place_query, project
    from ..maps.titles import stale_text
    from ..searching import embed_query, parse_query

    check_map_path(out, color)
    parsed = None if query is None else parse_query([query], allow_private=allow_private_hosts)
    with open_readable_store(collection) as opened, ProgressBars() as bars:
        marked = embedded = None
        if parsed is not None:
            runtime = runtime_of(backend, device, offline, bars)
            embedded = embed_query(parsed, opened.encoders, space=space, runtime=runtime)
            space = embedded.space
        projection = project(opened, method, space=space, refresh=refresh, progress=bars.callback)
        if query is not None and parsed is not None and embedded is not None:
            name = query if parsed.image is None else os.path.basename(query)
            marked = (name, place_query(projection, opened, embedded.vector))
        save_map_plot(projection, opened, out, color=color, query=marked, progress=bars.callback)
    if parsed is not None and embedded is not None:
        print_note(joined(parsed.note, embedded.note))
    print(f"{len(projection.ids):,} images by {method} in the space {projection.space}, saved to {printable(str(out))}")
    if projection.stale:
        print(f"Since the map was computed: {stale_text(projection)}. --refresh computes it again.", file=sys.stderr)
    if not projection.kept:
        print("The map is not stored, because the collection cannot be written now, or keeps no maps.", file=sys.stderr)
