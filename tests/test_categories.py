"""The most likely labels of an image."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, CollectionError, Item, Query, QueryError, classify
from pixmatcher.images import fit_image, open_image
from pixmatcher.searching.categories import NEIGHBOURS, TEMPERATURE
from support import TinyEncoder, cli, paint


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return paint(tmp_path / "query.png", 1)


@pytest.fixture
def vector(tiny: TinyEncoder, image: Path) -> np.ndarray:
    return tiny.encode_images(fit_image(open_image(image).image, tiny.recipe)[None])["visual"][0]


def at_similarity(vector: np.ndarray, similarities: list[float]) -> np.ndarray:
    """Return unit vectors with these similarities to a unit vector."""
    random = np.random.default_rng(0)
    others = random.normal(size=(len(similarities), len(vector)))
    others -= np.outer(others @ vector, vector)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    cosines = np.array(similarities)[:, None]
    return (cosines * vector + np.sqrt(1 - cosines**2) * others).astype(np.float32)


def fill(collection: Collection, vectors: np.ndarray, labels: list[str | None]) -> None:
    items = [Item(f"/images/{number}.png", label=label) for number, label in enumerate(labels)]
    collection.add(items, {"visual": vectors, "semantic": vectors[:, ::2]})


def test_the_vote_follows_the_formula(tiny: TinyEncoder, image: Path, vector: np.ndarray, tmp_path: Path) -> None:
    similarities = [0.9, 0.8, 0.8, 0.7, 0.2]
    labels = ["a", "b", "b", None, "c"]
    with Collection.create(tmp_path / "c", [tiny]) as collection:
        fill(collection, at_similarity(vector, similarities), labels)
        collection.set_label_names({"a": "the first"})
        result = classify(collection, Query(image=image), k=5)
    powers = {"a": math.exp(0.9 / TEMPERATURE), "b": 2 * math.exp(0.8 / TEMPERATURE), "c": math.exp(0.2 / TEMPERATURE)}
    expected = sorted(((power / sum(powers.values()), label) for label, power in powers.items()), reverse=True)
    assert [c.label for c in result.categories] == [label for _, label in expected] == ["a", "b", "c"]
    assert [c.score for c in result.categories] == pytest.approx([score for score, _ in expected], rel=0.01)
    assert sum(c.score for c in result.categories) == pytest.approx(1)
    assert [c.name for c in result.categories] == ["the first", "b", "c"]
    assert [c.example.uri for c in result.categories] == ["/images/0.png", "/images/1.png", "/images/4.png"]


def test_five_categories_are_returned_even_if_the_nearest_items_share_a_label(
    tiny: TinyEncoder, image: Path, vector: np.ndarray, tmp_path: Path
) -> None:
    many = 3 * NEIGHBOURS
    similarities = [*np.linspace(0.95, 0.6, many), *np.linspace(0.5, 0.1, 8)]
    labels: list[str | None] = [*["near"] * many, *"abcdefgh"]
    with Collection.create(tmp_path / "c", [tiny]) as collection:
        fill(collection, at_similarity(vector, similarities), labels)
        assert [c.label for c in classify(collection, Query(image=image)).categories] == ["near", *"abcd"]
        assert len(classify(collection, Query(image=image), k=50).categories) == 9


def test_queries_that_cannot_be_classified_are_refused(
    tiny: TinyEncoder, image: Path, vector: np.ndarray, tmp_path: Path
) -> None:
    with Collection.create(tmp_path / "c", [tiny]) as collection:
        fill(collection, at_similarity(vector, [0.5]), [None])
        with pytest.raises(CollectionError, match="has a label"):
            classify(collection, Query(image=image))
        for query in (Query("a cat"), Query("a cat", image)):
            with pytest.raises(QueryError, match="for an image only"):
                classify(collection, query)
        with pytest.raises(QueryError, match="1 or more"):
            classify(collection, Query(image=image), k=0)


def test_from_the_command_line(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number, wnid in enumerate(("n01", "n02")):
        paint(root / "train" / wnid / "images" / f"{number}.JPEG", number, kind="JPEG")
    (root / "wnids.txt").write_text("n01\nn02\n")
    (root / "words.txt").write_text("n01\tfirst thing\nn02\tsecond thing\n")
    query = root / "train" / "n02" / "images" / "1.JPEG"
    assert cli("index", f"tiny-imagenet:{root}").returncode == 0
    table = cli("categories", query, "-c", root).stdout.splitlines()
    assert table[1].split() == ["rank", "score", "category", "nearest", "example"]
    assert "second thing" in table[2]
    answer = json.loads(cli("categories", query, "-c", root, "--json", "-k", "1").stdout)
    assert list(answer) == ["query", "space", "took_ms", "categories"]
    [category] = answer["categories"]
    assert list(category) == ["rank", "score", "label", "name", "example"]
    assert (category["label"], category["name"], category["example"]) == ("n02", "second thing", str(query))
    wrong = cli("categories", "a cat", "-c", root)
    assert (wrong.returncode, wrong.stdout, len(wrong.stderr.splitlines())) == (2, "", 1)
