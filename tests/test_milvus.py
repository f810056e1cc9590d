"""A collection in Milvus: what the suite of all stores does not test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from milvus_server import MilvusServer
from pixmatcher import Calibration, Collection, CollectionError, Filter, Item, index, index_shard, merge_shards
from pixmatcher.collection import open_collection, open_named_store
from pixmatcher.collection.row_stores import RefusedItemsError
from pixmatcher.milvus import MilvusCollection, _connection, _indexes, _tables, open_milvus, store
from pixmatcher.records import EncoderRecord, Space
from store_suite import ListedSource, unit_vectors
from support import TinyEncoder, bound_by_permissions, cli, paint_many

RECORD = EncoderRecord("tiny", "tiny-1", (Space("semantic", 24, text=True),))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    with MilvusServer(tmp_path_factory.mktemp("milvus")) as running:
        yield running


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[MilvusCollection]:
    """An empty collection in Milvus Lite, of one space of 24 values."""
    with open_milvus(str(tmp_path / "lite")) as collection:
        collection.create([RECORD])
        yield collection


def items(count: int, first: int = 0) -> list[Item]:
    return [Item(f"/photos/{number:05}.jpg", f"{number:064x}", "1") for number in range(first, first + count)]


def fill(collection: MilvusCollection, count: int, first: int = 0) -> np.ndarray:
    vectors = unit_vectors(count, 24, seed=first)
    collection.add(items(count, first), {"semantic": vectors}, source="list:x")
    return vectors


# Addresses and errors


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("milvus:", "names no collection: write milvus:PATH"),
        ("milvus://127.0.0.1:19530", "names no collection of the Milvus server: write milvus://HOST:19530/NAME"),
        ("milvus://127.0.0.1:19530/a-b", "NAME consists of letters, digits and _"),
        ("milvus://h:no/x", "is no address of a Milvus server"),
        ("milvus://root:secret@127.0.0.1:19530/x", "must not contain a password: set PIXMATCHER_MILVUS_TOKEN"),
        ("milvus:nothing", "There is no collection in milvus:nothing: create it with `pixmatcher index FOLDER -c"),
    ],
)
def test_wrong_addresses(reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CollectionError) as error:
        open_collection(reference)
    assert message in str(error.value)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_or_file_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo.jpg").write_bytes(b"x")
    (tmp_path / "file.db").write_bytes(b"x")
    for name, message in (("folder", "holds other files"), ("file.db", "is a file and not a database of Milvus Lite")):
        opened = open_milvus(str(tmp_path / name))
        with pytest.raises(CollectionError, match=message):
            opened.create([RECORD])
        opened.close()
    assert os.listdir(tmp_path / "folder") == ["photo.jpg"]


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "CONNECT_SECONDS", 0.5)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(CollectionError, match=r"cannot be reached: start it, or correct the address"):
            open_milvus(f"//127.0.0.1:{unused.getsockname()[1]}/photos")


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connection, "CONNECT_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(CollectionError, match=r"cannot be reached|did not answer in time") as error:
            open_milvus(f"//127.0.0.1:{silent.getsockname()[1]}/photos")
        assert "\n" not in str(error.value)


def test_an_old_server(lite: MilvusCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = lite._connect()
    connection.check_spaces(3)
    connection.version = (2, 3, 5)
    connection.check_spaces(1)
    with pytest.raises(CollectionError, match=r"version 2\.3\.5, which keeps 1 space .* not 2: upgrade"):
        connection.check_spaces(2)


@pytest.mark.parametrize(("module", "hidden"), [("pymilvus", "pymilvus"), ("milvus_lite", "milvus_lite")])
def test_without_the_extra(module: str, hidden: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{hidden!r}] = None; from pixmatcher.milvus import open_milvus; " + (
        "open_milvus('//127.0.0.1:1/x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "install it with `pip install 'pixmatcher[milvus]'`." in done.stderr


def test_one_process_uses_milvus_lite(lite: MilvusCollection, tmp_path: Path) -> None:
    fill(lite, 3)
    done = cli("info", "-c", f"milvus:{tmp_path}/lite")
    assert done.returncode == 2
    assert "is in use by another process, and only one process can use Milvus Lite" in done.stderr
    assert "milvus://HOST:19530/NAME" in done.stderr
    assert "Traceback" not in done.stderr
    with open_milvus(str(tmp_path / "lite")) as again:
        assert len(again) == 3
    lite.close()
    assert cli("info", "-c", f"milvus:{tmp_path}/lite", "--json").returncode == 0


@pytest.mark.slow
def test_a_folder_that_can_only_be_read_is_searched(lite: MilvusCollection, tmp_path: Path) -> None:
    folder = tmp_path / "lite"
    fill(lite, 30)
    lite.update_indexes()
    fill(lite, 5, 30)
    limits = {"preexec_fn": bound_by_permissions()}
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    done = cli("verify", "-c", f"milvus:{folder}", **limits)
    assert "is in use by another process" in done.stderr
    lite.close()
    before = {place: place.read_bytes() for place in folder.rglob("*") if place.is_file()}
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    limits["env"] = os.environ | {"TMPDIR": str(temporary)}
    done = cli("verify", "-c", f"milvus:{folder}", **limits)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Undamaged: 35 images" in done.stdout
    done = cli("forget", "list:x", "-c", f"milvus:{folder}", **limits)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "can only be read: copy it to a folder that you can write to" in done.stderr
    assert {place: place.read_bytes() for place in folder.rglob("*") if place.is_file()} == before
    assert not [*temporary.iterdir()]


def test_a_damaged_database_is_one_sentence(lite: MilvusCollection, tmp_path: Path) -> None:
    fill(lite, 3)
    lite.update_indexes()
    lite.close()
    for file in (tmp_path / "lite" / "collections" / "pixmatcher").rglob("*.parquet"):
        os.truncate(file, 100)
    done = cli("verify", "-c", f"milvus:{tmp_path}/lite")
    assert done.returncode == 2
    assert "cannot be read or written (" in done.stderr
    assert done.stderr.endswith("move it elsewhere and index again.\n")
    assert done.stderr.count("\n") == 1


def test_a_newer_format_is_refused(lite: MilvusCollection, tmp_path: Path) -> None:
    lite._notes.put("manifest", {"": {"format": 99, "encoders": []}})
    with pytest.raises(CollectionError, match=r"has the format 99, newer than the 1 .* upgrade with `pip install"):
        open_milvus(str(tmp_path / "lite"))


def test_a_collection_of_another_program(server: MilvusServer) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(f"http://{server.address}")
    client.create_collection("foreign", dimension=4)
    client.close()
    with pytest.raises(CollectionError, match=r"is a collection of another program: name another one"):
        open_milvus(f"//{server.address}/foreign")


def test_more_results_than_milvus_returns(lite: MilvusCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lite, 30)
    query = np.zeros(24)
    assert len(lite.search(query, space="semantic", k=20_000)) == 30
    assert lite.search(query, space="semantic", k=20_000, filter=Filter(folder="/nowhere")) == []
    monkeypatch.setattr(store, "_MOST_HITS", 29)
    with pytest.raises(CollectionError, match="30 images can be results, and Milvus returns up to 29: ask for fewer"):
        lite.search(query, space="semantic", k=20_000)
    assert len(lite.search(query, space="semantic", k=29)) == 29


# Storing


def test_writing_again_changes_nothing(lite: MilvusCollection) -> None:
    vectors = fill(lite, 20)
    before = {item.id: item for item in lite.items()}
    fill(lite, 20)
    assert {item.id: item for item in lite.items()} == before
    assert len(lite) == 20
    np.testing.assert_array_equal(
        lite.embeddings([lite.add(items(20), {"semantic": vectors})[4]], "semantic")[0], vectors[4].astype(np.float16)
    )


def test_two_images_of_the_same_id(lite: MilvusCollection, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _tables.id_of

    def short_id(*parts: str) -> int:
        return real(*parts) % 3 + 1 if parts[0] == "item" else real(*parts)

    for module in (store, sys.modules["pixmatcher.milvus._rows"]):
        monkeypatch.setattr(module, "id_of", short_id)
    stored: dict[int, str] = {}
    for item, vector in zip(items(12), unit_vectors(12, 24), strict=True):
        if (item_id := short_id("item", item.uri)) in stored:
            with pytest.raises(RefusedItemsError, match="has the same id: give one of both another name"):
                lite.add([item], {"semantic": vector[np.newaxis]})
        else:
            stored[item_id] = item.uri
            assert lite.add([item], {"semantic": vector[np.newaxis]}) == [item_id]
    assert {item.id: item.uri for item in lite.items()} == stored
    assert len(stored) == 3


def test_an_image_that_does_not_fit_is_a_failure(tmp_path: Path, tiny: TinyEncoder) -> None:
    source = ListedSource({"good": "a", "long": "x" * 5000, "other": "b"})
    with open_milvus(str(tmp_path / "lite")) as collection:
        report = index(source, collection, encoders=["tiny"])
        assert (report.added, report.total) == (2, 2)
        assert [(f.uri, f.reason) for f in report.failures] == [("list://x/long", "text too long for Milvus")]
        assert {item.label for item in collection.items()} == {"a", "b"}
        encoded = tiny.encoded
        report = index(source, collection, encoders=["tiny"])
        assert [(f.uri, f.reason) for f in report.failures] == [("list://x/long", "text too long for Milvus")]
        assert tiny.encoded == encoded
        index(source, collection, encoders=["tiny"], retry_failed=True)
        assert tiny.encoded == encoded + 1
        # The version of the image stays the same, and what its source says of it changes.
        source.entries["list://x/long"] = replace(source.entries["list://x/long"], label="short")
        report = index(source, collection, encoders=["tiny"])
        assert (report.added, report.failures, tiny.encoded) == (1, [], encoded + 2)


def test_texts_that_are_not_unicode_stay_the_same(tmp_path: Path, tiny: TinyEncoder) -> None:
    details = {"a\0\udcff": '"\\\udcfe', "b": "猫"}
    source = ListedSource({"a": None})
    source.entries["list://x/a"] = replace(source.entries["list://x/a"], caption="\udcff", details=details)
    with open_milvus(str(tmp_path / "lite")) as collection:
        collection.create([tiny])
        index(source, collection, encoders=[tiny])
        (item,) = collection.items()
        assert (item.caption, item.details) == ("\\udcff", details)
        assert index(source, collection, encoders=[tiny]).unchanged == 1
        assert collection.verify() == []


def test_a_change_that_does_not_fit_is_a_failure(tmp_path: Path, tiny: TinyEncoder) -> None:
    source = ListedSource({"a": "one", "b": "two"})
    with open_milvus(str(tmp_path / "lite")) as collection:
        collection.create([tiny])
        index(source, collection, encoders=[tiny])
        source.entries["list://x/a"] = replace(source.entries["list://x/a"], label="x" * 5000)
        source.entries["list://x/b"] = replace(source.entries["list://x/b"], label="new")
        for _ in range(2):
            report = index(source, collection, encoders=[tiny])
            assert [failure.reason for failure in report.failures] == ["text too long for Milvus"]
            assert [(item.uri, item.label) for item in collection.items()] == [("list://x/b", "new")]


def test_thumbnails_that_were_deleted_do_no_harm(lite: MilvusCollection, tmp_path: Path) -> None:
    lite.add(items(1), {"semantic": unit_vectors(1, 24)}, thumbnails={f"{0:064x}": b"jpeg"})
    lite._connect().call("drop_collection", "pixmatcher_thumbnails")
    with open_milvus(str(tmp_path / "lite")) as again:
        assert (len(again), again.thumbnail(f"{0:064x}")) == (1, None)
        again.add(items(1), {"semantic": unit_vectors(1, 24)}, thumbnails={f"{0:064x}": b"jpeg"})
        assert again.thumbnail(f"{0:064x}") == b"jpeg"


def test_long_notes_are_divided(lite: MilvusCollection) -> None:
    names = {f"label {number}": f"name {number} é" * 20 for number in range(2000)}
    lite.set_label_names(names)
    assert lite.label_names() == names
    lite.set_label_names({"one": "more"})
    assert lite.label_names() == names | {"one": "more"}
    thumbnail = os.urandom(200_000)
    lite.add(items(1), {"semantic": unit_vectors(1, 24)}, thumbnails={f"{0:064x}": thumbnail})
    assert lite.thumbnail(f"{0:064x}") == thumbnail
    (item,) = lite.items()
    lite.remove([item.id])
    assert lite.thumbnail(f"{0:064x}") is None


def test_items_are_read_in_pages(lite: MilvusCollection) -> None:
    fill(lite, 300)
    ids = lite.ids().tolist()
    seen: list[int] = []
    while page := lite.items_page(seen[-1] if seen else 0, 70):
        seen += [item.id for item in page]
    assert seen == ids == sorted(ids)
    lite.add([Item("/other/1.jpg", "f" * 64, label="cat")], {"semantic": unit_vectors(1, 24)}, source="list:y")
    assert [item.uri for item in lite.items_page(filter=Filter(folder="/other"))] == ["/other/1.jpg"]
    assert [item.uri for item in lite.items_page(source="list:y")] == ["/other/1.jpg"]
    with pytest.raises(CollectionError, match="has no source list:z"):
        lite.items_page(source="list:z")


def test_pages_that_are_too_full_are_divided(lite: MilvusCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tables, "_MOST_ROWS_OF_LITE", 7)
    fill(lite, 100)
    ids = [row["id"] for row in lite._items.rows(())]
    assert len(ids) == 100
    assert ids == sorted({*ids})
    assert len([*lite._items.rows((), whole=False)]) == 100


def test_calibrations_hold_for_the_encoder(lite: MilvusCollection) -> None:
    own = Calibration(2.5, -1.25)
    lite.set_calibrations("semantic", {"text": own, "image": Calibration(1, 2)})
    lite.set_calibrations("semantic", {"image": None})
    assert lite.calibrations() == {"semantic": {"text": own}}
    lite.encoders = (EncoderRecord("tiny", "another", RECORD.spaces),)
    assert lite.calibrations() == {}


def test_names_of_labels_that_are_not_unicode(lite: MilvusCollection, tmp_path: Path, tiny: TinyEncoder) -> None:
    with Collection.create(tmp_path / "local", [tiny]) as local:
        for each in (lite, local):
            each.set_label_names({"\udcff": "nul\0\udcff"})
            assert each.label_names() == {"\\udcff": "nul\0\\udcff"}


def test_a_changed_item_stays_one_of_its_source(tmp_path: Path, tiny: TinyEncoder) -> None:
    source = ListedSource({"a": "one", "b": "two", "c": "two"})
    with open_milvus(str(tmp_path / "listed")) as collection:
        collection.create([tiny])
        index(source, collection, encoders=[tiny])
        source.entries["list://x/a"] = replace(source.entries["list://x/a"], label="new")
        index(source, collection, encoders=[tiny])
        assert {row.source for row in collection.rows()} == {source.spec}
        del source.entries["list://x/a"]
        assert index(source, collection, encoders=[tiny]).removed == 1


# Several processes


@pytest.mark.slow
def test_processes_write_and_search_one_server(server: MilvusServer, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from test_milvus import fill, RECORD; "
        "from pixmatcher.milvus import open_milvus\n"
        "with open_milvus(sys.argv[1]) as collection:\n"
        "    for start in range(int(sys.argv[2]), int(sys.argv[2]) + 200, 20): fill(collection, 20, start)"
    )
    with open_milvus(f"//{server.address}/shared") as collection:
        collection.create([RECORD])
        # The two write the second half of the items both.
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", code, f"//{server.address}/shared", str(first), str(Path(__file__).parent)]
            )
            for first in (0, 100)
        ]
        assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
        assert sorted(item.uri for item in collection.items()) == [item.uri for item in items(300)]
        assert collection.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("where", ["lite", "server"])
def test_a_killed_writer_leaves_a_whole_collection(
    where: str, server: MilvusServer, tmp_path: Path, tiny: TinyEncoder
) -> None:
    reference = f"milvus:{tmp_path}/lite" if where == "lite" else f"milvus://{server.address}/killed"
    paint_many(tmp_path / "photos", 300)
    folder = str(tmp_path / "photos")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from support import TinyEncoder; from pixmatcher import index\n"
        "import pixmatcher.indexing._store as storing; storing._FLUSH_ITEMS = 8\n"
        "index(sys.argv[2], sys.argv[3], encoders=[TinyEncoder()])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), folder, reference]
    stored = 0
    for attempt in range(3):
        writer = subprocess.Popen(command)
        time.sleep(2.5 + attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        opened = open_named_store(reference)
        assert isinstance(opened, MilvusCollection)
        with opened:
            if opened.encoders:
                assert opened.verify() == []
                assert stored <= len(opened) <= 300
                stored = len(opened)
    assert subprocess.run(command, timeout=300).returncode == 0
    with open_milvus(reference.removeprefix("milvus:")) as collection:
        assert sorted(Path(item.uri).name for item in collection.items()) == [f"{n:05}.png" for n in range(300)]
        assert collection.verify() == []
        assert index(folder, collection).unchanged == 300


@pytest.mark.slow
def test_a_server_that_is_killed_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server").mkdir()
    with MilvusServer(tmp_path / "server") as server, open_milvus(f"//{server.address}/killed") as collection:
        collection.create([RECORD])
        stored = threading.Event()
        written: list[int] = []

        def write() -> None:
            for start in range(0, 800, 20):
                fill(collection, 20, start)
                written.append(start)
                if len(written) == 10:
                    stored.set()

        writer = threading.Thread(target=write)
        writer.start()
        assert stored.wait(60)
        server.kill()
        server.start()
        # The request that was under way is repeated, and all others go on.
        writer.join(timeout=200)
        assert not writer.is_alive()
        assert len(written) == 40
        assert sorted(item.uri for item in collection.items()) == [item.uri for item in items(800)]
        assert collection.verify() == []
        server.kill()
        monkeypatch.setattr(_connection, "REQUEST_SECONDS", 1.0)
        with pytest.raises(CollectionError, match="cannot be reached: start it"):
            collection.search(np.ones(24), space="semantic")


def test_shards_are_merged_into_milvus(tmp_path: Path, tiny: TinyEncoder) -> None:
    paint_many(tmp_path / "photos", 20)
    for number in (1, 2):
        index_shard(tmp_path / "photos", f"{number}/2", tmp_path / "shards", encoders=["tiny"])
    with Collection.create(tmp_path / "local", [tiny]) as local, open_milvus(str(tmp_path / "lite")) as merged:
        index(tmp_path / "photos", local)
        assert merge_shards(tmp_path / "shards", merged).index.added == 20
        assert merge_shards(tmp_path / "shards", merged).index.unchanged == 20
        assert index(tmp_path / "photos", merged).unchanged == 20
        for space in local.spaces:
            stored = [
                {item.uri: each.embeddings([item.id], space).tobytes() for item in each.items()}
                for each in (local, merged)
            ]
            assert stored[0] == stored[1]


# Maintenance


def test_damage_is_found_and_removed(lite: MilvusCollection) -> None:
    fill(lite, 30)
    assert lite.verify() == []
    found = lite._whole_rows(lite.ids()[:3].tolist())
    first, second, third = (dict(row) for row in found.values())
    first["vector_0"] = [0.5] * 24
    second["rest"] = "{"
    third["uri"] = "/photos/another.jpg"
    lite._items.put(
        [{**row, "date": "", "incomplete": False, "checksum": 1} for row in (first, second, third)], row_bytes=99
    )
    (problem,) = lite.verify()
    assert problem.message == "3 images are damaged"
    assert lite.repair() == 3
    assert lite.verify() == []
    assert len(lite) == 27


def test_lists_follow_the_rows_of_a_segment() -> None:
    kinds = [_indexes.chosen_index(rows, 384) for rows in (125_000, 126_000, 1_000_000, 10**9)]
    assert [(index.kind, index.lists) for index in kinds] == [("FLAT", 0), *[("IVF_FLAT", 1024)] * 3]
    assert _indexes.chosen_index(400_000, 128).lists == 2048


@pytest.mark.slow
def test_lists_are_measured_against_an_exact_search(lite: MilvusCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_indexes, "_MOST_EXACT_VALUES", 1000)
    monkeypatch.setattr(_indexes, "_EXACT_IN_LITE", False)
    for first in range(0, 1500, 500):
        fill(lite, 500, first)
    lite.update_indexes()
    index_now = lite._indexes.of("semantic")
    assert index_now.kind == "IVF_FLAT"
    assert index_now.recall >= 0.95
    assert lite.index_descriptions()["semantic"].kind == "lists"
    # As a process that is killed while it builds leaves them.
    lite._indexes.save("semantic", replace(index_now, visited=1, recall=0.0))
    lite.update_indexes()
    assert lite._indexes.of("semantic").recall >= 0.95
    lowest = lite.tune_index("semantic", 0.3)
    assert lowest.recall >= 0.3
    assert lite._indexes.of("semantic").visited < index_now.visited
    tuned = lite.tune_index("semantic", 0.99)
    assert tuned.points[-1].chosen
    assert tuned.recall >= 0.99
    assert [point.lists for point in tuned.points] == sorted(point.lists for point in tuned.points)
    (vector,) = unit_vectors(1, 24, seed=99)
    stored = np.concatenate([unit_vectors(500, 24, seed=first) for first in range(0, 1500, 500)]).astype(np.float16)
    best = np.argsort(-(stored.astype(np.float32) @ vector))[:10]
    hits = lite.search(vector, space="semantic", k=10, exact=True)
    assert [hit.item.uri for hit in hits] == [f"/photos/{number:05}.jpg" for number in best]


# The commands


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return Path(__file__).parents[1] / "examples" / "photos"


@pytest.mark.slow
def test_the_commands(photos: Path, tmp_path: Path) -> None:
    reference = f"milvus:{tmp_path}/photos.milvus"

    def run(*arguments: str, status: int = 0) -> str:
        done = cli(*arguments, "-c", reference)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    assert "18 added" in run("index", str(photos))
    assert "18 unchanged" in run("index")
    local = f"{tmp_path}/local"
    assert cli("index", str(photos), "-c", local).returncode == 0
    for query in ("a horse", str(photos / "horse.jpg")):
        found, expected = (
            json.loads(cli("search", query, "-c", each, "--json").stdout)["hits"] for each in (reference, local)
        )
        assert [hit["uri"] for hit in found] == [hit["uri"] for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in expected], abs=1e-3)
    assert "exact (visual)" in run("info")
    assert "Undamaged: 18 images" in run("verify")
    assert "Repaired: 0 damaged images" in run("verify", "--repair")
    assert "Every query is compared with all images" in run("tune")
    assert "leave --memory out" in run("tune", "--memory", "1G", status=2)
    assert "works only with a collection in a folder" in run("upgrade", status=2)
    (tmp_path / "batch").write_text("a horse\nthe sea\n")
    assert len(run("search", "--batch", str(tmp_path / "batch"), "--json").splitlines()) == 2
    run("export", "arrays", "--to", str(tmp_path / "out"))
    assert {len(np.load(file)) for file in (tmp_path / "out").glob("*.npy")} == {18}
    assert "1 image of" in run("forget", str(photos / "horse.jpg"))
    assert "17 unchanged" in run("index")
