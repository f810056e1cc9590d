"""Progress bars on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bars

    from .._progress import Progress, ProgressCallback


class ProgressBars:
    """Progress bars on standard error, shown from the first progress that is reported. Use it as a context manager."""

    def __init__(self) -> None:
        self._bars: Bars | None = None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    @property
    def callback(self) -> ProgressCallback | None:
        """The function to call with the progress of a stage; None if standard error is not a terminal."""
        return self._show if sys.stderr.isatty() else None

    def _show(self, progress: Progress) -> None:
        """Show the progress of a stage; a new stage gets a new bar."""
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
    """Return the units done and the units of the stage, such as "1,200/8,000" or "3.1 MB/12.0 MB"."""
    from rich.filesize import decimal

    number: Callable[[int], str] = decimal if progress.unit == "bytes" else "{:,}".format
    if progress.total is None:
        return number(progress.done) if progress.done else ""
    return f"{number(progress.done)}/{number(progress.total)}"


def _rate_text(speed: float, unit: str) -> str:
    """Return the units a second, such as "120 images/s" or "3.1 MB/s"."""
    from rich.filesize import decimal

    return f"{decimal(int(speed))}/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s"
