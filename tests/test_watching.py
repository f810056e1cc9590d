"""Watching a collection: changes are indexed as they happen, and what the system does not report is found in time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pixmatcher.collection import Collection
from pixmatcher.errors import CollectionError, CollectionLockedError
from pixmatcher.indexing import IndexReport, index
from pixmatcher.indexing.watching import retry_while_locked, watch
from pixmatcher.sources.folder import FolderSource
from support import TinyEncoder, paint, paint_many

PATIENCE = 60.0
LONG = 3600.0
"""Seconds between two refreshes where only what the system reports counts."""


class Watch:
    """A collection that is watched by a thread of this process."""

    def __init__(self, collection: Path, **options: Any) -> None:
        self.reports: list[IndexReport] = []
        self.notes: list[str] = []
        self.waits: list[CollectionLockedError] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._collection, self._options = collection, options
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            watch(
                self._collection,
                on_report=self.reports.append,
                on_note=self.notes.append,
                on_wait=self.waits.append,
                stop=self._stop,
                **self._options,
            )
        except Exception as error:
            self.errors.append(error)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        wait_until(lambda: bool(self.errors) or condition())
        assert not self.errors

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.02)


@contextlib.contextmanager
def watched(collection: Path, **options: Any) -> Iterator[Watch]:
    """Watch a collection in the block, from when its first run has ended."""
    found = Watch(collection, **options)
    try:
        found.until(lambda: bool(found.reports))
        yield found
    finally:
        found.stop()


def uris(collection: Path) -> list[str]:
    with Collection.open(collection) as opened:
        return sorted(item.uri for item in opened.items())


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.fixture
def photos(tmp_path: Path, tiny: TinyEncoder) -> Path:
    """A folder of five images; `tmp_path / "c"` is its collection."""
    folder = tmp_path / "photos"
    paint_many(folder, 5)
    index(folder, tmp_path / "c", encoders=["tiny"])
    return folder


def test_changes_are_indexed_when_the_system_reports_them(photos: Path, tmp_path: Path, tiny: TinyEncoder) -> None:
    with watched(tmp_path / "c", every=LONG) as found:
        paint(photos / "added.png", 100)
        paint_many(photos / "new" / "folder", 3, first=200)
        found.until(lambda: uris(tmp_path / "c") == files(photos))
        (photos / "00000.png").unlink()
        (photos / "00001.png").rename(photos / "new" / "moved.png")
        paint(photos / "00002.png", 300)
        found.until(lambda: uris(tmp_path / "c") == files(photos))
        shutil.rmtree(photos / "new" / "folder")
        found.until(lambda: sum(report.removed for report in found.reports) >= 1 + 3)
    assert uris(tmp_path / "c") == files(photos)
    assert sum(report.moved for report in found.reports) == 1
    assert sum(report.changed for report in found.reports) == 1
    assert tiny.encoded == 5 + 1 + 3 + 1
    assert not found.notes


def test_a_burst_of_changes_is_few_runs(photos: Path, tmp_path: Path) -> None:
    with watched(tmp_path / "c", every=LONG) as found:
        paint_many(photos / "many", 60, first=100)
        found.until(lambda: len(uris(tmp_path / "c")) == 65)
    assert len(found.reports) <= 3


@pytest.mark.slow
def test_what_indexing_writes_is_no_change(tmp_path: Path, tiny: TinyEncoder) -> None:
    """The collection is inside the folder that is watched: its files change with each run."""
    folder = tmp_path / "photos"
    paint_many(folder, 2)
    collection = index(folder, encoders=["tiny"]).collection
    other = index(folder, folder / "c", encoders=["tiny"]).collection
    with watched(collection, every=LONG), watched(other, every=LONG) as found:
        (folder / "notes.txt").write_text("no image")
        (folder / ".hidden").mkdir()
        paint(folder / ".hidden" / "image.png", 50)
        paint(folder / "added.png", 100)
        found.until(lambda: bool(found.reports[-1].added))
        paint(folder / "second.png", 101)
        found.until(lambda: bool(found.reports[-1].added) and len(uris(other)) == 4)
        assert len(found.reports) <= 5


def test_the_refresh_finds_what_is_not_reported(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)  # as if it was not installed
    with watched(tmp_path / "c", every=0.2) as found:
        paint(photos / "added.png", 100)
        found.until(lambda: uris(tmp_path / "c") == files(photos))
        found.until(lambda: len(found.reports) >= 4)
    (note,) = found.notes
    assert "by the refresh from time to time only" in note
    assert "pip install 'pixmatcher[watch]'" in note


@pytest.mark.slow
def test_a_source_that_disappears_and_comes_back_is_watched_again(photos: Path, tmp_path: Path) -> None:
    with watched(tmp_path / "c", every=1) as found:
        photos.rename(tmp_path / "away")
        found.until(lambda: any(f.reason == "missing source" for f in found.reports[-1].failures))
        assert len(uris(tmp_path / "c")) == 5
        (tmp_path / "away").rename(photos)
        found.until(lambda: not found.reports[-1].failures)
        paint(photos / "added.png", 100)
        found.until(lambda: uris(tmp_path / "c") == files(photos))


def test_a_source_that_is_forgotten_does_not_come_back(photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    paint_many(other, 2, first=50)
    index(other, tmp_path / "c")
    with watched(tmp_path / "c", every=LONG) as found:
        with Collection.open(tmp_path / "c") as collection:
            collection.forget(other)
        paint(other / "added.png", 100)
        paint(photos / "added.png", 101)
        found.until(lambda: uris(tmp_path / "c") == files(photos))
    with Collection.open(tmp_path / "c") as collection:
        assert collection.sources() == [str(photos)]


def test_another_process_that_writes_is_waited_for(photos: Path, tmp_path: Path) -> None:
    with watched(tmp_path / "c", every=LONG) as found, Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()
        paint(photos / "added.png", 100)
        found.until(lambda: bool(found.waits))
        assert "is being written by" in str(found.waits[0])
        writer.close()
        found.until(lambda: uris(tmp_path / "c") == files(photos))
        assert len(found.waits) == 1


def test_watching_stops_while_it_waits(photos: Path, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()
        found = Watch(tmp_path / "c")
        found.until(lambda: bool(found.waits))
        found.stop()
    assert not found.reports
    assert not found.errors


def test_a_collection_that_disappears_ends_the_watching(photos: Path, tmp_path: Path) -> None:
    with watched(tmp_path / "c", every=LONG) as found:
        shutil.rmtree(tmp_path / "c")
        paint(photos / "added.png", 100)
        wait_until(lambda: bool(found.errors))
    assert isinstance(found.errors[0], CollectionError)


def test_retries_end_with_other_errors() -> None:
    calls, waits = [], []

    def work() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise CollectionLockedError("locked")
        if len(calls) == 4:
            raise CollectionError("missing")
        return len(calls)

    assert retry_while_locked(work, waits.append, lambda seconds: None) == 3
    assert len(waits) == 1
    with pytest.raises(CollectionError, match="missing"):
        retry_while_locked(work, waits.append, lambda seconds: None)


def test_a_folder_knows_which_changes_matter(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").mkdir()
    source = FolderSource(str(tmp_path), exclude=["cache/", "*.bak"])
    matters = ["a.jpg", "A.PNG", "folder", "unknown", "odd.txt", "below/a.jpg", ".pixmatcherignore", "below/cache"]
    not_ = [
        "a.txt",
        ".git/a.jpg",
        "._a.jpg",
        ".pixmatcher/lock",
        "Thumbs.db",
        "cache/a.jpg",
        "a.jpg.bak",
        "@eaDir/a.jpg",
    ]
    assert source.may_list(str(tmp_path))
    assert not source.may_list(str(tmp_path.parent / "a.jpg"))
    assert [name for name in matters if not source.may_list(str(tmp_path / name))] == []
    assert [name for name in not_ if source.may_list(str(tmp_path / name))] == []
    source.set_options([], True)
    assert source.may_list(str(tmp_path / ".git" / "a.jpg"))
    assert source.may_list(str(tmp_path / "cache" / "a.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_what_changed_and_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "photos"
    paint_many(folder, 2)
    index(folder)
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        command = [sys.executable, "-m", "pixmatcher", "watch", "-c", str(folder), "--every", "3600"]
        process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: "Watching" in (tmp_path / "err").read_text())
        paint(folder / "added.png", 100)
        wait_until(lambda: "1 added; 3 images" in (tmp_path / "out").read_text())
        (folder / "broken.png").write_bytes((folder / "added.png").read_bytes()[:60])
        wait_until(lambda: "broken.png: " in (tmp_path / "out").read_text())
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
    assert "Stopped watching" in (tmp_path / "err").read_text()
    assert "Traceback" not in (tmp_path / "err").read_text()


@pytest.mark.slow
def test_the_limit_of_inotify_is_explained(tmp_path: Path) -> None:
    """The limit is of a user; in a namespace of users of its own, a process may lower it."""
    folder = tmp_path / "photos"
    paint_many(folder, 2)
    index(folder)
    limit = "/proc/sys/user/max_inotify_instances"
    script = f"echo 0 > {limit} && exec {sys.executable} -m pixmatcher watch -c {folder} --every 1"
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "--user", "--map-root-user", "sh", "-c", f"echo 0 > {limit}"], capture_output=True
        ).returncode
    ):
        pytest.skip("this machine allows no namespaces of users")
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "sh", "-c", script], stdout=out, stderr=err, env={**os.environ}
        )
    try:
        wait_until(lambda: "refresh from time to time only" in (tmp_path / "err").read_text())
        paint(folder / "added.png", 100)
        wait_until(lambda: "1 added; 3 images" in (tmp_path / "out").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
    assert "fs.inotify" in (tmp_path / "err").read_text()
    assert (tmp_path / "err").read_text().count("from time to time") == 1
