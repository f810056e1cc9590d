"""Collections: items are stored and returned, and damaged or missing files are handled."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixmatcher import Collection, CollectionError, CollectionLockedError, Item, StorageError
from pixmatcher.records import Space
from support import TinyEncoder, bound_by_permissions, cli, fill_up

SPACES = {"visual": 48, "semantic": 24}


def vectors(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((count, size)).astype(np.float32) for name, size in SPACES.items()}


def items(folder: Path, count: int, first: int = 0) -> list[Item]:
    return [Item(str(folder / f"{n}.jpg"), f"hash {n}", "v1", bytes=n) for n in range(first, first + count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photos"
    path.mkdir()
    return path


@pytest.fixture
def collection(folder: Path) -> Iterator[Collection]:
    with Collection.create(folder / ".pixmatcher", [TinyEncoder()]) as made:
        yield made


def filled(folder: Path, count: int = 50) -> Path:
    """Create a collection of `count` items and close it; return its folder."""
    with Collection.create(folder / ".pixmatcher", [TinyEncoder()]) as collection:
        collection.add(items(folder, count), vectors(count))
        return collection.path


def expected_hits(stored: np.ndarray, query: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Return row numbers and scores of an exhaustive comparison in NumPy; equal scores in the order of rows."""
    scores = stored.astype(np.float16).astype(np.float32) @ query
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    return [(int(row), float(scores[row])) for row in order]


# Finding, opening, making


def test_a_collection_is_found_from_a_subfolder(folder: Path) -> None:
    path = filled(folder, 1)
    below = folder / "a" / "b"
    below.mkdir(parents=True)
    assert Collection.find(below) == Collection.find(folder) == Collection.find(path) == path
    with Collection.open(folder) as by_folder, Collection.open(path) as by_itself:
        assert by_folder.path == by_itself.path == path


def test_a_missing_collection_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="pixmatcher index FOLDER"):
        Collection.open(tmp_path)
    with pytest.raises(CollectionError, match="pixmatcher index FOLDER"):
        Collection.find(tmp_path)


def test_a_collection_json_of_another_program_is_not_touched(tmp_path: Path) -> None:
    """The advice to move a damaged collection elsewhere must never be given for a folder of the user."""
    (tmp_path / "collection.json").write_text('{"info": {"name": "of Postman"}}')
    with pytest.raises(CollectionError, match="There is no collection"):
        Collection.open(tmp_path)


def test_a_collection_is_not_created_twice(folder: Path) -> None:
    path = filled(folder)
    with pytest.raises(CollectionError, match="a collection already"):
        Collection.create(path, [TinyEncoder()])
    with Collection.open(path) as collection:
        assert len(collection) == 50


@pytest.mark.parametrize("spaces", [(), (Space("a", 4), Space("a", 4)), (Space("../a", 4),), (Space("a", 0),)], ids=str)
def test_unusable_spaces_are_refused(tmp_path: Path, spaces: tuple[Space, ...]) -> None:
    encoder = TinyEncoder()
    encoder.spaces = spaces  # type: ignore[assignment]
    with pytest.raises(CollectionError, match="spaces"):
        Collection.create(tmp_path / "c", [encoder])
    assert not (tmp_path / "c").exists()


def test_use_after_close_is_not_reported_as_damage(folder: Path) -> None:
    with Collection.create(folder / ".pixmatcher", [TinyEncoder()]) as collection:
        pass
    collection.close()  # once more does no harm
    with pytest.raises(CollectionError, match="closed"):
        len(collection)


# Adding and removing


def test_items_are_returned_as_they_were_stored(collection: Collection, folder: Path) -> None:
    item = Item(
        str(folder / "a.jpg"), "abc", "v", 5, 40, 30, "JPEG", "cat", "A cat.", "2020-01-01", "2019-01-01T10:00:00+02:00"
    )
    [item_id] = collection.add([item], vectors(1))
    [found] = collection.items()
    assert found.added is not None
    assert found.__dict__ | {"added": None} == item.__dict__ | {"id": item_id}
    assert len(collection) == 1


def test_the_same_uri_replaces_and_keeps_its_id(collection: Collection, folder: Path) -> None:
    ids = collection.add(items(folder, 5), vectors(5))
    changed = Item(str(folder / "2.jpg"), "other", "v2")
    new = vectors(1, seed=9)
    assert collection.add([changed], new) == [ids[2]]
    assert len(collection) == 5
    assert {i.uri: i.content_hash for i in collection.items()}[changed.uri] == "other"
    np.testing.assert_allclose(collection.embeddings([ids[2]], "visual"), new["visual"], atol=2e-3)
    best = collection.search(new["visual"][0], space="visual", k=50)
    assert [hit.item.id for hit in best].count(ids[2]) == 1
    assert best[0].item.id == ids[2]


def test_the_same_uri_twice_in_one_call_is_one_item(collection: Collection, folder: Path) -> None:
    ids = collection.add(items(folder, 1) * 2, vectors(2))
    assert ids[0] == ids[1]
    assert len(collection) == len(collection.search(np.ones(48), space="visual")) == 1


def test_copies_get_the_embeddings_of_the_same_content(collection: Collection, folder: Path) -> None:
    given = vectors(3)
    known: dict[str, Any] = {"width": 40, "height": 30, "format": "JPEG", "taken": "2020-01-02T03:04:05"}
    collection.add([replace(item, **known) for item in items(folder, 3)], given)
    copy, unknown = Item(str(folder / "copy.jpg"), "hash 1"), Item(str(folder / "x.jpg"), "never seen")
    assert collection.add_copies([copy, unknown]) == [unknown]
    copied = next(item for item in collection.items() if item.uri == copy.uri)
    np.testing.assert_allclose(collection.embeddings([copied.id], "visual")[0], given["visual"][1], atol=2e-3)
    assert {name: getattr(copied, name) for name in known} == known


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("a space missing", {"visual": np.zeros((2, 48))}),
        ("a space too many", {**vectors(2), "third": np.zeros((2, 4))}),
        ("a wrong dimension", {**vectors(2), "visual": np.zeros((2, 47))}),
        ("one vector too few", {**vectors(2), "visual": np.zeros((1, 48))}),
        ("one dimension only", {**vectors(2), "visual": np.zeros(48)}),
        ("NaN", {**vectors(2), "semantic": np.full((2, 24), np.nan)}),
        ("infinite", {**vectors(2), "semantic": np.full((2, 24), np.inf)}),
        ("too large for float16", {**vectors(2), "semantic": np.full((2, 24), 1e6)}),
    ],
)
def test_invalid_embeddings_are_refused_and_nothing_is_stored(
    collection: Collection, folder: Path, name: str, spoilt: dict[str, np.ndarray]
) -> None:
    with pytest.raises(CollectionError):
        collection.add(items(folder, 2), spoilt)
    assert len(collection) == 0
    assert collection.state().row_count == 0


def test_removing(collection: Collection, folder: Path) -> None:
    ids = collection.add(items(folder, 10), vectors(10))
    assert collection.remove([ids[0], ids[5], 12345]) == 2
    assert collection.remove([ids[0]]) == 0
    left = [item.id for item in collection.items()]
    assert left == [i for i in ids if i not in (ids[0], ids[5])]
    found = collection.search(np.ones(48), space="visual", k=10)
    assert sorted(hit.item.id for hit in found) == left
    # A number is never given to another image.
    assert collection.add(items(folder, 1, first=99), vectors(1))[0] > ids[-1]


def test_items_are_read_in_pages_while_others_are_added(collection: Collection, folder: Path) -> None:
    collection.add(items(folder, 2500), vectors(2500))
    seen = []
    for item in collection.items():
        seen.append(item.uri)
        if len(seen) == 10:
            collection.add(items(folder, 5, first=2500), vectors(5))
            collection.remove([2400])
    assert len(seen) == len(set(seen)) == 2504


def test_embeddings_are_in_the_order_of_the_ids(collection: Collection, folder: Path) -> None:
    given = vectors(20)
    ids = collection.add(items(folder, 20), given)
    requested = [ids[7], ids[3], ids[19], ids[3]]
    found = collection.embeddings(requested, "semantic")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, given["semantic"].astype(np.float16)[[7, 3, 19, 3]])
    assert collection.embeddings([], "visual").shape == (0, 48)
    with pytest.raises(CollectionError, match="99"):
        collection.embeddings([ids[0], 99], "visual")
    with pytest.raises(CollectionError, match="space 'third' does not exist"):
        collection.embeddings([ids[0]], "third")


def test_file_names_that_are_unusual_or_not_unicode(collection: Collection, folder: Path) -> None:
    names = [
        b"\xff\xfe.jpg",
        b"new\nline.jpg",
        b"quote'\".jpg",
        "caf\u00e9 \U0001f600 \u202egpj.jpg".encode(),
        b"%20#?.jpg",
    ]
    uris = [str(folder / os.fsdecode(name)) for name in names] + ["https://example.org/a%20b.jpg", "/elsewhere/c.jpg"]
    ids = collection.add([Item(uri, uri.encode(errors="replace").hex()) for uri in uris], vectors(len(uris)))
    assert [item.uri for item in collection.items()] == uris
    collection.add([Item(uri, "again") for uri in uris], vectors(len(uris)))
    assert [item.id for item in collection.items()] == ids
    assert collection._catalog.count_uris(uris) == len(uris)
    assert {hit.item.uri for hit in collection.search(np.ones(48), space="visual")} == set(uris)


def test_moving_the_folder_moves_the_collection(folder: Path) -> None:
    filled(folder, 3)
    moved = folder.parent / "elsewhere" / os.fsdecode(b"caf\xe9 %20 #?")
    moved.parent.mkdir()
    folder.rename(moved)
    with Collection.open(moved) as collection:
        assert [item.uri for item in collection.items()] == [str(moved / f"{n}.jpg") for n in range(3)]
        assert len(collection.search(np.ones(48), space="visual")) == 3
        assert collection.verify() == []


@pytest.mark.parametrize("field", ["version", "format", "label", "caption", "modified", "taken"])
def test_texts_that_are_not_unicode_are_stored_as_escapes(collection: Collection, folder: Path, field: str) -> None:
    collection.add([Item(str(folder / "a.jpg"), **{field: "caf\udce9"})], vectors(1))  # type: ignore[arg-type]
    [found] = collection.items()
    assert getattr(found, field) == "caf\\udce9"


@pytest.mark.parametrize("item", [Item(""), Item("/\ud800.jpg"), Item("/a.jpg", "\udcff")], ids=repr)
def test_items_that_could_not_be_found_again_are_refused(collection: Collection, item: Item) -> None:
    with pytest.raises(CollectionError, match=r": give the .+|: give a path"):
        collection.add([Item("/before.jpg"), item], vectors(2))
    with pytest.raises(CollectionError):
        collection.add_copies([item])
    assert len(collection) == 0


def test_ids_may_be_numpy_numbers(collection: Collection, folder: Path) -> None:
    ids = np.array(collection.add(items(folder, 3), vectors(3)))
    np.testing.assert_array_equal(collection.embeddings(ids[1:2], "visual"), collection.embeddings([2], "visual"))
    assert collection.remove(ids[:2]) == 2
    for wrong in ([2.5], ["2"]):
        with pytest.raises(CollectionError, match="whole number"):
            collection.embeddings(wrong, "visual")  # type: ignore[arg-type]


def test_size_on_disk_is_that_of_its_own_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(folder, 5).rename(folder / "mine")
    own = sum(file.stat().st_size for file in (folder / "mine").rglob("*") if file.is_file())
    (folder / "mine" / "of the user").write_bytes(bytes(1_000_000))
    with Collection.open(folder / "mine") as collection:
        assert collection.size_on_disk() - own < 100_000  # the log of SQLite
        walk = os.walk

        def vanishing(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
            for inner, folders, files in walk(top):
                yield inner, folders, [*files, "visual.faiss.new"]

        size = collection.size_on_disk()
        monkeypatch.setattr(os, "walk", vanishing)
        assert collection.size_on_disk() == size


# Searching


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("k", [1, 7, 200, 1000])
def test_search_equals_an_exhaustive_comparison(folder: Path, k: int, reopened: bool) -> None:
    given = vectors(200)
    with Collection.create(folder / ".pixmatcher", [TinyEncoder()]) as collection:
        collection.add(items(folder, 120), {name: rows[:120] for name, rows in given.items()})
        collection.search(np.ones(48), space="visual")  # the index is updated after this
        ids = collection.add(items(folder, 80, first=120), {name: rows[120:] for name, rows in given.items()})
        path = collection.path
        if reopened:
            collection.close()
            collection = Collection.open(path)
        for space, rows in given.items():
            query = np.random.default_rng(k).standard_normal(rows.shape[1]).astype(np.float32)
            hits = collection.search(query, space=space, k=k)
            expected = expected_hits(rows, query, k)
            assert [hit.item.uri for hit in hits] == [str(folder / f"{row}.jpg") for row, _ in expected]
            np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-4)
            assert [hit.rank for hit in hits] == list(range(1, min(k, 200) + 1))
        assert ids[0] == 121
        collection.close()


def test_equal_scores_are_in_the_order_of_ids_for_every_k(collection: Collection, folder: Path) -> None:
    same = {name: np.repeat(rows[:1], 40, axis=0) for name, rows in vectors(1).items()}
    ids = collection.add(items(folder, 40), same)
    collection.add(items(folder, 1), {name: rows[:1] for name, rows in same.items()})  # the first one's row is the last
    for k in (1, 3, 10, 39, 40, 41):
        found = collection.search(same["visual"][0], space="visual", k=k)
        assert [hit.item.id for hit in found] == ids[:k]


def test_min_score(collection: Collection, folder: Path) -> None:
    given = vectors(30)
    collection.add(items(folder, 30), given)
    query = given["visual"][0]
    least = expected_hits(given["visual"], query, 5)[-1][1] - 1e-3
    assert len(collection.search(query, space="visual", k=30, min_score=least)) == 5
    assert collection.search(query, space="visual", min_score=1e9) == []


def test_search_in_an_empty_collection(collection: Collection) -> None:
    assert collection.search(np.ones(48), space="visual") == []


@pytest.mark.parametrize(
    ("vector", "space", "k"),
    [
        (np.ones(47), "visual", 1),
        (np.ones((1, 48)), "visual", 1),
        (np.full(48, np.nan), "visual", 1),
        (np.full(48, np.inf), "visual", 1),
        (np.ones(48), "third", 1),
        (np.ones(48), "visual", 0),
        (np.ones(48), "visual", 2.5),
        (np.ones(48), "visual", "2"),
        (np.full(48, 3e38), "visual", 1),
        (np.full(48, 1e300), "visual", 1),
        ([[1], [1, 2]], "visual", 1),
        (["one"] * 48, "visual", 1),
        (None, "visual", 1),
    ],
)
def test_invalid_queries_are_refused(
    collection: Collection, folder: Path, vector: np.ndarray, space: str, k: int
) -> None:
    collection.add(items(folder, 2), vectors(2))
    with pytest.raises(CollectionError):
        collection.search(vector, space=space, k=k)


def test_a_query_can_be_a_list_and_have_any_norm(collection: Collection, folder: Path) -> None:
    given = vectors(30)
    collection.add(items(folder, 30), given)
    query = given["visual"][3]
    expected = [hit.item.id for hit in collection.search(query, space="visual")]
    assert [hit.item.id for hit in collection.search(query.tolist(), space="visual", k=np.int64(12))] == expected
    for scale in (2.0**100, 2.0**-100):
        found = collection.search(query * scale, space="visual")
        assert [hit.item.id for hit in found] == expected
        assert np.isfinite([hit.score for hit in found]).all()


def test_threads_search_and_list_while_another_adds(collection: Collection, folder: Path) -> None:
    """Every answer is of one complete state; states grow by 20 items."""
    wrong: list[object] = []
    finished = threading.Event()

    def read(what: int) -> None:
        try:
            while not finished.is_set():
                if what == 0:
                    found = {hit.item.uri for hit in collection.search(np.ones(48), space="visual", k=5000)}
                elif what == 1:
                    found = {hit.item.uri for hit in collection.search(np.ones(24), space="semantic", k=5000)}
                else:
                    found = {item.uri for item in collection.items()}
                if len(found) % 20 or found != {str(folder / f"{n}.jpg") for n in range(len(found))}:
                    wrong.append(len(found))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(n % 3,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for step in range(20):
        collection.add(items(folder, 20, first=20 * step), vectors(20, seed=step))
    finished.set()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert len(collection) == 400


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_collection import items, vectors
from pixmatcher import Collection
folder = Path(sys.argv[1])
with Collection.open(folder) as collection:
    for step in range(30):
        ids = collection.add(items(folder, 20, first=20 * step), vectors(20, seed=step))
        print(step, flush=True)
        if step % 3 == 2:
            collection.remove(ids)
            collection.indexes.save()
"""


def test_a_reader_sees_only_complete_states_of_another_process(folder: Path) -> None:
    path = filled(folder, 0)
    command = [sys.executable, "-c", WRITER, str(folder), str(Path(__file__).parent)]
    sizes = set()
    with (
        Collection.open(path) as reader,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer,
    ):
        assert writer.stdout is not None
        while writer.poll() is None:
            found = [hit.item.uri for hit in reader.search(np.ones(48), space="visual", k=5000)]
            assert len(found) == len(set(found))
            assert len(found) % 20 == 0
            sizes.add(len(found))
        assert writer.wait() == 0
        # The reader that stayed open sees the last items.
        assert len(reader) == len(reader.search(np.ones(24), space="semantic", k=5000)) == 400
        assert reader.verify() == []
    assert len(sizes) > 2


# Writers


def test_two_writers(folder: Path) -> None:
    path = filled(folder, 3)
    with Collection.open(path) as first, Collection.open(path) as second:
        first.begin_writing()
        with pytest.raises(CollectionLockedError, match=f"process {os.getpid()} on .+ since 20"):
            second.remove([1])
        assert len(second.search(np.ones(48), space="visual")) == 3  # reading goes on
        first.close()
        assert second.remove([1]) == 1


def test_version_0_1_0_and_this_one_exclude_each_other(folder: Path) -> None:
    """The earlier version held `flock` on the file `lock` of the collection."""
    path = filled(folder, 3)
    with Collection.open(path) as collection, (path / "lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(CollectionLockedError, match="is being written by"):
            collection.begin_writing()
        fcntl.flock(file, fcntl.LOCK_UN)
        collection.begin_writing()
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_log_says_what_happens_to_a_collection(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="pixmatcher.collection")
    path = filled(folder, 5)
    assert f"Schema of {path / 'catalog.sqlite'} changed to version 3" in caplog.text
    assert f"Lock {path / 'lock'} taken" in caplog.text
    assert f"Index of the space visual of {path} saved: exact, 5 rows" in caplog.text
    caplog.clear()
    with Collection.open(path) as collection:
        collection.search(np.ones(48), space="visual")
    assert f"Index of the space visual of {path}: exact, is the one in the file" in caplog.text
    caplog.clear()
    (path / "index" / "visual.faiss").unlink()
    with (path / "vectors" / "semantic.f16").open("r+b") as file:
        file.write(b"damaged")
    with Collection.open(path) as collection:
        collection.search(np.ones(48), space="visual")
        assert "was built from the embeddings, as its file is missing or damaged" in caplog.text
        collection.repair()
    assert f"Repair of {path}: 1 items removed, because their embeddings are damaged" in caplog.text


def test_files_are_not_kept_open(folder: Path) -> None:
    """Neither searches nor closed collections may use up descriptors or maps."""
    path = filled(folder, 10)

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps")
        return len(os.listdir("/dev/fd")), maps.read_text().count(str(path)) if maps.exists() else 0

    with Collection.open(path) as collection:
        collection.search(np.ones(48), space="visual")
        for turn in range(20):
            collection.search(np.ones(48), space="visual")
            collection.embeddings([1, 2], "visual")
            with Collection.open(path) as other:
                other.search(np.ones(48), space="visual")
                other.verify()
            if turn == 1:
                before = held()
        assert held() == before


# Locks: a reader that saves an index, and a writer

SAVING_READER = """
import sys, numpy as np
from pixmatcher import Collection
from pixmatcher import vector_index as index
save = index.save_index
def slow(*arguments):
    print("saving", flush=True)
    sys.stdin.readline()
    save(*arguments)
    print("saved", flush=True)
index.save_index = slow
with Collection.open(sys.argv[1]) as collection:
    print(len(collection.search(np.ones(48), space="visual", k=500)), flush=True)
"""


def test_a_search_that_saves_an_index_does_not_block_writers(folder: Path) -> None:
    path = filled(folder, 30)
    shutil.rmtree(path / "index")
    command = [sys.executable, "-c", SAVING_READER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "saving\n"
        with Collection.open(path) as other:  # another reader answers, and leaves the saving to the first
            assert len(other.search(np.ones(48), space="visual", k=500)) == 30
            assert not (path / "index").exists()
        writer = Collection.open(path)
        writer.add(items(folder, 10, first=30), vectors(10, seed=1))
        closing = threading.Thread(target=writer.close)
        closing.start()
        closing.join(0.2)
        # Their files never mix: the writer saves after the reader.
        assert closing.is_alive()
        assert not (path / "index").exists()
        print(file=reader.stdin, flush=True)
        assert [reader.stdout.readline() for _ in range(2)] == ["saved\n", "30\n"]
        closing.join(30)
    assert parts(path) == []
    with Collection.open(path) as collection:
        assert len(collection.search(np.ones(48), space="visual", k=500)) == 40
        assert json.loads((path / "index" / "visual.json").read_text())["generation"] == 2


def test_a_search_does_not_release_the_lock_of_a_writing_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filled(folder, 10)
    shutil.rmtree(path / "index")
    from pixmatcher import vector_index as index

    saving, go_on = threading.Event(), threading.Event()
    save = index.save_index

    def slow(*arguments: object) -> None:
        saving.set()
        go_on.wait(60)
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "save_index", slow)
    with Collection.open(path) as collection, Collection.open(path) as second:
        searching = threading.Thread(target=collection.search, args=(np.ones(48),), kwargs={"space": "visual"})
        searching.start()
        assert saving.wait(60)
        writing = threading.Thread(target=collection.begin_writing)
        writing.start()
        writing.join(0.2)
        go_on.set()
        searching.join(60)
        writing.join(60)
        with pytest.raises(CollectionLockedError):
            second.begin_writing()


def test_a_reader_saves_no_index_while_another_process_writes(folder: Path) -> None:
    path = filled(folder, 10)
    with Collection.open(path) as writer, Collection.open(path) as reader:
        writer.add(items(folder, 10, first=10), vectors(10))
        before = (path / "index" / "visual.faiss").stat().st_mtime_ns
        assert len(reader.search(np.ones(48), space="visual", k=500)) == 20
        assert (path / "index" / "visual.faiss").stat().st_mtime_ns == before
        with pytest.raises(CollectionLockedError):
            reader.indexes.save()
    assert parts(path) == []


# Damage


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def parts(path: Path) -> list[str]:
    with Collection.open(path) as collection:
        return [problem.part for problem in collection.verify()]


def test_verify_finds_nothing_in_an_undamaged_collection(folder: Path) -> None:
    path = filled(folder)
    assert parts(path) == []
    (path / "unknown.new").write_text("left over")
    (path / "collection.json.new").write_text("left over")
    (path / "index" / "visual.faiss.new").write_bytes(b"left over")
    assert parts(path) == []
    with Collection.open(path) as collection:
        collection.add(items(folder, 1, first=50), vectors(1))
    assert parts(path) == []


def test_a_missing_index_is_not_damage(folder: Path) -> None:
    script = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_collection import TinyEncoder, items, vectors; from pixmatcher import Collection\n"
        "folder = Path(sys.argv[1]); collection = Collection.create(folder / '.pixmatcher', [TinyEncoder()])\n"
        "collection.add(items(folder, 5), vectors(5)); print(collection.verify(), flush=True)\n"
        "sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(folder), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "[]\n"
        assert parts(folder) == []
        writer.communicate("\n")
    assert writer.returncode == -9
    assert parts(folder) == []
    with Collection.open(folder) as collection:
        assert len(collection.search(np.ones(48), space="visual")) == 5
        shutil.rmtree(collection.path / "index")
    assert parts(folder) == []


@pytest.mark.parametrize("ending", ["faiss", "json"])
def test_an_incomplete_index_is_damage(folder: Path, ending: str) -> None:
    path = filled(folder)
    (path / "index" / f"visual.{ending}").unlink()
    assert parts(path) == ["index"]


SAVER = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_collection import items, vectors
from pixmatcher import Collection
folder = Path(sys.argv[1])
with Collection.open(folder) as collection:
    for step in range(int(sys.argv[3])):
        collection.add(items(folder, 1, first=2000 + step), vectors(1, seed=step))
        collection.indexes.save()
"""


@pytest.mark.slow
def test_an_index_that_is_being_saved_is_not_damage(folder: Path) -> None:
    path = filled(folder, 2000)
    command = [sys.executable, "-c", SAVER, str(folder), str(Path(__file__).parent), "100"]
    found = []
    checks = 0
    with subprocess.Popen(command) as saver:
        while saver.poll() is None:
            found += parts(path)
            checks += 1
    assert saver.returncode == 0
    assert checks > 5
    assert found == []


def test_a_reader_between_the_two_steps_of_saving_waits_for_the_second(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixmatcher.vector_index import _storage
    from pixmatcher.vector_index._exact import ExactIndex

    path = filled(folder, 20)
    stamp = path / "index" / "visual.json"
    old = stamp.read_bytes()
    with Collection.open(path) as collection:
        collection.add(items(folder, 20, first=20), vectors(20))
    new = stamp.with_name("visual.json.new")

    def half_saved() -> None:
        new.write_bytes(stamp.read_bytes())
        stamp.write_bytes(old)

    monkeypatch.setattr(_storage.time, "sleep", lambda _: new.replace(stamp))
    monkeypatch.setattr(ExactIndex, "update", lambda *_: pytest.fail("built again"))
    with Collection.open(path) as collection:
        half_saved()
        assert len(collection.search(np.ones(48), space="visual", k=99)) == 40
        half_saved()
        assert collection.verify() == []


def test_the_kind_of_an_index_is_known_before_it_is_loaded(folder: Path) -> None:
    script = (
        "import sys; from pixmatcher import Collection\n"
        "with Collection.open(sys.argv[1]) as collection:\n"
        "    print(collection.indexes.kind('visual'), 'faiss' in sys.modules)"
    )
    path = filled(folder, 3)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
        assert done.stdout == "exact False\n"
        shutil.rmtree(path / "index", ignore_errors=True)
    with Collection.open(path) as collection, pytest.raises(CollectionError, match="space 'third' does not exist"):
        collection.indexes.kind("third")


def test_an_index_of_an_unknown_kind_is_built_again(folder: Path) -> None:
    path = filled(folder, 20)
    stamp = path / "index" / "visual.json"
    stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"index": "of the future"}))
    with Collection.open(path) as collection:
        assert collection.indexes.kind("visual") == "of the future"
        assert len(collection.search(np.ones(48), space="visual", k=99)) == 20
        assert collection.indexes.kind("visual") == "exact"


@pytest.mark.parametrize("name", ["index", "index/visual.faiss", "index/visual.json", "index/visual.faiss.new"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_repair_removes_obstacles_for_an_index(folder: Path, name: str, what: str) -> None:
    path = filled(folder, 20)
    place = path / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if what == "file":
        place.write_text("in the way")
    else:
        (place / "inner").mkdir(parents=True)
    with Collection.open(path) as collection:
        assert {problem.part for problem in collection.verify()} <= {"index"}
        assert len(collection.search(np.ones(48), space="visual", k=99)) == 20
    done = cli("verify", "--repair", "-c", path)
    assert (done.returncode, done.stderr) == (0, "")
    with Collection.open(path) as collection:
        assert collection.verify() == []
        assert (path / "index" / "visual.faiss").is_file()
        assert len(collection.search(np.ones(48), space="visual", k=99)) == 20


@pytest.mark.parametrize("name", ["vectors", "vectors/visual.f16"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_repair_removes_obstacles_for_the_vectors(folder: Path, name: str, what: str) -> None:
    path = filled(folder, 20)
    place = path / name
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    if what == "file":
        place.write_text("in the way")
    else:
        (place / "inner").mkdir(parents=True)
    assert parts(path) == ["vectors"]
    with Collection.open(path) as collection:
        assert collection.repair() == 20
        assert len(collection.add(items(folder, 20), vectors(20))) == 20
    assert parts(path) == []


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda path: cut(path / "vectors" / "visual.f16", 20 * 96), 30),
        (lambda path: cut(path / "vectors" / "visual.f16", 20 * 96 + 1), 30),
        (lambda path: cut(path / "vectors" / "semantic.f16", 0), 50),
        (lambda path: (path / "vectors" / "semantic.f16").unlink(), 50),
        (lambda path: shutil.rmtree(path / "vectors"), 50),
        (lambda path: flip(path / "vectors" / "visual.f16", 20 * 96 + 5), 1),
        (lambda path: flip(path / "vectors" / "semantic.f16", 49 * 48 + 47), 1),
    ],
    ids=["cut", "cut within a row", "emptied", "missing", "all missing", "flipped bit", "last bit"],
)
def test_damaged_vectors_are_found_and_repaired(folder: Path, damage: object, lost: int) -> None:
    path = filled(folder)
    damage(path)  # type: ignore[operator]
    with Collection.open(path) as collection:
        [problem] = collection.verify()
        assert problem.part == "vectors"
        assert f"{lost} of 50 images" in problem.message
        assert "verify --repair" in problem.remedy
        if lost > 1:
            with pytest.raises(CollectionError, match="--repair"):
                collection.add(items(folder, 1), vectors(1))
        assert collection.repair() == lost
        assert collection.verify() == []
        assert len(collection) == 50 - lost
    with Collection.open(path) as collection:
        assert len(collection.search(np.ones(48), space="visual", k=100)) == 50 - lost
        assert len(collection.add(items(folder, 50), vectors(50))) == 50
        assert collection.verify() == []


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size))


@pytest.mark.parametrize(
    "damage",
    [
        lambda index, stamp: flip(index, 700),
        lambda index, stamp: flip(index, 0),
        lambda index, stamp: garbage(index),
        lambda index, stamp: cut(index, index.stat().st_size // 2),
        lambda index, stamp: cut(index, 0),
        lambda index, stamp: index.unlink(),
        lambda index, stamp: stamp.unlink(),
        lambda index, stamp: garbage(stamp),
        lambda index, stamp: cut(stamp, 10),
        lambda index, stamp: stamp.write_text("[1, 2]"),
        lambda index, stamp: stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"generation": "1"})),
        lambda index, stamp: stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"generation": 10**9})),
        lambda index, stamp: index.write_bytes(index.with_name("semantic.faiss").read_bytes()),
        lambda index, stamp: shutil.rmtree(index.parent),
    ],
)
@pytest.mark.parametrize("method", ["search", "repair"])
def test_a_damaged_index_is_rebuilt(folder: Path, damage: object, method: str) -> None:
    path = filled(folder)
    index = path / "index" / "visual.faiss"
    before = index.read_bytes()
    damage(index, index.with_suffix(".json"))  # type: ignore[operator]
    assert set(parts(path)) <= {"index"}
    query = np.ones(48, np.float32)
    with Collection.open(path) as collection:
        if method == "repair":
            assert collection.repair() == 0
        hits = collection.search(query, space="visual", k=9)
        collection.search(np.ones(24), space="semantic")
        assert collection.verify() == []
    assert [hit.item.id - 1 for hit in hits] == [row for row, _ in expected_hits(vectors(50)["visual"], query, 9)]
    assert index.read_bytes() == before


def test_an_index_damaged_with_an_unchanged_date_never_crashes(folder: Path) -> None:
    """A flipped bit does not change the date of the file. Each byte of the header is changed, in one process."""
    path = filled(folder, 3)
    index = path / "index" / "visual.faiss"
    status, content = index.stat(), index.read_bytes()
    for position in [*range(150), *range(len(content) - 40, len(content))]:
        flip(index, position)
        os.utime(index, ns=(status.st_atime_ns, status.st_mtime_ns))
        with Collection.open(path) as collection:
            if position % 10 == 0:
                assert [problem.part for problem in collection.verify()] == ["index"]
            with suppress(CollectionError):
                assert len(collection.search(np.ones(48), space="visual", k=9)) <= 3
        index.write_bytes(content)
        os.utime(index, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_index_of_a_later_catalog_is_not_trusted(folder: Path) -> None:
    """The catalog is restored from a copy, and its rows are then filled with other images."""
    path = filled(folder, 10)
    shutil.copy(path / "catalog.sqlite", path.parent / "copy")
    with Collection.open(path) as collection:
        for step in range(5):
            collection.add(items(folder, 10, first=10 + 10 * step), vectors(10, seed=1 + step))
    shutil.copy(path.parent / "copy", path / "catalog.sqlite")
    with Collection.open(path) as collection:
        assert len(collection.search(np.ones(48), space="visual", k=100)) == 10
        other = vectors(10, seed=77)
        collection.add(items(folder, 10, first=500), other)
    with Collection.open(path) as collection:
        best = collection.search(other["visual"][4], space="visual", k=1)[0]
        assert best.item.uri == str(folder / "504.jpg")
        assert len(collection.search(np.ones(48), space="visual", k=100)) == 20
        assert collection.verify() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda catalog: catalog.write_bytes(b"no database at all" * 999),
        lambda catalog: cut(catalog, 0),
        lambda catalog: cut(catalog, 5000),
        lambda catalog: cut(catalog, catalog.stat().st_size // 2),
        lambda catalog: catalog.write_bytes(
            catalog.read_bytes()[:4096] + np.random.default_rng(2).bytes(catalog.stat().st_size - 4096)
        ),
        lambda catalog: catalog.unlink(),
    ],
    ids=["other file", "empty", "cut", "cut in half", "garbage", "missing"],
)
def test_the_error_of_a_damaged_catalog_says_what_to_do(folder: Path, damage: object) -> None:
    path = filled(folder, 500)
    damage(path / "catalog.sqlite")  # type: ignore[operator]
    try:
        with Collection.open(path) as collection:
            [problem] = collection.verify()
            message = f"{problem.part} {problem.message} {problem.remedy}"
            with pytest.raises(CollectionError, match="index again"):
                collection.repair()
    except CollectionError as error:
        message = str(error)
    assert "catalog" in message
    assert f"ove the folder {path} elsewhere and index again; your images are not touched" in message
    done = cli("verify", "-c", path)
    assert done.returncode in (1, 2)
    assert "elsewhere and index again" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "[]",
        "{}",
        '{"format": 1}',
        '{"format": Infinity}',
        '{"format": 1, "created": "", "encoders": []}',
        '{"format": 1, "created": "", "encoders": [{"name": "a", "fingerprint": "", "spaces": [{"name": 3}]}]}',
        '{"format": 1, "created": "", "encoders": '
        '[{"name": "a", "fingerprint": "", "spaces": [{"name": "../../x", "dimension": 4}]}]}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_a_damaged_manifest(folder: Path, text: str) -> None:
    path = filled(folder, 1)
    (path / "collection.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CollectionError, match=r"collection\.json is damaged: move the folder"):
        Collection.open(path)


def test_the_advice_never_moves_files_of_the_user(folder: Path) -> None:
    path = filled(folder, 1)
    for inner in path.iterdir():
        inner.rename(folder / inner.name)
    path.rmdir()
    (folder / "holiday.jpg").write_bytes(b"of the user")
    (folder / "collection.json").write_text("garbage")
    with pytest.raises(CollectionError) as error:
        Collection.open(folder)
    assert f"move the folder {folder}" not in str(error.value)
    assert f"move catalog.sqlite, collection.json, index, index.lock, lock, vectors of the folder {folder} else" in str(
        error.value
    )


def test_a_missing_manifest_is_reported_and_no_new_collection_is_created(folder: Path) -> None:
    path = filled(folder, 1)
    (path / "collection.json").unlink()
    with pytest.raises(CollectionError, match=r"The file collection\.json of .* is missing"):
        Collection.create(path, [TinyEncoder()])


def test_a_newer_format_is_refused(folder: Path) -> None:
    path = filled(folder, 1)
    manifest = path / "collection.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 3, "encoders": "of another shape"}))
    with pytest.raises(CollectionError, match=r"format 3, newer than the 2 .+ upgrade"):
        Collection.open(path)
    for command in ("info", "verify", "index"):
        done = cli(command, *([folder] if command == "index" else []), "-c", path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "newer" in done.stderr


# Places that cannot be written

READ_ONLY = """
import sys
import numpy as np
from pixmatcher import Collection, PixMatcherError
with Collection.open(sys.argv[1]) as collection:
    print(len(collection.search(np.ones(48), space="visual", k=100)), len(collection), len(collection.verify()))
    try:
        collection.remove([1])
    except PixMatcherError as error:
        print(error)
"""


@pytest.mark.parametrize(
    "state",
    ["closed well", "index missing", "killed", "copied without shared memory", "written by its owner meanwhile"],
)
def test_a_read_only_folder_can_be_searched(open_folder: Path, state: str) -> None:
    path = filled(open_folder, 10)
    expected = 10
    owner = None
    if state == "index missing":
        shutil.rmtree(path / "index")
    elif state in ("killed", "copied without shared memory"):
        # A writer that is killed leaves the log of the catalog, with what it did.
        script = (
            "import sys, os, signal; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
            "from test_collection import items, vectors; from pixmatcher import Collection\n"
            "folder = Path(sys.argv[1]); collection = Collection.open(folder)\n"
            "collection.add(items(folder, 5, first=10), vectors(5)); os.kill(os.getpid(), signal.SIGKILL)"
        )
        command = [sys.executable, "-c", script, str(open_folder), str(Path(__file__).parent)]
        assert subprocess.run(command).returncode == -9
        assert (path / "catalog.sqlite-wal").stat().st_size
        expected = 15
        if state == "copied without shared memory":
            (path / "catalog.sqlite-shm").unlink()
    elif state == "written by its owner meanwhile":
        owner = Collection.open(path)
        owner.add(items(open_folder, 5, first=10), vectors(5))
        expected = 15
    for inner, _, files in os.walk(path):
        for name in files:
            os.chmod(os.path.join(inner, name), 0o444)
        os.chmod(inner, 0o555)
    before = {file: file.read_bytes() for file in path.iterdir() if file.is_file() and not file.name.endswith("-shm")}
    command = [sys.executable, "-c", READ_ONLY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound_by_permissions())
    assert done.stderr == ""
    assert all(file.read_bytes() == content for file, content in before.items())
    counts, message = done.stdout.splitlines()
    found, length, problems = map(int, counts.split())
    assert found == length == expected
    assert problems == 0
    assert "cannot be written" in message
    if owner:
        owner.close()


UNREADABLE = """
import sys
import numpy as np
from pixmatcher import Collection, PixMatcherError
def tell(work):
    try:
        with Collection.open(sys.argv[1]) as collection:
            print(work(collection))
    except PixMatcherError as error:
        print(type(error).__name__, error.exit_code, error)
tell(lambda c: [f"{p.part} {p.message} {p.remedy}" for p in c.verify()])
tell(lambda c: len(c.search(np.ones(48), space="visual", k=100)))
tell(lambda c: c.repair())
tell(lambda c: c.remove([1]))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vectors", ["['vectors ", "CollectionError", "CollectionError", "CollectionError"]),
        ("vectors/visual.f16", ["['vectors ", "CollectionError", "CollectionError", "1"]),
        ("index", ["['index ", "10", "CollectionError", "1", "CollectionError"]),  # removed without saving an index
        ("index/visual.faiss", ["['index ", "10", "0", "1"]),
        ("", ["CollectionError"] * 4),
    ],
)
def test_unreadable_files_are_reported_and_nothing_is_lost(open_folder: Path, name: str, expected: list[str]) -> None:
    path = filled(open_folder, 10)
    (path / name).chmod(0)
    command = [sys.executable, "-c", UNREADABLE, str(open_folder)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound_by_permissions())
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)
        if "Error" in line:
            assert line.startswith("CollectionError 2 ")
            assert str(path / name) in line
            assert "Permission denied" in line
            assert "check that you may" in line
    (path / name).chmod(0o755)
    with Collection.open(path) as collection:
        assert len(collection.search(np.ones(48), space="visual", k=100)) == len(collection) >= 9
        assert collection.verify() == []


def test_an_invalid_folder_is_a_wrong_call_not_a_full_disk(open_folder: Path) -> None:
    photos = open_folder / "photos"
    photos.mkdir()
    file = open_folder / "file"
    file.write_text("of the user")
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    for place, reason in ((file, "File exists"), (file / "below", "Not a directory"), (closed, "Permission denied")):
        done = cli("index", photos, "-c", place, preexec_fn=bound_by_permissions())
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert reason in done.stderr
        assert "another collection with -c" in done.stderr
        assert "full" not in done.stderr
    assert file.read_text() == "of the user"


@pytest.mark.parametrize("name", ["lock", "index.lock", "index", "vectors"])
def test_a_writer_reports_what_prevents_writing(folder: Path, name: str) -> None:
    path = folder / ".pixmatcher"
    Collection.create(path, [TinyEncoder()]).close()
    with pytest.raises(CollectionError) as error, Collection.open(path) as collection:  # noqa: PT012
        if name in ("index", "vectors"):
            (path / name).write_text("in the way")
        else:
            (path / name).unlink(missing_ok=True)
            (path / name).mkdir()
        collection.add(items(folder, 1), vectors(1))
        collection.indexes.save()
    assert not isinstance(error.value, StorageError)
    assert f"{path / name} prevents writing" in str(error.value)
    assert "full" not in str(error.value)


def test_a_read_only_catalog_is_not_reported_as_a_full_disk(open_folder: Path) -> None:
    path = filled(open_folder, 10)
    (path / "catalog.sqlite").chmod(0o444)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY, str(path)], capture_output=True, text=True, preexec_fn=bound_by_permissions()
    )
    assert done.stderr == ""
    assert "catalog.sqlite cannot be written (Permission denied)" in done.stdout.splitlines()[1]


def test_a_reader_without_write_permission_sees_changes_of_the_owner(open_folder: Path) -> None:
    """A reader without write permission opens the database as constant, but must notice changes of the owner."""
    path = filled(open_folder, 10)
    script = (
        "import sys; import numpy as np; from pixmatcher import Collection\n"
        "with Collection.open(sys.argv[1]) as collection:\n"
        "    for _ in sys.stdin:\n"
        "        print(len(collection.search(np.ones(48), space='visual', k=99)), flush=True)\n"
    )
    inner = [path, path / "vectors", path / "index"]
    for place in [*inner, *path.glob("*.sqlite")]:
        place.chmod(0o555)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=bound_by_permissions(),
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for expected in (10, 20, 30):
            print(file=reader.stdin, flush=True)
            assert reader.stdout.readline() == f"{expected}\n"
            for place in [*inner, *path.glob("*.sqlite")]:
                place.chmod(0o755)
            with Collection.open(path) as owner:
                owner.add(items(open_folder, 10, first=expected), vectors(10))
            for place in [*inner, *path.glob("*.sqlite")]:
                place.chmod(0o555)
        reader.stdin.close()


@pytest.mark.parametrize("shared_memory_left", [True, False])
def test_a_collection_on_a_full_disk_can_be_searched(
    small_disk: Path | None, tmp_path: Path, shared_memory_left: bool
) -> None:
    """A killed writer left its log on a disk that is now full, without space for the shared memory of the log."""
    if small_disk is None:
        pytest.skip("no file system may be mounted here; test_faults.py has the test with a limit instead")
    filled(small_disk, 100)
    script = (
        "import sys, os, signal; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_collection import items, vectors; from pixmatcher import Collection\n"
        "folder = Path(sys.argv[1]); collection = Collection.open(folder)\n"
        "collection.add(items(folder, 50, first=100), vectors(50)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(small_disk), str(Path(__file__).parent)]
    assert subprocess.run(command).returncode == -9
    path = small_disk / ".pixmatcher"
    if not shared_memory_left:
        (path / "catalog.sqlite-shm").unlink()
    filler = fill_up(small_disk)
    with Collection.open(path) as reader, Collection.open(path) as other:
        assert len(reader) == len(other) == 150
        assert len(reader.search(np.ones(48), space="visual", k=500)) == 150
        with pytest.raises(StorageError, match="make room"):
            other.add(items(small_disk, 50, first=150), vectors(50))
        assert len(other) == 150
        assert other.search(np.ones(24), space="semantic", k=500)
        with suppress(StorageError):  # the index files cannot be updated, but nothing is lost
            other.close()
        filler.unlink()
        with Collection.open(path) as writer:
            writer.add(items(small_disk, 50, first=150), vectors(50))
        # The open reader sees what was written since.
        assert len(reader.search(np.ones(48), space="visual", k=500)) == 200
    assert parts(path) == []


CLOSING = """
import sys, threading, time
from pixmatcher import Collection, CollectionError

def read(collection):
    try:
        while True:
            assert len(collection) == len([*collection.items()]) == 50
            collection.sources()
    except CollectionError:
        pass

for _ in range(20):
    collection = Collection.open(sys.argv[1])
    threads = [threading.Thread(target=read, args=(collection,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.02)
    collection.close()
    for thread in threads:
        thread.join()
"""


def test_a_collection_is_closed_while_threads_read_it(folder: Path) -> None:
    outcome = subprocess.run([sys.executable, "-c", CLOSING, str(filled(folder))], capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")
