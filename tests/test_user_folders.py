"""Users without a home folder, as in containers; a deleted current folder; no folder for temporary files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest

from pixmatcher import PixMatcherError, StorageError, _user_folders
from pixmatcher._user_folders import (
    expanded,
    home_folder,
    private_temporary_folder,
    user_cache_folder,
    user_state_folder,
)
from support import bound_by_permissions, cli, paint_many

GONE = "Error: The current folder does not exist any more: change to another one with cd.\n"
NO_HOME = "This user has no home folder for downloaded files: set PIXMATCHER_CACHE or HOME to a folder"


@pytest.fixture
def homeless(shim: Path) -> dict[str, str]:
    """The environment of a process whose user has no home folder and no entry in the list of users."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "TMPDIR")}
    return {**kept, "LD_PRELOAD": str(shim), "NO_USER": "1"}


@pytest.mark.parametrize("home", [None, "", "/nonexistent"])
def test_commands_without_a_home_folder(homeless: dict[str, str], tmp_path: Path, home: str | None) -> None:
    environment = homeless if home is None else homeless | {"HOME": home}
    paths = paint_many(tmp_path / "photos", 2)

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = cli(*arguments, env=environment, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done

    for arguments in (
        ["--help"],
        ["models", "list"],
        ["models", "info", "lite"],
        ["index", "photos"],
        ["search", paths[0], "-c", "photos"],
        ["info", "-c", "photos"],
    ):
        assert run(*arguments).stderr == ""
    assert "clip-vit-b-32" in run("models", "list").stdout
    run("search", "red", "-c", "photos")
    for arguments in (
        ["models", "pull", "clip-vit-b-32"],
        ["index", "photos", "-c", "new", "--encoder", "clip-vit-b-32"],
    ):
        done = run(*arguments, code=2)
        assert done.stderr.startswith(f"Error: {NO_HOME}")
        assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["photos"]  # and no folder of the name ~
    # What the message advises works: then only the network is missing.
    environment = environment | {"PIXMATCHER_CACHE": "cache"}
    assert (
        "home folder" not in cli("models", "pull", "clip-vit-b-32", "--offline", env=environment, cwd=tmp_path).stderr
    )


@pytest.mark.skipif(
    find_spec("matplotlib") is None or find_spec("sklearn") is None, reason="matplotlib is not installed"
)
def test_a_picture_of_a_map_without_a_home_folder(homeless: dict[str, str], tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 5)
    (tmp_path / "temporary").mkdir()
    environment = homeless | {"TMPDIR": str(tmp_path / "temporary")}
    assert cli("index", "photos", env=environment, cwd=tmp_path).returncode == 0
    done = cli("map", "map.png", "-c", "photos", "--method", "pca", env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_demo_without_a_home_folder(homeless: dict[str, str], tmp_path: Path) -> None:
    """In a copy of the package, as it is installed: there is no checkout that the demo could write to."""
    import pixmatcher

    package = tmp_path / "site" / "pixmatcher"
    shutil.copytree(Path(pixmatcher.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(Path(pixmatcher.__file__).parents[2] / "examples" / "photos", package / "example_photos")
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    environment = homeless | {"PYTHONPATH": str(package.parent), "TMPDIR": str(tmp_path / "temporary")}
    done = cli("demo", env=environment, cwd=tmp_path / "work")
    assert (done.returncode, done.stderr) == (0, "")
    (made,) = (tmp_path / "temporary").iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    assert str(made) in done.stdout
    assert os.listdir(tmp_path / "work") == ["demo-results.png"]
    again = cli("demo", env=environment, cwd=tmp_path / "work")
    assert "18 unchanged" in again.stdout
    # In a current folder that cannot be written, as / in a container.
    (tmp_path / "work" / "demo-results.png").unlink()
    (tmp_path / "work").chmod(0o555)
    elsewhere = cli("demo", env=environment, cwd=tmp_path / "work", preexec_fn=bound_by_permissions())
    (tmp_path / "work").chmod(0o755)
    assert (elsewhere.returncode, elsewhere.stderr) == (0, "")
    assert f"Contact sheet of the first search: {made / 'demo-results.png'}" in elsewhere.stdout
    assert (made / "demo-results.png").exists()
    # Without a folder for temporary files, and with a home folder that cannot be made.
    blocked = {"TMPDIR": "/nowhere", "PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent), "HOME": "/dev/null"}
    script = (
        "import tempfile, sys; tempfile._candidate_tempdir_list = lambda: ['/nowhere']\n"
        "sys.argv = ['pixmatcher', 'demo']\nfrom pixmatcher.cli import main; main()"
    )
    failed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=blocked, cwd=tmp_path / "work", timeout=60
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: There is no folder for temporary files (")
    assert failed.stderr.endswith("set TMPDIR to a folder that you may write.\n")


def test_a_cache_that_cannot_be_written(open_folder: Path) -> None:
    home = open_folder / "home"
    home.mkdir(mode=0o555)
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": "", "PIXMATCHER_CACHE": ""}
    assert cli("models", "list", env=environment).returncode == 0
    done = cli("models", "pull", "clip-vit-b-32", env=environment, preexec_fn=bound_by_permissions())
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {home}")
    assert "cannot be written (Permission denied): set PIXMATCHER_CACHE to a folder that you may write." in done.stderr


@pytest.mark.skipif(find_spec("streamlit") is None, reason="streamlit is not installed")
@pytest.mark.parametrize("home", [{}, {"HOME": "/dev/null"}, {"HOME": "/dev/null/home"}], ids=str)
def test_the_app_without_a_home_folder(homeless: dict[str, str], tmp_path: Path, home: dict[str, str]) -> None:
    paint_many(tmp_path / "photos", 2)
    assert cli("index", tmp_path / "photos").returncode == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "pixmatcher",
        "app",
        "--no-browser",
        f"--port={port}",
        "-c",
        str(tmp_path / "photos"),
    ]
    with subprocess.Popen(
        command, env=homeless | home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        try:
            answer = b""
            end = time.monotonic() + 120
            while process.poll() is None and not answer and time.monotonic() < end:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as response:
                        answer = response.read()
                except OSError:
                    time.sleep(0.1)
            assert answer == b"ok"
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=120)
    assert errors == ""
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.skipif(sys.platform == "win32", reason="a current folder cannot be deleted there")
def test_commands_in_a_deleted_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = paint_many(folder, 2)
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", script, "sh", sys.executable, "-m", "pixmatcher", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=60
        )

    for arguments in (
        ["--help"],
        ["models", "list"],
        ["index", folder],
        ["search", paths[0], "-c", folder],
        ["info", "-c", folder],
        ["verify", "-c", folder],
        ["export", "arrays", "-c", folder, "--to", tmp_path / "arrays"],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
    for arguments in (
        ["index", "."],
        ["index"],
        ["search", "red"],
        ["search", "a.png", "-c", folder],
        ["info"],
        ["verify", "-c", "photos"],
        ["forget", "photos", "-c", folder],
        ["export", "arrays", "-c", folder, "--to", "arrays"],
        ["upgrade"],
        ["app", "--no-browser"],
        ["app", "--no-browser", "-c", folder],
        ["datasets", "get", "tiny-imagenet"],
    ):
        done = run(*arguments)
        assert (done.returncode, done.stderr) == (2, GONE), arguments


# The functions


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert home_folder() == tmp_path
    assert user_state_folder().is_relative_to(tmp_path)
    assert user_cache_folder().is_relative_to(tmp_path)
    assert expanded("~/a") == tmp_path / "a"
    monkeypatch.setenv("HOME", "")
    usual = home_folder()
    assert usual is not None
    assert usual.is_absolute()
    assert user_cache_folder().is_relative_to(usual)
    monkeypatch.setattr(_user_folders, "home_folder", lambda: None)
    with pytest.raises(PixMatcherError, match=NO_HOME):
        user_cache_folder()
    with pytest.raises(PixMatcherError, match="write the path without ~"):
        expanded("~/a")
    assert expanded("a") == Path("a")
    with pytest.raises(PixMatcherError, match="set XDG_STATE_HOME or HOME"):
        user_state_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    if sys.platform == "linux":
        assert user_cache_folder() == tmp_path / "pixmatcher"
        assert user_state_folder() == tmp_path / "state" / "pixmatcher"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of Unix")
def test_the_temporary_folder_is_that_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private_temporary_folder()
    assert folder == private_temporary_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    # Another user may have made a folder, or a link, of that name.
    folder.chmod(0o777)
    other = private_temporary_folder()
    assert other != folder
    assert other.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert private_temporary_folder() not in (folder, tmp_path / "elsewhere")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StorageError, match=r"set TMPDIR to a folder that you may write\.$"):
        private_temporary_folder()
