"""Disks that lack locks, shared memory or fsync of folders, as network shares and FUSE disks do.

A library in C, which is loaded before the others, makes the calls of the operating system fail.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pixmatcher import Collection, index
from pixmatcher._locks import FileLock, locked_file
from pixmatcher.collection import _disk
from pixmatcher.collection._connections import connect_to_copied_files
from support import TinyEncoder, cli, paint, paint_many

HERE = Path(__file__).parent

DISKS = {
    "usual": {},
    "no byte locks (ENOLCK)": {"NO_FCNTL": errno.ENOLCK},
    "no byte locks (EOPNOTSUPP)": {"NO_FCNTL": errno.EOPNOTSUPP},
    "no flock": {"NO_FLOCK": errno.EOPNOTSUPP},
    "no shared memory": {"NO_MMAP": errno.ENODEV},
    "no fsync of folders": {"NO_FSYNC_FOLDER": errno.EINVAL},
    "nothing": {"NO_FLOCK": errno.ENOSYS, "NO_FCNTL": errno.ENOLCK, "NO_MMAP": errno.ENODEV, "NO_FSYNC": errno.EINVAL},
}
LACKING = [name for name in DISKS if name != "usual"]

Environment = dict[str, str]


def environment_of(disk: str, shim: Path) -> Environment:
    return {**os.environ, "LD_PRELOAD": str(shim), **{name: str(number) for name, number in DISKS[disk].items()}}


def stored(path: Path) -> list[str]:
    with Collection.open(path) as collection:
        assert collection.verify() == []
        return sorted(item.uri for item in collection.items())


@pytest.mark.parametrize("disk", LACKING)
def test_the_command_line_on_a_disk(disk: str, shim: Path, tmp_path: Path) -> None:
    environment = environment_of(disk, shim)
    folder, path = tmp_path / "photos", tmp_path / "collection"
    paths = paint_many(folder, 6)

    def run(*arguments: str | Path) -> str:
        # A wait for a lock would take 30 s.
        done = cli(*arguments, "-c", path, env=environment, timeout=25)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert "6 added" in run("index", folder)
    paths.append(paint(folder / "more.png", 77))
    paths.remove(folder / "00000.png")
    (folder / "00000.png").unlink()
    assert "1 added, 1 removed, 5 unchanged" in run("index", folder)
    assert str(paths[2]) in run("search", paths[2], "--json", "-k", "1")
    assert "images      6" in run("info")
    assert "Undamaged: 6 images" in run("verify")
    assert stored(path) == sorted(map(str, paths))  # the same files on a usual disk
    assert not list(path.glob("*.pid*"))


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder, paint, paint_many
from pixmatcher import Collection, index, upgrade
from pixmatcher.collection.items import Item
from pixmatcher.export._arrays import export_arrays
from pixmatcher.encoders._folders import making_folder

class Second(TinyEncoder):
    name = "second"
    fingerprint = "second-1"

folder, path = Path(sys.argv[2]) / "photos", Path(sys.argv[2]) / "collection"
paint_many(folder, 5)
tiny, second = TinyEncoder(), Second()
assert index(folder, path, encoders=[tiny]).added == 5
with Collection.open(path) as reader:
    assert len(reader) == 5
    with Collection.open(path) as writer:
        vectors = writer.embeddings(writer.ids()[:1], "visual")
        item = Item("https://example.org/a.png", "aa")
        semantic = writer.embeddings(writer.ids()[:1], "semantic")
        writer.add([item], {"visual": vectors, "semantic": semantic}, thumbnails={"aa": b"jpeg", "bb": b"other"})
        # A reader of the same process and the writer see what is stored, before the writer ends.
        assert len(reader) == len(writer) == 6
        assert reader.thumbnail("aa") == writer.thumbnail("aa") == b"jpeg"
        assert len(reader.search(vectors[0], space="visual", k=9)) == 6
    assert reader.thumbnail("aa") == b"jpeg"
    assert reader.thumbnail("bb") is None  # no item needs it
    assert reader.verify() == []
with Collection.open(path) as collection:
    collection.remove([item.id for item in collection.items() if item.uri.startswith("https")])
assert upgrade(path, encoders=[second]).finished
assert index(folder, path, encoders=[second]).unchanged == 5
with Collection.open(path) as collection:
    export_arrays(collection, Path(sys.argv[2]) / "arrays")
    assert [record.name for record in collection.encoders] == ["second"]
    assert collection.repair() == 0
    assert collection.forget(folder) == 5
    assert collection.verify() == [] and len(collection) == 0
with making_folder(Path(sys.argv[2]) / "model") as unfinished:
    (unfinished / "card.json").write_text("{}")
print("done")
"""


@pytest.mark.parametrize("disk", list(DISKS))
def test_a_collection_in_python_on_a_disk(disk: str, shim: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(HERE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(disk, shim), timeout=25)
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert stored(tmp_path / "collection") == []
    assert not list(tmp_path.rglob("*.pid*"))


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from support import TinyEncoder
from pixmatcher import Collection
from pixmatcher.collection.items import Item
import numpy as np
path = Path(sys.argv[2])
collection = Collection.open(path) if path.exists() else Collection.create(path, [TinyEncoder()])
for line in sys.stdin:
    first = len(collection)
    items = [Item(f"https://example.org/{n}.png", f"{n:064x}") for n in range(first, first + int(line))]
    vectors = np.random.default_rng(first).standard_normal((len(items), 48)).astype(np.float32)
    thumbnails = {item.content_hash: item.uri.encode() for item in items}
    collection.add(items, {"visual": vectors, "semantic": vectors[:, :24]}, thumbnails=thumbnails)
    print(len(collection), flush=True)
collection.close()
"""


def start_writer(path: Path, environment: Environment) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(HERE), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def write(writer: subprocess.Popen[str], count: int) -> int:
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(f"{count}\n")
    writer.stdin.flush()
    return int(writer.stdout.readline())


@pytest.mark.parametrize("disk", list(DISKS))
def test_readers_and_a_second_writer_while_a_writer_works_and_is_killed(disk: str, shim: Path, tmp_path: Path) -> None:
    environment, path = environment_of(disk, shim), tmp_path / "collection"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return cli(*arguments, "-c", path, env=environment, timeout=25)

    writer = start_writer(path, environment)
    try:
        assert write(writer, 5) == 5
        assert "images      5" in run("info").stdout
        assert write(writer, 2000) == 2005  # more than SQLite leaves in the log
        found = run("info")
        assert (found.returncode, found.stderr) == (0, "")
        assert "images      2,005" in found.stdout
        verified = run("verify")
        assert (verified.returncode, verified.stderr) == (0, "")
        second = run("verify", "--repair")
        assert second.returncode == 2
        assert f"is being written by process {writer.pid} on {socket.gethostname()} since 20" in second.stderr
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert "images      2,005" in run("info").stdout
        assert run("verify").returncode == 0
    finally:
        writer.kill()
        writer.communicate()
    # The next writer goes on, and the usual disk finds all of it.
    writer = start_writer(path, environment)
    assert write(writer, 7) == 2012
    writer.communicate()
    assert writer.returncode == 0
    assert len(stored(path)) == 2012
    with Collection.open(path) as collection:
        assert collection.thumbnail(f"{2011:064x}") == b"https://example.org/2011.png"


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["no byte locks (ENOLCK)", "no shared memory", "nothing"])
def test_readers_of_a_database_that_changes_all_the_time(disk: str, shim: Path, tmp_path: Path) -> None:
    """Each reader sees a state that the writer has committed, also while the log is moved to the database."""
    environment, path = environment_of(disk, shim), tmp_path / "collection"
    loop = WRITER.replace("for line in sys.stdin:", "sys.stdin.readline()\nfor line in ['25'] * 400:")
    command = [sys.executable, "-c", loop, str(HERE), str(path)]
    reader = (
        "import sys\nfrom pixmatcher import Collection\nwhile True:\n"
        "    with Collection.open(sys.argv[1]) as c:\n"
        "        assert not c._catalog.integrity_errors()\n"
        "        with c.snapshot():\n"
        "            ids = [i.id for i in c.items()]\n"
        "            assert len(ids) == len(c) and ids == list(range(1, len(ids) + 1)), ids\n"
        "            assert len(ids) % 25 == 0\n"
        "            assert len(c.embeddings(ids, 'visual')) == len(ids)\n"
        "    if len(ids) == 10_000: break\n"
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        writer.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-c", reader, str(path)], capture_output=True, text=True, env=environment, timeout=150
        )
        assert (done.returncode, done.stderr) == (0, "")
        writer.communicate()
    assert len(stored(path)) == 10_000


def test_a_copied_collection_in_a_read_only_folder_without_locks(shim: Path, tmp_path: Path) -> None:
    folder, path = tmp_path / "photos", tmp_path / "collection"
    paths = paint_many(folder, 3)
    assert cli("index", folder, "-c", path).returncode == 0
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.chmod(0o555 if inner.is_dir() else 0o444)
    path.chmod(0o555)
    found = cli("search", paths[1], "-c", path, "--json", env=environment_of("nothing", shim), timeout=25)
    assert (found.returncode, found.stderr) == (0, "")
    assert str(paths[1]) in found.stdout


def test_a_failing_disk_is_not_called_full_or_busy(shim: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    paint_many(folder, 2)
    environment = environment_of("usual", shim) | {"NO_FSYNC": str(errno.EIO)}
    done = cli("index", folder, env=environment, timeout=25)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "fails (Input/output error): check the disk" in done.stderr


# The lock file of disks without locks


def write_pid_file(lock: Path, **values: object) -> Path:
    path = lock.with_name(f"{lock.name}.pid")
    path.write_text(
        json.dumps({"pid": 1, "host": socket.gethostname(), "since": "2026-01-31T12:00:00+00:00", **values})
    )
    return path


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_flock")
def test_a_lock_by_a_file(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire()
    assert not second.acquire()
    assert f"process {os.getpid()} on " in second.holder()
    second.release()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.usefixtures("no_flock")
def test_a_lock_by_a_file_of_a_dead_process_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    write_pid_file(tmp_path / "lock", pid=process.pid)
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    lock.release()
    # A process of the same number that started at another time is another one.
    if sys.platform == "linux":
        write_pid_file(tmp_path / "lock", pid=os.getpid(), started="1")
        assert lock.acquire()
        lock.release()
        # One that has ended, and whose parent has not asked for that.
        with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.read()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            write_pid_file(tmp_path / "lock", pid=process.pid)
            assert lock.acquire()
            lock.release()
    # One that was killed before it wrote its number.
    empty = tmp_path / "lock.pid"
    empty.touch()
    assert not lock.acquire()
    os.utime(empty, (0, 0))
    assert lock.acquire()
    lock.release()
    assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize("flock_works", [True, False])
def test_a_lock_by_a_file_of_another_machine(
    tiny: TinyEncoder, tmp_path: Path, flock_works: bool, request: pytest.FixtureRequest
) -> None:
    if not flock_works:
        request.getfixturevalue("no_flock")
    paint_many(tmp_path / "photos", 1)
    index(tmp_path / "photos", tmp_path / "c", encoders=["tiny"])
    foreign = write_pid_file(tmp_path / "c" / "lock", host="elsewhere")
    with (
        Collection.open(tmp_path / "c") as collection,
        pytest.raises(Exception, match="process 1 on elsewhere") as error,
    ):
        collection.begin_writing()
    assert str(error.value).endswith(f"if it does not run any more, delete {foreign}.")
    foreign.unlink()
    with Collection.open(tmp_path / "c") as collection:
        collection.begin_writing()


@pytest.mark.usefixtures("no_flock")
def test_a_locked_file_by_a_file(tmp_path: Path) -> None:
    waiting: list[bool] = []
    other = write_pid_file(tmp_path / "file", host="elsewhere")

    def free() -> None:
        waiting.append(True)
        other.unlink()

    with locked_file(tmp_path / "file", free) as file:
        file.write(b"content")
        assert (tmp_path / "file.pid").exists()
    assert waiting == [True]
    assert os.listdir(tmp_path) == ["file"]


TAKE = """
import errno, fcntl, sys
from pathlib import Path
from pixmatcher._locks import FileLock
def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refuse
lock, count = FileLock(Path(sys.argv[1]) / "lock"), Path(sys.argv[1]) / "count"
for _ in range(100):
    lock.acquire(wait=True)
    count.write_text(str(int(count.read_text()) + 1))
    lock.release()
"""


def test_processes_that_lock_by_a_file_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "count").write_text("0")
    script = TAKE.replace(
        "lock, count", "import pixmatcher._locks\npixmatcher._locks._RETRY_SECONDS = 0.001\nlock, count"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "300"


def test_what_a_usual_disk_supports(tiny: TinyEncoder, tmp_path: Path, small_disk: Path | None) -> None:
    paint_many(tmp_path / "photos", 1)
    index(tmp_path / "photos", tmp_path / "c", encoders=["tiny"])
    assert _disk.byte_locks_work(tmp_path / "c")
    assert _disk.shared_memory_works(tmp_path / "c")
    assert not _disk.is_full(tmp_path / "c")
    if small_disk:
        (small_disk / "filler").write_bytes(bytes(1_500_000))
        assert _disk.is_full(small_disk)
    before = sorted(os.listdir(tmp_path / "c"))
    connection, _ = connect_to_copied_files(tmp_path / "c" / "catalog.sqlite")
    assert connection.execute("SELECT count(*) FROM items").fetchone() == (1,)
    connection.close()
    assert sorted(os.listdir(tmp_path / "c")) == before


FILL = """
import sys
from pathlib import Path
from pixmatcher import Collection
with Collection.open(sys.argv[1]) as collection:
    catalog = collection._catalog
    catalog.query("CREATE TEMP TABLE t (a)")
    with catalog.writing():
        catalog.connection.executemany("INSERT INTO t VALUES (?)", ((bytes(100_000),) for _ in range(200)))
"""


def test_a_full_folder_for_temporary_files_is_named(tiny: TinyEncoder, tmp_path: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no small disk can be mounted here")
    paint_many(tmp_path / "photos", 1)
    index(tmp_path / "photos", encoders=["tiny"])
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path / "photos")],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(small_disk), "SQLITE_TMPDIR": str(small_disk)},
        timeout=60,
    )
    assert f"StorageError: The folder for temporary files {small_disk} is full" in done.stderr
    assert "set TMPDIR to another folder; what was stored before is kept." in done.stderr
