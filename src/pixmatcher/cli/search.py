"""The commands that answer a query: search, categories."""

from __future__ import annotations

import codecs
import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._text import printable
from ..errors import QueryError
from ._app import SEARCH, command
from ._opening import open_store, runtime_of
from ._options import (
    BackendOption,
    CollectionOption,
    DeviceOption,
    ImageQueryArgument,
    JsonOption,
    OfflineOption,
    PrivateHostsOption,
    SpaceOption,
)
from ._output import print_hits, print_json, print_note, print_ranking, print_saved, shorter_path
from ._progress import ProgressBars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TextIO

    from ..collection import Filter, Store


@command("search", example='pixmatcher search "a cat" --top 50 --folder ~/Pictures', panel=SEARCH)
def search_command(
    query: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY...", help="A text, an image path, an image URL, or - for an image on standard input."
        ),
    ] = None,
    collection: CollectionOption = None,
    k: Annotated[int, typer.Option("--top", "-k", min=1, help="The number of results.")] = 12,
    as_json: JsonOption = False,
    batch: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Answer the queries in a file, one a line, in JSON; - for standard input."),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out hits with a lower score.")] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Leave out hits with a lower probability, from 0 to 1."),
    ] = None,
    save_grid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the hits as a contact sheet (.png or .jpg).")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label", help="Find only images with this label, or with a label of this name; repeat it for several."
        ),
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--folder", help="Find only images in this folder and the folders below it.")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Find only images from this day or later: 2024, 2024-05 or 2024-05-17."),
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Find only images from before this day.")] = None,
    min_width: Annotated[
        int | None, typer.Option(min=1, help="Find only images with this width in pixels, or more.")
    ] = None,
    min_height: Annotated[
        int | None, typer.Option(min=1, help="Find only images with this height in pixels, or more.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact", help="Compare the query with every image: slower in large collections, misses nothing."
        ),
    ] = False,
    allow_private_hosts: PrivateHostsOption = False,
    space: SpaceOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Search by text, by image, or by both together."""
    from ..collection import Collection, Filter
    from ..searching import SearchOptions, check_filter, parse_query, search

    if (batch is None) == (not query):
        raise QueryError("Give either a QUERY or --batch FILE.")
    item_filter = Filter(tuple(label) if label else None, folder, after, before, min_width, min_height)
    options = SearchOptions(k, min_score, space, item_filter, exact, min_probability)
    if batch is not None:
        if save_grid is not None:
            raise QueryError("--save-grid works with a single query only, not with --batch.")
        from ..searching import search_batch

        with ProgressBars() as bars:
            runtime = runtime_of(backend, device, offline, bars)
            _answer_batch(
                batch,
                collection,
                item_filter,
                lambda opened, lines: search_batch(
                    opened, lines, options, allow_private=allow_private_hosts, runtime=runtime
                ),
            )
        return
    if save_grid is not None:
        from ..export.contact_sheet import check_sheet_path, save_contact_sheet

        check_sheet_path(save_grid)
    parsed = parse_query(query or [], allow_private=allow_private_hosts)
    with open_store(collection) as opened:
        check_filter(opened, item_filter)
        with ProgressBars() as bars:
            result = search(opened, parsed, options, runtime=runtime_of(backend, device, offline, bars))
        print_note(result.note)
        names = opened.label_names()
        if isinstance(opened, Collection) and opened.indexes.has_scanned(result.space):
            tune = f"pixmatcher tune -c {shlex.quote(str(opened.path))}"
            print_note(f"The space {result.space} has no index yet, so all embeddings were compared: run `{tune}`.")
        if as_json:
            print_json(result.as_json())
        else:
            print_hits(result, names)
        if save_grid is not None:
            save_contact_sheet(result, save_grid, opened)
            print_saved("Contact sheet", save_grid)


def _answer_batch(
    batch: str,
    collection: str | None,
    item_filter: Filter,
    answer: Callable[[Store, Iterable[str]], Iterator[dict[str, Any]]],
) -> None:
    """Print the answer to each line of the file `batch`. Raises `typer.Exit` if one of them is an error."""
    from ..searching import check_filter

    failed = False
    with open_store(collection) as opened, _open_lines(batch) as lines:
        check_filter(opened, item_filter)
        for answered in answer(opened, lines):
            print_json(answered)
            failed |= "error" in answered
    if failed:
        raise typer.Exit(1)


def _open_lines(batch: str) -> TextIO:
    """Open the file of a batch, or standard input. Raises `QueryError` if it cannot be read."""
    name = "Standard input" if batch == "-" else batch
    try:
        file = open(0 if batch == "-" else batch, "rb")  # noqa: SIM115
        # PowerShell writes UTF-16, with a byte order mark.
        wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    except OSError as error:
        raise QueryError(f"{name} cannot be read ({error.strerror}): give a file with one query a line.") from error
    if wide:
        return io.TextIOWrapper(file, "utf-16", errors="replace")
    # A line that is not UTF-8 fails alone, not the whole file.
    return io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="\n")


@command("categories", example="pixmatcher categories cat.jpg --top 3", panel=SEARCH)
def categories_command(
    image: ImageQueryArgument,
    collection: CollectionOption = None,
    k: Annotated[int, typer.Option("--top", "-k", min=1, help="The number of categories.")] = 5,
    as_json: JsonOption = False,
    allow_private_hosts: PrivateHostsOption = False,
    space: SpaceOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Show the most likely labels of an image, from the labels of similar images."""
    from ..searching import classify, parse_query

    with open_store(collection) as opened:
        query = parse_query([image], allow_private=allow_private_hosts)
        with ProgressBars() as bars:
            result = classify(opened, query, k=k, space=space, runtime=runtime_of(backend, device, offline, bars))
    print_note(result.note)
    if as_json:
        print_json(result.as_json())
        return
    print(f"{printable(result.query)}  ({result.space}, {result.took_ms:.0f} ms)")
    rows = [("rank", "score", "category", "nearest example")]
    rows += [
        (str(c.rank), f"{c.score:.3f}", printable(c.name), printable(shorter_path(c.example.uri)))
        for c in result.categories
    ]
    print_ranking(rows)
