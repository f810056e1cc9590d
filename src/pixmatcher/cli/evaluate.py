"""The command that measures how well a collection answers queries: evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._text import printable
from ..errors import QueryError
from ._app import EVALUATION, command
from ._opening import open_readable_store, runtime_of
from ._options import (
    BackendOption,
    CollectionOption,
    DeviceOption,
    JsonOption,
    OfflineOption,
    PrivateHostsOption,
    SpaceOption,
)
from ._output import print_columns, print_failures, print_json, print_saved
from ._progress import ProgressBars

if TYPE_CHECKING:
    from ..evaluation import CaptionEvaluation, Evaluation, QueryMetrics


@command("evaluate", example="pixmatcher evaluate --captions captions.csv --top 20", panel=EVALUATION)
def evaluate_command(
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="A source of images with labels to use as queries: see `pixmatcher sources`."
        ),
    ] = None,
    collection: CollectionOption = None,
    k: Annotated[int, typer.Option("--top", "-k", min=1, help="The number of results that count.")] = 10,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A csv file with the columns image and caption; the captions are used as queries."
        ),
    ] = None,
    as_json: JsonOption = False,
    per_category: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the result of each category as a csv file.")
    ] = None,
    confusions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Save a plot of the most confused categories (.png, .svg or .pdf)."),
    ] = None,
    allow_private_hosts: PrivateHostsOption = False,
    space: SpaceOption = None,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Measure how well a collection answers queries whose right answers are known."""
    from .._files import check_writable
    from ..evaluation import evaluate, evaluate_captions, save_categories
    from ..sources import open_source

    if queries is None and (captions is None or per_category is not None or confusions is not None):
        raise QueryError("Name a source of images with labels: --queries SOURCE.")
    if per_category is not None:
        check_writable(per_category)
    if confusions is not None:
        from .._plots import check_plot_path
        from ..evaluation.confusion_plot import save_confusion_plot

        check_plot_path(confusions)
    source = None if queries is None else open_source(queries)
    with open_readable_store(collection) as opened, ProgressBars() as bars:
        runtime = runtime_of(backend, device, offline, bars)
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
        print_json(answer | ({"captions": captioned.as_json()} if captioned else {}))
    else:
        _print_evaluation(evaluation, captioned)
    if evaluation is not None and per_category is not None:
        save_categories(evaluation, per_category)
        print_saved("Categories", per_category)
    if evaluation is not None and confusions is not None:
        save_confusion_plot(evaluation, confusions)
        print_saved("Plot", confusions)
    if (evaluation and evaluation.failures) or (captioned and captioned.failures):
        raise typer.Exit(1)


def _print_evaluation(evaluation: Evaluation | None, captioned: CaptionEvaluation | None) -> None:
    parts: list[tuple[str, QueryMetrics | None]] = []
    if evaluation is not None:
        where = printable(str(evaluation.collection))
        print(f"{evaluation.items:,} labelled images in {where}, {evaluation.seconds:.1f} s")
        print(f"queries from {printable(evaluation.queries)}")
        parts += [("images", evaluation.images), ("label names", evaluation.texts)]
    if captioned is not None:
        print(f"{captioned.items:,} images in {printable(str(captioned.collection))}, {captioned.seconds:.1f} s")
        print(f"captions from {printable(captioned.captions)}")
        parts.append(("captions", captioned.texts))
    _print_metrics([(kind, found) for kind, found in parts if found is not None])
    if evaluation is not None:
        _print_confusions(evaluation)
        _print_left_out(evaluation)
        print_failures(evaluation.failures)
    if captioned is not None:
        print_failures(captioned.failures)


def _print_metrics(parts: Sequence[tuple[str, QueryMetrics]]) -> None:
    if not parts:
        print("No query is left.")
        return
    rows = [("queries", "number", "space", "figure", "value", "95 % interval")]
    for kind, found in parts:
        for name, metric in found.metrics.items():
            digits = 1 if name == "median rank" else 3  # the others are shares of 1
            value, low, high = (f"{number:.{digits}f}" for number in (metric.value, metric.low, metric.high))
            rows.append((kind, f"{found.queries:,}", found.space, name, value, f"{low} to {high}"))
    print_columns(rows, "<><<><")


def _print_confusions(evaluation: Evaluation) -> None:
    from ..evaluation import MOST_CONFUSED

    for confusion in evaluation.confusions(MOST_CONFUSED):
        names = f"{printable(confusion.name)} finds {printable(confusion.other_name)}"
        print(f"most confused: {names}, {confusion.share:.0%} of the first {evaluation.k} hits")


def _print_left_out(evaluation: Evaluation) -> None:
    unknown = f"with one of {evaluation.unknown_labels:,} labels that the collection does not have"
    for count, what in (
        (evaluation.unlabelled, "without a label"),
        (evaluation.unknown_queries, unknown),
        (evaluation.without_relevant, "with a label that no other image has"),
    ):
        if count:
            print(f"left out: {count:,} query images {what}")
