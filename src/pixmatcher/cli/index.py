"""The command that fills and refreshes a collection: index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._text import printable
from ..errors import QueryError
from ..images import DEFAULT_MAX_PIXELS
from ._app import INDEX, command
from ._opening import runtime_of, stop_jobs_on_sigterm
from ._options import (
    BackendOption,
    DeviceOption,
    MegapixelsOption,
    OfflineOption,
    OnOption,
    PrivateHostsOption,
    WeightsOption,
    pixels_of,
)
from ._output import (
    LEFT_OUT,
    command_line,
    counted,
    extensions_text,
    print_failures,
    print_incomplete,
    print_passed_over,
    report_counts,
)
from ._progress import ProgressBars

if TYPE_CHECKING:
    from ..indexing import IndexReport, ShardReport


@command("index", example="pixmatcher index ~/Pictures", panel=INDEX)
def index_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders of images, or other sources: see `pixmatcher sources`. Without a source, the collection is "
            "refreshed from its own sources.",
        ),
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            metavar="COLLECTION",
            help="The folder of the collection, which is created if it is missing; or NAME:REST, a collection in the "
            "store of an installed package. By default, .pixmatcher in the folder that is indexed.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option("--encoder", help="An encoder for a new collection; repeat the option for several encoders."),
    ] = None,
    max_megapixels: MegapixelsOption = 512,
    retry_failed: Annotated[
        bool, typer.Option(help="Try again the images that failed before, also if they have not changed.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="For folders: leave out what matches a pattern in the syntax of .gitignore; repeat the option for "
            "several patterns. They are kept for later runs until you give others; --exclude '' removes them.",
            show_default=False,
        ),
    ] = None,
    hidden: Annotated[
        bool | None,
        typer.Option(
            "--hidden/--no-hidden",
            help="For folders: also index files and folders whose names begin with a dot. It is kept for later runs.",
            show_default=False,
        ),
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="For saved embeddings: a file with the label of each row (.npy or JSON)."),
    ] = None,
    uris: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="For saved embeddings: a file with the path or URL of each row (JSON, .npy)."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="For saved embeddings: the folder or URL to which the uris are relative."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER/COUNT",
            help="Encode only this part of the source, such as 3/64, and write it to --to; `pixmatcher merge` joins "
            "the parts in a collection.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="With --shard: the folder for all shards of the source.", show_default=False
        ),
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option(help="Store a small picture of each image from a remote or tar source, to show it later.")
    ] = True,
    allow_private_hosts: PrivateHostsOption = False,
    on: OnOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
    weights: WeightsOption = None,
) -> None:
    """Index images, or refresh a collection: added, changed, moved and deleted files."""
    from ..indexing import ShardReport, index, index_shard

    sources, encoder = _with_array_options(sources, categories, uris, base, encoder)
    max_pixels = pixels_of(max_megapixels)
    if weights is not None:
        from ..encoders.torch.models import import_weights

        if encoder is None or len(encoder) != 1:
            raise QueryError("--weights belongs to one encoder: name it with --encoder.")
        import_weights(encoder[0], weights)
    stop_jobs_on_sigterm(collection)
    with ProgressBars() as bars:
        options: dict[str, Any] = {
            "encoders": encoder,
            "runtime": runtime_of(backend, device, offline, bars),
            "max_pixels": max_pixels,
            "retry_failed": retry_failed,
            "thumbnails": thumbnails,
            "allow_private": allow_private_hosts,
            "exclude": exclude,
            "hidden": hidden,
            "progress": bars.callback,
        }
        report: IndexReport | ShardReport
        if shard is not None or to is not None:
            report = index_shard(*_shard_arguments(sources, collection, shard, to, on), **options)
        else:
            report = index(sources or None, collection, on=on, **options)
    if isinstance(report, ShardReport):
        _print_shard(report)
        return
    print_report(report)
    if report.remembered:
        again = ["index", *(sources or ()), *(("-c", collection) if collection else ()), "--retry-failed"]
        again += ["--max-megapixels", f"{max_megapixels:g}"] if max_pixels != DEFAULT_MAX_PIXELS else []
        again += ["--allow-private-hosts"] if allow_private_hosts else []
        again += ["--on", on] if on else []
        count = f"{report.remembered:,} failed image" + ("s were" if report.remembered > 1 else " was")
        print(f"{count} not tried again, because nothing has changed. To try: {printable(command_line(again))}")
    print_passed_over(report.passed_over, report.collection)
    if report.failures:
        raise typer.Exit(1)


def _with_array_options(
    sources: list[str] | None, categories: str | None, uris: str | None, base: str | None, encoder: list[str] | None
) -> tuple[list[str] | None, list[str] | None]:
    """Return the sources and encoders to index; the options for saved embeddings become part of their source."""
    given = {name: value for name, value in (("categories", categories), ("uris", uris), ("base", base)) if value}
    if sources is None or len(sources) != 1 or not sources[0].startswith("arrays:"):
        if given:
            raise QueryError(
                f"--{next(iter(given))} needs one source of saved embeddings: give arrays:EMBEDDINGS.npy alone."
            )
        return sources, encoder
    if encoder and len(encoder) > 1:
        raise QueryError("Saved embeddings belong to one encoder: give --encoder once.")
    from ..sources.arrays import parse_spec, spec_of

    path, options = parse_spec(sources[0].partition(":")[2])
    if not path:
        raise QueryError(f"{sources[0]} names no file: write it like arrays:EMBEDDINGS.npy.")
    return [spec_of(path, options | given | ({"encoder": encoder[0]} if encoder else {}))], None


def _shard_arguments(
    sources: list[str] | None, collection: str | None, shard: str | None, to: str | None, on: str | None
) -> tuple[str, str, str]:
    """Return the source, the shard and the place of --shard and --to. Raises `QueryError` if the call has others."""
    if shard is None or to is None:
        raise QueryError("--shard and --to belong together: give both, such as --shard 3/64 --to shards.")
    if not sources or len(sources) != 1 or collection is not None:
        raise QueryError("A shard is of one source and has no collection: name one source, and leave out -c.")
    if on is not None:
        raise QueryError("A shard is encoded by the machine that the command runs on: leave out --on or --shard.")
    return sources[0], shard, to


def _print_shard(report: ShardReport) -> None:
    """Print what a run over one shard did. Its failures are no errors here: `merge` reports them again."""
    print(
        f"Shard {report.shard} in {printable(report.place)}: {counted(report.entries, 'image')}, {report.seconds:.1f} s"
    )
    counts = ((report.encoded, "encoded"), (report.unchanged, "done before"), (len(report.failures), "failed"))
    print(", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing to encode")
    print_incomplete(report.incomplete)
    for note in report.notes:
        print(f"Note: {printable(note)}")
    print_failures(report.failures)


def print_report(report: IndexReport) -> None:
    """Print what an indexing run did, and which images failed."""
    print(f"{report.total:,} images in {printable(str(report.collection))}, {report.seconds:.1f} s")
    print(report_counts(report) or _nothing_to_index(report))
    print_incomplete(report.incomplete)
    for note in report.notes:
        print(f"Note: {printable(note)}")
    print_failures(report.failures)


def _nothing_to_index(report: IndexReport) -> str:
    """Return what to say of a run that found no image: which other files there are."""
    files = {kind: counts for kind, counts in report.passed_over.items() if kind not in LEFT_OUT}
    number = sum(map(sum, (counts.values() for counts in files.values())))
    if report.total or not number:
        return "nothing to index"
    return f"no images among {counted(number, 'file')}: {extensions_text(files)}"
