"""Buckets of object stores as sources and as the place of shards, against a real server on loopback."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pixmatcher import (
    Collection,
    FetchError,
    InvalidImageError,
    ShardError,
    SourceError,
    StorageError,
    index,
    index_shard,
    merge_shards,
)
from pixmatcher._progress import Progress, ProgressCallback
from pixmatcher.indexing import _merge, _shard_run, _store
from pixmatcher.indexing._encode import EncodeOptions
from pixmatcher.indexing._ray._worker import RayWorker, Setup
from pixmatcher.net import object_store
from pixmatcher.net.object_store import ObjectStore, fetch_objects
from pixmatcher.sources import Entry, open_source
from s3_server import credentials, s3_server
from support import TinyEncoder, cli, paint, paint_many
from test_shards import assert_same, contents

pytestmark = [pytest.mark.xdist_group("s3"), pytest.mark.slow]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server("photos", "shards") as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of a folder of its own for each test."""
    for name, value in credentials(server).items():
        monkeypatch.setenv(name, value)
    return f"s3://photos/{request.node.name}"


def upload(url: str, name: str, seed: int, folder: Path) -> bytes:
    path = paint(folder / f"{seed}.png", seed)
    ObjectStore(url).write(name, io.BytesIO(path.read_bytes()))
    return path.read_bytes()


def upload_many(url: str, count: int, folder: Path, first: int = 0) -> None:
    for seed in range(first, first + count):
        upload(url, f"{'abc'[seed % 3]}/{seed:03}.png", seed, folder)


NAMES = ["a.jpg", "b c/ü.PNG", "x%20y.jpg", "plus+and&.webp", "q?x=1#f.jpg", "日本/写真.jpeg"]


def test_what_a_bucket_lists(server: str, bucket: str, tmp_path: Path) -> None:
    sent = {name: upload(bucket, name, seed, tmp_path) for seed, name in enumerate(NAMES)}
    for name in ("notes.txt", ".hidden/x.jpg", ".x.jpg", "noextension"):
        upload(bucket, name, 50, tmp_path)
    put(server, f"{bucket.removeprefix('s3:/')}/folder/")  # some tools make such an object for a folder
    upload(f"{bucket}-other", "y.jpg", 51, tmp_path)  # its name begins with that of the folder
    source = open_source(f"{bucket}/")
    assert source.spec == bucket
    assert (source.folder, source.thumbnails) == (None, True)
    entries = {found.uri: found for found in source.scan() if isinstance(found, Entry)}
    assert entries.keys() == {f"{bucket}/{name}" for name in NAMES}
    assert source.notes == [  # type: ignore[attr-defined]
        "2 objects were passed over, as their names do not have the extension of an image."
    ]
    for name, data in sent.items():
        with source.open(f"{bucket}/{name}") as file:
            assert file.read() == data
        assert entries[f"{bucket}/{name}"].modified is not None
    before = entries[f"{bucket}/a.jpg"].version
    assert {f.uri: f for f in source.scan() if isinstance(f, Entry)}[f"{bucket}/a.jpg"].version == before
    upload(bucket, "a.jpg", 60, tmp_path)
    assert {f.uri: f for f in source.scan() if isinstance(f, Entry)}[f"{bucket}/a.jpg"].version != before
    with pytest.raises(InvalidImageError, match="missing"), source.open(f"{bucket}/deleted.jpg"):
        pass


def test_a_bucket_is_indexed_and_refreshed(bucket: str, tiny: TinyEncoder, tmp_path: Path) -> None:
    upload_many(bucket, 60, tmp_path)
    ObjectStore(bucket).write("broken.jpg", io.BytesIO(b"broken"))
    report = index(bucket, tmp_path / "c", encoders=["tiny"])
    assert (report.added, [failure.uri for failure in report.failures]) == (60, [f"{bucket}/broken.jpg"])
    with Collection.open(tmp_path / "c") as collection:
        assert collection.sources() == [bucket]
        for item in collection.items():
            assert collection.thumbnail(item.content_hash)
    upload(bucket, "a/000.png", 200, tmp_path)
    upload(bucket, "new.png", 201, tmp_path)
    report = index(None, tmp_path / "c")
    assert (report.added, report.changed, report.unchanged, report.remembered) == (1, 1, 59, 1)
    assert tiny.encoded == 62


def test_shards_of_a_bucket_in_a_bucket(bucket: str, tiny: TinyEncoder, tmp_path: Path) -> None:
    upload_many(bucket, 40, tmp_path)
    place = bucket.replace("photos", "shards", 1)
    index(bucket, tmp_path / "one", encoders=["tiny"])
    for number in (1, 2, 3):
        index_shard(bucket, f"{number}/3", place, encoders=["tiny"])
    assert index_shard(bucket, "2/3", place, encoders=["tiny"]).encoded == 0
    report = merge_shards(place, tmp_path / "merged")
    assert (report.index.added, report.to_run_again) == (40, "")
    assert_same(tmp_path / "one", tmp_path / "merged")
    assert merge_shards(f"{place}/", tmp_path / "merged").index.unchanged == 40
    assert index(bucket, tmp_path / "merged").unchanged == 40
    with pytest.raises(ShardError, match="3 shards, not 4"):
        index_shard(bucket, "1/4", place, encoders=["tiny"])
    with pytest.raises(ShardError, match="There are no shards"):
        merge_shards(f"{place}/nothing", tmp_path / "c")


def test_two_processes_write_the_same_shard_to_a_bucket(bucket: str, tiny: TinyEncoder, tmp_path: Path) -> None:
    upload_many(bucket, 30, tmp_path)
    place = bucket.replace("photos", "shards", 1)
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom support import TinyEncoder\n"
        "from pixmatcher import index_shard\nindex_shard(sys.argv[2], '1/1', sys.argv[3], encoders=[TinyEncoder()])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), bucket, place]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    report = merge_shards(place, tmp_path / "c")
    assert (report.index.added, report.to_run_again) == (30, "")
    index(bucket, tmp_path / "one", encoders=["tiny"])
    assert contents(tmp_path / "one") == contents(tmp_path / "c")


def test_a_shard_killed_while_it_writes_to_a_bucket(bucket: str, tiny: TinyEncoder, tmp_path: Path) -> None:
    upload_many(bucket, 60, tmp_path)
    place = bucket.replace("photos", "shards", 1)
    code = (
        "import os, sys, threading, time\nsys.path.insert(0, sys.argv[1])\nfrom support import TinyEncoder\n"
        "from pixmatcher import index_shard\nfrom pixmatcher.indexing import _shard_run, _store\n"
        "_store._FLUSH_ITEMS = 4\n_shard_run._PART_ITEMS = 8\n"
        "kill = lambda: (time.sleep(float(sys.argv[4])), os.kill(os.getpid(), 9))\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
        "index_shard(sys.argv[2], '1/1', sys.argv[3], encoders=[TinyEncoder()])"
    )
    killed = 0
    for step in range(8):
        command = [sys.executable, "-c", code, str(Path(__file__).parent), bucket, place, str(0.1 + 0.1 * step)]
        killed += subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -9
    assert killed
    index_shard(bucket, "1/1", place, encoders=["tiny"])
    index(bucket, tmp_path / "one", encoders=["tiny"])
    assert merge_shards(place, tmp_path / "c").to_run_again == ""
    assert_same(tmp_path / "one", tmp_path / "c")


# ---- Errors, each one sentence ----


def refused(url: str, message: str, folder: Path) -> None:
    """Index a URL, and expect an error of one sentence and no collection."""
    failed = cli("index", url, "-c", "c", cwd=folder)
    assert failed.returncode == 2, failed.stdout
    assert failed.stdout == ""
    assert failed.stderr.startswith("Error: ")
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr
    assert not (folder / "c").exists()


def test_errors_of_buckets(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused("s3://", "write it like s3://bucket/folder", tmp_path)
    refused("s3://nobucket/x", "s3://nobucket/x is not found (The specified bucket does not exist): check", tmp_path)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        refused(bucket, "cannot be read or written (", tmp_path)
    for address in ("", "nonsense", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        refused(bucket, f"'{address}' in AWS_ENDPOINT_URL is no address of a store: write it like", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    failed = cli("merge", bucket, "-c", "c", cwd=tmp_path)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)


def put(address: str, path: str, content: bytes = b"") -> None:
    """Store an object whose name no client of S3 would send as it is."""
    at = urlsplit(address)
    with socket.create_connection((at.hostname or "", at.port or 0)) as connection:
        head = (
            f"PUT {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        connection.sendall(f"{head}\r\n\r\n".encode() + content)
        assert b" 200 " in connection.recv(99)


def test_objects_whose_names_cannot_be_used(server: str, bucket: str) -> None:
    for number, name in enumerate(("a//b.jpg", "./b.jpg", "a/../b.jpg", "a%09b.jpg")):
        folder = f"{bucket}/{number}"
        put(server, f"{folder.removeprefix('s3:/')}/{name}")
        with pytest.raises(SourceError, match=r"has an object whose name cannot be used \(.*\): rename it, or name"):
            [*open_source(folder).scan()]


def test_credentials_in_a_url_are_refused_and_not_shown() -> None:
    with pytest.raises(SourceError, match="names no bucket") as caught:
        open_source("s3://key:secret@photos/x")
    assert "secret" not in str(caught.value)


def test_a_wrong_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with s3_server("photos", calls_without_key=1) as address:
        for name, value in credentials(address).items():
            monkeypatch.setenv(name, value)
        message = "s3://photos/x is refused (The AWS Access Key Id you provided does not exist"
        refused("s3://photos/x", message, tmp_path)
        paint(tmp_path / "photos" / "a.png", 1)
        for command in (
            ("merge", "s3://photos/x", "-c", "c"),
            ("index", "photos", "--shard", "1/2", "--to", "s3://photos/x"),
        ):
            failed = cli(*command, cwd=tmp_path)
            assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
            assert message in failed.stderr


def test_a_key_that_no_header_can_have(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "two\nlines")
    with pytest.raises(SourceError, match="check the names and credentials in the environment"):
        [*open_source(bucket).scan()]


def test_without_the_package(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['obstore'] = None\nfrom pixmatcher.sources import open_source\nopen_source('s3://b/x')"
    )
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert failed.stderr.splitlines()[-1] == (
        "pixmatcher.errors.SourceError: s3://b/x needs another package: run `pip install 'pixmatcher[cloud]'`."
    )


class CuttingProxy:
    """Passes connections on to a server, and cuts off the answers to requests whose path has `word`."""

    def __init__(self, address: str, word: bytes, times: int) -> None:
        self._target = urlsplit(address)
        self._word, self._left = word, times
        self._port = 0
        self.open()
        self.address = f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        """Listen, at the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        assert self._target.hostname is not None
        with (
            client,
            suppress(OSError),
            socket.create_connection((self._target.hostname, self._target.port or 80)) as up,
        ):
            request = client.recv(1 << 16)
            cut = self._word in request.partition(b"\r\n")[0] and self._left > 0
            self._left -= cut
            up.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            answer = b""
            while block := up.recv(1 << 16):
                answer += block
            head = answer.find(b"\r\n\r\n") + 4
            client.sendall(answer[: head + 30] if cut else answer)


@contextmanager
def cutting(address: str, word: bytes, times: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with closing(CuttingProxy(address, word, times)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)


def test_connections_that_are_cut_off(
    server: str, bucket: str, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload_many(bucket, 5, tmp_path)
    with cutting(server, b"001.png", 2, monkeypatch):  # a second try succeeds
        report = index(bucket, tmp_path / "c", encoders=["tiny"])
        assert (report.added, report.failures) == (5, [])
    with cutting(server, b"001.png", 1000, monkeypatch):
        report = index(bucket, tmp_path / "d", encoders=["tiny"])
        assert report.added == 4
        ((uri, reason),) = [(failure.uri, failure.reason) for failure in report.failures]
        assert (uri, reason) == (f"{bucket}/b/001.png", "cannot be read")
    assert index(None, tmp_path / "d").added == 1  # it is tried again in the next run
    with (
        cutting(server, b"list-type", 1000, monkeypatch),
        pytest.raises(SourceError, match="cannot be read or written"),
    ):
        index(bucket, tmp_path / "e", encoders=["tiny"])


def test_objects_are_read_ahead_within_limits(bucket: str, tmp_path: Path) -> None:
    upload_many(bucket, 50, tmp_path)
    store = ObjectStore(bucket)
    requests = [(found.key, found.key, found.size) for found in store.objects()] + [("no", "no.png", 1)]
    taken = [each for batch in fetch_objects(store, iter(requests), batch_size=8) for each in batch]
    assert sorted(key for key, _ in taken) == sorted(key for key, *_ in requests)
    failed = [answer for _, answer in taken if isinstance(answer, FetchError)]
    assert [error.reason for error in failed] == ["missing"]
    # Objects larger than all that may be in memory come one by one.
    large = [(number, requests[0][1], 1 << 40) for number in range(3)]
    assert [len(batch) for batch in fetch_objects(store, large, batch_size=8) if batch] == [1, 1, 1]
    for _ in fetch_objects(store, iter(requests), batch_size=8):
        break  # closed early
    assert os.path.isdir(tmp_path)


# ---- Stores that stop answering ----

NOT_ANSWERED = r"has not answered for 1 s \(.+\): run the same command again when it answers; what is done is kept\."


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a store for a second; write often."""
    monkeypatch.setattr(object_store, "_AWAY_SECONDS", 1.0)
    monkeypatch.setattr(_shard_run, "_PART_ITEMS", 16)
    monkeypatch.setattr(_store, "_FLUSH_ITEMS", 8)
    monkeypatch.setattr(_merge, "_BATCH", 8)


def once(act: Callable[[], object], after: int = 1) -> ProgressCallback:
    """Return a callback that acts when so many images are done."""
    acted: list[int] = []

    def report(progress: Progress) -> None:
        if progress.done >= after and not acted:
            acted.append(progress.done)
            act()

    return report


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_killed_while_its_images_are_encoded(
    monkeypatch: pytest.MonkeyPatch, tiny: TinyEncoder, tmp_path: Path
) -> None:
    url, count = "s3://photos/x", 150
    with ExitStack() as running:
        address = running.enter_context(s3_server("photos"))
        for name, value in credentials(address).items():
            monkeypatch.setenv(name, value)
        upload_many(url, count, tmp_path)
        with pytest.raises(StorageError, match=f"^{url} {NOT_ANSWERED}$"):
            index_shard(url, "1/1", tmp_path / "shards", encoders=["tiny"], progress=once(running.close, 20))
    assert [*(tmp_path / "shards").glob("*/*.zip")]
    failed = cli("index", url, "-c", "c", cwd=tmp_path)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)  # it has never answered this process
    with s3_server("photos", port=urlsplit(address).port or 0):
        upload_many(url, count, tmp_path)
        report = index_shard(url, "1/1", tmp_path / "shards", encoders=["tiny"])
    assert (report.entries, report.failures) == (count, [])
    assert report.unchanged >= 20
    assert merge_shards(tmp_path / "shards", tmp_path / "c").index.total == count


@pytest.mark.usefixtures("impatient")
def test_a_store_that_goes_away_while_shards_are_written_and_merged(
    server: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tiny: TinyEncoder, tmp_path: Path
) -> None:
    photos, place = tmp_path / "photos", bucket.replace("photos", "shards", 1)
    paint_many(photos, 64)
    with closing(CuttingProxy(server, b"", 0)) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.address)
        with pytest.raises(StorageError, match=f"^{place} {NOT_ANSWERED}$"):
            index_shard(photos, "1/1", place, encoders=["tiny"], progress=once(gate.close))
        gate.open()
        report = index_shard(photos, "1/1", place, encoders=["tiny"])
        assert (report.entries, report.failures) == (64, [])
        with pytest.raises(StorageError, match=NOT_ANSWERED):
            merge_shards(place, tmp_path / "c", progress=once(gate.close))
        with Collection.open(tmp_path / "c") as collection:
            assert 8 <= len(collection) < 64
            assert collection.verify() == []
        gate.open()
        # A store that comes back in time is waited for.
        monkeypatch.setattr(object_store, "_AWAY_SECONDS", 60.0)

        def away() -> None:
            gate.close()
            threading.Timer(2.5, gate.open).start()

        report = index_shard(photos, "1/1", f"{place}-2", encoders=["tiny"], progress=once(away))
        assert report.encoded == 64
        assert merge_shards(place, tmp_path / "c", progress=once(away)).index.total == 64
    index(photos, tmp_path / "one", encoders=["tiny"])
    assert_same(tmp_path / "one", tmp_path / "c")


@pytest.mark.usefixtures("impatient")
def test_a_node_of_a_cluster_says_that_the_store_is_away(
    server: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tiny: TinyEncoder, tmp_path: Path
) -> None:
    upload_many(bucket, 4, tmp_path)
    with closing(CuttingProxy(server, b"", 0)) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.address)
        entries = [found for found in open_source(bucket).scan() if isinstance(found, Entry)]
        worker = RayWorker()
        worker._begin(Setup((), "auto", "cpu", True, EncodeOptions(1 << 20, True, False), 1), [tiny])
        answer = worker.encode(bucket, entries[:2], frozenset())
        assert (len(answer.result.encoded), answer.lost) == (2, "")
        gate.close()
        answer = worker.encode(bucket, entries[2:], frozenset())
        assert re.fullmatch(f"{bucket} {NOT_ANSWERED}", answer.lost)
        assert not len(answer.result)


def test_a_list_goes_on_where_the_store_went_away(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    with s3_server("photos") as address, closing(CuttingProxy(address, b"", 0)) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.address)
        upload_many(bucket, 35, tmp_path)
        listed = ObjectStore(bucket).objects()
        keys = [next(listed).key]
        gate.close()
        threading.Timer(2.5, gate.open).start()
        keys += [found.key for found in listed]
    assert keys == sorted(f"{'abc'[seed % 3]}/{seed:03}.png" for seed in range(35))
