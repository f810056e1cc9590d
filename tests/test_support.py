"""The shared code of the tests."""

from __future__ import annotations

import pytest

from pixmatcher._progress import Progress
from pixmatcher.cli import _progress
from support import without_progress


@pytest.mark.parametrize(
    "progress",
    [
        Progress("Indexing", 1234, 10_000, "images"),
        Progress("Training the index (visual)", 5, 5, "rows"),
        Progress("Waiting for another process that writes", 0, None, "images"),
        Progress("Downloading x.zip", 3_100_000, 12_000_000, "bytes"),
        Progress("Downloading x.zip", 310, None, "bytes"),
        Progress("Searching", 0, 7, "queries"),
    ],
)
def test_lines_of_progress_are_left_out(progress: Progress, capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 20.0, 40.0])
    lines = _progress._ProgressLines(lambda: next(times))
    lines.show(Progress(progress.stage, 0, progress.total, progress.unit))
    lines.show(progress)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 2
    said = "Error: 3 of 4 images failed.\nNote: 5\nWarning: 1 of 2 images\nNothing else.\n"
    assert without_progress(printed + said + printed) == said
