"""Maps: positions, storage, and changes of the collection or of the files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, CollectionError, Item, PixMatcherError, QueryError
from pixmatcher._progress import Progress
from pixmatcher.maps.projection import load_projection, place_query, project, sample
from support import TinyEncoder, bound_by_permissions, fill_up


def groups(count: int, first: int = 0) -> np.ndarray:
    """Return unit vectors (N, 48) of three distant groups; item n is in the group n % 3."""
    numbers = np.arange(first, first + count)
    noise = np.random.default_rng(first).normal(scale=0.1, size=(count, 48))
    rows = np.eye(3, 48)[numbers % 3] + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def add(collection: Collection, count: int, first: int = 0, rows: np.ndarray | None = None) -> list[int]:
    rows = groups(count, first) if rows is None else rows
    items = [
        Item(str(collection.path.parent / f"{n}.jpg"), f"hash {n}", "v1", label="abc"[n % 3] if n % 10 else None)
        for n in range(first, first + count)
    ]
    return collection.add(items, {"visual": rows, "semantic": rows[:, ::2]})


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    with Collection.create(tmp_path / "photos" / ".pixmatcher", [TinyEncoder()]) as made:
        yield made


def map_file(collection: Collection, name: str = "visual-tsne-20000.map") -> Path:
    return collection.path / "maps" / name


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_similar_items_are_close_together(collection: Collection, method: str) -> None:
    ids = add(collection, 90)
    steps: list[tuple[int, int]] = []
    made = project(collection, method, progress=lambda p: steps.append((p.done, p.total)))
    assert (made.method, made.space, made.items, made.stale, made.kept) == (method, "visual", 90, 0, True)
    assert made.ids.tolist() == ids
    assert (made.points.dtype, made.points.shape, made.clusters.dtype) == (np.float32, (90, 2), np.int32)
    assert made.labels == ["abc"[n % 3] if n % 10 else None for n in range(90)]
    middles = np.array([made.points[n::3].mean(axis=0) for n in range(3)])
    nearest = np.linalg.norm(made.points[:, None] - middles, axis=2).argmin(axis=1)
    assert (nearest == np.arange(90) % 3).all()
    assert all(len(set((np.arange(90) % 3)[made.clusters == cluster])) == 1 for cluster in range(7))
    assert sorted(np.bincount(made.clusters), reverse=True) == np.bincount(made.clusters).tolist()
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1]
    # One report for each step of t-SNE; this depends on internals of scikit-learn.
    assert len(steps) > 500 or method == "pca"


@pytest.mark.parametrize("method", ["tsne", "pca"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("kind", ["different", "copies", "pairs"])
def test_few_items_and_identical_items(collection: Collection, method: str, count: int, kind: str) -> None:
    rows = groups(count)
    if kind != "different":
        rows = rows[np.zeros(count, int) if kind == "copies" else np.arange(count) // 2]
    add(collection, count, rows=rows)
    made = project(collection, method)
    assert made.points.shape == (count, 2)
    assert np.isfinite(made.points).all()
    assert made.clusters.min() == 0
    assert np.isfinite(place_query(made, collection, rows[0])).all()


def test_the_map_is_reproducible(tmp_path: Path) -> None:
    made = []
    for name in ("one", "other"):
        with Collection.create(tmp_path / name, [TinyEncoder()]) as collection:
            add(collection, 60)
            made.append([project(collection, method) for method in ("tsne", "pca")])
    for one, other in zip(*made, strict=True):
        assert (one.points == other.points).all()
        assert (one.clusters == other.clusters).all()


def test_a_map_is_computed_once(collection: Collection) -> None:
    add(collection, 20)
    assert load_projection(collection) is None
    first = project(collection)
    stored = map_file(collection).read_bytes()

    def never(progress: Progress) -> None:
        raise AssertionError("computed again")

    again = project(collection, progress=never)
    assert (again.points == first.points).all()
    assert (again.clusters == first.clusters).all()
    assert again.kept
    assert again.computed == first.computed
    # Another space, method or number of items is another map.
    project(collection, "pca", space="semantic", most=10)
    assert {path.name for path in map_file(collection).parent.iterdir()} == {
        "lock",
        "visual-tsne-20000.map",
        "semantic-pca-10.map",
    }
    assert map_file(collection).read_bytes() == stored
    with Collection.open(collection.path) as reopened:
        assert (project(reopened, progress=never).points == first.points).all()


def test_a_stale_map_counts_the_changes(collection: Collection) -> None:
    ids = add(collection, 30)
    first = project(collection)
    collection.remove(ids[:2])
    add(collection, 5, first=100)
    changed = [Item(str(collection.path.parent / "9.jpg"), "new", "v2", label="new label")]
    collection.add(changed, {"visual": groups(1), "semantic": groups(1)[:, ::2]})
    behind = project(collection)
    assert (behind.added, behind.removed, behind.changed, behind.stale, behind.items) == (5, 2, 1, 8, 30)
    assert behind.ids.tolist() == ids[2:]
    assert (behind.points == first.points[2:]).all()
    assert behind.labels[7] == "new label"  # labels are those of today
    anew = project(collection, refresh=True)
    assert (anew.stale, anew.items, len(anew.ids)) == (0, 33, 33)
    assert project(collection).stale == 0


def test_a_map_without_any_remaining_item_is_computed_again(collection: Collection) -> None:
    collection.remove(add(collection, 8))
    with pytest.raises(CollectionError, match="no images to map"):
        project(collection)
    ids = add(collection, 8)
    project(collection)
    collection.remove(ids)
    new = add(collection, 8, first=50)
    assert project(collection).ids.tolist() == new


def test_a_map_of_a_later_catalog_is_not_trusted(collection: Collection, tmp_path: Path) -> None:
    add(collection, 8)
    with Collection.create(tmp_path / "other", [TinyEncoder()]) as other:
        add(other, 5)
        add(other, 5, first=5)
        project(other)
        map_file(collection).parent.mkdir()
        map_file(collection).write_bytes(map_file(other).read_bytes())
    assert load_projection(collection) is None
    assert len(project(collection).ids) == 8


def test_a_sample_of_many_items_is_even(collection: Collection) -> None:
    many = np.arange(1, 100_001)
    chosen = sample(many, 10_000)
    assert len(np.unique(chosen)) == 10_000
    assert (np.diff(chosen) > 0).all()
    assert np.histogram(chosen, 10, (0, 100_001))[0].min() > 850
    assert np.bincount(chosen % 7).min() > 1250
    # When the collection has doubled, half of them are still there; when little was added, most.
    grown = sample(np.arange(1, 200_001), 10_000)
    assert 0.45 < np.isin(chosen, grown).mean() < 0.55
    assert np.isin(chosen, sample(np.arange(1, 101_001), 10_000)).mean() > 0.98
    add(collection, 50)
    made = project(collection, "pca", most=12)
    assert (len(made.ids), made.items, made.stale) == (12, 50, 0)


# Queries on the map


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_a_query_is_placed_near_similar_items(collection: Collection, method: str) -> None:
    add(collection, 90)
    made = project(collection, method)
    for group in range(3):
        place = np.array(place_query(made, collection, np.eye(3, 48)[group]))
        distances = np.linalg.norm(made.points - place, axis=1)
        assert set((np.argsort(distances)[:10] % 3).tolist()) == {group}


def test_pca_projects_a_query_like_the_items(collection: Collection) -> None:
    ids = add(collection, 40)
    made = project(collection, "pca")
    stored = load_projection(collection, "pca")
    assert stored is not None
    for found in (made, stored):
        vector = collection.embeddings([ids[3]], "visual")[0]
        assert place_query(found, collection, vector) == pytest.approx(made.points[3].tolist(), abs=1e-5)


def test_a_query_on_a_map_whose_items_are_removed(collection: Collection) -> None:
    ids = add(collection, 12)
    made = project(collection)
    collection.remove(ids[:-1])
    assert place_query(made, collection, groups(1)[0]) == pytest.approx(made.points[-1].tolist())
    collection.remove(ids[-1:])
    with pytest.raises(CollectionError, match="removed"):
        place_query(made, collection, groups(1)[0])
    with pytest.raises(CollectionError, match="48 finite values"):
        place_query(made, collection, np.ones(5))


def test_wrong_calls(collection: Collection) -> None:
    add(collection, 3)
    with pytest.raises(QueryError, match="choose one of tsne, umap, pca"):
        project(collection, "som")
    with pytest.raises(QueryError, match="'smell' does not exist"):
        project(collection, space="smell")
    with pytest.raises(QueryError, match="1 or more"):
        project(collection, most=0)


@pytest.mark.parametrize(
    ("missing", "method", "words"),
    [("sklearn", "tsne", r"'pixmatcher\[app\]'"), ("umap", "umap", r"'pixmatcher\[umap\]'")],
)
def test_missing_packages_are_reported(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, missing: str, method: str, words: str
) -> None:
    add(collection, 10)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(PixMatcherError, match=words):
        project(collection, method)


def test_umap(collection: Collection) -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    add(collection, 90)
    steps: list[int] = []
    made = project(collection, "umap", progress=lambda p: steps.append(p.done))
    assert len(steps) > 100
    assert (project(collection, "umap", refresh=True).points == made.points).all()
    place = np.array(place_query(made, collection, np.eye(3, 48)[1]))
    assert set((np.argsort(np.linalg.norm(made.points - place, axis=1))[:10] % 3).tolist()) == {1}


# Stored maps


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:400] + bytes([data[400] ^ 1]) + data[401:],
        lambda data: data.replace(b'"points": 12', b'"points": 13'),
        lambda data: data.replace(b'"points": 12', b'"points": -1'),
        lambda data: data.replace(b'"points": 12', b'"points": 1e999'),
        lambda data: data.replace(b'"format": 1', b'"format": 2'),
        lambda data: data.replace(b'"generation": 1', b'"generation": "1"'),
        lambda data: b"[" * 4000 + b"\n" + data,
        lambda data: b"\x80\x04\x95" + data,
        lambda data: b"null\n",
    ],
)
def test_a_damaged_map_is_computed_again(collection: Collection, damage: object) -> None:
    add(collection, 12)
    made = project(collection, "pca")
    file = map_file(collection, "visual-pca-20000.map")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))  # type: ignore[operator]
    assert file.read_bytes() != whole
    assert [problem.part for problem in collection.verify()] == ["map"]
    assert load_projection(collection, "pca") is None
    assert (project(collection, "pca").points == made.points).all()
    assert collection.verify() == []
    file.write_bytes(damage(whole))  # type: ignore[operator]
    assert collection.repair() == 0
    assert not file.exists()
    assert collection.verify() == []


@pytest.mark.parametrize("what", ["file", "folder", "pipe"])
def test_other_files_in_place_of_the_map(collection: Collection, what: str) -> None:
    add(collection, 12)
    file = map_file(collection, "visual-pca-20000.map")
    if what == "file":
        file.parent.touch()
    elif what == "folder":
        file.mkdir(parents=True)
    else:
        file.parent.mkdir()
        os.mkfifo(file)
    made = project(collection, "pca")
    assert len(made.ids) == 12
    assert made.kept == (what == "pipe")  # a pipe can be replaced
    if what != "pipe":
        assert [problem.part for problem in collection.verify()] == ["map"]
        collection.repair()
    assert collection.verify() == []
    assert project(collection, "pca").kept


def test_a_map_is_a_file_of_the_collection(collection: Collection) -> None:
    add(collection, 12)
    collection.indexes.save()
    before = collection.size_on_disk()
    project(collection, "pca")
    size = map_file(collection, "visual-pca-20000.map").stat().st_size
    assert size + 200 > collection.size_on_disk() - before >= size
    assert {path.name for path in collection.path.iterdir()} <= Collection.FILES


def test_a_cancelled_map_is_not_stored(collection: Collection) -> None:
    add(collection, 30)

    def stop(progress: Progress) -> None:
        if progress.done == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project(collection, progress=stop)
    assert load_projection(collection) is None
    project(collection)
    kept = map_file(collection).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        project(collection, refresh=True, progress=stop)
    assert map_file(collection).read_bytes() == kept


KILLED = """
import os, signal, sys
from pixmatcher import Collection
from pixmatcher.maps import projection

when, path = sys.argv[1:]
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
def report(progress):
    if when == "computing" and progress.done == 400: kill()
if when == "writing":
    os.fsync = kill
with Collection.open(path) as collection:
    projection.project(collection, refresh=True, progress=report)
"""


@pytest.mark.parametrize("when", ["computing", "writing"])
@pytest.mark.parametrize("kept", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_kill_leaves_the_old_map_or_none(collection: Collection, when: str, kept: bool) -> None:
    add(collection, 30)
    if kept:
        project(collection)
        add(collection, 1, first=30)
    command = [sys.executable, "-c", KILLED, when, str(collection.path)]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    left = load_projection(collection)
    assert (left is not None) == kept
    assert left is None or left.stale == 1
    assert collection.verify() == []
    assert project(collection, refresh=True).stale == 0
    assert {path.name for path in map_file(collection).parent.iterdir()} == {"lock", map_file(collection).name}


READ_ONLY = """
import sys
from pixmatcher import Collection
from pixmatcher.maps.projection import project
with Collection.open(sys.argv[1]) as collection:
    made = [project(collection, method) for method in ("pca", "tsne")]
    print(*[(len(each.ids), each.kept) for each in made], len(collection.verify()))
"""


def test_a_map_of_a_read_only_collection(open_folder: Path) -> None:
    with Collection.create(open_folder / "photos", [TinyEncoder()]) as collection:
        add(collection, 12)
        project(collection, "pca")
    for inner, _, files in os.walk(open_folder / "photos"):
        for name in files:
            os.chmod(os.path.join(inner, name), 0o444)
        os.chmod(inner, 0o555)
    command = [sys.executable, "-c", READ_ONLY, str(open_folder / "photos")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound_by_permissions(), timeout=60)
    assert (done.stdout, done.stderr) == ("(12, True) (12, False) 0\n", "")


def test_a_map_on_a_full_disk(small_disk: Path | None, tmp_path: Path) -> None:
    if small_disk is None:
        pytest.skip("no file system can be mounted here")
    with Collection.create(small_disk / "photos", [TinyEncoder()]) as collection:
        add(collection, 12)
        collection.indexes.save()
        filler = fill_up(small_disk)
        made = project(collection, "pca")
        assert (len(made.ids), made.kept) == (12, False)
        filler.unlink()
        assert project(collection, "pca").kept


@pytest.mark.slow
def test_readers_see_the_old_map_or_the_new_one(collection: Collection) -> None:
    """Two processes compute the same map again and again while it is read."""
    add(collection, 40)
    points = project(collection, "pca").points
    script = (
        "import sys; from pixmatcher import Collection; from pixmatcher.maps.projection import project\n"
        "collection = Collection.open(sys.argv[1])\n"
        "for _ in range(20): assert project(collection, 'pca', refresh=True).kept"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(collection.path)]) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        found = load_projection(collection, "pca")
        assert found is not None
        assert (found.points == points).all()
        reads += 1
        time.sleep(0.005)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert reads > 10
