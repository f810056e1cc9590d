"""Progress on standard error: bars on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .._text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from .._progress import Progress, ProgressCallback

SECONDS_BETWEEN_LINES = 10.0


class ProgressBars:
    """Progress on standard error, from the first progress that is reported. Use it as a context manager.

    A terminal gets bars. A file or a pipe gets a line of plain text every ten seconds, and none for shorter work.
    """

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._lines = _ProgressLines()

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars from the terminal."""
        if self._bars is not None:
            self._bars.stop()

    @property
    def callback(self) -> ProgressCallback:
        """The function to call with the progress of a stage."""
        draws = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        return self._show if draws else self._lines.show

    def _show(self, progress: Progress) -> None:
        """Show the progress of a stage; a new stage gets a new bar."""
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        if self._bars is None:
            fields = ("percent", "counts", "rate", "left")
            texts = (TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in fields)
            columns = (TextColumn("{task.description}"), BarColumn(), *texts)
            self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        total, done, description = progress.total, progress.done, escape(printable(progress.stage))
        counts, percent = _counts_text(progress, "/"), _percent_text(progress)
        task = next((task for task in self._bars.tasks if task.description == description), None)
        if task is None:
            self._bars.add_task(
                description, total=total, completed=done, counts=counts, percent=percent, rate="", left=""
            )
            return
        speed, seconds = task.finished_speed or task.speed, task.time_remaining
        rate = _rate_text(speed, progress.unit) if speed else ""
        left = f"{_clock_text(seconds)} left" if seconds and not task.finished else ""
        self._bars.update(task.id, completed=done, total=total, counts=counts, percent=percent, rate=rate, left=left)


class _ProgressLines:
    """Progress as lines of plain text, such as "Indexing: 1,234 of 10,000 images, 12 %, 3 min left"."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage, self._first_done = "", 0
        self._began = self._printed = clock()

    def show(self, progress: Progress) -> None:
        """Print a line if the last one, or the start, is ten seconds ago."""
        now = self._clock()
        if progress.stage != self._stage:
            self._stage, self._first_done, self._began = progress.stage, progress.done, now
        if now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        counts = _counts_text(progress, " of ")
        if counts and progress.unit != "bytes":
            counts += f" {progress.unit}"
        parts = (counts, _percent_text(progress), self._left(progress, now))
        with contextlib.suppress(OSError):  # the work goes on, also if nobody reads it
            print(f"{printable(progress.stage)}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    def _left(self, progress: Progress, now: float) -> str:
        """Return the time that the rest of the stage takes at its mean speed; "" if that is not known."""
        done = progress.done - self._first_done
        if progress.total is None or done <= 0 or progress.done >= progress.total:
            return ""
        return f"{_duration_text((now - self._began) * (progress.total - progress.done) / done)} left"


def _counts_text(progress: Progress, between: str) -> str:
    """Return the units done and the units of the stage, such as "1,200/8,000" or "3.1 MB/12.0 MB"."""
    from rich.filesize import decimal

    number: Callable[[int], str] = decimal if progress.unit == "bytes" else "{:,}".format
    if progress.total is None:
        return number(progress.done) if progress.done else ""
    return f"{number(progress.done)}{between}{number(progress.total)}"


def _percent_text(progress: Progress) -> str:
    """Return how much of the stage is done, such as "12 %"; "" if its length is not known."""
    return f"{100 * min(progress.done, progress.total) // progress.total} %" if progress.total else ""


def _rate_text(speed: float, unit: str) -> str:
    """Return the units a second, such as "120 images/s" or "3.1 MB/s"."""
    from rich.filesize import decimal

    return f"{decimal(int(speed))}/s" if unit == "bytes" else f"{speed:,.0f} {unit}/s"


def _clock_text(seconds: float) -> str:
    """Return a time in seconds as minutes and seconds, such as "3:20", with hours "1:03:20"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _duration_text(seconds: float) -> str:
    """Return a time in seconds in its unit, such as "40 s", "3 min" or "2 h 5 min"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
