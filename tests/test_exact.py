"""The exact index returns the same as a full comparison, whatever the rows are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pixmatcher.vector_index import EXACT, VectorIndex, _kernels
from pixmatcher.vector_index._exact import ExactIndex
from pixmatcher.vector_index.vectors import Float32, Rows, VectorFile

DIMENSION = 48


@pytest.fixture(autouse=True, params=["loops in C", "FAISS and NumPy"])
def scans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with the compiled loops and without them."""
    if request.param != "loops in C":
        monkeypatch.setattr(_kernels, "available", lambda: False)


def full_comparison(stored: np.ndarray, rows: Rows, query: Float32, k: int) -> tuple[list[float], list[int]]:
    """Return the scores and numbers of the k best rows, computed without an index."""
    scores = (stored[rows].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order].tolist(), rows[order].tolist()


def write(path: Path, values: Float32) -> tuple[VectorFile, np.ndarray]:
    """Write rows to a vector file; return the file and the stored values."""
    stored = values.astype("<f2")
    vectors = VectorFile(path / "vectors.f16", values.shape[1])
    vectors.write(0, stored)
    return vectors, stored


def clusters(random: np.random.Generator, count: int) -> Float32:
    """Return rows in groups that are close together, as embeddings of images are."""
    centres = random.normal(size=(40, DIMENSION))
    values = centres[random.integers(0, 40, count)] + random.normal(0, 0.1, (count, DIMENSION))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["clusters", "near copies", "copies", "outliers", "one value", "tiny", "huge"])
def test_results_equal_a_full_comparison(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(1)
    values = clusters(random, 40_000)
    if kind == "near copies":
        values = values[:1] + random.normal(0, 1e-3, values.shape).astype(np.float32)
    elif kind == "copies":
        values[:] = values[random.integers(0, 5, len(values))]
    elif kind == "outliers":
        values[random.integers(0, len(values), 300)] *= 50
    elif kind == "one value":
        values[:, 1:] = 0
    elif kind == "tiny":
        values *= 1e-4
    elif kind == "huge":
        values *= 3e4
    vectors, stored = write(tmp_path, values)
    rows = np.sort(random.permutation(len(values))[:35_000])
    index = ExactIndex(vectors)
    index.update(rows)
    for query in [*values[:4], *random.normal(size=(4, DIMENSION)).astype(np.float32), np.zeros(DIMENSION, np.float32)]:
        for k in (1, 12, 300):
            scores, found = index.search(query, k)
            assert (scores.tolist(), found.tolist()) == full_comparison(stored, rows, query, k)


@pytest.mark.parametrize("share", [0.5, 0.01, 0.0003, 0.0])
def test_results_for_allowed_rows_equal_a_full_comparison(tmp_path: Path, share: float) -> None:
    random = np.random.default_rng(2)
    values = clusters(random, 40_000)
    vectors, stored = write(tmp_path, values)
    rows = np.sort(random.permutation(len(values))[:39_000])
    index = ExactIndex(vectors)
    index.update(rows)
    allowed = random.random(len(values)) < share
    expected_rows = rows[allowed[rows]]
    for query in values[:4]:
        for k in (1, 12, 300):
            scores, found = index.search(query, k, allowed)
            assert (scores.tolist(), found.tolist()) == full_comparison(stored, expected_rows, query, k)


def test_the_codes_suffice_for_realistic_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows similar to embeddings of images, one scan finds enough candidates: not all rows are compared."""
    random = np.random.default_rng(2)
    values = clusters(random, 40_000)
    vectors, _ = write(tmp_path, values)
    index = ExactIndex(vectors)
    index.update(np.arange(len(values)))
    read: list[int] = []
    original = VectorFile.view

    def counted(self: VectorFile, rows: Rows) -> tuple[np.ndarray, Rows]:
        read.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(VectorFile, "view", counted)
    for query in values[:10]:
        index.search(query, 12)
    assert sum(read) < 10 * len(values) / 8


def test_rows_are_added_and_removed(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    values = clusters(random, 6000)
    values[3000:] *= 3  # beyond the range of the codes for the first rows
    vectors, stored = write(tmp_path, values)
    index = ExactIndex(vectors)
    query = values[0]
    for rows in (np.arange(10), np.arange(3000), np.arange(100, 6000), np.arange(50, 5000, 7), np.arange(0)):
        index.update(rows)
        assert sorted(index.rows.tolist()) == rows.tolist()
        scores, found = index.search(query, 9)
        assert (scores.tolist(), found.tolist()) == full_comparison(stored, rows, query, 9)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_saved_index_returns_the_same_results(tmp_path: Path, mapped: bool) -> None:
    random = np.random.default_rng(4)
    values = clusters(random, 20_000)
    vectors, stored = write(tmp_path, values)
    index = ExactIndex(vectors)
    index.update(np.arange(15_000))
    path = tmp_path / "index.faiss"
    with path.open("wb") as file:
        index.save(file)
    with path.open("rb") as file:
        loaded = ExactIndex.load(file, vectors, mapped=mapped)
    assert loaded.mapped is mapped
    for query in values[:5]:
        scores, found = loaded.search(query, 20)
        assert (scores.tolist(), found.tolist()) == full_comparison(stored, np.arange(15_000), query, 20)
    if not mapped:
        loaded.update(np.arange(20_000))
        assert loaded.search(values[19_000], 1)[1].tolist() == [19_000]


@pytest.mark.parametrize("scale", [2.0**90, 2.0**-90])
def test_the_length_of_a_query_does_not_change_the_ranking(tmp_path: Path, scale: float) -> None:
    """This also holds if the squares of its values exceed the range of float32."""
    random = np.random.default_rng(5)
    values = clusters(random, 20_000)
    vectors, _ = write(tmp_path, values)
    index = ExactIndex(vectors)
    index.update(np.arange(20_000))
    for query in random.normal(size=(5, DIMENSION)).astype(np.float32):
        scores, found = index.search(query, 20)
        scaled, same = index.search(query * np.float32(scale), 20)
        assert same.tolist() == found.tolist()
        assert (scaled / np.float32(scale)).tolist() == scores.tolist()


def test_it_is_a_vector_index(tmp_path: Path) -> None:
    index: VectorIndex = ExactIndex(VectorFile(tmp_path / "vectors.f16", DIMENSION))
    assert index.name == EXACT
