"""The command that saves a collection for other tools: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._text import printable
from ..errors import QueryError
from ._app import MAINTENANCE, command
from ._opening import open_readable_store
from ._options import CollectionOption


@command("export", example="pixmatcher export arrays --to embeddings", panel=MAINTENANCE)
def export_command(
    kind: Annotated[
        str, typer.Argument(metavar="arrays|parquet", help="The format: NumPy arrays, or one Parquet file.")
    ],
    to: Annotated[
        Path, typer.Option("--to", metavar="FOLDER", help="The folder for the files; it is created if it is missing.")
    ],
    collection: CollectionOption = None,
    space: Annotated[
        str | None, typer.Option(help="Export only this space; by default, all spaces.", show_default=False)
    ] = None,
) -> None:
    """Save the embeddings, labels and uris of a collection for other tools."""
    from ..export import export_arrays, export_parquet

    if kind not in ("arrays", "parquet"):
        raise QueryError(f"Unknown export format {kind!r}: choose arrays or parquet.")
    with open_readable_store(collection) as opened:
        files = (export_arrays if kind == "arrays" else export_parquet)(opened, to, space=space)
        print(f"{len(opened):,} images saved to {', '.join(printable(str(file)) for file in files)}")
