"""The trained index: true scores, target recall, filters, added and removed rows, damage, kills and many readers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import faiss
import numpy as np
import pytest

from pixmatcher import Collection, CollectionError, Filter, Item, upgrade
from pixmatcher.evaluation.tuning import tune
from pixmatcher.records import Space
from pixmatcher.vector_index import Calibration, IndexTarget, _gpu, _kinds, _training
from pixmatcher.vector_index._exact import ExactIndex
from pixmatcher.vector_index._lists import InvertedLists, new_faiss_index
from pixmatcher.vector_index._measuring import MeasuringQueries, exact_nearest, find_hits, sample_queries
from pixmatcher.vector_index._scan import ScanIndex, scan
from pixmatcher.vector_index.trained import TrainedIndex, _lowest
from pixmatcher.vector_index.vectors import Float32, RowMask, Rows, VectorFile
from support import TinyEncoder, cli, paint_many

DIMENSION = 32
COUNT = 30_000


class Encoder:
    name = "synthetic"
    fingerprint = "0"
    spaces = (Space("visual", DIMENSION),)


def image_like_rows(count: int, seed: int = 0, dimension: int = DIMENSION) -> Float32:
    """Return rows near a curved surface of few dimensions, as embeddings are; the same surface for each seed."""
    surface = np.random.default_rng(100)
    random = np.random.default_rng(seed)
    hidden = np.tanh(random.normal(size=(count, 6)) @ surface.normal(size=(6, 64)))
    values = hidden @ surface.normal(size=(64, dimension)) + random.normal(0, 0.5, (count, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def write(path: Path, values: Float32) -> VectorFile:
    vectors = VectorFile(path / "vectors.f16", values.shape[1])
    vectors.write(0, values.astype("<f2"))
    return vectors


def truth(vectors: VectorFile, rows: Rows, query: Float32, k: int) -> tuple[list[float], list[int]]:
    scores = (vectors.read(rows).astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order].tolist(), rows[order].tolist()


def recall(
    index: TrainedIndex, vectors: VectorFile, rows: Rows, queries: Float32, allowed: RowMask | None = None
) -> float:
    hits = 0
    for query in queries:
        scores, found = index.search(query, 10, allowed)
        expected = (vectors.read(found).astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        assert scores.tolist() == expected.tolist() == sorted(scores.tolist(), reverse=True)
        assert set(found.tolist()) <= set(rows.tolist())
        hits += len({*found.tolist()} & {*truth(vectors, rows, query, 10)[1]})
    return hits / 10 / len(queries)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedIndex, VectorFile]:
    vectors = write(tmp_path_factory.mktemp("trained"), image_like_rows(COUNT))
    return TrainedIndex.train(vectors, np.arange(COUNT), IndexTarget()), vectors


# Scores and recall


def test_scores_are_true_and_the_recall_reaches_the_target(trained: tuple[TrainedIndex, VectorFile]) -> None:
    index, vectors = trained
    assert index.calibration.images.lists < 128  # not all lists are visited
    assert recall(index, vectors, np.arange(COUNT), image_like_rows(100, seed=7)) >= 0.95


def test_texts_have_an_operating_point_of_their_own(trained: tuple[TrainedIndex, VectorFile]) -> None:
    index, vectors = trained
    before, images = index.calibration, image_like_rows(100, seed=7)
    random = np.random.default_rng(0)
    # Far from all rows, as texts are: a direction in which rows differ, and much noise.
    texts = (images - image_like_rows(1000).mean(axis=0)) * 0.3 + random.normal(0, 0.15, images.shape)
    texts = texts.astype(np.float32)
    index.calibrate(IndexTarget(), text=True)
    derived = index.calibration
    index.calibrate(IndexTarget(), text=True, queries=texts)
    try:
        assert derived.texts
        assert index.calibration.texts
        assert index.calibration.images == derived.images == before.images
        assert index.calibration.texts.reach > index.calibration.images.reach
        assert index.recall == min(index.calibration.texts.recall, index.calibration.images.recall)
        assert recall(index, vectors, np.arange(COUNT), texts) >= 0.94
        assert recall(index, vectors, np.arange(COUNT), images) >= 0.94
        assert Calibration.from_json(json.loads(json.dumps(index.calibration.as_json()))).texts_below > -1
    finally:
        index.calibration = before


def test_an_index_file_of_version_0_1_0_visits_the_lists_that_it_says() -> None:
    stored = {"trained_on": 500, "changed": 3, "lists": 38, "candidates": 32, "recall": 0.96, "wanted": 0.95}
    found = Calibration.from_json(stored)
    assert (found.images.reach, found.texts, found.recall, found.changed) == (None, None, 0.96, 3)
    near = np.linspace(0, 1, 100, dtype=np.float32)
    assert (near >= _lowest(found.images, near)).sum() == 38


@pytest.mark.slow
def test_the_measured_recall_is_that_of_new_queries(trained: tuple[TrainedIndex, VectorFile]) -> None:
    index, vectors = trained
    assert index.recall == pytest.approx(
        recall(index, vectors, np.arange(COUNT), image_like_rows(200, seed=8)), abs=0.03
    )


def test_a_higher_target_visits_more_lists(trained: tuple[TrainedIndex, VectorFile]) -> None:
    index, _ = trained
    before = index.calibration
    index.calibrate(IndexTarget(0.995))
    assert index.calibration.images.lists > before.images.lists
    assert (index.recall or 0) > 0.995
    index.calibrate(IndexTarget())
    assert index.calibration == before


def test_training_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = write(tmp_path, image_like_rows(3000))
    with caplog.at_level("INFO", "pixmatcher.vector_index"):
        index = TrainedIndex.train(vectors, np.arange(3000), IndexTarget())
    begun, measured, finished = (record.getMessage() for record in caplog.records)
    assert begun == f"Training of an index begins: 3000 rows, codes of {DIMENSION} values"
    lists = index.calibration.images.lists
    assert f"recall@10 {index.recall:.4f} of images (target 0.95): {lists} lists on average" in measured
    assert finished.startswith(f"Training finished: 3000 rows, {index.lists.count} lists, ")


@pytest.mark.parametrize("k", [1, 12, 1000, COUNT - 1, COUNT, 2 * COUNT])
def test_any_number_of_rows_can_be_requested(trained: tuple[TrainedIndex, VectorFile], k: int) -> None:
    index, _ = trained
    scores, rows = index.search(image_like_rows(1, seed=9)[0], k)
    assert len(rows) == len(set(rows.tolist())) == min(k, COUNT)
    assert (np.diff(scores) <= 0).all()


def test_recall_of_the_thousand_nearest(trained: tuple[TrainedIndex, VectorFile]) -> None:
    index, vectors = trained
    hits = 0
    for query in image_like_rows(20, seed=10):
        hits += len({*index.search(query, 1000)[1].tolist()} & {*truth(vectors, np.arange(COUNT), query, 1000)[1]})
    assert hits / 20_000 > 0.95


@pytest.mark.parametrize("scale", [2.0**90, 2.0**-90])
def test_the_length_of_a_query_does_not_change_the_result(
    trained: tuple[TrainedIndex, VectorFile], scale: float
) -> None:
    index, _ = trained
    query = image_like_rows(1, seed=11)[0]
    scores, rows = index.search(query, 20)
    scaled, same = index.search(query * np.float32(scale), 20)
    assert same.tolist() == rows.tolist()
    assert (scaled / np.float32(scale)).tolist() == scores.tolist()


def test_a_query_of_zeros(trained: tuple[TrainedIndex, VectorFile]) -> None:
    scores, rows = trained[0].search(np.zeros(DIMENSION, np.float32), 5)
    assert (scores.tolist(), rows.tolist()) == ([0] * 5, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(
    "kind", ["copies", "one value", "tiny", "huge", "lengths", "odd", pytest.param("wide", marks=pytest.mark.slow)]
)
def test_unusual_rows(tmp_path: Path, kind: str) -> None:
    values = image_like_rows(3000, dimension={"odd": 33, "wide": 700}.get(kind, DIMENSION))
    if kind == "copies":
        values[:] = values[np.random.default_rng(0).integers(0, 3, len(values))]
    elif kind == "one value":
        values[:, 1:] = 0
    elif kind in ("tiny", "huge"):
        values *= 1e-4 if kind == "tiny" else 3e4
    elif kind == "lengths":
        values *= np.random.default_rng(0).uniform(0.5, 2, (len(values), 1)).astype(np.float32)
    vectors = write(tmp_path, values)
    index = TrainedIndex.train(vectors, np.arange(3000), IndexTarget())
    found = 0.0
    for query in values[:20]:
        scores, rows = index.search(query, 10)
        assert len(set(rows.tolist())) == 10
        expected = truth(vectors, np.arange(3000), query, 10)[0]
        assert (scores <= np.array(expected, np.float32)).all()
        found += float(np.mean(scores >= expected[-1]))
    assert found / 20 >= 0.9
    with (tmp_path / "saved").open("wb") as file:
        index.save(file)
    with (tmp_path / "saved").open("rb") as file:
        loaded = TrainedIndex.load(file, vectors)
    assert [loaded.search(query, 10)[1].tolist() for query in values[:5]] == [
        index.search(query, 10)[1].tolist() for query in values[:5]
    ]


@pytest.mark.parametrize("dimension", [8, 768])
def test_a_block_of_rows_has_the_same_size_for_each_dimension(tmp_path: Path, dimension: int) -> None:
    vectors = VectorFile(tmp_path / "vectors" / "a.f16", dimension)
    vectors.extend_with_zeros((1 << 24) // dimension + 5)  # as a hole in the file, which uses no disk space
    rows = np.arange(vectors.end_row())[1:]
    for selected in (rows, rows[::3]):
        blocks = list(vectors.blocks(selected))
        assert max(stored.size for _, stored in blocks) <= 1 << 22
        assert np.array_equal(np.concatenate([block for block, _ in blocks]), selected)
        assert all(stored.shape == (len(block), dimension) for block, stored in blocks)


def test_all_ways_to_read_rows_return_the_same(tmp_path: Path) -> None:
    vectors = write(tmp_path, image_like_rows(1000))
    for rows in (np.arange(1000), np.array([0, 1, 2, 7, 8, 500, 999]), np.arange(0, 1000, 3), np.arange(0)):
        expected = vectors.read(rows).tolist()
        assert vectors.read_unmapped(rows).tolist() == expected
        streamed = [row for _, stored in vectors.stream(rows, 64) for row in stored.tolist()]
        assert streamed == expected
    for rows in (np.array([999, 1000]), np.array([2000])):
        with pytest.raises(CollectionError, match="shorter than the catalog says"):
            vectors.read_unmapped(rows)
    for missing in ("none.f16", "vectors.f16/none", ""):
        with pytest.raises(CollectionError, match="shorter than the catalog says"):
            VectorFile(tmp_path / missing, DIMENSION).read_unmapped(np.arange(3))


def test_a_file_that_begins_with_a_later_row(tmp_path: Path) -> None:
    values = image_like_rows(50).astype("<f2")
    vectors = VectorFile(tmp_path / "vectors.f16", DIMENSION, 1000)
    assert vectors.end_row() == 1000
    vectors.write(1000, values[:40])
    vectors.write(1040, values[40:])
    assert vectors.end_row() == 1050
    assert vectors.path.stat().st_size == 50 * DIMENSION * 2
    for rows in (np.arange(1000, 1050), np.array([1003, 1004, 1049])):
        expected = values[rows - 1000].tolist()
        assert vectors.read(rows).tolist() == vectors.read_unmapped(rows).tolist() == expected
        assert [row for _, stored in vectors.stream(rows, 7) for row in stored.tolist()] == expected
    for outside in (np.array([999, 1000]), np.array([0]), np.array([1050])):
        for read in (vectors.read, vectors.read_unmapped, lambda rows: list(vectors.stream(rows))):
            with pytest.raises(CollectionError, match="shorter than the catalog says"):
                read(outside)
    vectors.extend_with_zeros(1060)
    assert vectors.end_row() == 1060
    assert not vectors.read([1055]).any()


@pytest.mark.parametrize("kind", ["images", "copies"])
def test_rows_with_equal_scores_count_as_hits(tmp_path: Path, kind: str) -> None:
    """Copies of a row are equally near, so each of them is a correct result."""
    values = image_like_rows(5000)
    if kind == "copies":
        values[:] = values[:25].repeat(200, axis=0)
    vectors = write(tmp_path, values)
    rows = np.arange(100, 4900)
    queries = sample_queries(vectors, rows)
    queries = MeasuringQueries(queries.vectors[::15], queries.own_rows[::15])
    nearest = exact_nearest(vectors, rows, queries.vectors, queries.own_rows, 10)
    assert nearest.incomplete.all() == (kind == "copies")
    found = np.random.default_rng(0).permuted(np.tile(rows, (60, 1)), axis=1)[:, :800]
    found[:, 0] = queries.own_rows
    found[:, 1] = -1
    hits = find_hits(vectors, queries, found, nearest)
    for number, (query, row) in enumerate(zip(queries.vectors, queries.own_rows, strict=True)):
        scores, best = truth(vectors, rows[rows != row], query, 10)
        assert (nearest.kth_scores[number], len(best)) == (scores[-1], 10)
        kept = (found[number] >= 0) & (found[number] != row)
        products = vectors.read(found[number].clip(min=0)).astype(np.float64) @ query.astype(np.float64)
        assert (hits[number] == kept & (products.astype(np.float32) >= scores[-1])).all()
    assert hits.sum() > 0


def test_thousands_of_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their centres are computed in two steps, and the centre of a row is searched along the main axes first."""
    monkeypatch.setattr("pixmatcher.vector_index._lists.MAX_FLAT_LISTS", 32)
    monkeypatch.setattr("pixmatcher.vector_index._training.MAX_FLAT_LISTS", 32)
    monkeypatch.setattr("pixmatcher.vector_index._lists._MAIN_AXES", 16)
    vectors = write(tmp_path, image_like_rows(12_000))
    index = TrainedIndex.train(vectors, np.arange(10_000), IndexTarget())
    assert index.calibration.images.lists < index.lists.count / 2
    index.update(np.arange(1000, 12_000))
    with (tmp_path / "saved").open("wb") as file:
        index.save(file)
    with (tmp_path / "saved").open("rb") as file:
        loaded = TrainedIndex.load(file, vectors)
    loaded.calibrate(IndexTarget())
    rows, queries = np.arange(1000, 12_000), image_like_rows(40, seed=3)
    assert recall(loaded, vectors, rows, queries) >= 0.95
    allowed = np.random.default_rng(0).random(12_000) < 0.3
    assert recall(loaded, vectors, rows[allowed[rows]], queries, allowed) >= 0.95
    assert len(loaded.search(queries[0], 12_000)[1]) == 11_000


def test_the_memory_target_is_kept(tmp_path: Path) -> None:
    vectors = write(tmp_path, image_like_rows(5000))
    rows = np.arange(5000)
    sizes = []
    for memory in (None, 5000 * 20):
        index = TrainedIndex.train(vectors, rows, IndexTarget(memory=memory))
        with (tmp_path / "saved").open("wb") as file:
            index.save(file)
        sizes.append((tmp_path / "saved").stat().st_size)
        assert recall(index, vectors, rows, image_like_rows(20, seed=3)) > 0.9
    assert sizes[1] < sizes[0]


# Filters


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001, 0.0])
@pytest.mark.parametrize("similar", [False, True])
def test_recall_for_allowed_rows(trained: tuple[TrainedIndex, VectorFile], share: float, similar: bool) -> None:
    """This also holds if the allowed rows are similar, as those of a label, and the queries are not."""
    index, vectors = trained
    allowed = np.random.default_rng(2).random(COUNT) < share
    if similar:
        stored = vectors.read(np.arange(COUNT)).astype(np.float32)
        groups = (stored @ stored[:200].T).argmax(axis=1)
        allowed = np.isin(groups, np.arange(int(200 * share)))
    rows = np.flatnonzero(allowed)
    queries = image_like_rows(40, seed=12)
    if not len(rows):
        assert len(index.search(queries[0], 10, allowed)[1]) == 0
        return
    assert recall(index, vectors, rows, queries, allowed) >= 0.95
    assert len(index.search(queries[0], COUNT, allowed)[1]) == len(rows)


# Exact scan


@pytest.mark.parametrize("kind", ["images", "copies", "huge"])
def test_a_scan_returns_the_same_as_the_exact_index(tmp_path: Path, kind: str) -> None:
    values = image_like_rows(20_000) * (3e4 if kind == "huge" else 1)
    if kind == "copies":
        values[:] = values[:50].repeat(400, axis=0)
    vectors = write(tmp_path, values)
    rows = np.sort(np.random.default_rng(0).permutation(20_000)[:15_000])
    exact, scanned = ExactIndex(vectors), ScanIndex(vectors)
    exact.update(rows)
    scanned.update(rows[::-1].copy())
    allowed = np.random.default_rng(1).random(20_000) < 0.2
    for query in [*image_like_rows(5, seed=1), np.zeros(DIMENSION, np.float32)]:
        for k in (1, 10, 300, 20_000):
            for mask in (None, allowed):
                one, other = exact.search(query, k, mask), scanned.search(query, k, mask)
                assert [each.tolist() for each in one] == [each.tolist() for each in other]
    assert len(scan(vectors, rows[:0], values[0], 3)[1]) == 0


# Added and removed rows


def test_rows_are_added_and_removed(tmp_path: Path) -> None:
    vectors = write(tmp_path, image_like_rows(12_000))
    index = TrainedIndex.train(vectors, np.arange(6000), IndexTarget())
    queries = image_like_rows(30, seed=5)
    assert not index.needs_retraining
    assert not index.needs_calibration
    for rows in (np.arange(6500), np.arange(1000, 9000), np.arange(1, 11_000, 2)):
        index.update(rows)
        assert sorted(index.rows.tolist()) == rows.tolist()
        if index.needs_calibration:
            index.calibrate(IndexTarget())
        assert recall(index, vectors, rows, queries) >= 0.93
        allowed = np.zeros(12_000, np.bool_)
        allowed[:3000] = True
        assert recall(index, vectors, rows[rows < 3000], queries, allowed) >= 0.93
    assert not index.needs_calibration
    assert not index.needs_retraining
    index.update(np.arange(100))
    assert index.needs_calibration
    assert index.needs_retraining
    assert sorted(index.search(queries[0], 200)[1].tolist()) == list(range(100))


# In a collection


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kinds, "EXACT_UP_TO", 2000 * DIMENSION)


def items(count: int, first: int = 0) -> list[Item]:
    return [
        Item(
            f"/photos/{n % 3}/{n}.jpg",
            f"{n:064x}",
            "1",
            label=f"label {n % 5}",
            width=n,
            height=10,
            modified="2024-05-17",
        )
        for n in range(first, first + count)
    ]


def filled(path: Path, count: int = 5000) -> Path:
    with Collection.create(path / "collection", [Encoder()]) as collection:
        collection.add(items(count), {"visual": image_like_rows(count)})
        return collection.path


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with a trained index, for tests to copy: training takes seconds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(_kinds, "EXACT_UP_TO", 2000 * DIMENSION)
        return filled(tmp_path_factory.mktemp("template"))


@pytest.fixture
def collection(tmp_path: Path, template: Path, low_limit: None) -> Iterator[Collection]:
    with Collection.open(shutil.copytree(template, tmp_path / "collection")) as opened:
        yield opened


def ids(collection: Collection, query: Float32, **options: object) -> list[int]:
    return [hit.item.id for hit in collection.search(query, space="visual", **options)]  # type: ignore[arg-type]


def test_a_writer_trains_the_index_of_a_large_collection(collection: Collection) -> None:
    assert collection.indexes.kind("visual") == "trained"
    found = expected = 0
    for query in image_like_rows(50, seed=3):
        exact = collection.search(query, space="visual", k=10, exact=True)
        rows = truth(collection._vectors["visual"], np.arange(5000), query, 10)
        assert [hit.item.id - 1 for hit in exact] == rows[1]
        assert [hit.score for hit in exact] == rows[0]
        found += len({*ids(collection, query, k=10)} & {hit.item.id for hit in exact})
        expected += 10
    assert found / expected >= 0.95
    assert collection.verify() == []


@pytest.mark.slow
def test_an_upgraded_collection_has_a_trained_index(collection: Collection) -> None:
    class Newer(TinyEncoder):
        name, fingerprint, spaces = "synthetic", "newer", Encoder.spaces

    values = image_like_rows(5000, seed=9)
    reencoding = collection.begin_upgrade([Newer()])
    assert reencoding is not None
    for start in range(0, 5000, 1000):
        reencoding.store("", items(1000, start), {"visual": values[start : start + 1000]}, {})
    reencoding.finish()
    collection.close()
    with Collection.open(collection.path) as newer:
        query = image_like_rows(1, seed=4)[0]
        exact = ids(newer, query, k=10)  # without an index yet, all rows are scanned
        assert newer.indexes.has_scanned("visual")
    # The upgrade was stopped before the index was trained: another call does that.
    stages = set[str]()
    report = upgrade(collection.path, encoders=[Newer()], progress=lambda progress: stages.add(progress.stage))
    assert (report.needed, report.finished) == (False, True)
    assert stages
    with Collection.open(collection.path) as newer:
        assert newer.indexes.kind("visual") == "trained"
        assert newer.verify() == []
        np.testing.assert_allclose(newer.embeddings([1, 5000], "visual"), values[[0, -1]], atol=1e-3)
        assert len({*ids(newer, query, k=10)} & {*exact}) >= 8
        assert ids(newer, query, k=10, exact=True) == exact
        allowed = Filter(labels=("label 3",))
        assert all((item_id - 1) % 5 == 3 for item_id in ids(newer, query, k=10, filter=allowed))


@pytest.mark.slow
def test_a_growing_collection_is_trained_again_and_a_small_one_has_an_exact_index(collection: Collection) -> None:
    path = collection.path
    stamp = path / "index" / "visual.json"

    def trained_on() -> int:
        content = (path / "index" / "visual.faiss").read_bytes()
        length = int.from_bytes(content[-8:], "little")
        return int(json.loads(content[-8 - length : -8])["trained_on"])

    assert trained_on() == 5000
    for count, expected in ((1000, 5000), (6000, 12_000)):
        with Collection.open(path) as writer:
            first = len(writer)
            writer.add(items(count, first), {"visual": image_like_rows(count, seed=first)})
        assert trained_on() == expected
        assert ids(collection, image_like_rows(count, seed=first)[-1], k=1) == [first + count]
    with Collection.open(path) as writer:
        writer.remove(range(500, 13_000))
    assert json.loads(stamp.read_text())["index"] == "exact"
    assert len(ids(collection, image_like_rows(1)[0], k=5000)) == 499


@pytest.mark.slow
def test_the_log_says_why_an_index_is_trained(collection: Collection, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pixmatcher.vector_index"), Collection.open(collection.path) as writer:
        writer.add(items(6000, 5000), {"visual": image_like_rows(6000, seed=1)})
    messages = [record.getMessage() for record in caplog.records]
    assert "Train a new index: it was trained for 5000 rows and has 11000" in messages


def test_readers_scan_while_there_is_no_index(collection: Collection) -> None:
    """They train no index, and use the one that a writer trains later."""
    query = image_like_rows(1, seed=4)[0]
    expected = ids(collection, query, k=10, exact=True)
    shutil.rmtree(collection.path / "index")
    with Collection.open(collection.path) as first, Collection.open(collection.path) as second:
        assert ids(first, query, k=10) == ids(second, query, k=10) == expected
        assert first.indexes.has_scanned("visual")
        assert not (collection.path / "index").exists()
        with Collection.open(collection.path) as writer:
            writer.begin_writing()
        assert (collection.path / "index" / "visual.faiss").exists()
        ids(first, query)
        assert not first.indexes.has_scanned("visual")


@pytest.mark.slow
def test_readers_search_while_another_process_adds(collection: Collection) -> None:
    with Collection.open(collection.path) as writer:
        for step in range(3):
            new = image_like_rows(100, seed=50 + step)
            writer.add(items(100, 5000 + 100 * step), {"visual": new})
            assert ids(collection, new[-1], k=1) == [5100 + 100 * step]
            assert ids(writer, new[-1], k=1) == [5100 + 100 * step]


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: os.truncate(index, index.stat().st_size - 100),
        lambda index: index.write_bytes(b"\0" * index.stat().st_size),
        lambda index: index.write_bytes(index.read_bytes()[:-30] + b"x" * 30),
        lambda index: index.with_suffix(".json").write_text("no stamp"),
        pytest.param(lambda index: index.unlink(), marks=pytest.mark.slow),
    ],
)
def test_damage_is_found_and_repaired(collection: Collection, damage: object) -> None:
    index = collection.path / "index" / "visual.faiss"
    query = image_like_rows(1, seed=4)[0]
    expected = ids(collection, query, exact=True)
    damage(index)  # type: ignore[operator]
    assert [problem.part for problem in collection.verify()] in (["index"], [])
    with Collection.open(collection.path) as other:
        assert ids(other, query) == expected
        assert other.repair() == 0
        assert other.indexes.kind("visual") == "trained"
        assert other.verify() == []


@pytest.mark.slow
def test_flipped_bits_never_crash(collection: Collection) -> None:
    index = collection.path / "index" / "visual.faiss"
    status, content = index.stat(), index.read_bytes()
    for position in [*range(0, 120), *range(len(content) - 60, len(content))]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        index.write_bytes(damaged)
        os.utime(index, ns=(status.st_atime_ns, status.st_mtime_ns))
        with Collection.open(collection.path) as other:
            assert len(ids(other, image_like_rows(1)[0], k=3)) == 3


BUILDER = """
import sys, numpy as np
sys.path.insert(0, sys.argv[2])
from pixmatcher import Collection
from pixmatcher.vector_index import _kinds
from test_trained import DIMENSION, items, image_like_rows
_kinds.EXACT_UP_TO = 2000 * DIMENSION
def report(progress):
    print(progress.stage, flush=True)
with Collection.open(sys.argv[1]) as collection:
    collection.add(items(9000, 5000), {"visual": image_like_rows(9000, seed=1)})
    collection.indexes.save(progress=report)
    print("saved", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["Training the index", "Building the index", "Measuring the index", "saved"])
def test_a_process_that_is_killed_while_it_trains(collection: Collection, when: str) -> None:
    """The old index stays, readers search with it, and the next writer trains a new one."""
    command = [sys.executable, "-c", BUILDER, str(collection.path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        for line in builder.stdout:
            if line.strip() == when:
                builder.send_signal(signal.SIGKILL)
                break
    assert builder.returncode == -signal.SIGKILL
    assert collection.verify() == []
    last = image_like_rows(9000, seed=1)[-1]
    with Collection.open(collection.path) as reader:
        assert ids(reader, last, k=1) == ids(collection, last, k=1) == [14_000]
    with Collection.open(collection.path) as writer:
        writer.begin_writing()
    with Collection.open(collection.path) as reader:
        assert ids(reader, last, k=1) == [14_000]
    assert collection.verify() == []
    assert sorted(os.listdir(collection.path / "index")) == ["visual.faiss", "visual.json"]


def test_a_writer_that_fails_does_not_train(tmp_path: Path, low_limit: None) -> None:
    with pytest.raises(ZeroDivisionError), Collection.create(tmp_path / "c", [Encoder()]) as collection:  # noqa: PT012
        collection.add(items(3000), {"visual": image_like_rows(3000)})
        raise ZeroDivisionError
    with Collection.open(tmp_path / "c") as collection:
        assert not (tmp_path / "c" / "index").exists()
        assert len(ids(collection, image_like_rows(1)[0], k=5)) == 5


# Tuning


@pytest.mark.slow
def test_the_target_stays_when_the_index_is_rebuilt(collection: Collection) -> None:
    tuning = tune(collection, "visual", IndexTarget(0.99))
    assert tuning.index == "trained"
    assert tuning.rows == 5000
    assert sum(point.chosen for point in tuning.curve) == 1
    assert [p.recall for p in tuning.curve] == sorted(p.recall for p in tuning.curve)
    assert tuning.recall == collection.indexes.recall("visual") > 0.99
    shutil.rmtree(collection.path / "index" / "visual.faiss", ignore_errors=True)
    collection.repair()
    with Collection.open(collection.path) as other:
        assert other.indexes.target("visual") == IndexTarget(0.99)
        assert (other.indexes.recall("visual") or 0) > 0.99
        assert other.verify() == []


@pytest.mark.slow
def test_tuning_for_less_memory_trains_a_new_index(collection: Collection) -> None:
    index = collection.path / "index" / "visual.faiss"
    before = index.stat().st_size
    assert tune(collection, "visual", IndexTarget(0.9, 5000 * 20)).recall > 0.9
    assert index.stat().st_size < before
    with pytest.raises(CollectionError, match="allow 1M or more"):
        tune(collection, "visual", IndexTarget(0.9, 1000))
    assert collection.indexes.target("visual") == IndexTarget(0.9, 5000 * 20)


@pytest.mark.parametrize("text", ["", "[]", '{"recall": 2}', '{"recall": "x"}', '{"memory": 0.5}', "[" * 100_000])
def test_a_damaged_target_is_replaced_by_the_default(collection: Collection, text: str) -> None:
    (collection.path / "index" / "visual.aim").write_text(text)
    assert collection.indexes.target("visual") == IndexTarget()


def test_the_command_line_tunes(collection: Collection, tmp_path: Path) -> None:
    """The process has the usual limit for exact indexes, so this collection is a small one."""
    done = cli("tune", "-c", collection.path, "--recall", "0.9", "--memory", "1G", "--json")
    assert done.returncode == 0, done.stderr
    tunings = json.loads(done.stdout)
    assert [(each["space"], each["index"], each["recall"], each["curve"]) for each in tunings] == [
        ("visual", "exact", 1.0, [])
    ]
    assert collection.indexes.target("visual") == IndexTarget(0.9, 10**9)
    assert "the index needs no tuning" in cli("tune", "-c", collection.path).stdout
    assert "exact (visual)" in cli("info", "-c", collection.path).stdout
    for wrong in (["--memory", "much"], ["--recall", "0"], ["--plot", "curve.txt"], ["--space", "third"]):
        failed = cli("tune", "-c", collection.path, *wrong)
        assert failed.returncode == 2
        assert failed.stderr.count("\n") == 1


def test_the_table_and_the_plot(
    collection: Collection, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pixmatcher import cli as command_line

    plot = tmp_path / "curve.png"
    for name, words in (("tune", ["recall@10", "chosen"]), ("info", ["trained (visual", "of the 10 nearest"])):
        arguments = ["pixmatcher", name, "-c", str(collection.path)]
        monkeypatch.setattr(sys, "argv", [*arguments, "--plot", str(plot)] if name == "tune" else arguments)
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        assert not ended.value.code
        printed = capsys.readouterr().out
        assert all(word in printed for word in words), printed
    assert plot.read_bytes().startswith(b"\x89PNG")


# Filters of a collection


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (Filter(), lambda n: True),
        (Filter(labels=("label 1", "unknown")), lambda n: n % 5 == 1),
        (Filter(labels=("called two",)), lambda n: n % 5 == 2),
        (Filter(labels=()), lambda n: False),
        (Filter(folder="/photos"), lambda n: True),
        (Filter(folder="/photos/1/"), lambda n: n % 3 == 1),
        (Filter(folder="/pho"), lambda n: False),
        (Filter(after="2024-05-17"), lambda n: True),
        (Filter(after="2024-05-18"), lambda n: False),
        (Filter(before="2024-06", after="2024"), lambda n: True),
        (Filter(before="2024-05-17"), lambda n: False),
        (Filter(min_width=4900), lambda n: n >= 4900),
        (Filter(min_height=11), lambda n: False),
        (
            Filter(labels=("label 0",), folder="/photos/2", min_width=100),
            lambda n: n % 5 == 0 and n % 3 == 2 and n >= 100,
        ),
    ],
)
def test_filters(collection: Collection, filter: Filter, expected: object) -> None:
    collection.set_label_names({"label 2": "the second, called two"})
    expected_ids = [n + 1 for n in range(5000) if expected(n)]  # type: ignore[operator]
    assert sorted(ids(collection, image_like_rows(1)[0], k=5000, filter=filter)) == expected_ids


def test_a_filter_sees_new_items(collection: Collection) -> None:
    filter = Filter(min_width=4995)
    assert sorted(ids(collection, image_like_rows(1)[0], filter=filter)) == [4996, 4997, 4998, 4999, 5000]
    with Collection.open(collection.path) as writer:
        writer.remove([4997])
        writer.add(items(1, first=5000), {"visual": image_like_rows(1, seed=9)})
    assert sorted(ids(collection, image_like_rows(1)[0], filter=filter)) == [4996, 4998, 4999, 5000, 5001]


def test_filters_by_folder_with_unusual_names(tmp_path: Path) -> None:
    home = tmp_path / "photos"
    home.mkdir()
    odd = os.fsdecode(b"od\xff")
    places = [
        f"{home}/a/1.jpg",
        f"{home}/ab/2.jpg",
        f"{home}/{odd}/3.jpg",
        f"{tmp_path}/else/4.jpg",
        "http://h/a/5.jpg",
    ]
    with Collection.create(home / ".pixmatcher", [Encoder()]) as collection:
        collection.add([Item(uri, f"{n}") for n, uri in enumerate(places)], {"visual": image_like_rows(5)})
        for folder, expected in (
            (f"{home}/a", [1]),
            (f"{home}/{odd}", [3]),
            (str(home), [1, 2, 3]),
            (str(tmp_path), [1, 2, 3, 4]),
            ("/", [1, 2, 3, 4]),
            ("http://h", [5]),
            ("http://h/a/", [5]),
        ):
            assert sorted(ids(collection, image_like_rows(1)[0], filter=Filter(folder=folder))) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"after": "yesterday"},
        {"before": "24-1-1"},
        {"min_width": -1},
        {"min_height": 2.5},
        {"min_width": 2**63},
        {"labels": "one"},
    ],
)
def test_invalid_filters_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(CollectionError):
        Filter(**options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command_line_filters(tmp_path: Path) -> None:
    images = tmp_path / "photos"
    paint_many(images, 3)
    assert cli("index", images).returncode == 0
    search = ["search", next(images.glob("*.*")), "-c", images, "--json"]
    for options, found in (([], 3), (["--after", "2000", "--exact"], 3), (["--min-width", "4000"], 0)):
        done = cli(*search, *options)
        assert (done.returncode, len(json.loads(done.stdout)["hits"])) == (0, found), done.stderr
    for unknown in (cli(*search, "--folder", tmp_path / "other"), cli(*search, "--label", "no such")):
        assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    wrong = cli("search", "a cat", "--after", "soon")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "write it like" in wrong.stderr


def test_a_file_with_longer_codes_than_the_code_in_c_reads_is_refused(tmp_path: Path) -> None:
    for width in (512, 514):
        index = new_faiss_index(np.eye(16, width, dtype=np.float32))
        index.pq.train(np.eye(32, width, dtype=np.float32))
        index.is_trained = True
        with (tmp_path / "index").open("w+b") as file:
            InvertedLists(index, None).save(file)
            file.flush()
            file.seek(0)
            with nullcontext() if width == 512 else pytest.raises(ValueError, match="another kind of index"):
                assert InvertedLists.load(file, file.seek(0, 2), width).coded_values == width


class TestGpu:
    """No GPU is here, so FAISS on the CPU stands for it: what is chosen is tested, and what happens when it fails."""

    @pytest.fixture
    def rows(self) -> Float32:
        return image_like_rows(4000)

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """What is asked of the GPU."""
        calls: list[str] = []

        def to_gpu(resources: object, device: int, index: object) -> object:
            calls.append("index")
            return index

        def knn(resources: object, queries: Float32, values: Float32, k: int, *, metric: int) -> object:
            calls.append("knn")
            return faiss.knn(queries, values, k, metric)

        monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "a GPU", raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
        monkeypatch.setattr(faiss, "knn_gpu", knn)
        _gpu._resources.cache_clear()
        yield calls
        _gpu._resources.cache_clear()

    @pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS may use a GPU")
    def test_a_faiss_without_gpus_uses_the_cpu(self) -> None:
        _gpu._resources.cache_clear()
        assert _gpu.on_gpu_or_cpu(lambda gpu: gpu) is None

    @pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS may use a GPU")
    def test_the_cpu_is_used_if_another_process_cannot_use_the_gpu(
        self, calls: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("INFO", "pixmatcher.vector_index"):
            assert _gpu.on_gpu_or_cpu(lambda gpu: gpu) is None
        assert "FAISS uses the CPU" in caplog.text
        assert "index_cpu_to_gpu" in caplog.text or "StandardGpuResources" in caplog.text

    def test_training_and_measuring_use_the_gpu_with_the_same_results(
        self, rows: Float32, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        vectors, every = write(tmp_path, rows), np.arange(len(rows))
        queries = sample_queries(vectors, every)

        def results() -> list[np.ndarray]:
            nearest = exact_nearest(vectors, every, queries.vectors[:30], queries.own_rows[:30], 10)
            monkeypatch.setattr(_training, "MAX_FLAT_LISTS", 32)
            return [_training._centres(rows, 64), nearest.rows, nearest.kth_scores]

        on_cpu = results()
        assert calls == []
        _gpu._resources.cache_clear()
        monkeypatch.setattr(_gpu, "_PROBE", "")
        for found, expected in zip(results(), on_cpu, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert set(calls) == {"index", "knn"}

    def test_the_cpu_goes_on_if_the_gpu_fails(
        self, rows: Float32, calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        expected = _training._kmeans(rows, 16)
        _gpu._resources.cache_clear()
        monkeypatch.setattr(_gpu, "_PROBE", "")

        def fail(*arguments: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(faiss, "index_cpu_to_gpu", fail)
        np.testing.assert_array_equal(_training._kmeans(rows, 16), expected)
        assert "goes on with the CPU (out of memory)" in caplog.text
