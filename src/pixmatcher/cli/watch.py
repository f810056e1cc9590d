"""The command that keeps a collection up to date: watch."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from .._text import printable
from ._app import INDEX, command
from ._opening import runtime_of
from ._options import (
    BackendOption,
    CollectionOption,
    DeviceOption,
    MegapixelsOption,
    OfflineOption,
    PrivateHostsOption,
    pixels_of,
)
from ._output import print_failures, print_incomplete, print_note, report_counts
from ._progress import ProgressBars

if TYPE_CHECKING:
    from .._progress import Progress
    from ..indexing import IndexReport


@command("watch", example="pixmatcher watch -c ~/Pictures", panel=INDEX)
def watch_command(
    collection: CollectionOption = None,
    every: Annotated[
        float,
        typer.Option(
            min=1,
            max=86400,
            metavar="SECONDS",
            help="How often all sources are refreshed: this finds changes that the system does not report, such as "
            "those of another machine on a network disk.",
        ),
    ] = 60,
    max_megapixels: MegapixelsOption = 512,
    allow_private_hosts: PrivateHostsOption = False,
    backend: BackendOption = None,
    device: DeviceOption = None,
    offline: OfflineOption = False,
) -> None:
    """Watch the folders of a collection: changes are indexed seconds after they happen, until you press Ctrl-C."""
    from ..collection import Collection
    from ..indexing.watching import watch

    reference = collection or str(Collection.find())
    failed: set[tuple[str, str]] = set()
    bars: ProgressBars | None = None  # of the run that is under way

    def show_progress(progress: Progress) -> None:
        nonlocal bars
        bars = bars or ProgressBars()
        bars.callback(progress)

    def show_report(report: IndexReport) -> None:
        nonlocal failed, bars
        if bars is not None:
            bars.close()
            bars = None
        found = {(failure.uri, failure.reason) for failure in report.failures}
        new = [failure for failure in report.failures if (failure.uri, failure.reason) not in failed]
        # A run after a change looks at some sources only: what fails in the others is not reported again.
        failed |= found
        if report.added or report.changed or report.moved or report.removed or new:
            counts = report_counts(report, unchanged=False)
            print(f"{time.strftime('%H:%M:%S')}  {counts}; {report.total:,} images", flush=True)
            print_incomplete(report.incomplete)
            print_failures(new)
            sys.stdout.flush()

    # What a service manager sends is to end the command in the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print_note(f"Watching the sources of {reference}. Stop with Ctrl-C.")
    try:
        watch(
            reference,
            every=every,
            max_pixels=pixels_of(max_megapixels),
            allow_private=allow_private_hosts,
            runtime=replace(runtime_of(backend, device, offline, ProgressBars()), progress=show_progress),
            on_report=show_report,
            on_note=print_note,
            on_wait=lambda error: print_note(f"{error} Waiting until it has finished."),
            progress=show_progress,
        )
    except KeyboardInterrupt:
        print(printable(f"Stopped watching {reference}. What is done is kept."), file=sys.stderr)
    finally:
        if bars is not None:
            bars.close()
