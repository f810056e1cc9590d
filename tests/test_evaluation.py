"""Evaluation: metrics compared with scikit-learn and with numbers by hand, complete runs with a simple computation."""

from __future__ import annotations

import csv
import json
import shutil
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from PIL import Image

from pixmatcher import Collection, Evaluation, Item, QueryError, evaluate, index, load_encoder
from pixmatcher.evaluation import (
    _labelled,
    _scores,
    average_precision_at,
    best_columns,
    bootstrap_interval,
    evaluate_captions,
    mean,
    median,
    precision_at,
    r_precision,
    recall_at,
    save_categories,
)
from pixmatcher.evaluation._encoding import EncodedImages
from pixmatcher.images import fit_image, open_image, open_regular_file
from pixmatcher.records import Space
from pixmatcher.sources import Entry, Unusable, open_source
from support import TinyEncoder, cli, paint

CLASSES = {"n01": "red thing, reddish", "n02": "green thing", "n03": "blue thing"}
COLOURS = {"n01": (230, 40, 40), "n02": (40, 230, 40), "n03": (40, 40, 230)}
NAMES = ["precision@1", "precision@3", "mAP@3", "R-precision"]

# Metrics

RELEVANCE = np.array([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=bool)
RELEVANT = np.array([4, 0, 2, 20])


def test_metrics_by_hand() -> None:
    np.testing.assert_allclose(precision_at(RELEVANCE, 1), [1, 0, 0, 1])
    np.testing.assert_allclose(precision_at(RELEVANCE, 3), [2 / 3, 0, 2 / 3, 1])
    np.testing.assert_allclose(precision_at(RELEVANCE, 10), [0.3, 0, 0.2, 0.5])  # five ranks have no item
    np.testing.assert_allclose(
        average_precision_at(RELEVANCE, 3, RELEVANT), [(1 + 2 / 3) / 3, 0, (1 / 2 + 2 / 3) / 2, 1]
    )
    np.testing.assert_allclose(
        average_precision_at(RELEVANCE, 10, RELEVANT), [(1 + 2 / 3 + 3 / 5) / 4, 0, (1 / 2 + 2 / 3) / 2, 5 / 10]
    )
    np.testing.assert_allclose(r_precision(RELEVANCE, RELEVANT), [2 / 4, 0, 1 / 2, 5 / 20])
    np.testing.assert_allclose(recall_at([1, 5, 6, 11], 5), [1, 1, 0, 0])


def test_average_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    scores = rng.permuted(np.tile(np.arange(60.0), (25, 1)), axis=1)  # no equal scores, which scikit-learn groups
    right = rng.random((25, 60)) < rng.uniform(0.05, 0.9, (25, 1))
    right[:, 7] = True
    ranked = np.take_along_axis(right, best_columns(scores, 60), axis=1)
    expected = [average_precision_score(*pair) for pair in zip(right, scores, strict=True)]
    assert len(set(expected)) == 25
    np.testing.assert_allclose(average_precision_at(ranked, 60, right.sum(1)), expected)
    # A k beyond the end of the ranking changes nothing.
    np.testing.assert_allclose(average_precision_at(ranked, 500, right.sum(1)), expected)


@pytest.mark.parametrize("depth", [1, 3, 5, 8, 20])
def test_equal_scores_rank_by_column(depth: int) -> None:
    scores = np.array([1, 3, 2, 3, 2, 3, 0, 2], np.float32)
    np.testing.assert_array_equal(best_columns(scores, depth), [1, 3, 5, 2, 4, 7, 0, 6][:depth])
    both = best_columns(np.stack([scores, np.zeros(8, np.float32)]), depth)
    np.testing.assert_array_equal(both[1], np.arange(8)[:depth])


def test_intervals() -> None:
    values = np.random.default_rng(2).normal([[0.0, 10.0]], [[1.0, 3.0]], (400, 2))
    low, high = bootstrap_interval(values)
    # For a mean, the normal distribution gives a width of about 2 x 1.96 standard errors.
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std(axis=0) / 20, rtol=0.1)
    assert (low < mean(values)).all()
    assert (mean(values) < high).all()
    again = bootstrap_interval(values)
    np.testing.assert_array_equal(again, (low, high))
    assert (bootstrap_interval(values, seed=1)[0] != low).all()
    np.testing.assert_array_equal(bootstrap_interval(np.full((5, 1), 0.3)), [[0.3], [0.3]])
    np.testing.assert_array_equal(bootstrap_interval([[7.0]], median), [[7.0], [7.0]])
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval(np.empty((0, 4)))


# Complete runs


def paint_class(path: Path, label: str, seed: int) -> None:
    """Write an image in the colour of its class, with noise, so that some classes are confused."""
    rng = np.random.default_rng([seed, sorted(COLOURS).index(label)])
    fields = np.clip(np.array(COLOURS[label]) + rng.normal(0, 500, (4, 4, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(fields).resize((32, 32), Image.Resampling.NEAREST).save(path, "PNG")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a data set in the layout of Tiny ImageNet: 3 classes, 6 + 5 + 4 images to index, 4 queries for each."""
    root = tmp_path / "tiny-imagenet-200"
    for label, count in zip(CLASSES, (6, 5, 4), strict=True):
        for number in range(count):
            paint_class(root / "train" / label / "images" / f"{label}_{number}.JPEG", label, number)
    lines = []
    for number, label in enumerate([*CLASSES] * 4):
        paint_class(root / "val" / "images" / f"val_{number}.JPEG", label, 100 + number)
        lines.append(f"val_{number}.JPEG\t{label}\t0\t0\t31\t31\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(CLASSES))
    (root / "words.txt").write_text("".join(f"{label}\t{name}\n" for label, name in CLASSES.items()))
    return root


@pytest.fixture
def collection(data: Path, tiny: TinyEncoder, tmp_path: Path) -> Iterator[Collection]:
    index(f"tiny-imagenet:{data}", tmp_path / "collection", encoders=["tiny"])
    with Collection.open(tmp_path / "collection") as collection:
        yield collection


def compute(
    collection: Collection, space: str, query: np.ndarray, label: str, k: int, own: frozenset[int] = frozenset()
) -> tuple[list[float], Counter[str]] | None:
    """Compute the four metrics of a query and the wrong labels among its first k; None if no item is right."""
    items = [item for item in collection.items() if item.label is not None and item.id not in own]
    scored = [(-float(query @ collection.embeddings([item.id], space)[0]), item.id, item.label) for item in items]
    hits = [found == label for _, _, found in sorted(scored)]
    right = sum(hits)
    if not right:
        return None
    precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
    average = sum(p for p, hit in zip(precisions[:k], hits, strict=False) if hit) / min(right, k)
    wrong = Counter(found for _, _, found in sorted(scored)[:k] if found != label)
    return [float(hits[0]), sum(hits[:k]) / k, average, sum(hits[:right]) / right], wrong  # type: ignore[return-value]


def embed_query(encoder: TinyEncoder, path: str) -> np.ndarray:
    image = open_image(path, min_side=encoder.recipe.min_side).image
    return encoder.encode_images(fit_image(image, encoder.recipe)[None])["visual"][0]


def values(found: Evaluation, kind: str = "images") -> list[float]:
    return [figure.value for figure in getattr(found, kind).metrics.values()]


def test_image_queries_and_label_names(collection: Collection, data: Path, tiny: TinyEncoder) -> None:
    calls: list[tuple[int, int]] = []
    source = open_source(f"tiny-imagenet:{data}?split=val")
    found = evaluate(collection, source, k=3, progress=lambda p: calls.append((p.done, p.total)))
    assert calls[-1] == (12, 12)
    assert (found.items, found.queries, found.k) == (15, source.spec, 3)
    assert found.images is not None
    assert found.texts is not None
    assert [found.images.space, found.texts.space] == ["visual", "semantic"]
    assert [*found.images.metrics] == [*found.texts.metrics] == NAMES

    entries = [entry for entry in source.scan() if isinstance(entry, Entry)]
    computed = [compute(collection, "visual", embed_query(tiny, entry.uri), entry.label or "", 3) for entry in entries]
    figures = [figure for figure, _ in filter(None, computed)]
    assert len(figures) == found.images.queries == 12
    np.testing.assert_allclose(values(found), np.mean(figures, axis=0))
    assert 0 < values(found)[1] < 1  # or the test would prove nothing
    for figure in found.images.metrics.values():
        assert 0 <= figure.low <= figure.value <= figure.high <= 1

    texts = tiny.encode_texts(["red thing", "green thing", "blue thing"])["semantic"]
    by_name = [compute(collection, "semantic", text, label, 3) for text, label in zip(texts, CLASSES, strict=True)]
    np.testing.assert_allclose(values(found, "texts"), np.mean([f for f, _ in filter(None, by_name)], axis=0))
    assert found.texts.queries == 3

    assert [(c.label, c.name, c.queries) for c in found.categories] == [
        ("n01", "red thing", 4),
        ("n02", "green thing", 4),
        ("n03", "blue thing", 4),
    ]
    for category in found.categories:
        own = [r for r, e in zip(computed, entries, strict=True) if r and e.label == category.label]
        np.testing.assert_allclose([*category.metrics.values()], np.mean([f for f, _ in own], axis=0))
        wrong = sum((w for _, w in own), Counter())
        assert [*category.wrong] == sorted(wrong, key=lambda label: (-wrong[label], label))
        assert category.wrong == pytest.approx({label: count / (3 * 4) for label, count in wrong.items()})
    assert any(category.wrong for category in found.categories)
    shares = {(c.name, found.names[other]): share for c in found.categories for other, share in c.wrong.items()}
    most = found.confusions(2)
    assert [confusion.share for confusion in most] == sorted(shares.values(), reverse=True)[:2]
    assert all(shares[confusion.name, confusion.other_name] == confusion.share for confusion in most)
    assert found.failures == []


def test_an_evaluation_is_logged(collection: Collection, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pixmatcher.evaluation"):
        evaluate(collection, f"tiny-imagenet:{data}?split=val", k=3)
    (record,) = (record for record in caplog.records if record.name == "pixmatcher.evaluation")
    assert record.getMessage().startswith("Evaluated 12 images and 3 labels in ")


def test_blocks_change_only_the_memory(collection: Collection, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(f"tiny-imagenet:{data}?split=val")
    at_once = evaluate(collection, source, k=4)
    monkeypatch.setattr(_scores, "_SCORE_BYTES", 1)  # one query at a time
    monkeypatch.setattr(_scores, "_ROWS_AT_ONCE", 4)
    blocks = evaluate(collection, source, k=4)
    np.testing.assert_allclose(values(blocks), values(at_once))
    np.testing.assert_allclose(values(blocks, "texts"), values(at_once, "texts"))
    assert blocks.categories == at_once.categories


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path, tiny: TinyEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of 2,000 queries against 10,000 rows would be 80 MB; here 2 MB are allowed."""
    rng = np.random.default_rng(3)
    rows, queries = rng.normal(size=(10_000, 48)).astype(np.float32), rng.normal(size=(2000, 48)).astype(np.float32)
    labels = [f"label {n % 7}" for n in range(10_000)]
    monkeypatch.setattr(_scores, "_SCORE_BYTES", 2_000_000)
    with Collection.create(tmp_path / "c", [tiny]) as collection:
        items = [Item(f"/x/{n}.png", str(n), label=label) for n, label in enumerate(labels)]
        collection.add(items, {"visual": rows, "semantic": rows[:, ::2]})
        listed = _labelled._labelled_items(collection, EncodedImages([], [], [], queries, []))
        space = collection.spaces["visual"]
        tracemalloc.start()
        try:
            measured = _labelled._measure(collection, space, listed, queries, labels[:2000], 10)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert measured.values.shape == (2000, 4)
    assert peak < 20_000_000


@pytest.mark.parametrize("k", [3, 15])  # some items, and all items
def test_the_query_itself_is_left_out(
    collection: Collection, data: Path, tiny: TinyEncoder, tmp_path: Path, k: int
) -> None:
    source = open_source(f"tiny-imagenet:{data}")
    found = evaluate(collection, source, k=k)  # by its uri
    computed = [
        compute(collection, "visual", embed_query(tiny, item.uri), item.label or "", k, frozenset({item.id}))
        for item in collection.items()
    ]
    figures = np.mean([figures for figures, _ in filter(None, computed)], axis=0)
    np.testing.assert_allclose(values(found), figures)
    assert figures[0] < 1
    moved = shutil.copytree(data, tmp_path / "elsewhere" / data.name)  # by its content
    assert evaluate(collection, f"tiny-imagenet:{moved}", k=k).images == found.images


class Listed:
    """A source with given entries."""

    spec = "listed"
    folder = None
    remote = thumbnails = False

    def __init__(self, *entries: Entry | Unusable) -> None:
        self.entries = entries

    def scan(self) -> Iterator[Entry | Unusable]:
        yield from self.entries

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        if uri == "/strange":
            raise RuntimeError("strange")
        return open_regular_file(uri)

    def label_names(self) -> Mapping[str, str]:
        return {}


def test_queries_that_are_left_out_or_fail(collection: Collection, data: Path, tmp_path: Path) -> None:
    good = str(data / "val" / "images" / "val_0.JPEG")
    only = paint(tmp_path / "only.png", 1)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    embeddings = {"visual": np.ones((2, 48)), "semantic": np.ones((2, 24))}
    collection.add([Item(str(only), "aa", label="lonely"), Item("/nobody.png", "bb")], embeddings)
    source = Listed(
        Entry(str(tmp_path / "broken.jpg"), "1", label="n01"),
        Entry(good, "1", label="n01"),
        Entry(good, "1"),
        Entry("/never/opened.png", "1", label="n77"),
        Entry("/never/opened.png", "1", label="n77"),
        Entry("/never/opened.png", "1", label="n78"),
        Entry(str(tmp_path / "missing.png"), "1", label="n02"),
        Entry("/strange", "1", label="n02"),
        Entry(str(only), "1", label="lonely"),
        Unusable("/a folder", "folder cannot be read", "why", contents_unknown=True),
    )
    found = evaluate(collection, source)
    assert (found.unlabelled, found.unknown_labels, found.unknown_queries, found.without_relevant) == (1, 2, 3, 1)
    assert found.items == 16  # without the item that has no label
    assert found.images is not None
    assert found.images.queries == 1
    assert [category.label for category in found.categories] == ["n01"]
    assert [(Path(failure.uri).name, failure.reason) for failure in found.failures] == [
        ("a folder", "folder cannot be read"),
        ("broken.jpg", found.failures[1].reason),
        ("missing.png", "missing"),
        ("strange", "unexpected error"),
    ]
    # With broken images only, there is still a report.
    broken = evaluate(collection, Listed(source.entries[0]))
    assert broken.images is None
    assert broken.texts is not None
    assert [failure.uri for failure in broken.failures] == [str(tmp_path / "broken.jpg")]
    assert json.loads(json.dumps(broken.as_json()))["images"] is None


def test_a_collection_that_supports_no_texts(
    collection: Collection, data: Path, tiny: TinyEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(f"tiny-imagenet:{data}?split=val")
    expected = evaluate(collection, source, k=3)
    monkeypatch.setattr(tiny, "spaces", (Space("visual", 48),), raising=False)
    monkeypatch.setattr(tiny, "encode_texts", None, raising=False)
    with Collection.create(tmp_path / "images only", [tiny]) as images_only:
        items = list(collection.items())
        images_only.add(items, {"visual": collection.embeddings([item.id for item in items], "visual")})
        found = evaluate(images_only, source, k=3)
        assert found.texts is None
        assert found.as_json()["texts"] is None
        assert found.images == expected.images
        (tmp_path / "captions.csv").write_text("image,caption\nn01_0.JPEG,red\n")
        with pytest.raises(QueryError, match="supports text"):
            evaluate_captions(images_only, tmp_path / "captions.csv")


def test_calls_that_cannot_be_evaluated(collection: Collection, data: Path, tiny: TinyEncoder, tmp_path: Path) -> None:
    val = open_source(f"tiny-imagenet:{data}?split=val")
    with pytest.raises(QueryError, match="1 or more"):
        evaluate(collection, val, k=0)
    with pytest.raises(QueryError, match="no images with labels"):
        evaluate(collection, open_source(str(data / "val")))
    with pytest.raises(QueryError, match="whose labels the collection has"):
        evaluate(collection, Listed(Entry("/a.png", "1", label="n77")))
    index(str(data / "val"), tmp_path / "unlabelled", encoders=["tiny"])
    with Collection.open(tmp_path / "unlabelled") as unlabelled, pytest.raises(QueryError, match="no labelled images"):
        evaluate(unlabelled, val)


def test_the_csv_of_categories(collection: Collection, data: Path, tmp_path: Path) -> None:
    found = evaluate(collection, open_source(f"tiny-imagenet:{data}?split=val"), k=3)
    save_categories(found, tmp_path / "categories.csv")
    with open(tmp_path / "categories.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [*rows[0]] == ["label", "name", "queries", *NAMES, "wrong_label"]
    for row, category in zip(rows, found.categories, strict=True):
        assert (row["label"], row["name"], row["queries"]) == (category.label, category.name, "4")
        assert [float(row[name]) for name in NAMES] == pytest.approx([*category.metrics.values()], abs=1e-4)
        assert row["wrong_label"] == next(iter(category.wrong), "")
    save_categories(evaluate(collection, open_source(f"tiny-imagenet:{data}?split=val"), k=1), tmp_path / "one.csv")
    header = (tmp_path / "one.csv").read_text().splitlines()[0]
    assert header == "label,name,queries,precision@1,mAP@1,R-precision,wrong_label"


# Captions


def test_captions(collection: Collection, data: Path, tiny: TinyEncoder, tmp_path: Path) -> None:
    items = list(collection.items())
    copy = Item("/elsewhere/copy.png", items[0].content_hash)
    collection.add_copies([copy])
    folder = data / "train" / "n02" / "images"
    lines = [
        (items[0].uri, "first"),  # the uri of an item
        ("n02_1.JPEG", "a second one"),  # relative to the csv file
        ("n03_2.JPEG", "something, with a comma"),  # a file name
        ("copy.png", "first"),  # a copy, which counts as its original
        ("nowhere.png", "x"),
        ("n03_3.JPEG", "  "),
    ]
    with open(folder / "captions.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *lines])
    calls: list[tuple[int, int]] = []
    found = evaluate_captions(collection, folder / "captions.csv", progress=lambda p: calls.append((p.done, p.total)))
    assert calls[-1] == (4, 4)
    assert [(failure.uri, failure.reason, failure.detail) for failure in found.failures] == [
        ("nowhere.png", "not in the collection", "line 6"),
        ("n03_3.JPEG", "no caption", "line 7"),
    ]
    by_name = {Path(item.uri).name: item for item in items}
    ranks = []
    for image, caption in lines[:4]:
        right = items[0] if image == "copy.png" else by_name[Path(image).name]
        hits = collection.search(tiny.encode_texts([caption])["semantic"][0], space="semantic", k=16)
        ranks.append(next(hit.rank for hit in hits if hit.item.content_hash == right.content_hash))
    assert len(set(ranks)) > 1
    assert found.texts is not None
    assert (found.items, found.texts.queries, found.texts.space) == (16, 4, "semantic")
    expected = {f"recall@{k}": np.mean(np.array(ranks) <= k) for k in (1, 5, 10)} | {"median rank": np.median(ranks)}
    assert {name: figure.value for name, figure in found.texts.metrics.items()} == pytest.approx(expected)
    assert found.texts.metrics["median rank"].low >= min(ranks)


def test_a_file_name_of_several_images(collection: Collection, tmp_path: Path) -> None:
    embeddings = {"visual": np.ones((2, 48)), "semantic": np.ones((2, 24))}
    collection.add([Item("/a/same.png", "aa"), Item("/b/same.png", "bb")], embeddings)
    (tmp_path / "captions.csv").write_text("caption,image\nx,same.png\ny,/b/same.png\n")
    found = evaluate_captions(collection, tmp_path / "captions.csv")
    assert [failure.reason for failure in found.failures] == ["several images of this name"]
    assert found.texts is not None
    assert found.texts.queries == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"image,text\na,b\n", "lacks the columns"),
        (b"image,caption\n", "has no captions"),
        (b'image,"caption\na,b\n', "broken quotes"),
    ],
)
def test_a_csv_that_cannot_be_read(collection: Collection, tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "captions.csv").write_bytes(content)
    with pytest.raises(QueryError, match=words):
        evaluate_captions(collection, tmp_path / "captions.csv")


def test_unreadable_lines_are_reported(collection: Collection, tmp_path: Path) -> None:
    uri = next(iter(collection.items())).uri
    lines = [
        "image, caption",
        f'{uri},"a',
        f"{uri},red",
        f"{uri},red, blue",
        f"{uri},caf\xe9",
        f"{uri}," + "x" * 200_000,
    ]
    path = tmp_path / "captions.csv"
    path.write_bytes("\n".join([*lines, f'{uri},"two', 'lines"', "short", f"{uri},green"]).encode("latin-1"))
    found = evaluate_captions(collection, path)
    assert [(failure.uri, failure.reason) for failure in found.failures] == [
        (f"{path}:2", "broken quotes"),
        (f"{path}:4", "wrong number of fields"),
        (f"{path}:6", "too long"),
        (f"{path}:9", "wrong number of fields"),
    ]
    assert found.texts is not None
    assert found.texts.queries == 4
    path.write_bytes(b"image,caption\na,red\n")
    assert evaluate_captions(collection, path).texts is None
    path.write_bytes(f"sep=;\r\nimage;caption\r\n{uri};caf\xe9\r\n".encode("cp1252"))
    assert evaluate_captions(collection, path).failures == []


# The command line


@pytest.fixture
def zipped(data: Path, tmp_path: Path) -> Path:
    """Return a folder with the data set as a zip file with one broken query, and its collection `c`."""
    (data / "val" / "images" / "val_3.JPEG").write_bytes(b"no image")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(data.rglob("*")):
            archive.write(path, path.relative_to(data.parent))
    done = cli("index", "tiny-imagenet:data.zip", "-c", "c", cwd=tmp_path)
    assert done.returncode == 0, done
    return tmp_path


@pytest.mark.slow
def test_the_command(zipped: Path) -> None:
    (zipped / "captions.csv").write_text("image,caption\nn01_0.JPEG,a red thing\nn02_0.JPEG,a green thing\n")
    call = ["evaluate", "-c", "c", "--queries", "tiny-imagenet:data.zip?split=val", "-k", "3"]
    files = ["--per-category", "categories.csv", "--confusions", "confusions.png"]
    done = cli(*call, *files, "--captions", "captions.csv", cwd=zipped)
    assert done.returncode == 1, done
    assert done.stderr.splitlines() == ["Categories saved to categories.csv", "Plot saved to confusions.png"]
    with Image.open(zipped / "confusions.png") as picture:
        picture.load()
        assert min(picture.size) > 300
    lines = done.stdout.splitlines()
    assert any(line.startswith("most confused: ") and " thing finds " in line for line in lines)
    (header,) = (line for line in lines if line.startswith("queries  "))
    assert header.split("  ")[-1] == "95 % interval"
    rows = [line.split() for line in lines if " to " in line]
    assert [row[-5] for row in rows[:8]] == NAMES * 2
    assert [line.split()[3] for line in lines if line.startswith("captions  ")] == [
        "recall@1",
        "recall@5",
        "recall@10",
        "median",
    ]
    # Each interval begins below its heading.
    assert all(line[header.index("95 %") :].split()[1] == "to" for line in lines if " to " in line)
    assert any("val_3.JPEG: " in line for line in lines)
    with open(zipped / "categories.csv", encoding="utf-8", newline="") as file:
        assert [row["queries"] for row in csv.DictReader(file)] == ["3", "4", "4"]

    as_json = cli(*call, "--captions", "captions.csv", "--json", cwd=zipped)
    assert (as_json.returncode, as_json.stderr) == (1, "")
    answer = json.loads(as_json.stdout)
    assert answer["images"]["queries"] == 11
    assert [*answer["images"]["figures"]] == [*answer["texts"]["figures"]] == NAMES
    assert [failure["uri"].endswith("val_3.JPEG") for failure in answer["failures"]] == [True]
    assert answer["captions"]["texts"]["queries"] == 2
    assert answer["most_confused"][0].keys() == {"name", "other_name", "share"}
    shown = {row[-5]: row[-4] for row in rows[:4]}
    for name, figure in answer["images"]["figures"].items():
        assert shown[name] == f"{figure['value']:.3f}"
        assert figure["low"] <= figure["value"] <= figure["high"]

    captions_alone = cli("evaluate", "-c", "c", "--captions", "captions.csv", "--json", cwd=zipped)
    assert captions_alone.returncode == 0, captions_alone
    assert json.loads(captions_alone.stdout)["captions"]["texts"] == answer["captions"]["texts"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "c"], "--queries SOURCE"),
        (["-c", "c", "--captions", "captions.csv", "--per-category", "x.csv"], "--queries SOURCE"),
        (["-c", "c", "--queries", "tiny-imagenet:missing.zip"], "cannot be read"),
        (["-c", "c", "--queries", "."], "no labelled images"),
        (["-c", "c", "--queries", ".", "-k", "0"], "-k"),
        (["-c", "c", "--queries", ".", "--per-category", "no/x.csv"], "the folder no does not exist"),
        (["-c", "c", "--queries", ".", "--confusions", "no/x.png"], "the folder no does not exist"),
        (["-c", "c", "--queries", ".", "--confusions", "x.txt"], "must end in .png"),
        (["-c", "c", "--captions", "captions.csv", "--confusions", "x.png"], "--queries SOURCE"),
        (["-c", "c", "--captions", "missing.csv"], "missing.csv does not exist"),
        (["-c", "nowhere", "--queries", "."], "no collection"),
    ],
)
def test_a_wrong_call(tmp_path: Path, arguments: list[str], words: str) -> None:
    with Collection.create(tmp_path / "c", [load_encoder()]):
        pass
    done = cli("evaluate", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert done.stdout == ""
