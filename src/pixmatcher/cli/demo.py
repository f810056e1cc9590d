"""The command that shows PixMatcher at work on the example photos: demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._user_folders import home_folder, is_writable_place
from ._app import INDEX, command
from ._output import print_hits, print_next_commands, program_name, shorter_path
from ._progress import ProgressBars
from .index import print_report

_SHEET_NAME = "demo-results.png"


@command("demo", example="pixmatcher demo", panel=INDEX)
def demo_command(
    grid: Annotated[
        Path | None,
        typer.Option(
            help="The file for the contact sheet; by default demo-results.png in the current folder, or beside the "
            "collection if you may not write here.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Index the example photos and search them by text and by image."""
    from ..collection import Collection
    from ..datasets.examples import IMAGE_QUERY, TEXT_QUERY, clear_outdated, demo_paths
    from ..export.contact_sheet import check_sheet_path, save_contact_sheet
    from ..indexing import index
    from ..searching import Query, search

    photos, path = demo_paths()
    if grid is None:
        grid = Path(_SHEET_NAME) if is_writable_place(Path()) else path.with_name(_SHEET_NAME)
    check_sheet_path(grid)
    clear_outdated(path)
    with ProgressBars() as bars:
        report = index(photos, path, progress=bars.callback)
    print_report(report)
    with Collection.open(path) as collection:
        by_text = search(collection, TEXT_QUERY, k=4)
        by_image = search(collection, Query(image=photos / IMAGE_QUERY), k=4)
    for result in (by_text, by_image):
        print()
        print_hits(result)
    save_contact_sheet(by_text, grid)
    print(f"\nContact sheet of the first search: {grid}")
    place = shorter_path(str(path))
    print_next_commands(
        ("search", "a cup of coffee", "-c", place),
        ("search", shorter_path(str(photos / "rocket.jpg")), "-c", place),
        ("info", "-c", place),
    )
    _print_commands_for_own_images()


def _print_commands_for_own_images() -> None:
    home = home_folder()
    if home is not None and (home / "Pictures").is_dir():
        folder = str(home / "Pictures")
        print_next_commands(
            ("index", folder), ("search", "a dog on the beach", "-c", folder), title="To search your own images:"
        )
    else:
        print(f"\nTo search your own images: {program_name()} index FOLDER, with the path of their folder for FOLDER.")
