"""The command line: it parses and prints, and holds no logic of its own."""

from __future__ import annotations

import functools
import gc
import io
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer

from .._progress import Progress, ProgressCallback
from .._text import printable
from ..errors import NoCollectionError, PixMatcherError, QueryError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from ..collection import Collection, Failure
    from ..encoders import Runtime
    from ..evaluation import CaptionEvaluation, Evaluation, Figures
    from ..evaluation.tuning import Tuning
    from ..indexing import IndexReport
    from ..searching import SearchResult

app = typer.Typer(
    name="pixmatcher",
    help="Find your own images by example or by sentence, offline and in milliseconds.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

models_app = typer.Typer(help="Export, pull and list encoders.")
app.add_typer(models_app, name="models")

datasets_app = typer.Typer(help="Download public data sets to index.")
app.add_typer(datasets_app, name="datasets")

_P = ParamSpec("_P")
_UsageError: type[Any] = typer.BadParameter.__mro__[1]  # has no public name

CollectionOption = Annotated[
    Path | None,
    typer.Option("--collection", "-c", help="The collection's folder, or the folder it lies in.", show_default=False),
]
PrivateHostsOption = Annotated[
    bool, typer.Option("--allow-private-hosts", help="Fetch image URLs from private and loopback addresses too.")
]
SpaceOption = Annotated[
    str | None, typer.Option(help="Answer in this space of the collection, not in the usual one.", show_default=False)
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|onnx|torch", help="What runs the encoders: ONNX Runtime or PyTorch.", show_default=False
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="auto|cpu|cuda|mps", help="Where PyTorch runs the encoders.", show_default=False),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Take the weights from this state dict or safetensors file."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Download no model.")]


def main() -> None:
    """Run the command line."""
    _mend_streams()
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "pixmatcher"
        _fail(f"{error.format_message().rstrip('.')}. See `{command} --help`.", 2)
    finally:
        # Python ends by looking for cycles among all objects there are, which takes as long as a search. PyTorch
        # complains of what is left over then.
        if "torch" not in sys.modules:
            gc.freeze()
    raise SystemExit(status)


def _mend_streams() -> None:
    """Give back the standard streams that the caller has closed, and let no character be beyond them."""
    # In this order each takes its own number, so that no file that is opened later can be taken for it.
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _command(name: str, group: typer.Typer = app) -> Callable[[Callable[_P, None]], Callable[_P, None]]:
    """Register a command; every error that a user can cause ends in one line and an exit code."""

    def register(function: Callable[_P, None]) -> Callable[_P, None]:
        @functools.wraps(function)
        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> None:
            try:
                function(*args, **kwargs)
                sys.stdout.flush()
            except PixMatcherError as error:
                _fail(str(error), error.exit_code)
            except BrokenPipeError:
                _drop_output()
            except KeyboardInterrupt:
                _fail("stopped. What is done is kept: run the same command again to go on.", 130)
            except MemoryError:
                _fail("there is not enough memory: close other programs and run the same command again.", 1)
            except OSError as error:
                _drop_output()
                _fail(f"the system refused: {error}. Mend that and run the same command again.", 1)

        return group.command(name)(guarded)

    return register


def _drop_output() -> None:
    """Send what is still to be printed nowhere; Python would complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"Error: {printable(message)}", file=sys.stderr)
    raise SystemExit(exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        from .._version import __version__

        typer.echo(f"pixmatcher {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@_command("index")
def index_command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Folders of images, or what `pixmatcher sources` shows. Without any: refresh the collection here.",
        ),
    ] = None,
    collection: CollectionOption = None,
    encoder: Annotated[
        list[str] | None, typer.Option("--encoder", help="Encoder of a new collection; may be repeated.")
    ] = None,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Refuse images larger than this.")] = 512,
    retry_failed: Annotated[bool, typer.Option(help="Try again what failed before, changed or not.")] = False,
    categories: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of saved embeddings: the label of each row, .npy or JSON.")
    ] = None,
    uris: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of saved embeddings: the path or URL of each row, JSON or .npy.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Of saved embeddings: the folder or URL that uris are below.")
    ] = None,
    thumbnails: Annotated[
        bool, typer.Option(help="Keep a small picture of each image of a remote or tar source, to show it later.")
    ] = True,
    allow_private_hosts: PrivateHostsOption = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
    weights: WeightsOption = None,
) -> None:
    """Index images, or refresh what is indexed: added, changed, moved and deleted files."""
    from ..indexing import index

    sources, encoder = _with_array_options(sources, categories, uris, base, encoder)
    if not math.isfinite(max_megapixels):
        raise QueryError("--max-megapixels must be a number.")
    if weights is not None:
        from ..encoders.torch.models import import_weights

        if encoder is None or len(encoder) != 1:
            raise QueryError("--weights are of one encoder: name it with --encoder.")
        import_weights(encoder[0], weights)
    with _Bars() as bars:
        report = index(
            sources or None,
            collection,
            encoders=encoder,
            runtime=_runtime(backend, device, offline, bars),
            max_pixels=int(max_megapixels * 1e6),
            retry_failed=retry_failed,
            thumbnails=thumbnails,
            allow_private=allow_private_hosts,
            progress=bars.callback,
        )
    _print_report(report)
    if report.failures:
        raise typer.Exit(1)


def _runtime(backend: str | None, device: str | None, offline: bool, bars: _Bars) -> Runtime:
    """How encoders are run: as the options say, and the environment where they say nothing."""
    from ..encoders import Runtime

    given: dict[str, Any] = {"backend": backend, "device": device, "offline": offline or None}
    given["progress"] = bars.callback
    return Runtime(**{name: value for name, value in given.items() if value is not None})


def _with_array_options(
    sources: list[str] | None, categories: str | None, uris: str | None, base: str | None, encoder: list[str] | None
) -> tuple[list[str] | None, list[str] | None]:
    """The sources and encoders to index, where options tell of the one source of saved embeddings."""
    given = {name: value for name, value in (("categories", categories), ("uris", uris), ("base", base)) if value}
    if sources is None or len(sources) != 1 or not sources[0].startswith("arrays:"):
        if given:
            raise QueryError(f"--{next(iter(given))} goes with one source of saved embeddings: arrays:EMBEDDINGS.npy.")
        return sources, encoder
    if encoder and len(encoder) > 1:
        raise QueryError("Saved embeddings are of one encoder: give --encoder once.")
    from ..sources.arrays import parse_spec, spec_of

    path, options = parse_spec(sources[0].partition(":")[2])
    if not path:
        raise QueryError(f"{sources[0]} names no file: write it like arrays:EMBEDDINGS.npy.")
    return [spec_of(path, options | given | ({"encoder": encoder[0]} if encoder else {}))], None


@_command("search")
def search_command(
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY...", help="A text, an image path, an image URL, or - for an image on stdin."),
    ] = None,
    collection: CollectionOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch: Annotated[
        str | None, typer.Option(metavar="FILE", help="Answer one query a line, in JSON; - for stdin.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out hits of a lower score.")] = None,
    save_grid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the hits as a contact sheet (.png or .jpg).")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", help="Only images of this label, or of what it is called; repeat it.")
    ] = None,
    folder: Annotated[str | None, typer.Option("--folder", help="Only images in this folder or below it.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only images of this day or later: 2024, 2024-05 or 2024-05-17.")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="DATE", help="Only images from before this day.")] = None,
    min_width: Annotated[int | None, typer.Option(min=1, help="Only images of so many pixels or more.")] = None,
    min_height: Annotated[int | None, typer.Option(min=1, help="Only images of so many pixels or more.")] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with all images, also where that takes long.")
    ] = False,
    allow_private_hosts: PrivateHostsOption = False,
    space: SpaceOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Search by text, by image, or by both together."""
    from ..collection import Filter
    from ..searching import SearchOptions, parse_query, search, search_batch

    if (batch is None) == (not query):
        raise QueryError("Give a QUERY or --batch FILE, one of them.")
    chosen = Filter(tuple(label) if label else None, folder, after, before, min_width, min_height)
    options = SearchOptions(k, min_score, space, chosen, exact)
    if batch is not None:
        if save_grid is not None:
            raise QueryError("--save-grid goes with a single query, not with --batch.")
        with _Bars() as bars:
            answer = partial(
                search_batch,
                options=options,
                allow_private=allow_private_hosts,
                runtime=_runtime(backend, device, offline, bars),
            )
            _search_batch(batch, collection, label, answer)
        return
    if save_grid is not None:
        from ..export.contact_sheet import check_sheet_path, save_contact_sheet

        check_sheet_path(save_grid)
    parsed = parse_query(query or [], allow_private=allow_private_hosts)
    with _open(collection) as opened:
        _check_labels(opened, label)
        with _Bars() as bars:
            result = search(opened, parsed, options, runtime=_runtime(backend, device, offline, bars))
        _print_note(result.note)
        names = opened.label_names()
        if opened.indexes.has_scanned(result.space):
            print(
                f"The space {result.space} has no index yet, so all embeddings were compared: run `pixmatcher tune`.",
                file=sys.stderr,
            )
        if as_json:
            print(json.dumps(result.as_json()))
        else:
            _print_hits(result, names)
        if save_grid is not None:
            save_contact_sheet(result, save_grid, opened)
            print(f"Contact sheet saved to {printable(str(save_grid))}", file=sys.stderr)


def _check_labels(opened: Collection, labels: list[str] | None) -> None:
    for label in labels or ():
        if not opened.labels_called([label]):
            raise QueryError(
                f"No image here has the label {label!r}: write it as the source does, or what it is called."
            )


def _search_batch(
    batch: str,
    collection: Path | None,
    labels: list[str] | None,
    answer: Callable[[Collection, Iterable[str]], Iterator[dict[str, Any]]],
) -> None:
    try:
        # Bytes that are not UTF-8 fail on their own line, not for the whole file.
        file = open(  # noqa: SIM115
            0 if batch == "-" else batch, encoding="utf-8", errors="surrogateescape", newline="\n"
        )
    except OSError as error:
        raise QueryError(f"{batch} cannot be read ({error.strerror}): give a file of one query a line.") from error
    failed = False
    with file as lines, _open(collection) as opened:
        _check_labels(opened, labels)
        for answered in answer(opened, lines):
            print(json.dumps(answered), flush=True)
            failed |= "error" in answered
    if failed:
        raise typer.Exit(1)


@_command("categories")
def categories_command(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image path, an image URL, or - for stdin.")],
    collection: CollectionOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of categories.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_private_hosts: PrivateHostsOption = False,
    space: SpaceOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Tell the most likely labels of an image, by those of the nearest labelled images."""
    from ..searching import classify, parse_query

    with _open(collection) as opened:
        query = parse_query([image], allow_private=allow_private_hosts)
        with _Bars() as bars:
            result = classify(opened, query, k=k, space=space, runtime=_runtime(backend, device, offline, bars))
    _print_note(result.note)
    if as_json:
        print(json.dumps(result.as_json()))
        return
    print(f"{printable(result.query)}  ({result.space}, {result.took_ms:.0f} ms)")
    rows = [("rank", "score", "category", "nearest example")]
    rows += [
        (str(c.rank), f"{c.score:.3f}", printable(c.name), printable(_near(c.example.uri))) for c in result.categories
    ]
    _print_table(rows)


@_command("evaluate")
def evaluate_command(
    queries: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Images with labels, to search for; see `pixmatcher sources`."),
    ] = None,
    collection: CollectionOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results that count.")] = 10,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A csv with the columns image and caption, to search for images by caption."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    per_category: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save what each category reaches as csv.")
    ] = None,
    confusions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save a picture of the most confused categories (.png, .svg).")
    ] = None,
    allow_private_hosts: PrivateHostsOption = False,
    space: SpaceOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Measure how well a collection answers queries of which the right answers are known."""
    from .._files import check_writable
    from ..evaluation import evaluate, evaluate_captions, save_categories
    from ..sources import open_source

    if queries is None and (captions is None or per_category is not None or confusions is not None):
        raise QueryError("Name a source of images with labels: --queries SOURCE.")
    if per_category is not None:
        check_writable(per_category)
    if confusions is not None:
        from ..evaluation.confusion_plot import check_plot_path, save_confusion_plot

        check_plot_path(confusions)
    source = None if queries is None else open_source(queries)
    with _open(collection) as opened, _Bars() as bars:
        runtime = _runtime(backend, device, offline, bars)
        captioned = evaluation = None
        if captions is not None:
            captioned = evaluate_captions(opened, captions, space=space, runtime=runtime, progress=bars.callback)
        if source is not None:
            evaluation = evaluate(
                opened,
                source,
                k=k,
                space=space,
                allow_private=allow_private_hosts,
                runtime=runtime,
                progress=bars.callback,
            )
    if as_json:
        answer = evaluation.as_json() if evaluation else {}
        print(json.dumps(answer | ({"captions": captioned.as_json()} if captioned else {})))
    else:
        _print_evaluation(evaluation, captioned)
    if evaluation is not None and per_category is not None:
        save_categories(evaluation, per_category)
        print(f"Categories saved to {printable(str(per_category))}", file=sys.stderr)
    if evaluation is not None and confusions is not None:
        save_confusion_plot(evaluation, confusions)
        print(f"Picture saved to {printable(str(confusions))}", file=sys.stderr)
    if (evaluation and evaluation.failures) or (captioned and captioned.failures):
        raise typer.Exit(1)


@_command("map")
def map_command(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The picture to draw (.png, .svg, .pdf), or a page (.html).")
    ],
    collection: CollectionOption = None,
    method: Annotated[str, typer.Option(metavar="tsne|umap|pca", help="What places the images.")] = "tsne",
    space: Annotated[
        str | None, typer.Option(help="Map this space of the collection, not the usual one.", show_default=False)
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            metavar="label|cluster", help="What the colours tell; labels, if there are some.", show_default=False
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="TEXT|IMAGE", help="Show where this query lies.", show_default=False)
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Compute the map again, though one is kept.")] = False,
    allow_private_hosts: PrivateHostsOption = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Draw the collection in two dimensions, images that are alike side by side."""
    from ..maps.plot import check_map_path, save_map_plot, stale_text
    from ..maps.projection import place_query, project
    from ..searching import embed_query, parse_query

    check_map_path(out, color)
    parsed = None if query is None else parse_query([query], allow_private=allow_private_hosts)
    with _open(collection) as opened, _Bars() as bars:
        marked = embedded = None
        if parsed is not None:
            runtime = _runtime(backend, device, offline, bars)
            embedded = embed_query(parsed, opened.encoders, space=space, runtime=runtime)
            space = embedded.space
        projection = project(opened, method, space=space, refresh=refresh, progress=bars.callback)
        if query is not None and parsed is not None and embedded is not None:
            name = query if parsed.image is None else os.path.basename(query)
            marked = (name, place_query(projection, opened, embedded.vector))
        save_map_plot(projection, opened, out, color=color, query=marked, progress=bars.callback)
    if embedded is not None:
        _print_note(embedded.note)
    print(f"{len(projection.ids):,} images by {method} in the space {projection.space} on {printable(str(out))}")
    if projection.stale:
        print(f"Since it was computed: {stale_text(projection)}. --refresh computes it again.", file=sys.stderr)
    if not projection.kept:
        print("The collection cannot be written now, so the map is not kept.", file=sys.stderr)


@_command("info")
def info_command(collection: CollectionOption = None) -> None:
    """Show what is in a collection."""
    with _open(collection) as opened:
        formats = opened.format_counts()
        failures = opened.failures()
        lines = [
            ("collection", str(opened.path)),
            ("sources", ", ".join(opened.sources()) or "none yet"),
            ("images", f"{len(opened):,}"),
            ("failed", f"{len(failures):,}"),
            ("formats", ", ".join(f"{name} {count:,}" for name, count in formats.items()) or "none"),
            ("labels", f"{len(opened.label_counts()):,}"),
            ("encoders", ", ".join(f"{e.name} ({e.fingerprint or 'version not known'})" for e in opened.encoders)),
            (
                "spaces",
                ", ".join(
                    f"{s.name} ({s.dimension} values, {'text and image' if s.text else 'image'})"
                    for s in opened.spaces.values()
                ),
            ),
            ("index", ", ".join(_index_told(opened, name) for name in opened.spaces)),
            ("on disk", f"{opened.size_on_disk() / 1e6:.1f} MB"),
        ]
    _print_pairs(lines)
    _print_failures(failures)


def _index_told(opened: Collection, space: str) -> str:
    name, recall = opened.indexes.kind(space), opened.indexes.recall(space)
    if name == "exact":
        return f"{name} ({space})"
    found = "not built yet" if recall is None else f"finds {recall:.1%} of the 10 nearest"
    return f"{name} ({space}: too many values to compare all in 10 ms; {found})"


@_command("tune")
def tune_command(
    collection: CollectionOption = None,
    space: Annotated[str | None, typer.Option(help="Tune this space alone.", show_default=False)] = None,
    recall: Annotated[
        float | None,
        typer.Option(help="The share of the 10 nearest that is to be found; 0.95 if it was never told.", min=0, max=1),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="How much memory an index may take, like 800M or 1G; 0 for any.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the curve as a picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Measure the index against exact searches, and choose how it answers: by recall, and by memory."""
    from ..evaluation.tuning import check_plot_path, save_plot, tune

    if plot is not None:
        check_plot_path(plot)
    with _open(collection) as opened:
        if space is not None and space not in opened.spaces:
            raise QueryError(f"There is no space {space!r} here: choose one of {', '.join(opened.spaces)}.")
        with _Bars() as bars:
            runtime = _runtime(backend, device, offline, bars)
            tunings = [
                tune(
                    opened,
                    name,
                    opened.indexes.target(name).with_values(recall, _bytes(memory)),
                    runtime=runtime,
                    progress=bars.callback,
                )
                for name in ([space] if space else opened.spaces)
            ]
    if plot is not None:
        save_plot(tunings, plot)
    if as_json:
        print(json.dumps([tuning.as_json() for tuning in tunings]))
        return
    for tuning in tunings:
        _print_tuning(tuning)
    if plot is not None:
        print(f"Plot saved to {printable(str(plot))}", file=sys.stderr)


def _bytes(text: str | None) -> int | None:
    """The number of bytes that a text like 800M or 1G means."""
    if text is None:
        return None
    units = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number = text.strip().upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in "KMGT" else ""
    try:
        size = float(number.removesuffix(unit)) * units[unit]
        if size < 0:
            raise ValueError
        return int(size)
    except (ValueError, OverflowError):
        raise QueryError(f"{text!r} is no size: write it like 800M or 1G.") from None


def _print_tuning(tuning: Tuning) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{tuning.space}: {tuning.index}, {tuning.rows:,} images, {tuning.ms:.2f} ms a query")
    if not tuning.curve:
        print("All images are compared: there is nothing to tune until the collection is larger.")
        return
    texts = f", {tuning.texts} of them texts" if tuning.texts else ""
    print(f"Recall is that of queries made from the images{texts}; comparing all takes {tuning.exact_ms:.1f} ms.")
    table = Table(box=None)
    for title in ("lists", "candidates", "recall@10", "ms", ""):
        table.add_column(title, justify="right")
    for point in tuning.curve:
        cells = (str(point.lists), str(point.candidates), f"{point.recall:.3f}", f"{point.ms:.2f}")
        table.add_row(*cells, "chosen" if point.chosen else "")
    Console().print(table)


@_command("verify")
def verify_command(
    collection: CollectionOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Take out what is damaged and build the indexes again.")
    ] = False,
) -> None:
    """Read everything in a collection and tell whether it is whole."""
    with _open(collection) as opened:
        if repair:
            removed = opened.repair()
            print(f"Repaired: {removed:,} damaged images taken out, indexes built again.")
            if removed:
                print("Run `pixmatcher index` to encode them again.")
        problems = opened.verify()
        count = len(opened) if not problems else 0
    for problem in problems:
        print(f"{problem.part}: {printable(problem.message)}. {printable(problem.remedy)}")
    if problems:
        raise typer.Exit(1)
    print(f"Whole: {count:,} images, their embeddings and indexes are as they were written.")


@_command("export")
def export_command(
    kind: Annotated[str, typer.Argument(metavar="arrays|parquet", help="NumPy's arrays, or one Parquet file.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the files go; made if need be.")],
    collection: CollectionOption = None,
    space: Annotated[str | None, typer.Option(help="Export this space alone.", show_default=False)] = None,
) -> None:
    """Save the embeddings, labels and uris of a collection for other tools."""
    from ..export import export_arrays, export_parquet

    if kind not in ("arrays", "parquet"):
        raise QueryError(f"There is no export {kind!r}: choose arrays or parquet.")
    with _open(collection) as opened:
        files = (export_arrays if kind == "arrays" else export_parquet)(opened, to, space=space)
        print(f"{len(opened):,} images saved to {', '.join(printable(str(file)) for file in files)}")


@_command("sources")
def sources_command() -> None:
    """Show the kinds of sources that can be indexed, with an example of each."""
    from ..sources import KINDS

    for kind in KINDS:
        print(f"{kind.prefix:<15}{kind.description}\n{'':<15}pixmatcher index {kind.example}")


@_command("list", models_app)
def models_list_command() -> None:
    """Show the encoders: what they fill, whether they are ready, their licences and sizes."""
    from ..encoders.manage import list_models

    rows = [("name", "spaces", "state", "MB", "licence", "what it is")]
    for model in list_models():
        size = "" if model.megabytes is None else f"{model.megabytes:.0f}"
        rows.append((model.name, model.spaces, model.state, size, model.licence, model.about))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{printable(text):<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())


@_command("pull", models_app)
def models_pull_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder, such as clip-vit-b-32 or hf:REPO.")],
    weights: WeightsOption = None,
    offline: OfflineOption = False,
) -> None:
    """Download an encoder and make it ready, so that it runs without a network and without PyTorch."""
    from ..encoders.manage import pull_model

    with _Bars() as bars:
        folder = pull_model(name, weights=weights, runtime=_runtime(None, None, offline, bars))
    print(f"{printable(name)} is in {printable(str(folder))}\n\nType next:")
    print(f"  pixmatcher index FOLDER --encoder {shlex.quote(name)}")


@_command("export", models_app)
def models_export_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder of PyTorch, such as mobilenet_v3_large.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where it goes; without it, to the user's cache.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute in 8 bits: faster, smaller, a little less exact.")
    ] = False,
    calibrate: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Of int8: images like those to be searched.")
    ] = None,
    weights: WeightsOption = None,
    offline: OfflineOption = False,
) -> None:
    """Export an encoder from PyTorch to ONNX files, which run without PyTorch."""
    from ..encoders.manage import export_model
    from ..indexing.calibration import calibrate_on

    with _Bars() as bars:
        runtime = _runtime(None, None, offline, bars)
        folder, card = export_model(
            name,
            to,
            int8=int8,
            calibration=None if calibrate is None else calibrate_on(calibrate),
            weights=weights,
            runtime=runtime,
        )
    print(f"{printable(card.name)} is in {printable(str(folder))}")
    _print_pairs((key, str(value)) for key, value in (card.notes or {}).items())
    print(f"\nType next:\n  pixmatcher index FOLDER --encoder {shlex.quote(card.name)}")


@_command("info", models_app)
def models_info_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An encoder that `pixmatcher models list` shows.")],
) -> None:
    """Show what an encoder is, and read its files to see whether they are whole."""
    from ..encoders.manage import model_details

    details, wrong = model_details(name)
    _print_pairs(details)
    for problem in wrong:
        print(printable(problem))
    if wrong:
        raise typer.Exit(1)


def _print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    pairs = [*pairs]
    width = max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:
        print(f"{name:<{width}}{printable(value)}")


@_command("list", datasets_app)
def datasets_list_command() -> None:
    """Show the data sets that can be downloaded, their terms and sizes."""
    from ..datasets import DATASETS

    for dataset in DATASETS:
        lines = (dataset.description, f"terms: {dataset.terms}", f"size: {dataset.size}", dataset.example)
        print(f"{dataset.name:<15}" + f"\n{'':<15}".join(lines))


@_command("get", datasets_app)
def datasets_get_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `pixmatcher datasets list` shows.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it goes; a new folder here of the data set's name.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Another URL of the zip file, or of the folder of the lists.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of open-images: train, validation (if none is named) or test.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Of open-images: so many images of the list only.")] = None,
    no_unpack: Annotated[bool, typer.Option("--no-unpack", help="Of tiny-imagenet: keep it as a zip file.")] = False,
) -> None:
    """Download a data set, or the rest of it if that was stopped before."""
    from ..datasets import get_dataset

    with _Bars() as bars:
        path = get_dataset(
            name,
            to,
            url=url,
            split=split,
            limit=limit,
            unpack=False if no_unpack else None,
            progress=bars.callback,
        )
    where = _near(str(path.absolute()))
    print(f"{name} is in {printable(where)}\n\nType next:")
    collection = os.path.join(os.path.dirname(where) if path.is_file() else where, ".pixmatcher")
    print(f"  pixmatcher index {shlex.quote(f'{name}:{where}')} -c {shlex.quote(collection)}")


@_command("forget")
def forget_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The source, as `pixmatcher info` names it.")],
    collection: CollectionOption = None,
) -> None:
    """Take a source and its images out of a collection. The files themselves are not touched."""
    with _open(collection) as opened:
        removed = opened.forget(source)
    print(f"{removed:,} images of {printable(source)} taken out.")


@_command("demo")
def demo_command(
    grid: Annotated[Path, typer.Option(help="Where the contact sheet goes.")] = Path("demo-results.png"),
) -> None:
    """Index the example photos and search them by text and by image."""
    from ..collection import Collection
    from ..datasets.examples import IMAGE_QUERY, TEXT_QUERY, clear_outdated, demo_paths
    from ..export.contact_sheet import save_contact_sheet
    from ..indexing import index
    from ..searching import Query, search

    photos, path = demo_paths()
    clear_outdated(path)
    with _Bars() as bars:
        report = index(photos, path, progress=bars.callback)
    _print_report(report)
    with Collection.open(path) as collection:
        by_text = search(collection, TEXT_QUERY, k=4)
        by_image = search(collection, Query(image=photos / IMAGE_QUERY), k=4)
    for result in (by_text, by_image):
        print()
        _print_hits(result)
    save_contact_sheet(by_text, grid)
    where = _near(str(path))
    print(f"\nContact sheet of the first search: {grid}\n\nType next:")
    print(f'  pixmatcher search "a cup of coffee" -c {where}')
    print("  pixmatcher index ~/Pictures")
    print('  pixmatcher search "a dog on the beach" -c ~/Pictures')


@_command("app")
def app_command(
    collections: Annotated[
        list[Path] | None,
        typer.Option(
            "--collection",
            "-c",
            help="A collection to show; may be repeated. Without any: the one here, or a page that makes one.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the app listens, on this machine alone.")] = 8501,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in a browser.")] = True,
    share: Annotated[
        bool, typer.Option("--share", help="Make it public through Ngrok: who has the password sees the collections.")
    ] = False,
) -> None:
    """Open the web app: search by image and by text, the map, the collection."""
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
        print(f"Everybody who has the address and the password now sees {', '.join(printable(str(p)) for p in paths)}:")
        _print_pairs([("address", tunnel.url), ("password", password)])
        print("Indexing is turned off meanwhile. Stop with Ctrl-C.", flush=True)
    raise typer.Exit(serve.run_app(paths, port=port, browser=browser, tunnel=tunnel, password=password))


# Opening and printing


def _open(collection: Path | None) -> Collection:
    from ..collection import Collection

    return Collection.open(collection if collection is not None else Collection.find())


class _Bars:
    """Progress bars on stderr, shown from the first that has something to tell; none where stderr is no terminal."""

    def __init__(self) -> None:
        self._bars: Bars | None = None

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @property
    def callback(self) -> ProgressCallback | None:
        """What to call with the progress of a stage; None where stderr is not a terminal."""
        return self._show if sys.stderr.isatty() else None

    def _show(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            texts = (TextColumn("{task.fields[counts]}"), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            columns = (TextColumn("{task.description}"), BarColumn(), *texts)
            self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        counts, total, done = _counts_text(progress), progress.total, progress.done
        task = next((task for task in self._bars.tasks if task.description == progress.stage), None)
        if task is None:
            self._bars.add_task(progress.stage, total=total, completed=done, counts=counts, rate="")
        else:
            speed = task.finished_speed or task.speed
            rate = _rate_text(speed, progress.unit) if speed else ""
            self._bars.update(task.id, completed=done, total=total, counts=counts, rate=rate)


def _counts_text(progress: Progress) -> str:
    """What is done and what there is to do, such as "1,200/8,000" or "3.1 MB/12.0 MB"; "" if neither is known."""
    from rich.filesize import decimal

    number: Callable[[int], str] = decimal if progress.unit == "bytes" else "{:,}".format
    if progress.total is None:
        return number(progress.done) if progress.done else ""
    return f"{number(progress.done)}/{number(progress.total)}"


def _rate_text(speed: float, unit: str) -> str:
    """Units a second, such as "120 images/s" or "3.1 MB/s"."""
    from rich.filesize import decimal

    return f"{decimal(int(speed))}/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s"


def _print_report(report: IndexReport) -> None:
    counts = [
        (report.added, "added"),
        (report.changed, "changed"),
        (report.moved, "moved"),
        (report.removed, "removed"),
        (report.unchanged, "unchanged"),
        (len(report.failures), "failed"),
    ]
    print(f"{report.total:,} images in {printable(str(report.collection))}, {report.seconds:.1f} s")
    print(", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing to index")
    _print_failures(report.failures)


def _print_failures(failures: Sequence[Failure]) -> None:
    for reason, count in Counter(failure.reason for failure in failures).most_common():
        print(f"  {count:,} x {reason}")
    for failure in failures:
        detail = f" ({failure.detail})" if failure.detail else ""
        print(printable(f"    {failure.uri}: {failure.reason}{detail}"))


def _print_note(note: str) -> None:
    if note:
        print(f"Note: {printable(note)}", file=sys.stderr)


def _print_hits(result: SearchResult, label_names: Mapping[str, str] | None = None) -> None:
    name = result.query if isinstance(result.query, str) else " + ".join(result.query.values())
    print(f"{printable(name)}  ({result.space}, {result.took_ms:.0f} ms)")
    if not result.hits:
        print("No hits.")
        return
    names = label_names or {}
    rows = [("rank", "score", "image", "label")]
    rows += [
        (str(hit.rank), f"{hit.score:.3f}", printable(_near(hit.item.uri)), printable(names.get(label, label)))
        for hit in result.hits
        for label in [hit.item.label or ""]
    ]
    if not any(label for *_, label in rows[1:]):
        rows = [(*row[:3], "") for row in rows]
    _print_table(rows)


def _print_table(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Print rows of a rank, a score and two texts, the first of them the header."""
    # Not rich's table, which leaves out columns where a path is longer than the terminal is wide.
    rank, score, text, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    for row in rows:
        print(f"{row[0]:>{rank}}  {row[1]:>{score}}  {row[2]:<{text}}  {row[3]}".rstrip())


def _print_evaluation(evaluation: Evaluation | None, captioned: CaptionEvaluation | None) -> None:
    from ..evaluation import MOST_CONFUSED

    parts: list[tuple[str, Figures | None]] = []
    if evaluation is not None:
        where = printable(str(evaluation.collection))
        print(f"{evaluation.items:,} labelled images in {where}, {evaluation.seconds:.1f} s")
        print(f"queries from {printable(evaluation.queries)}")
        parts += [("images", evaluation.images), ("label names", evaluation.texts)]
    if captioned is not None:
        print(f"{captioned.items:,} images in {printable(str(captioned.collection))}, {captioned.seconds:.1f} s")
        print(f"captions from {printable(captioned.captions)}")
        parts.append(("captions", captioned.figures))
    _print_figures([(kind, figures) for kind, figures in parts if figures is not None])
    if evaluation is not None:
        for confusion in evaluation.confusions(MOST_CONFUSED):
            names = f"{printable(confusion.name)} finds {printable(confusion.other_name)}"
            print(f"most confused: {names}, {confusion.share:.0%} of the first {evaluation.k} hits")
        unknown = f"of {evaluation.unknown_labels:,} labels that the collection does not have"
        for count, what in (
            (evaluation.unlabelled, "without a label"),
            (evaluation.unknown_queries, unknown),
            (evaluation.alone, "with a label that no other image has"),
        ):
            if count:
                print(f"left out: {count:,} query images {what}")
        _print_failures(evaluation.failures)
    if captioned is not None:
        _print_failures(captioned.failures)


def _print_figures(parts: Sequence[tuple[str, Figures]]) -> None:
    if not parts:
        print("No query is left.")
        return
    rows = [("queries", "number", "space", "figure", "value", "95 % interval")]
    for kind, figures in parts:
        for name, figure in figures.figures.items():
            digits = 1 if name == "median rank" else 3  # the others are shares of 1
            value, low, high = (f"{number:.{digits}f}" for number in (figure.value, figure.low, figure.high))
            rows.append((kind, f"{figures.queries:,}", figures.space, name, value, f"{low} to {high}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{text:{side}{width}}" for text, side, width in zip(row, "<><<><", widths, strict=True))
        print("  ".join(cells).rstrip())


def _near(uri: str) -> str:
    """A path as seen from here, if that is shorter."""
    if not uri.startswith("/"):
        return uri
    try:
        relative = os.path.relpath(uri)
    except OSError:  # the current folder is gone
        return uri
    return relative if len(relative) < len(uri) else uri
