"""Fixtures for all tests: a small encoder, painted images, and subprocesses."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import cli as cli  # tests import it from here
from pixmatcher import encoders
from pixmatcher.images import Recipe
from pixmatcher.net import stream
from pixmatcher.records import Space

# Whoever starts the tests in the background may have Ctrl-C ignored, in all processes that they start as well.
signal.signal(signal.SIGINT, signal.default_int_handler)


class TinyEncoder:
    """A fast encoder: the embedding is the colours of a 4 x 4 grid. It counts the images that it encodes."""

    name = "tiny"
    fingerprint = "tiny-1"
    batch_size = 4
    spaces = (Space("visual", 48), Space("semantic", 24, text=True))
    recipe = Recipe(16)

    def __init__(self) -> None:
        self.encoded = 0
        self._lock = threading.Lock()

    def load_images(self) -> None:
        pass

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        with self._lock:
            self.encoded += len(pixels)
        grid = pixels.reshape(len(pixels), 4, 4, 4, 4, 3).mean(axis=(2, 4)).reshape(len(pixels), 48)
        visual = grid.astype(np.float32) - 127.5
        visual /= np.maximum(np.linalg.norm(visual, axis=1, keepdims=True), 1e-6)
        return {"visual": visual, "semantic": visual[:, ::2].copy()}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        values = [np.resize(np.frombuffer(text.encode(), np.uint8), 24) for text in texts]
        return {"semantic": np.array(values, np.float32) / 255}


@pytest.fixture
def tiny() -> Iterator[TinyEncoder]:
    """A `TinyEncoder` that is registered as `tiny` during the test."""
    encoder = TinyEncoder()
    encoders.register_encoder("tiny", lambda: encoder)
    yield encoder
    encoders.unregister_encoder("tiny")


def paint(path: str | os.PathLike[str], seed: int, size: tuple[int, int] = (40, 30), kind: str | None = None) -> Path:
    """Save an image of 16 coloured fields, a different one for each seed."""
    fields = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(path, kind)
    return path


def paint_many(folder: Path, count: int, first: int = 0) -> list[Path]:
    return [paint(folder / f"{seed:05}.png", seed) for seed in range(first, first + count)]


def bound_by_permissions() -> Callable[[], None] | None:
    """Return the `preexec_fn` of a child process that must obey file permissions, also if root runs the tests."""
    if os.geteuid() != 0:
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def restrict() -> None:
        # Root without the right to ignore permissions; the user nobody could not read the checkout.
        dac_override, dac_read_search, drop_from_bounding_set = 1, 2, 24
        prctl = getattr(libc, "prctl", None)
        if prctl is None or any(prctl(drop_from_bounding_set, c, 0, 0, 0) for c in (dac_override, dac_read_search)):
            os.setuid(65534)

    return restrict


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


def wait_for_lock(process: subprocess.Popen[str]) -> None:
    """Wait until the process waits for a lock, on systems that show this."""
    locks = Path("/proc/locks")
    while locks.exists() and process.poll() is None:
        waiting = [line.split() for line in locks.read_text().splitlines() if "->" in line]
        if any(int(fields[5]) == process.pid for fields in waiting):
            return
        time.sleep(0.01)


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


def fill_up(disk: Path) -> Path:
    """Fill a disk completely; return the file to delete to free space."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for block in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * block)
    return filler


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
