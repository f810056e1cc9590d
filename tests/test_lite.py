"""The bundled encoder: its files, its embeddings, and what it loads when."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pixmatcher.encoders import lite, load_encoder
from pixmatcher.encoders.lite import FILES, LiteEncoder
from pixmatcher.encoders.lite._lexicon import CLASSES, GROUPS, SHARE_UNITS, Lexicon, words
from pixmatcher.errors import EncoderError, QueryError
from pixmatcher.images import fit_image, open_image

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
NAMES = ["cat", "rocket", "coffee", "horse", "flower", "temple"]

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def encoder() -> LiteEncoder:
    return LiteEncoder()


@pytest.fixture(scope="module")
def photos() -> Pixels:
    """The photos of `NAMES`, (6, 260, 260, 3)."""
    recipe = LiteEncoder.recipe
    paths = (PHOTOS / f"{name}.jpg" for name in NAMES)
    return np.stack([fit_image(open_image(path, min_side=recipe.min_side).image, recipe) for path in paths])


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FILES / "card.json").read_text("utf-8"))
    return content


# ---- The files ----


def test_shipped_files_match_the_card(card):
    assert {file.name for file in FILES.iterdir()} == {*card["files"], "card.json"}
    for name, entry in card["files"].items():
        content = (FILES / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
        assert len(content) == entry["bytes"]


def test_shipped_files_stay_within_36_megabytes():
    assert sum(file.stat().st_size for file in FILES.iterdir()) <= 36_000_000


def test_fingerprint_depends_on_files_and_constants(card, monkeypatch):
    hashes = {name: entry["sha256"] for name, entry in card["files"].items()}
    assert LiteEncoder().fingerprint == lite.fingerprint_of(hashes)
    assert lite.fingerprint_of({**hashes, "visual.onnx": "0" * 64}) != lite.fingerprint_of(hashes)
    monkeypatch.setattr(lite, "MAX_TOKENS", 128)
    assert lite.fingerprint_of(hashes) != LiteEncoder().fingerprint


def test_arrays_hold_numbers_only():
    for path in FILES.glob("*.npz"):
        with zipfile.ZipFile(path) as stored:
            assert all(name.endswith(".npy") for name in stored.namelist())
        with np.load(path, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype.kind in "fi" for name in arrays.files)


def test_card_names_a_source_a_licence_and_a_hash_for_everything(card):
    for source in card["sources"].values():
        assert len(str(source["sha256"])) == 64
        assert source["licence"]
        assert re.match(r"[\w-]+==?[\d.:-]+", str(source["package"]))


def test_the_reached_figures_meet_the_requirements(card):
    reached = card["figures"]["tiny-imagenet-mini, precision@10"]
    assert reached["visual"] >= 0.558
    assert reached["semantic"] >= 0.634
    captions = card["figures"]["held-out photographs"]["captions"]
    assert captions["recall@10"] >= 0.63
    assert captions["recall@1"] >= 0.21


def test_the_card_says_what_the_encoder_was_fitted_on(card):
    assert len(card["fitted_on"]) == 3
    for data in card["fitted_on"]:
        assert len(data["sha256"]) == 64
        assert data["terms"]


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("card.json", lambda encoder: None),
        ("visual.onnx", lambda encoder: encoder.encode_images(np.zeros((1, 260, 260, 3), np.uint8))),
        ("heads.onnx", lambda encoder: encoder.encode_images(np.zeros((1, 260, 260, 3), np.uint8))),
        ("textual.onnx", lambda encoder: encoder.encode_texts(["cat"])),
        ("words.bin", lambda encoder: encoder.encode_texts(["cat"])),
        ("tokenizer.json", lambda encoder: encoder.encode_texts(["cat"])),
        ("lexicon.npz", lambda encoder: encoder.encode_texts(["cat"])),
    ],
)
@pytest.mark.parametrize("missing", [True, False])
def test_missing_and_damaged_files_are_reported(tmp_path, name, use, missing):
    for file in FILES.iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
        elif not missing:
            (tmp_path / name).write_bytes(file.read_bytes()[:1000])
    with pytest.raises(EncoderError, match=r"cannot load .*: install pixmatcher again"):
        use(LiteEncoder(tmp_path))


# ---- Embeddings ----


def test_images_are_embedded_in_both_spaces(encoder, photos):
    embeddings = encoder.encode_images(photos)
    assert {name: vectors.shape for name, vectors in embeddings.items()} == {
        space.name: (len(photos), space.dimension) for space in encoder.spaces
    }
    assert all(vectors.dtype == np.float32 for vectors in embeddings.values())
    assert all(np.isfinite(vectors).all() for vectors in embeddings.values())
    np.testing.assert_allclose(np.linalg.norm(embeddings["visual"], axis=1), 1, atol=1e-5)


def test_names_weigh_more_in_a_name_than_in_a_sentence(encoder):
    texts = encoder.encode_texts(["goldfish", "two men in red jackets walk across a snowy field with their dogs"])
    scene, names = np.split(texts["semantic"], [lite.SCENE_DIMENSION], axis=1)
    weights = np.linalg.norm(names, axis=1) / np.linalg.norm(scene, axis=1)
    assert weights[0] > 1 > weights[1]


def test_texts_have_lengths_of_about_one(encoder):
    texts = ["cat", "two dogs play in the snow", "", "goldfish", "a man", "xyzzy"]
    lengths = np.linalg.norm(encoder.encode_texts(texts)["semantic"], axis=1)
    assert (lengths > 0.5).all()
    assert (lengths < 2).all()


def test_same_image_twice_gives_the_same_embedding(encoder, photos):
    first, second = encoder.encode_images(photos), LiteEncoder().encode_images(photos)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_batch_equals_one_by_one(encoder, photos):
    together = encoder.encode_images(photos)
    for row in range(len(photos)):
        for name, vectors in encoder.encode_images(photos[row : row + 1]).items():
            np.testing.assert_allclose(vectors[0], together[name][row], atol=1e-5)


def test_images_can_have_any_memory_order(encoder, photos):
    np.testing.assert_allclose(
        encoder.encode_images(photos[::-1])["visual"],
        encoder.encode_images(photos)["visual"][::-1],
        atol=1e-5,
    )


def test_texts_do_not_depend_on_their_neighbours(encoder):
    texts = ["a cat", "a rocket that leaves the launch pad at night " * 20, "coffee"]
    together = encoder.encode_texts(texts)["semantic"]
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(encoder.encode_texts([text])["semantic"][0], vector)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", "cat"),
        ("rocket", "rocket"),
        ("a cup of coffee", "coffee"),
        ("horse", "horse"),
        ("daisy", "flower"),
        ("an old temple in China", "temple"),
        ("kittens", "cat"),
        ("stallion", "horse"),
        ("a spacecraft", "rocket"),
        ("an animal stands on the grass", "horse"),
        ("a hot drink on a table", "coffee"),
    ],
)
def test_text_finds_its_photo(encoder, photos, text, expected):
    scores = encoder.encode_images(photos)["semantic"] @ encoder.encode_texts([text])["semantic"][0]
    assert NAMES[int(scores.argmax())] == expected


@pytest.mark.parametrize("text", ["", "   ", "\n", "\0", "[PAD]", "日本の寺", "🐈", "x" * 300_000, "word " * 100_000])
def test_odd_texts_have_an_embedding(encoder, text):
    vector = encoder.encode_texts([text])["semantic"]
    assert np.isfinite(vector).all()


def test_texts_that_are_not_unicode_are_refused(encoder):
    with pytest.raises(QueryError, match="not valid Unicode"):
        encoder.encode_texts(["caf\udce9"])


def test_an_empty_list_of_texts_gives_no_rows(encoder):
    assert encoder.encode_texts([])["semantic"].shape == (0, encoder.spaces[1].dimension)


# ---- Words ----


@pytest.fixture(scope="module")
def naming() -> Lexicon:
    with np.load(FILES / "lexicon.npz", allow_pickle=False) as stored:
        return Lexicon(dict(stored))


def test_text_is_split_into_words():
    assert words("A bird's wings -- 2 Dogs' bones, ping-pong\n") == [
        *("a", "bird", "wings", "2", "dogs", "bones", "ping-pong")
    ]
    assert words(" ,.!? \0 日本 🐈") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("dogs", "dog"),
        ("butterflies", "butterfly"),
        ("buses", "bus"),
        ("geese", "goose"),
        ("a photo of a Dog!", "dog"),
        ("watch the dog", "dog"),  # mostly a verb
        ("the dog's", "dog"),
        ("the dog\u2019s", "dog"),
        ("fire-engines", "fire engine"),
        ("jalape\u00f1o", "jalapeno"),
        ("jalapen\u0303o", "jalapeno"),
        ("\uff24\uff4f\uff47", "dog"),
    ],
)
def test_texts_with_the_same_meaning(naming, one, other):
    assert naming.class_shares(other).sum() > 0
    np.testing.assert_array_equal(naming.class_shares(one), naming.class_shares(other))


def test_the_names_of_a_class_select_it(naming):
    goldfish = np.eye(CLASSES + GROUPS, dtype=np.float32)[1]
    np.testing.assert_array_equal(naming.class_shares("goldfish"), goldfish)
    np.testing.assert_array_equal(naming.class_shares("Carassius auratus"), goldfish)


def test_a_hypernym_selects_all_its_classes(naming):
    for name in ("dog", "bird", "vehicle", "fruit"):
        (number,) = np.flatnonzero(naming.class_shares(name))
        assert number >= CLASSES, name


def test_an_object_outside_the_classes_is_mapped_to_similar_classes(naming):
    shares = naming.class_shares("kitten")
    assert 0 < shares.sum() < 1
    assert shares.argmax() in range(281, 286)  # the cats


def test_the_longest_matching_name_is_used(naming):
    assert naming.class_shares("sports car")[817] == 1
    assert naming.class_shares("sports car").sum() == 1
    np.testing.assert_array_equal(
        naming.class_shares("a dog in a sports car"), naming.class_shares("dog") + naming.class_shares("sports car")
    )


@pytest.mark.parametrize("text", ["", "the", "of and with", "qwertyuiop", "日本の寺", "-", "'s"])
def test_texts_without_known_words(naming, text):
    assert not naming.class_shares(text).any()


def test_the_shares_of_a_word_are_at_most_one(naming):
    shares = naming.row_shares.astype(int).sum(1)
    assert shares.min() > 0
    assert shares.max() <= SHARE_UNITS
    assert (np.diff(naming.word_keys) > 0).all()
    assert naming.row_members.max() < CLASSES + GROUPS


# ---- Loading ----


def test_registry_knows_lite():
    assert load_encoder("lite") is load_encoder("lite")
    assert load_encoder().name == "lite"


def test_each_side_is_loaded_when_it_is_needed():
    program = """
import sys
from pixmatcher import encoders
from pixmatcher.encoders import load_encoder
encoder = load_encoder("lite")
assert "onnxruntime" not in sys.modules
encoder.encode_texts(["cat"])
assert not encoder._images and "PIL" not in sys.modules
del encoder
encoders.unload_encoders()
for name in [name for name in sys.modules if name.startswith("tokenizers")]:
    del sys.modules[name]
import numpy
encoder = load_encoder("lite")
encoder.encode_images(numpy.zeros((1, 260, 260, 3), numpy.uint8))
assert not encoder._texts and "tokenizers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_many_threads_get_the_same_result_as_one(photos):
    fresh = LiteEncoder()

    def work(row: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        image = fresh.encode_images(photos[row % len(photos)][None])["visual"][0]
        return image, fresh.encode_texts([NAMES[row % len(NAMES)]])["semantic"][0]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(24)))
    alone = LiteEncoder()
    images, texts = alone.encode_images(photos)["visual"], alone.encode_texts(NAMES)["semantic"]
    for row, (image, text) in enumerate(results):
        np.testing.assert_allclose(image, images[row % len(photos)], atol=1e-5)
        np.testing.assert_array_equal(text, texts[row % len(NAMES)])
