"""What many tests use: a small encoder, painted images, the command line as a process, permissions and disks."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher.images import Recipe
from pixmatcher.records import Space

_SIZE = r"[\d,.]+( bytes| [kMGT]?B)?"
_PROGRESS = re.compile(
    rf"(?!Error|Note|Warning)[A-Z][^:\n]*: ({_SIZE}( of {_SIZE})?( [a-z]+)?)?(, )?(\d+ %)?(, )?([\w ]+ left)?\n"
)
"""A line of progress, which commands print every ten seconds: on a busy machine, short work takes longer than that."""


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


def paint(path: str | os.PathLike[str], seed: int, size: tuple[int, int] = (40, 30), kind: str | None = None) -> Path:
    """Save an image of 16 coloured fields, a different one for each seed."""
    fields = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fields).resize(size, Image.Resampling.NEAREST).save(path, kind)
    return path


def paint_many(folder: Path, count: int, first: int = 0) -> list[Path]:
    return [paint(folder / f"{seed:05}.png", seed) for seed in range(first, first + count)]


def cli(
    *arguments: str | os.PathLike[str], timeout: float = 120, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process; lines of progress are left out of its standard error."""
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-m", "pixmatcher", *map(os.fspath, arguments)],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        **options,
    )
    done.stderr = without_progress(done.stderr)
    return done  # type: ignore[no-any-return]


def without_progress(stderr: str) -> str:
    """Return what a command printed on standard error, without lines of progress."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not _PROGRESS.fullmatch(line))


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


def wait_for_lock(process: subprocess.Popen[str]) -> None:
    """Wait until the process waits for a lock, on systems that show this."""
    locks = Path("/proc/locks")
    while locks.exists() and process.poll() is None:
        waiting = [line.split() for line in locks.read_text().splitlines() if "->" in line]
        if any(int(fields[5]) == process.pid for fields in waiting):
            return
        time.sleep(0.01)


def fill_up(disk: Path) -> Path:
    """Fill a disk completely; return the file to delete to free space."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file:
        for block in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * block)
    return filler


def build_with_sanitizers(output: Path, *sources: Path, flags: Sequence[str] = ("-g", "-O1")) -> None:
    """Compile C so that it stops at the first byte out of bounds and the first undefined result."""
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(["gcc", *flags, *sanitizers, "-o", output, *sources, "-lm"], capture_output=True, text=True)
    if built.returncode and "san" in built.stderr:
        pytest.skip("gcc has no sanitizers here")
    assert not built.returncode, built.stderr
