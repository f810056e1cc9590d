"""The commands that inspect and maintain a collection: info, verify, forget, tune."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._text import command_to_upgrade, printable
from .._urls import is_file_url, path_of_file_url
from ..errors import QueryError
from ._app import MAINTENANCE, command
from ._opening import (
    open_folder_collection,
    open_readable_store,
    open_store_to_forget,
    open_store_to_tune,
    open_store_to_verify,
    runtime_of,
    stop_jobs_on_sigterm,
)
from ._options import BackendOption, CollectionOption, DeviceOption, JsonOption, OfflineOption
from ._output import (
    LEFT_OUT,
    counted,
    extensions_text,
    left_out_text,
    print_failures,
    print_incomplete,
    print_json,
    print_note,
    print_pairs,
    print_saved,
    shorter_path,
)
from ._progress import ProgressBars

if TYPE_CHECKING:
    from ..collection import Collection, IndexDescription, TunedStore
    from ..evaluation.tuning import Tuning
    from ..records import Space
    from ..vector_index import IndexTarget


@command("info", example="pixmatcher info -c ~/Pictures", panel=MAINTENANCE)
def info_command(
    collection: CollectionOption = None,
    passed_over: Annotated[
        bool,
        typer.Option(
            "--passed-over",
            help="Instead, list the files in its folders that are passed over, each with its kind.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what is in a collection, and which images could not be indexed."""
    from ..collection import Collection, describe_collection
    from ..encoders import describe_device
    from ..indexing import add_counts, list_passed_over
    from ..searching import AnswersQueries

    if passed_over:
        with open_folder_collection(collection) as folder:
            for kind, path in list_passed_over(folder):
                print(f"{kind:<8}  {printable(path)}")
        return
    with open_readable_store(collection) as opened:
        described = describe_collection(opened)
        # The encoders of a service run on its machine.
        local = [] if isinstance(opened, AnswersQueries) else [record.name for record in described.encoders]
        devices = {name: choice for name in local if (choice := describe_device(name)) is not None}
        if as_json:
            values = described.as_json()
            for encoder in values["encoders"]:
                encoder["runs_on"] = devices[encoder["name"]].as_json() if encoder["name"] in devices else None
            print_json(values)
            return
        failures, incomplete = opened.failures(), opened.incomplete()
    pairs = [
        ("collection", str(opened.path)),
        ("sources", ", ".join(described.sources) or "none yet"),
        ("images", f"{described.count:,}"),
        ("failed", f"{described.failed:,}"),
        *([("incomplete", f"{described.incomplete:,}")] if described.incomplete else []),
        ("formats", ", ".join(f"{name} {count:,}" for name, count in described.formats.items()) or "none"),
        ("labels", f"{described.labels:,}"),
        ("encoders", ", ".join(f"{e.name} ({e.fingerprint or 'unknown version'})" for e in described.encoders)),
        *(("runs on", f"{name}: {choice}") for name, choice in devices.items()),
        ("spaces", ", ".join(map(_space_text, described.spaces.values()))),
        ("index", ", ".join(_index_text(space, index) for space, index in described.indexes.items())),
        *([] if described.bytes is None else [("on disk", f"{described.bytes / 1e6:.1f} MB")]),
    ]
    if counts := add_counts(each.passed_over for each in described.sources.values()):
        files = extensions_text({kind: found for kind, found in counts.items() if kind not in LEFT_OUT})
        listed = ", ".join(text for text in (files, left_out_text(counts)) if text)
        # A service counts them and does not list them.
        hint = "; add --passed-over to list them" if isinstance(opened, Collection) else ""
        pairs.append(("passed over", f"{listed}{hint}"))
    for spec, each in described.sources.items():
        options = [f"--exclude {shlex.quote(pattern)}" for pattern in each.exclude]
        options += ["--hidden"] if each.hidden else []
        if options:
            pairs.append(("options", f"{' '.join(options)} for {spec}"))
        if each.forgotten:
            pairs.append(("forgotten", f"{', '.join(each.forgotten)} in {spec}"))
    if described.unfinished_encoders:
        names = ", ".join(record.name for record in described.unfinished_encoders)
        command = command_to_upgrade(opened.path)
        pairs.append(("upgrade", f"to {names}, not finished: run `{command}` again"))
    print_pairs(pairs)
    print_incomplete(incomplete)
    print_failures(failures)


def _space_text(space: Space) -> str:
    return f"{space.name} ({space.dimension} values, {'text and image' if space.text else 'image'})"


def _index_text(space: str, index: IndexDescription) -> str:
    if index.kind == "exact":
        return f"{index.kind} ({space})"
    found = "not built yet" if index.recall is None else f"finds {index.recall:.1%} of the 10 nearest"
    return f"{index.kind} ({space}: too many values to compare all in 10 ms; {found})"


@command("verify", example="pixmatcher verify --repair", panel=MAINTENANCE)
def verify_command(
    collection: CollectionOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is damaged from the collection and rebuild the indexes.")
    ] = False,
) -> None:
    """Read everything in a collection and check that nothing is damaged."""
    with open_store_to_verify(collection) as opened:
        if repair:
            removed = opened.repair()
            print(f"Repaired: {removed:,} damaged images removed from the collection, indexes rebuilt.")
            if removed:
                again = f"pixmatcher index -c {shlex.quote(str(opened.path))}"
                print(printable(f"Run `{again}` to encode them again."))
        problems = opened.verify()
        count = len(opened) if not problems else 0
    for problem in problems:
        print(f"{problem.part}: {printable(problem.message)}. {printable(problem.remedy)}")
    if problems:
        raise typer.Exit(1)
    print(f"Undamaged: {count:,} images, with their embeddings and indexes.")


_ASK_FROM = 1000
"""`forget` asks before it removes this many images or more."""


@command("forget", example="pixmatcher forget ~/Pictures/old", panel=MAINTENANCE)
def forget_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A source, as `pixmatcher info` shows it; or a folder or file in a folder that is a source.",
        ),
    ],
    collection: CollectionOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before thousands of images are removed.")] = False,
) -> None:
    """Remove a source, or a part of a folder, and its images from a collection. The image files are not deleted.

    A part of a folder stays forgotten until you index it by its own name.
    """
    stop_jobs_on_sigterm(collection)
    with open_store_to_forget(collection) as opened:
        count = opened.count_to_forget(source)
        if count >= _ASK_FROM and not yes:
            what = f"{count:,} images of {printable(source)}"
            if sys.stdin is None or not sys.stdin.isatty():
                raise QueryError(f"This would remove {what} from the collection: add --yes to do it.")
            question = f"Remove {what} from the collection? The files are not deleted. [y/N] "
            print(question, end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                print_note("Nothing was removed.")
                return
        removed = opened.forget(source)
        sources, path = opened.sources(), shorter_path(str(opened.path))
        forgotten = {os.path.join(spec, p) for spec in sources for p in opened.folder_notes(spec).forgotten}
    print(f"{counted(removed, 'image')} of {printable(source)} removed from the collection.")
    local = path_of_file_url(source) if is_file_url(source) else source
    if places := {os.path.abspath(local), os.path.realpath(local)} & forgotten:
        place = places.pop()
        folder = os.path.dirname(place) if os.path.isfile(place) else place
        until = f", until you run `pixmatcher index {shlex.quote(shorter_path(folder))} -c {shlex.quote(path)}`"
        print_note(f"Later runs leave it out{until if folder not in sources else ''}.")


@command("tune", example="pixmatcher tune --recall 0.99", panel=MAINTENANCE)
def tune_command(
    collection: CollectionOption = None,
    space: Annotated[
        str | None, typer.Option(help="Tune only the index of this space; by default, all.", show_default=False)
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            help="The share of the 10 nearest images that the index must find. It is stored in the collection; "
            "at first it is 0.95.",
            min=0,
            max=1,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The memory that an index may use, such as 800M or 1G; 0 for no limit."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save a plot of what was measured (.png, .svg or .pdf).")
    ] = None,
    as_json: JsonOption = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Choose the settings of the index for a recall and a memory limit, and calibrate the probability of hits."""
    from .._plots import check_plot_path
    from ..evaluation.tuning import save_plot, tune

    if plot is not None:
        check_plot_path(plot)
    with open_store_to_tune(collection) as opened:
        if space is not None and space not in opened.spaces:
            raise QueryError(
                f"The space {space!r} does not exist in this collection: choose one of {', '.join(opened.spaces)}."
            )
        with ProgressBars() as bars:
            runtime = runtime_of(backend, device, offline, bars)
            tunings = [
                tune(
                    opened,
                    name,
                    _target(opened, name, recall, _bytes(memory)),
                    runtime=runtime,
                    progress=bars.callback,
                )
                for name in ([space] if space else opened.spaces)
            ]
    if as_json:
        print_json([tuning.as_json() for tuning in tunings])
    else:
        for tuning in tunings:
            _print_tuning(tuning)
            _print_calibrations(tuning)
    if plot is not None:
        if save_plot(tunings, plot):
            print_saved("Plot", plot)
        else:
            print_note("There is nothing to draw: no index was tuned and no probability calibrated.")


def _target(
    opened: Collection | TunedStore, space: str, recall: float | None, memory: int | None
) -> IndexTarget | None:
    from ..collection import Collection

    if isinstance(opened, Collection):
        return opened.indexes.target(space).with_values(recall, memory)
    if memory is not None:
        raise QueryError(f"The memory of an index of {opened.path} is a matter of its server: leave --memory out.")
    from ..vector_index import IndexTarget

    return None if recall is None else IndexTarget(recall)


def _bytes(text: str | None) -> int | None:
    """Return the number of bytes that a text such as 800M or 1G means."""
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
        raise QueryError(f"{text!r} is not a size: write it like 800M or 1G.") from None


def _print_calibrations(tuning: Tuning) -> None:
    if not tuning.calibrations:
        print(
            "The probability of hits was not calibrated: labels and captions are too few, or scores do not follow them."
        )
    for each in tuning.calibrations:
        kind, found = "texts" if each.kind == "text" else "images", each.reliability
        print(
            f"The probability of hits was calibrated with {each.queries:,} {kind}. On queries left out it is off by "
            f"{found.error:.3f} in the mean, the Brier score is {found.brier:.3f} (without scores "
            f"{found.brier_of_mean:.3f})."
        )


def _print_tuning(tuning: Tuning) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{tuning.space}: {tuning.index}, {tuning.rows:,} images, {tuning.ms:.2f} ms a query")
    if not tuning.curve:
        print("Every query is compared with all images: the index needs no tuning until the collection is larger.")
        return
    texts = f", {tuning.texts} of them texts" if tuning.texts else ""
    print(f"Recall is measured with queries made from the images{texts}; comparing all takes {tuning.exact_ms:.1f} ms.")
    table = Table(box=None)
    for title in ("queries", "lists", "candidates", "recall@10", "ms", ""):
        table.add_column(title, justify="right")
    for point in tuning.curve:
        kind = "texts" if point.texts else "images"
        cells = (kind, str(point.lists), str(point.candidates), f"{point.recall:.3f}", f"{point.ms:.2f}")
        table.add_row(*cells, "chosen" if point.chosen else "")
    Console().print(table)
