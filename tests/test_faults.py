"""Bad input and faults by the command line: hostile files, kills, full disks, two writers."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixmatcher import Collection, encoders, index
from support import TinyEncoder, bound_by_permissions, cli, fill_up, paint, paint_many, without_progress

HERE = str(Path(__file__).parent)


def uris(path: Path) -> set[str]:
    with Collection.open(path) as collection:
        return {item.uri for item in collection.items()}


# Hostile files


def bomb(path: Path) -> None:
    """A PNG of some hundred bytes that says it is 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def truncated(path: Path) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    os.truncate(path, path.stat().st_size // 2)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")


LONG = "x" * 251 + ".jpg"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (Path.touch, "empty file"),
    "cut.jpg": (truncated, "truncated"),
    "cut.png": (truncated, "truncated"),
    "page.jpg": (lambda path: path.write_text("<!DOCTYPE html><html><body>404</body></html>"), "not an image"),
    "archive.jpg": (archive, "not an image"),
    "noise.jpg": (lambda path: path.write_bytes(np.random.default_rng(1).bytes(5000)), "not an image"),
    "head only.jpg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0"), ""),
    "bomb.png": (bomb, "too many pixels"),
    "self.jpg": (lambda path: path.symlink_to(path), "symlink loop"),
    "up": (lambda path: path.symlink_to(path.parent), "symlink loop"),
    "nowhere.jpg": (lambda path: path.symlink_to("/nowhere/at/all.jpg"), "dangling link"),
    "fifo.jpg": (os.mkfifo, "not a regular file"),
    "linked fifo.jpg": (lambda path: path.symlink_to("fifo.jpg"), "not a regular file"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "closed.jpg": (lambda path: paint(path, 99).chmod(0), "permission denied"),
    "bad\nname.jpg": (Path.touch, "empty file"),
    "bad \x1b[31m.jpg": (Path.touch, "empty file"),
    "[bold]bad[bold].jpg": (Path.touch, "empty file"),
    "bad \u202egpj.jpg": (Path.touch, "empty file"),
    os.fsdecode(b"bad \xff\xfe.jpg"): (Path.touch, "empty file"),
    "y" * 251 + ".jpg": (Path.touch, "empty file"),
}
GOOD = [
    "plain.jpg",
    "new\nline.jpg",
    "quote'\".jpg",
    "[red]markup[blink].jpg",
    "\U0001f600 caf\u00e9.jpg",
    "\u202egpj.right to left.jpg",
    "\t\x01\x7f.jpg",
    "%s %d {0} $HOME `id`.jpg",
    "-c.jpg",
    "https:.jpg",
    LONG,
    os.fsdecode(b"\xff\xfe \xe9.jpg"),
]


def test_hostile_files(open_folder: Path) -> None:
    folder = open_folder / "photos"
    folder.mkdir()
    made: list[str] = []
    for seed, name in enumerate(GOOD):
        paint(folder / name, seed)
        made.append(name)
    paint(folder / "a png.jpg", 50, kind="PNG")
    paint(folder / "a jpeg.png", 51, kind="JPEG")
    paint(folder / "1x1.png", 52, size=(1, 1))
    Image.new("RGB", (3000, 2), "red").save(folder / "3000x2.png")
    Image.new("L", (2, 3000), 7).save(folder / "2x3000.png")
    made += ["a png.jpg", "a jpeg.png", "1x1.png", "3000x2.png", "2x3000.png"]
    for name, (make, _) in BAD.items():
        make(folder / name)
    for inner in (open_folder, folder):
        inner.chmod(0o777)
    done = cli("index", folder, preexec_fn=bound_by_permissions())
    assert done.returncode == 1
    assert done.stderr == ""
    assert uris(folder) == {str(folder / name) for name in made}
    lines = done.stdout.splitlines()
    assert f"{len(made)} added, {len(BAD)} failed" in lines[1]
    reported = [line for line in lines if line.startswith("    ")]
    assert len(reported) == len(BAD)
    assert all(line.isprintable() for line in lines)
    for name, (_, reason) in BAD.items():
        shown = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(folder / name)
        )
        matching = [line for line in reported if line.startswith(f"    {shown}: {reason}")]
        assert len(matching) == 1, name
    # A second run tries no file again, says so, and reports the same.
    again = cli("index", folder, preexec_fn=bound_by_permissions())
    assert again.returncode == 1
    *reported_again, not_tried = again.stdout.splitlines()[2:]
    assert reported_again == lines[2:]
    assert not_tried.startswith("14 failed images were not tried again")
    assert f"{len(made)} unchanged" in again.stdout
    # A search shows unusual names, each on one line.
    found = cli("search", folder / "plain.jpg", "-c", folder, "-k", "99")
    assert (found.returncode, found.stderr) == (0, "")
    assert len([line for line in found.stdout.splitlines() if ".jpg" in line or ".png" in line]) >= len(made)
    assert "[red]markup[blink].jpg" in found.stdout


@pytest.mark.parametrize("what", ["deleted", "replaced", "folder removed", "cut"])
def test_files_deleted_or_changed_during_indexing(tiny: TinyEncoder, tmp_path: Path, what: str) -> None:
    """Files are deleted and changed after they were listed and before they are opened."""
    folder = tmp_path / "photos"
    paths = paint_many(folder / "below", 300)
    started = threading.Event()

    def disturb() -> None:
        started.wait(120)
        if what == "folder removed":
            shutil.rmtree(folder / "below")
            return
        for path in reversed(paths[1:]):  # not all: the disk of an empty folder may be away
            if what == "deleted":
                path.unlink()
            elif what == "cut":
                os.truncate(path, 40)
            else:
                paint(folder / "aside.png", 9999).replace(path)

    thread = threading.Thread(target=disturb)
    thread.start()
    report = index(folder, encoders=["tiny"], progress=lambda progress: started.set())
    thread.join()
    with Collection.open(folder) as collection:
        assert collection.verify() == []
    reasons = {failure.reason for failure in report.failures}
    assert reasons <= ({"truncated", "damaged"} if what == "cut" else {"missing"})
    assert report.failures or what == "replaced"
    assert report.added + len(report.failures) >= 300
    # The next run puts everything right.
    index(folder)
    now = [path for path in sorted(folder.rglob("*.png")) if path.stat().st_size > 40]
    assert uris(folder) == {str(path) for path in now}
    with Collection.open(folder) as collection:
        for item in collection.items():
            assert item.content_hash == hashlib.sha256(Path(item.uri).read_bytes()).hexdigest()


def test_files_deleted_while_the_command_line_indexes(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = paint_many(folder, 400)
    command = [sys.executable, "-m", "pixmatcher", "index", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / ".pixmatcher" / "collection.json").exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(0.1)
        for path in reversed(paths[20:]):
            path.unlink()
        stdout, stderr = process.communicate(timeout=60)
    assert without_progress(stderr) == ""
    assert process.returncode in (0, 1)
    assert (process.returncode == 1) == ("missing" in stdout)
    assert cli("index", folder).returncode == 0
    assert uris(folder) == {str(path) for path in paths[:20]}


# Kills

DRIVER = """
# Runs the indexing in a child, so that only the child is killed, and starts the next one without importing again.
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
import pixmatcher.vector_index, pixmatcher.images, PIL.PngImagePlugin
from pixmatcher import encoders, indexing
from pixmatcher.indexing import _store

encoders.register_encoder("tiny", TinyEncoder)
_store._FLUSH_ITEMS = 12  # many commits
for line in sys.stdin:
    delay = float(line)
    child = os.fork()
    if not child:
        report = indexing.index(sys.argv[2], encoders=["tiny"], workers=2)
        os._exit(0 if not report.failures else 3)
    if delay >= 0:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_indexing_killed_repeatedly_loses_no_item(tmp_path: Path) -> None:
    """40 kills at random moments; between them images are added, changed, renamed, deleted."""
    seed = random.randrange(1 << 30)
    print("seed", seed)  # noqa: T201
    chance = random.Random(seed)
    folder = tmp_path / "photos"
    present = {path: number for number, path in enumerate(paint_many(folder, 300))}
    gone: set[str] = set()  # deleted since a run last came to its end
    number = 300
    query = np.random.default_rng(seed).standard_normal(48).astype(np.float32)
    stored_after_a_kill = 0
    killed = 0
    command = [sys.executable, "-c", DRIVER, HERE, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None

        def run(delay: float) -> int:
            print(delay, file=driver.stdin, flush=True)
            ready, _, _ = select.select([driver.stdout], [], [], 60)
            assert ready, "the run hangs"
            return int(driver.stdout.readline())  # type: ignore[union-attr]

        longest = 0.2
        while killed < 40 or stored_after_a_kill <= 5:
            code = run(chance.uniform(0.0, longest))
            assert code in (0, -signal.SIGKILL)
            killed += code != 0
            # Most runs must be killed and some must end, also on a busy machine.
            longest *= 0.8 if code == 0 else 1.05
            if code == 0:
                gone.clear()
            if (folder / ".pixmatcher" / "collection.json").exists():
                with Collection.open(folder) as collection:
                    hits = [hit.item.uri for hit in collection.search(query, space="visual", k=10_000)]
                    listed = [item.uri for item in collection.items()]
                    assert sorted(hits) == sorted(listed)
                    assert len(listed) == len(set(listed))
                    assert all(os.path.exists(uri) or uri in gone for uri in listed)
                    assert {problem.part for problem in collection.verify()} <= {"index"}
                    assert collection.failures() == []
                stored_after_a_kill += code != 0 and bool(listed)
            if code == 0 or chance.random() < 0.3:
                for path in chance.sample(sorted(present), 24):
                    what = chance.choice(("change", "rename", "delete", "add"))
                    if what == "change":
                        present[paint(path, number)] = number
                    elif what == "add":
                        present[paint(folder / f"{number:05}.png", number)] = number
                    else:
                        gone.add(str(path))
                        if what == "rename":
                            new = path.with_name(f"{number:05}.png")
                            path.rename(new)
                            present[new] = present[path]
                        else:
                            path.unlink()
                        del present[path]
                    number += 1
        assert run(-1) == 0
        driver.stdin.close()
        assert driver.wait(120) == 0
    with Collection.open(folder) as collection:
        assert collection.verify() == []
        found = list(collection.items())
        assert sorted(item.uri for item in found) == sorted(map(str, present))
        for item in found:
            assert item.content_hash == hashlib.sha256(Path(item.uri).read_bytes()).hexdigest()
            best = collection.search(collection.embeddings([item.id], "visual")[0], space="visual", k=1)[0]
            assert best.item.content_hash == item.content_hash


@pytest.mark.slow
def test_the_command_line_killed_during_indexing(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paths = paint_many(folder, 60)
    vectors = folder / ".pixmatcher" / "vectors" / "visual.f16"
    command = [sys.executable, "-m", "pixmatcher", "index", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (vectors.exists() and vectors.stat().st_size):
            time.sleep(0.005)
        process.kill()
    assert cli("search", paths[0], "-c", folder).returncode == 0
    done = cli("index", folder)
    assert done.returncode == 0
    # On a busy machine, lines of progress are written too.
    assert all(line.startswith("Indexing: ") for line in done.stderr.splitlines()), done.stderr
    assert uris(folder) == {str(path) for path in paths}
    with Collection.open(folder) as collection:
        assert collection.verify() == []


# Full disks

LIMIT = 120_000


def limit_files() -> None:
    """Limit the size of files, so that writing fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


@pytest.mark.parametrize("how", ["small disk", pytest.param("limit", marks=pytest.mark.slow)])
def test_a_full_disk_stops_with_one_sentence_and_loses_nothing(
    tmp_path: Path, small_disk: Path | None, how: str
) -> None:
    # Where no small disk can be mounted, both cases run with the limit.
    disk = small_disk if how == "small disk" and small_disk else None
    folder, path = tmp_path / "photos", (disk or tmp_path) / "collection"
    paths = paint_many(folder, 10)
    assert cli("index", folder, "-c", path).returncode == 0
    paths += paint_many(folder, 120, first=10)
    filler = None
    if disk:
        filler = fill_up(disk)
        os.truncate(filler, filler.stat().st_size - LIMIT)
    done = cli("index", folder, "-c", path, preexec_fn=None if disk else limit_files)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "make room and run the same command again; what was stored before is kept" in done.stderr
    # Nothing stored is lost, and all of it can be searched, on the disk that is still full.
    if disk:
        fill_up(disk)
    found = cli("search", paths[3], "-c", path, "--json", preexec_fn=None if disk else limit_files)
    assert (found.returncode, found.stderr) == (0, "")
    assert str(paths[3]) in found.stdout
    stored = uris(path)
    assert {str(p) for p in paths[:10]} <= stored < {str(p) for p in paths}
    with Collection.open(path) as collection:
        assert {problem.part for problem in collection.verify()} <= {"index"}
    # A run without any free space reports it again.
    if disk:
        again = cli("index", folder, "-c", path)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "make room" in again.stderr
        assert uris(path) >= stored
    if filler:
        filler.unlink()
    done = cli("index", folder, "-c", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert uris(path) == {str(p) for p in paths}
    with Collection.open(path) as collection:
        assert collection.verify() == []


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, small_disk: Path | None) -> None:
    folder = tmp_path / "photos"
    paint_many(folder, 3)
    if small_disk:
        filler = fill_up(small_disk)
        done = cli("index", folder, "-c", small_disk / "collection")
        filler.unlink()
    else:
        small_disk = tmp_path
        done = cli(
            "index",
            folder,
            "-c",
            small_disk / "collection",
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert cli("index", folder, "-c", small_disk / "collection").returncode == 0
    assert len(uris(small_disk / "collection")) == 3


# Two writers


def test_the_error_of_a_second_writer_names_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paint_many(folder, 1)
    assert cli("index", folder).returncode == 0
    with Collection.open(folder) as writer:
        writer.begin_writing()
        second = cli("index", folder)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"is being written by process {os.getpid()} on {os.uname().nodename} since 20" in second.stderr
        assert uris(folder)  # readers are not blocked


def test_many_writers_make_one_collection(tmp_path: Path) -> None:
    """Several processes index a new folder at once: some do it one after another, the others get an error."""
    folder = tmp_path / "photos"
    paths = paint_many(folder, 30)
    script = "import sys; sys.argv[0:1] = ['pixmatcher']; from pixmatcher.cli import main; sys.stdin.readline(); main()"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, "index", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    errors = []
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, error = writer.communicate(timeout=60)
        assert writer.returncode in (0, 2)
        assert (writer.returncode == 0) == (error == "")
        errors.append(error)
    assert all("is being written by" in error for error in errors if error)
    assert "" in errors
    assert uris(folder) == {str(path) for path in paths}


def test_a_collection_that_another_writer_creates_meanwhile(tmp_path: Path) -> None:
    """While the encoder of the second writer loads, the first one creates the collection and finishes."""
    paths = paint_many(tmp_path / "photos", 3)
    loads = []

    def load_slowly() -> TinyEncoder:
        if not loads:
            loads.append(index(tmp_path / "photos", encoders=[TinyEncoder()]))
        return TinyEncoder()

    encoders.register_encoder("tiny", load_slowly)
    try:
        report = index(tmp_path / "photos", encoders=["tiny"])
    finally:
        encoders.unregister_encoder("tiny")
    assert [loads[0].added, report.added, report.unchanged] == [3, 0, 3]
    assert uris(tmp_path / "photos") == {str(path) for path in paths}


# Memory

MEMORY = """
import re, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
from pixmatcher import encoders, index
encoders.register_encoder("tiny", TinyEncoder)
assert index(sys.argv[2], encoders=["tiny"], workers=2).total == int(sys.argv[3])
status = Path("/proc/self/status")
if status.exists():  # what resource tells of a child on Linux counts its parent too
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) >> 10)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 3000):
        folder = tmp_path / str(count)
        folder.mkdir()
        random_numbers = np.random.default_rng(count)
        for number in range(count):
            pixels = random_numbers.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.bmp")
        command = [sys.executable, "-c", MEMORY, HERE, str(folder), str(count)]
        peaks.append(int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    # The 2,700 more are 39 MB of pixels, and 0.4 MB of embeddings.
    assert peaks[1] < peaks[0] + 20
