"""Locks on files, between processes and within one."""

from __future__ import annotations

import ast
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pixmatcher
from pixmatcher._locks import FileLock, locked_file
from support import wait_for_lock

HOLD = """
import sys, time
from pathlib import Path
from pixmatcher._locks import FileLock
lock = FileLock(Path(sys.argv[1]))
print(lock.acquire(wait="wait" in sys.argv), flush=True)
time.sleep(60)
"""
"""A process that takes the lock, says so, and keeps it until it is killed."""


def hold(path: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path), *options], stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_the_lock_of_a_killed_process_is_free_and_its_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = hold(path)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        lock = FileLock(path)
        assert not lock.acquire()
        assert not lock.held
        assert lock.holder().startswith(f"process {process.pid} on ")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lock.acquire()
        assert lock.held
        assert json.loads(path.read_text())["pid"] == os.getpid()
        lock.release()
        assert not lock.held
        assert path.exists()
    finally:
        kill(process)


def test_two_objects_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert first.acquire()  # it has it already
    assert not second.acquire()
    assert f"process {os.getpid()} on " in second.holder()
    first.release()
    first.release()
    assert second.acquire()
    second.release()


@pytest.mark.skipif(sys.platform != "linux", reason="reads who waits from /proc")
def test_a_process_that_waits_takes_the_lock_when_it_is_free(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    process = hold(lock.path, "wait")
    try:
        wait_for_lock(process)
        lock.release()
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert not lock.acquire()
    finally:
        kill(process)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b'{"pid": 1}'])
def test_a_lock_file_without_a_holder_names_another_process(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "lock").write_bytes(text)
    assert FileLock(tmp_path / "lock").holder() == "another process"


def test_a_lock_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(IsADirectoryError):
        FileLock(tmp_path / "lock").acquire()


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
def test_a_lock_that_fails_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    lock = FileLock(tmp_path / "lock")
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError, match="Input/output error"):
        lock.acquire()
    assert not lock.held
    assert len(os.listdir("/dev/fd")) == before


def test_a_locked_file_excludes_a_lock_of_the_same_file(tmp_path: Path) -> None:
    with locked_file(tmp_path / "lock"):
        assert not FileLock(tmp_path / "lock").acquire()
    assert FileLock(tmp_path / "lock").acquire()


def test_nothing_is_imported_at_import_time_that_windows_lacks() -> None:
    unix_only = {"fcntl", "grp", "pwd", "resource", "termios"}

    def top_level(tree: ast.AST) -> list[str]:
        names: list[str] = []
        for node in ast.iter_child_nodes(tree):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                names += top_level(node)
        return names

    root = Path(pixmatcher.__file__).parent
    found = {
        str(path.relative_to(root)): sorted(unix_only & set(top_level(ast.parse(path.read_text(encoding="utf-8")))))
        for path in root.rglob("*.py")
    }
    assert not {name: modules for name, modules in found.items() if modules}
