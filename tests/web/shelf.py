"""Collections for the tests of the app, and what its process is waited for with."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pixmatcher import Collection, Item, load_encoder, open_image
from pixmatcher.images import fit_image

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

HOSTILE_NAMES = (
    "<img src=x onerror=alert(1)>.jpg",
    "**bold** :smile: :red[x] $x^2$ `code` [link](http:x).jpg",
    "\"quoted\" & 'quoted'.jpg",
    "mirror\N{RIGHT-TO-LEFT OVERRIDE}gnp.jpg",
    "two\nlines.jpg",
)
HOSTILE_LABEL = "<script>alert(2)</script> **label**"

REBOUND = "rebound.example"
"""A name of a stranger that points to this machine, for the browser of the tests."""


def copy_photos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names or [path.name for path in PHOTOS.glob("*.jpg")]:
        shutil.copy(PHOTOS / name, folder)
    return folder


def label_photos(folder: Path) -> None:
    """A collection of photos with labels, which have names."""
    encoder = load_encoder()
    labels = {"cat.jpg": "n1", "horse.jpg": "n1", "coffee.jpg": "n2", "rocket.jpg": "n3"}
    with Collection.create(folder, [encoder]) as collection:
        for name, label in labels.items():
            opened = open_image(PHOTOS / name)
            item = Item(
                str(PHOTOS / name),
                content_hash=name,
                label=label,
                width=opened.width,
                height=opened.height,
                details={"author": "Someone <b>Else</b>", "license": "CC0"},
            )
            collection.add([item], encoder.encode_images(fit_image(opened, encoder.recipe)[None]))
        collection.set_label_names({"n1": "animal, beast", "n2": HOSTILE_LABEL, "n3": "vehicle"})


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, "the app has ended"
        assert time.monotonic() < end, "the app does not answer"
        time.sleep(0.1)


@contextmanager
def running_app(arguments: Sequence[str], home: Path) -> Iterator[str]:
    """The address of a running app, started as a user starts it in an empty home, where it may leave nothing."""
    port = free_port()
    command = [sys.executable, "-m", "pixmatcher", "app", "--no-browser", "--port", str(port), *arguments]
    log = home.parent / f"{home.name}.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            command, env=os.environ | {"HOME": str(home)}, cwd=home, stdout=written, stderr=written
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), process)
        yield url
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        status = process.wait(30)
    assert status == 0, log.read_text()
    assert not [path for path in home.rglob("*") if path.is_file()], "the app left files in the user's home"
