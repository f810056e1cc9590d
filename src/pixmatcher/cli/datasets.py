"""The commands that download public data sets: datasets list, get."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .._text import printable
from ._app import command, datasets_app
from ._output import print_entries, print_next_commands, shorter_path
from ._progress import ProgressBars


@command("list", datasets_app, example="pixmatcher datasets list")
def datasets_list_command() -> None:
    """Show the data sets that can be downloaded, with their terms and sizes."""
    from ..datasets import DATASETS

    print_entries(
        [
            (each.name, (each.description, f"terms: {each.terms}", f"size: {each.size}"), each.example)
            for each in DATASETS
        ]
    )


@command("get", datasets_app, example="pixmatcher datasets get tiny-imagenet")
def datasets_get_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `pixmatcher datasets list` shows.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The folder for the files; by default, a new one named as the data set."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Another URL of the zip file, or of the folder with the lists.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="For open-images: train, validation or test; by default, validation.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="For open-images: use only so many images from the start of the list.")
    ] = None,
    no_unpack: Annotated[
        bool, typer.Option("--no-unpack", help="For tiny-imagenet: keep the zip file and do not unpack it.")
    ] = False,
) -> None:
    """Download a data set, or the rest of it if an earlier download was stopped."""
    from ..datasets import get_dataset

    with ProgressBars() as bars:
        path = get_dataset(
            name,
            to,
            url=url,
            split=split,
            limit=limit,
            unpack=False if no_unpack else None,
            progress=bars.callback,
        )
    place = shorter_path(str(path.absolute()))
    print(f"{name} is in {printable(place)}")
    collection = os.path.join(os.path.dirname(place) if path.is_file() else place, ".pixmatcher")
    print_next_commands(("index", f"{name}:{place}", "-c", collection))
