"""The commands that list, download and export encoders: models list, pull, export, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._text import printable
from ._app import command, models_app
from ._opening import runtime_of
from ._options import OfflineOption, WeightsOption
from ._output import print_entries, print_next_commands, print_pairs
from ._progress import ProgressBars


@command("list", models_app, example="pixmatcher models list")
def models_list_command() -> None:
    """Show the encoders with their spaces, states, sizes and licences."""
    from ..encoders.manage import list_models

    entries = []
    for model in list_models():
        size = "" if model.megabytes is None else f"{model.megabytes:.0f} MB"
        facts = ", ".join(filter(None, (model.state, size, model.licence)))
        entries.append((model.name, [text for text in (model.about, facts, model.spaces) if text], ""))
    print_entries(entries)


@command("pull", models_app, example="pixmatcher models pull clip-vit-b-32")
def models_pull_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder, such as clip-vit-b-32 or hf:REPO.")],
    weights: WeightsOption = None,
    offline: OfflineOption = False,
) -> None:
    """Download an encoder and prepare it, so that it runs without a network and without PyTorch."""
    from ..encoders.manage import pull_model

    with ProgressBars() as bars:
        folder = pull_model(name, weights=weights, runtime=runtime_of(None, None, offline, bars))
    print(f"{printable(name)} is in {printable(str(folder))}")
    print_next_commands(("index", "FOLDER", "--encoder", name))


@command("export", models_app, example="pixmatcher models export mobilenet_v3_large --int8")
def models_export_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder of PyTorch, such as mobilenet_v3_large.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="The folder for the files; by default, the user's cache."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in 8-bit integers: faster, smaller, slightly less accurate.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="For --int8: a source of images that resemble those to search."),
    ] = None,
    weights: WeightsOption = None,
    offline: OfflineOption = False,
) -> None:
    """Export an encoder from PyTorch to ONNX files, which run without PyTorch."""
    from ..encoders.manage import export_model
    from ..indexing.calibration import calibrate_on

    with ProgressBars() as bars:
        folder, card = export_model(
            name,
            to,
            int8=int8,
            calibration=None if calibrate is None else calibrate_on(calibrate),
            weights=weights,
            runtime=runtime_of(None, None, offline, bars),
        )
    print(f"{printable(card.name)} is in {printable(str(folder))}")
    print_pairs((key, str(value)) for key, value in (card.notes or {}).items())
    print_next_commands(("index", "FOLDER", "--encoder", card.name))


@command("info", models_app, example="pixmatcher models info lite")
def models_info_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder that `pixmatcher models list` shows.")],
) -> None:
    """Show the details of an encoder, and read its files to check that they are undamaged."""
    from ..encoders.manage import model_details

    details, problems = model_details(name)
    print_pairs(details)
    for problem in problems:
        print(printable(problem))
    if problems:
        raise typer.Exit(1)
