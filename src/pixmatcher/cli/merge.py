"""The command that joins the shards of a source in a collection: merge."""

from __future__ import annotations

from typing import Annotated

import typer

from .._text import printable
from ._app import INDEX, command
from ._output import command_line, counted
from ._progress import ProgressBars
from .index import print_report


@command("merge", example="pixmatcher merge shards -c photos", panel=INDEX)
def merge_command(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="The folder of the shards, which `pixmatcher index` got with --to.")
    ],
    collection: Annotated[
        str,
        typer.Option(
            "--collection",
            "-c",
            metavar="COLLECTION",
            help="The folder of the collection, which is created if it is missing; or NAME:REST, a collection in the "
            "store of an installed package.",
            show_default=False,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="The source on this machine, if it is in another folder than where the shards were made.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Join the shards of a source in a collection.

    What is there is stored, and shards that are missing or unfinished are named. Run it again when more is there.
    """
    from ..indexing import merge_shards, numbers_text

    with ProgressBars() as bars:
        report = merge_shards(place, collection, source=source, progress=bars.callback)
    print_report(report.index)
    for what, numbers, note in (
        ("Missing", report.missing, ""),
        ("Unfinished", [*report.unfinished], f" ({counted(sum(report.unfinished.values()), 'image')} left)"),
        ("Made of another list of images, as the source has changed", report.differing, ""),
    ):
        if numbers:
            print(f"{what}, of the shards 1 to {report.count}: {numbers_text(numbers)}{note}")
    if again := report.to_run_again:
        typed = command_line(["index", report.source, "--shard", f"NUMBER/{report.count}", "--to", report.place])
        print(f"For each of {again}, with the options of the others: {printable(typed)}")
    if report.index.failures or report.to_run_again:
        raise typer.Exit(1)
