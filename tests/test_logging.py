"""The log of the library: silent by default, shown by `-v` and PIXMATCHER_LOG."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import without_progress

EXAMPLES = Path(__file__).parents[1] / "examples" / "photos"
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR) (pixmatcher[.a-z_]*): .+")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two photos."""
    for name in ("cat.jpg", "rocket.jpg"):
        shutil.copy(EXAMPLES / name, tmp_path)
    return tmp_path


def run(*arguments: str, cwd: Path, log: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, or Python code after `-c`, with PIXMATCHER_LOG set to `log`."""
    environment = {name: value for name, value in os.environ.items() if name != "PIXMATCHER_LOG"}
    if log is not None:
        environment["PIXMATCHER_LOG"] = log
    start = [sys.executable] if arguments[0] == "-c" else [sys.executable, "-m", "pixmatcher"]
    return subprocess.run(
        [*start, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def records(stderr: str) -> set[tuple[str, str]]:
    """The levels and loggers of the lines, all of which must be lines of the log."""
    lines = [LINE.fullmatch(line) for line in stderr.splitlines()]
    assert all(lines), stderr
    return {(line[1], line[2]) for line in lines if line}


def test_nothing_is_shown_by_default(folder: Path) -> None:
    assert without_progress(run("index", ".", cwd=folder).stderr) == ""
    assert run("search", "a cat", cwd=folder).stderr == ""
    code = "import logging, pixmatcher\nlogging.getLogger('pixmatcher.net').warning('not for the user')"
    assert run("-c", code, cwd=folder).stderr == ""


@pytest.mark.parametrize("arguments", [("-v", "index", "."), ("index", "-v", "."), ("index", ".", "--verbose")])
def test_verbose_before_or_after_the_command(folder: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, cwd=folder)
    assert done.returncode == 0
    assert ("INFO", "pixmatcher.collection") in records(done.stderr)
    assert {level for level, _ in records(done.stderr)} == {"INFO"}
    assert done.stdout.startswith("2 images")


@pytest.mark.parametrize("flags", [("-vv",), ("-v", "-v"), ("--verbose", "--verbose")])
def test_twice_verbose_shows_details(folder: Path, flags: tuple[str, ...]) -> None:
    run("index", ".", cwd=folder)
    done = run("search", *flags, "a cat", "--json", cwd=folder)
    assert ("DEBUG", "pixmatcher.searching") in records(done.stderr)
    assert "space semantic of the encoder lite" in done.stderr
    assert done.stdout.count("\n") == 1  # the log does not mix with the results
    once = records(run("-v", "search", "a cat", cwd=folder).stderr)
    assert {level for level, _ in once} <= {"INFO"}


@pytest.mark.slow
def test_the_variable_sets_the_level_of_each_logger(folder: Path) -> None:
    run("index", ".", cwd=folder)
    search = "from pixmatcher import *\nsearch(Collection.open('.'), 'a cat')"
    for arguments in (("search", "a cat"), ("-c", search)):
        assert {("DEBUG", "pixmatcher.searching"), ("DEBUG", "pixmatcher.collection")} <= records(
            run(*arguments, cwd=folder, log="debug").stderr
        )
        one = run(*arguments, cwd=folder, log="pixmatcher.searching=debug,info")
        assert {name for level, name in records(one.stderr) if level == "DEBUG"} == {"pixmatcher.searching"}
        assert not records(run(*arguments, cwd=folder, log="warning").stderr)


@pytest.mark.parametrize("setting", ["loud", "pixmatcher.net=loud,warning", "other=debug", "=debug"])
def test_a_setting_that_is_not_understood_is_reported(folder: Path, setting: str) -> None:
    done = run("sources", cwd=folder, log=setting)
    assert done.returncode == 0
    assert records(done.stderr) == {("WARNING", "pixmatcher")}
    assert "is ignored" in done.stderr


def test_an_error_is_still_one_line_and_its_cause_is_in_the_log(folder: Path) -> None:
    plain = run("search", "missing.jpg", cwd=folder)
    verbose = run("search", "missing.jpg", "-vv", cwd=folder)
    assert plain.returncode == verbose.returncode == 2
    assert plain.stderr.count("\n") == 1
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith(plain.stderr)


def test_a_message_cannot_forge_a_line(folder: Path) -> None:
    code = "import logging, pixmatcher\nlogging.getLogger('pixmatcher.net').warning('a\\nb\\x1b[2J')"
    done = run("-c", code, cwd=folder, log="info")
    assert done.stderr.endswith(r"WARNING pixmatcher.net: a\nb\x1b[2J" + "\n")
    assert records(done.stderr) == {("WARNING", "pixmatcher.net")}


def test_the_log_and_a_progress_bar_share_a_terminal(folder: Path) -> None:
    """While a bar is shown, each line of the log is printed above it."""
    code = (
        "import logging\n"
        "from pixmatcher._progress import Progress\n"
        "from pixmatcher.cli._progress import ProgressBars\n"
        "with ProgressBars() as bars:\n"
        "    for done in range(3):\n"
        "        bars.callback(Progress('Indexing', done, 3, 'images'))\n"
        "        logging.getLogger('pixmatcher.net').info('message %d', done)\n"
    )
    main, terminal = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", code],
            stderr=terminal,
            timeout=60,
            check=True,
            env={**os.environ, "PIXMATCHER_LOG": "info", "TERM": "xterm", "COLUMNS": "120"},
        )
        shown = os.read(main, 1 << 16).decode()
    finally:
        os.close(main)
        os.close(terminal)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", shown))
    assert [line[-1] for line in lines if LINE.fullmatch(line)] == ["0", "1", "2"]
    assert any(line.startswith("Indexing") and "2/3" in line for line in lines)
