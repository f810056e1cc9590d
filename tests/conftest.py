"""Fixtures for all tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixmatcher import encoders
from pixmatcher.net import stream
from support import TinyEncoder

# Whoever starts the tests in the background may have Ctrl-C ignored, in all processes that they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tiny() -> Iterator[TinyEncoder]:
    """A `TinyEncoder` that is registered as `tiny` during the test."""
    encoder = TinyEncoder()
    encoders.register_encoder("tiny", lambda: encoder)
    yield encoder
    encoders.unregister_encoder("tiny")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter; those of pytest are private."""
    folder = Path(tempfile.mkdtemp(prefix="pixmatcher-test-"))
    folder.chmod(0o755)
    yield folder
    for inner, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(inner, 0o755)
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 2 MB, or None if the tests may not mount one."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount_point)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes calls of the operating system fail, for `LD_PRELOAD`; see `data/disk_shim.c`."""
    if sys.platform != "linux":
        pytest.skip("the library that makes calls fail is written for Linux")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler, which makes the disks that lack something")
    path = tmp_path_factory.mktemp("shim") / "disk_shim.so"
    source = Path(__file__).parent / "data" / "disk_shim.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"], check=True)
    return path


@pytest.fixture
def quick_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads without pauses between attempts, and without the proxy of the environment."""
    monkeypatch.setattr(stream, "_BACKOFF_SECONDS", 0.001)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
