"""Probabilities of hits: the fit, its measures, what a collection stores, and what every face shows."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, Item, PixMatcherError, Query, QueryError, Recipe, Space, index, load_encoder, search
from pixmatcher.encoders import load_encoders
from pixmatcher.errors import EncoderError, UnreadableTextError
from pixmatcher.evaluation.calibration import (
    JudgedHits,
    calibrate,
    cross_validate,
    draw_reliability,
    fit_calibration,
    fit_hits,
    reliability,
)
from pixmatcher.evaluation.tuning import save_plot, tune
from pixmatcher.records import WEAK_BELOW, Calibration, Calibrations
from pixmatcher.searching import WEAK_NOTE, SearchOptions, embed_query, percent, search_batch, search_similar
from support import cli, paint

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
LABELS, ITEMS_OF_LABEL, DIMENSION = 30, 10, 40
RECIPE = Recipe(8)


@dataclass
class WordEncoder:
    """An encoder without a network: a text that names a label is the vector of that label."""

    fingerprint: str = "words-1"
    calibrations: Calibrations | None = None
    name: str = "words"
    spaces: tuple[Space, ...] = (Space("words", DIMENSION, text=True),)
    recipe: Recipe = RECIPE
    batch_size: int = 4

    def load_images(self) -> None: ...

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {"words": np.repeat(vectors_of(range(1)), len(pixels), axis=0)}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        return {"words": np.concatenate([vectors_of([int(re.sub("[^0-9]", "", text) or 0) % 1000]) for text in texts])}


def vectors_of(numbers: Sequence[int] | range) -> np.ndarray:
    """The vectors of labels, of length 1."""
    vectors = np.random.default_rng(0).normal(size=(1000, DIMENSION)).astype(np.float32)[list(numbers)]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(collection: Collection, *, noise: float = 0.25, captions: bool = False) -> None:
    """Add items of `LABELS` labels, near the vectors of these: with noise, some are nearer to other labels."""
    rng = np.random.default_rng(1)
    numbers = np.repeat(np.arange(LABELS), ITEMS_OF_LABEL)
    vectors = vectors_of(range(LABELS))[numbers] + noise * rng.normal(size=(len(numbers), DIMENSION))
    items = [
        Item(f"/{place}.jpg", content_hash=str(place), label=None if captions else f"n{number}")
        for place, number in enumerate(numbers.tolist())
    ]
    if captions:
        items = [
            replace(item, caption=f"photo of {place}") for place, item in zip(numbers.tolist(), items, strict=True)
        ]
    collection.add(items, {"words": vectors})
    if not captions:
        collection.set_label_names({f"n{number}": f"thing {number}, more" for number in range(LABELS)})


@pytest.fixture
def words() -> WordEncoder:
    return WordEncoder()


@pytest.fixture
def labelled(tmp_path: Path, words: WordEncoder) -> Path:
    with Collection.create(tmp_path / "labelled", [words]) as collection:
        fill(collection)
    return tmp_path / "labelled"


# ---- The fit and its measures ----


def test_the_fit_finds_a_known_logistic_curve() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(0.3, 0.4, 50_000)
    known = Calibration(7.0, -2.5)
    right = rng.random(50_000) < known.probability(scores)
    found = fit_calibration(scores, right)
    assert found.slope == pytest.approx(7, abs=0.2)
    assert found.intercept == pytest.approx(-2.5, abs=0.1)
    measured = reliability(found.probability(scores), right)
    assert measured.error < 0.01
    assert measured.brier < measured.brier_of_mean - 0.05
    # The weights act as that many copies of a hit.
    twice = np.arange(50_000) < 25_000
    weighted = fit_calibration(scores, right, 1.0 + twice)
    repeated = fit_calibration(np.append(scores, scores[twice]), np.append(right, right[twice]))
    assert weighted.slope == pytest.approx(repeated.slope, rel=1e-3)


def test_the_fit_ends_for_any_scores() -> None:
    separated = fit_calibration(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert 0.5 < separated.probability(0.9) < 1
    assert 0 < separated.probability(0.1) < 0.5
    falling = fit_calibration(np.array([0.9, 0.8, 0.2, 0.1]), np.array([False, False, True, True]))
    assert falling.slope == 0
    assert falling.probability(0.9) == pytest.approx(0.5)
    equal = fit_calibration(np.full(8, 0.4), np.arange(8) < 2)
    assert equal.probability(0.4) == pytest.approx((2 * 3 / 4 + 6 / 8) / 8)  # the mean of the targets of Platt
    for score, number in ((0.7, 7), (0.1, 1000)):
        rounded = fit_calibration(np.full(number, score), np.arange(number) < 2)  # their mean is not exactly the score
        assert abs(rounded.slope) < 1e-6
    huge = fit_calibration(1e6 * np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True]))
    assert np.isfinite([huge.slope, huge.intercept]).all()
    for right in (True, False):
        with pytest.raises(ValueError, match="right and hits that are wrong"):
            fit_calibration(np.arange(3.0), np.full(3, right))


def test_the_probability_is_exact_for_extreme_scores() -> None:
    assert Calibration(1000.0, 0.0).probability([-1e6, 0.0, 1e6]).tolist() == [0.0, 0.5, 1.0]


def test_no_probability_is_shown_as_certain() -> None:
    assert [percent(value) for value in (0.0, 0.004, 0.126, 0.5, 0.9996, 1.0)] == [1, 1, 13, 50, 99, 99]


def test_the_measures_of_reliability() -> None:
    measured = reliability(np.array([0.25, 0.25, 0.25, 0.25, 0.95]), np.array([True, False, False, False, False]))
    assert (measured.hits, measured.right) == (5, pytest.approx(0.2))
    assert [(round(each.share, 3), round(each.probability, 3), round(each.right, 3)) for each in measured.bins] == [
        (0.8, 0.25, 0.25),
        (0.2, 0.95, 0.0),
    ]
    assert measured.error == pytest.approx(0.2 * 0.95)
    assert measured.brier == pytest.approx((0.75**2 + 3 * 0.25**2 + 0.95**2) / 5)
    assert measured.brier_of_mean == pytest.approx(0.2 * 0.8)
    assert reliability(np.array([1.0]), np.array([True])).bins[0].probability == 1


def test_every_query_counts_the_same_and_groups_stay_together() -> None:
    hits = JudgedHits.of([("a", [0.9] * 8, [True] * 8), ("b", [0.1, 0.2], [False, True]), ("c", [], [])])
    assert np.bincount(hits.queries, hits.weights).tolist() == [1, 1]
    folds = JudgedHits.of([(f"{number % 7}", [0.5], [True]) for number in range(70)]).folds()
    assert all(len(set(folds[number::7].tolist())) == 1 for number in range(7))
    assert set(folds.tolist()) == {0, 1, 2, 3, 4}
    assert cross_validate(hits) is None  # without the first query, there is no fit that is worth anything


def test_few_queries_with_a_right_best_hit_are_weak() -> None:
    rng = np.random.default_rng(3)

    def hits(share: float, lead: float) -> JudgedHits:
        """Queries with one right hit among 12: for a share of them it is the best one, by a lead in its score."""
        queries = []
        for number in range(400):
            scores = sorted(rng.normal(0.5, 0.1, 12) + 0.02, reverse=True)
            place = 0 if rng.random() < share else 5
            scores[0] += lead * (place == 0)
            queries.append((f"{number}", scores, [rank == place for rank in range(12)]))
        return JudgedHits.of(queries)

    for share, lead in ((0.1, 0.0), (0.9, 0.5)):
        judged = hits(share, lead)
        fitted = fit_hits(judged)
        best = np.array([judged.scores[12 * number] for number in range(400)])
        right = np.array([judged.right[12 * number] for number in range(400)])
        weak = fitted.probability(best) < fitted.weak_below
        assert weak[right].mean() <= 0.05
        assert (fitted.weak_below < WEAK_BELOW) == (share == 0.1)


# ---- A collection ----


def test_tune_calibrates_a_collection_which_keeps_that(labelled: Path, words: WordEncoder) -> None:
    with Collection.open(labelled) as collection:
        assert search(collection, "thing 3", encoders=[words]).probabilities is None
        tuning = tune(collection, "words", runtime=_runtime(words))
        assert [each.kind for each in tuning.calibrations] == ["text", "image"]
        for each in tuning.calibrations:
            assert each.queries == (LABELS if each.kind == "text" else LABELS * ITEMS_OF_LABEL)
            assert each.calibration.slope > 0
            assert each.reliability is not None
            assert each.reliability.error < 0.12
            assert each.reliability.brier < each.reliability.brier_of_mean
    with Collection.open(labelled) as collection:
        stored = collection.calibrations()
        assert stored == {"words": {each.kind: each.calibration for each in tuning.calibrations}}
        result = search(collection, "thing 3", encoders=[words])
        assert result.calibration == stored["words"]["text"]
        assert result.probabilities is not None
        assert result.probabilities == sorted(result.probabilities, reverse=True)
        # The share of right hits is what the probabilities say, over all queries.
        results = [search(collection, f"thing {number}", encoders=[words]) for number in range(LABELS)]
        expected = np.mean([each.probabilities for each in results])
        right = [hit.item.label == f"n{number}" for number, each in enumerate(results) for hit in each.hits]
        assert expected == pytest.approx(np.mean(right), abs=0.03)
        similar = search_similar(collection, 5)
        assert similar.calibration == stored["words"]["image"]
        assert not similar.weak


def _runtime(words: WordEncoder) -> object:
    from pixmatcher import Runtime

    return Runtime(encoders=(words,))


def test_a_calibration_holds_for_its_encoder_only(labelled: Path, words: WordEncoder) -> None:
    with Collection.open(labelled) as collection:
        collection.set_calibrations("words", {"text": Calibration(5.0, -1.0), "image": Calibration(3.0, 0.0)})
        collection.set_calibrations("words", {"text": Calibration(6.0, -1.0)})
        assert collection.calibrations() == {"words": {"text": Calibration(6, -1), "image": Calibration(3, 0)}}
        with pytest.raises(PixMatcherError, match="does not exist"):
            collection.set_calibrations("other", {"text": Calibration(6.0, -1.0)})
    manifest = labelled / "collection.json"
    manifest.write_text(manifest.read_text().replace("words-1", "words-2"))
    with Collection.open(labelled) as collection:
        assert collection.calibrations() == {}
        newer = replace(words, fingerprint="words-2")
        assert search(collection, "thing 3", encoders=[newer]).probabilities is None
        collection.set_calibrations("words", {"text": Calibration(2.0, 0.0)})
        assert collection.calibrations() == {"words": {"text": Calibration(2, 0)}}
        assert search(collection, "thing 3", encoders=[newer]).calibration == Calibration(2, 0)


def test_captions_calibrate_a_collection_without_labels(tmp_path: Path, words: WordEncoder) -> None:
    with Collection.create(tmp_path / "c", [words]) as collection:
        fill(collection, captions=True)
        (found,) = calibrate(collection, "words", runtime=_runtime(words))
        assert (found.kind, found.queries) == ("text", LABELS)
        assert found.reliability is not None
        assert 0.5 < found.reliability.right < ITEMS_OF_LABEL / 12


def test_copies_of_a_caption_are_right_too(tmp_path: Path, words: WordEncoder) -> None:
    with Collection.create(tmp_path / "c", [words]) as collection:
        numbers = range(40)
        items = [
            Item(f"/{n}.jpg", content_hash=f"{n % 20}", caption=f"photo of {n}" if n < 20 else None) for n in numbers
        ]
        collection.add(items, {"words": vectors_of([n % 20 for n in numbers])})
        (found,) = calibrate(collection, "words", runtime=_runtime(words))
        assert found.calibration.probability(1.0) > 0.9
        assert found.reliability is not None
        assert found.reliability.right == pytest.approx(2 / 12)


def test_a_collection_with_too_little_stays_without(tmp_path: Path, words: WordEncoder) -> None:
    with Collection.create(tmp_path / "c", [words]) as collection:
        vectors = vectors_of(range(30))
        collection.add([Item(f"/{n}.jpg", content_hash=str(n), label="all") for n in range(30)], {"words": vectors})
        assert calibrate(collection, "words", runtime=_runtime(words)) == []  # every hit is right
        collection.add(
            [Item(f"/{n}.jpg", content_hash=str(n), label=f"{n}") for n in range(18)], {"words": vectors[:18]}
        )
        assert calibrate(collection, "words", runtime=_runtime(words)) == []
        assert collection.calibrations() == {}


def test_a_calibration_that_the_labels_do_not_confirm_is_removed(labelled: Path, words: WordEncoder) -> None:
    rng = np.random.default_rng(5)
    with Collection.open(labelled) as collection:
        collection.set_calibrations("words", {"text": Calibration(5.0, 0.0)})
        assert [each.kind for each in calibrate(collection, "words", runtime=_runtime(words))] == ["text", "image"]
        items = list(collection.items())
        labels = [f"n{number}" for number in rng.permutation(np.arange(len(items)) % LABELS)]
        changed = [replace(item, label=label) for item, label in zip(items, labels, strict=True)]
        collection.add(changed, {"words": collection.embeddings([item.id for item in items], "words")})
        assert calibrate(collection, "words") == []  # without the encoder of the texts
        assert set(collection.calibrations()["words"]) == {"text"}
        assert calibrate(collection, "words", runtime=_runtime(words)) == []
        assert collection.calibrations() == {}


def test_texts_are_left_out_without_their_encoder(labelled: Path) -> None:
    with Collection.open(labelled) as collection:
        assert [each.kind for each in calibrate(collection, "words")] == ["image"]


def test_texts_that_cannot_be_queries_are_left_out(labelled: Path) -> None:
    class Reader(WordEncoder):
        def reads_text(self, text: str) -> bool:
            return text.isascii()

    runtime = _runtime(Reader())
    with Collection.open(labelled) as collection:
        before = calibrate(collection, "words", runtime=runtime)
        names = ["кошка", " \u2003 ", "long " * 3000]
        collection.add([Item(f"/l{n}.jpg", label=name) for n, name in enumerate(names)], {"words": np.zeros((3, 40))})
        after = calibrate(collection, "words", runtime=runtime)
        assert [each.queries for each in after if each.kind == "text"] == [LABELS]
        assert after == before
        queries = []
        tune_index = collection.indexes.tune

        def recorded(*arguments: object, **options: object) -> object:
            queries.append(options["queries"])
            return tune_index(*arguments, **options)  # type: ignore[arg-type]

        collection.indexes.tune = recorded  # type: ignore[method-assign, assignment]
        tune(collection, "words", runtime=runtime)
    assert queries[0].shape == (LABELS, DIMENSION)


def test_hits_without_a_label_are_neither_right_nor_wrong(labelled: Path, words: WordEncoder) -> None:
    with Collection.open(labelled) as collection:
        before = calibrate(collection, "words", runtime=_runtime(words))
        queries = collection.embeddings(collection.sample_ids(20), "words")
        collection.add([Item(f"/u{n}.jpg", content_hash=f"u{n}") for n in range(20)], {"words": 0.01 * queries})
        after = calibrate(collection, "words", runtime=_runtime(words))
    assert [each.calibration for each in after] == [each.calibration for each in before]


def test_the_own_calibration_comes_before_that_of_the_encoder(labelled: Path, words: WordEncoder) -> None:
    words.calibrations = {"words": {"text": Calibration(4.0, 0.0), "image": Calibration(3.0, 0.0)}}
    with Collection.open(labelled) as collection:
        assert search(collection, "thing 3", encoders=[words]).calibration == Calibration(4, 0)
        assert search_similar(collection, 1, encoders=[words]).calibration == Calibration(3, 0)
        assert search_similar(collection, 1).calibration is None  # the object is not known
        collection.set_calibrations("words", {"text": Calibration(5.0, 0.0)})
        assert search(collection, "thing 3", encoders=[words]).calibration == Calibration(5, 0)
        assert search_similar(collection, 1, encoders=[words]).calibration == Calibration(3, 0)


def test_a_renamed_space_keeps_its_calibration(tmp_path: Path, words: WordEncoder) -> None:
    words.calibrations = {"words": {"text": Calibration(4.0, 0.0)}}
    other = WordEncoder(name="other")
    with Collection.create(tmp_path / "c", load_encoders([other, words])) as collection:
        assert [*collection.spaces] == ["words", "words-2"]
        collection.add([Item("/a.jpg", content_hash="a")], {name: vectors_of([1]) for name in collection.spaces})
        found = {
            space: search(collection, "thing 1", SearchOptions(space=space), encoders=[other, words]).calibration
            for space in collection.spaces
        }
    assert found == {"words": None, "words-2": Calibration(4, 0)}


def test_a_store_without_calibrations_has_those_of_the_encoder(labelled: Path, words: WordEncoder) -> None:
    class OtherStore:
        """A store of another package, without the optional method."""

        def __init__(self, collection: Collection) -> None:
            self.path, self.encoders, self.spaces = collection.path, collection.encoders, collection.spaces
            self.search, self.embeddings = collection.search, collection.embeddings

    words.calibrations = {"words": {"text": Calibration(4.0, 0.0)}}
    with Collection.open(labelled) as collection:
        collection.set_calibrations("words", {"text": Calibration(5.0, 0.0)})
        store = OtherStore(collection)
        assert search(store, "thing 3", encoders=[words]).calibration == Calibration(4, 0)  # type: ignore[arg-type]


def test_a_store_that_names_no_encoder_finds_similar_items(labelled: Path) -> None:
    class OtherStore:
        def __init__(self, collection: Collection) -> None:
            self.path, self.encoders, self.spaces = collection.path, (), collection.spaces
            self.search, self.embeddings = collection.search, collection.embeddings

    with Collection.open(labelled) as collection:
        result = search_similar(OtherStore(collection), 5)  # type: ignore[arg-type]
    assert (result.hits[0].item.id, result.probabilities, result.weak) == (5, None, False)


def test_an_older_collection_is_read_without_and_migrated_by_tune(labelled: Path, words: WordEncoder) -> None:
    with contextlib.closing(sqlite3.connect(labelled / "catalog.sqlite")) as connection:
        connection.execute("DROP TABLE calibrations")
        connection.execute("PRAGMA user_version = 3")
        connection.commit()
    with Collection.open(labelled) as collection:
        assert collection.calibrations() == {}
        assert search(collection, "thing 3", encoders=[words]).probabilities is None
        tune(collection, "words", runtime=_runtime(words))
        assert set(collection.calibrations()["words"]) == {"text", "image"}


def test_the_plot(labelled: Path, words: WordEncoder, tmp_path: Path) -> None:
    with Collection.open(labelled) as collection:
        tuning = tune(collection, "words", runtime=_runtime(words))
    assert save_plot([tuning], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not save_plot([replace(tuning, calibrations=[])], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    (measured,) = [each.reliability for each in tuning.calibrations if each.kind == "text"]
    assert measured is not None
    draw_reliability(axes, {"words": measured})
    assert axes.lines[1].get_xydata().tolist() == [[each.probability, each.right] for each in measured.bins]


# ---- What the faces show ----


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "photos"
    shutil.copytree(PHOTOS, folder, ignore=shutil.ignore_patterns("*.md", "*.txt", "*.json"))
    index(folder)
    return folder


def test_lite_is_calibrated(photos: Path) -> None:
    lite = load_encoder()
    with Collection.open(photos) as collection:
        for query in ("a cat", Query(image=photos / "cat.jpg")):
            result = search(collection, query)
            kind = "text" if isinstance(query, str) else "image"
            assert result.calibration == lite.calibrations[result.space][kind]  # type: ignore[attr-defined]
            assert not result.weak
            assert Path(result.hits[0].item.uri).name == "cat.jpg"
            assert result.probabilities is not None
            assert result.probabilities[0] > 0.5
        both = search(collection, Query("a cat", photos / "horse.jpg"))
        assert both.probabilities is None
        assert "weak" not in both.as_json()
        filtered = search(collection, "a cat", SearchOptions(min_score=0.9))
        assert (filtered.hits, filtered.weak) == ([], False)


def test_the_json_and_the_note_of_a_weak_result(photos: Path) -> None:
    done = cli("search", "asdkjh qwe zzx", "-c", photos, "--json")
    answer = json.loads(done.stdout)
    assert answer["weak"] is True
    assert answer["note"] == WEAK_NOTE
    assert done.stderr == f"Note: {WEAK_NOTE}\n"
    assert all(0 <= hit["probability"] < WEAK_BELOW for hit in answer["hits"])
    done = cli("search", "a cat", "-c", photos)
    assert done.stderr == ""
    header, first, *_ = done.stdout.splitlines()[1:]
    assert header.split()[:4] == ["rank", "score", "prob.", "image"]
    assert first.split()[2].endswith("%")
    assert int(first.split()[2].rstrip("%")) > 50
    answer = json.loads(cli("search", "a cat", "-c", photos, "--json").stdout)
    assert answer["weak"] is False
    assert "note" not in answer


UNREADABLE = ["кошка", "一只猫", "قطة", "🐱", "!!!", "1\ufe0f\u20e3", "…", "\u2460", "\u2167", "\uff11"]
READABLE = ["cat", "un été", "7", "猫 cat", "🐱 cat", "\uff43\uff41\uff54", "Ørsted", "I ❤️ it"]


def test_which_texts_lite_reads() -> None:
    reads = load_encoder().reads_text  # type: ignore[attr-defined]
    assert [text for text in UNREADABLE if reads(text)] == []
    assert [text for text in READABLE if not reads(text)] == []
    with pytest.raises(QueryError, match="Unicode"):
        reads("\udcff")


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_text_that_cannot_be_read_has_a_note_and_no_hits(photos: Path, text: str) -> None:
    with Collection.open(photos) as collection:
        result = search(collection, text)
        assert (result.query, result.space, result.hits, result.weak) == (text, "semantic", [], False)
        assert result.note == str(result.unreadable)
        assert "write it in English" in result.note
        (answer, other) = search_batch(collection, [text, "a cat"])
        assert (answer["note"], answer["hits"]) == (result.note, [])
        assert "error" not in answer
        assert other["hits"]
        with pytest.raises(UnreadableTextError):
            embed_query(Query(text), collection.encoders)
        beside = search(collection, Query(text, photos / "cat.jpg"))
        alone = search(collection, Query(image=photos / "cat.jpg"))
        assert (beside.hits, beside.space, beside.calibration) == (alone.hits, alone.space, alone.calibration)
        assert beside.note.startswith("Only the image was searched for. The encoder lite cannot read this text")


def test_the_command_line_says_that_it_cannot_read_a_text(photos: Path) -> None:
    done = cli("search", "кошка", "-c", photos)
    assert done.returncode == 0
    assert done.stderr.startswith("Note: The encoder lite cannot read this text: write it in English")
    assert "No hits." in done.stdout
    done = cli("map", "--query", "кошка", "-c", photos, photos.parent / "map.png")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: The encoder lite cannot read this text")


def test_an_encoder_that_reads_the_text_answers_instead(tmp_path: Path) -> None:
    class Silent(WordEncoder):
        def reads_text(self, text: str) -> bool:
            return False

    silent, other = Silent(), WordEncoder(name="other")
    with Collection.create(tmp_path / "c", load_encoders([silent, other])) as collection:
        collection.add([Item("/a.jpg", content_hash="a")], {name: vectors_of([1]) for name in collection.spaces})
        result = search(collection, "thing 1", encoders=[silent, other])
        assert result.space == "words-2"
        assert result.note == "The encoder other is used, because words cannot read this text."
        alone = search(collection, "thing 1", SearchOptions(space="words"), encoders=[silent, other])
        assert alone.hits == []
        assert "a language that the encoder reads" in alone.note


def test_an_encoder_that_cannot_be_used_is_named_before_a_text_that_another_cannot_read(tmp_path: Path) -> None:
    class Silent(WordEncoder):
        def reads_text(self, text: str) -> bool:
            return False

    missing, silent = WordEncoder(name="missing"), Silent()
    with Collection.create(tmp_path / "c", load_encoders([missing, silent])) as collection:
        collection.add([Item("/a.jpg", content_hash="a")], {name: vectors_of([1]) for name in collection.spaces})
        with pytest.raises(EncoderError, match=r"None of the encoders .* made with the encoder missing"):
            search(collection, "thing 1", encoders=[silent])
        beside = search(collection, Query("thing 1", PHOTOS / "cat.jpg"), encoders=[silent])
        assert "words cannot read this text" in beside.note
        assert "missing cannot be used here" in beside.note


def test_tune_on_the_command_line(tmp_path: Path) -> None:
    for label in range(20):  # each label has the same picture in three sizes
        for width in (40, 44, 48):
            paint(tmp_path / "photos" / f"label{label}" / f"{width}.png", seed=label, size=(width, 30))
    index(tmp_path / "photos", tmp_path / "c")
    with Collection.open(tmp_path / "c") as collection:
        items = [replace(item, label=Path(item.uri).parent.name) for item in collection.items()]
        ids = [item.id for item in items]
        collection.add(items, {space: collection.embeddings(ids, space) for space in collection.spaces})
    done = cli("tune", "-c", tmp_path / "c", "--json", "--plot", tmp_path / "plot.svg")
    assert done.returncode == 0, done.stderr
    tunings = json.loads(done.stdout)
    found = {(each["space"], own["kind"]): own for each in tunings for own in each["calibrations"]}
    assert ("visual", "image") in found
    assert set(found["visual", "image"]["reliability"]) >= {"error", "brier", "brier_of_mean", "bins"}
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()
    done = cli("tune", "-c", tmp_path / "c", "--space", "visual")
    assert "The probability of hits was calibrated with 60 images. On queries left out it is off by 0." in done.stdout
