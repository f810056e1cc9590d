"""Encoders by name, several of them in one collection, and how they are run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import (
    Collection,
    CollectionError,
    EncoderError,
    Query,
    QueryError,
    SearchOptions,
    encoders,
    evaluate,
    index,
    search,
)
from pixmatcher.encoders import Runtime, describe_encoder, load_encoder, load_encoders, load_recorded
from pixmatcher.encoders._cache import cache_folder, model_folder
from pixmatcher.export import export_arrays
from support import TinyEncoder, cli, paint, paint_many


class OtherEncoder(TinyEncoder):
    """A second encoder whose spaces have the names of the first."""

    name = "other"
    fingerprint = "other-1"

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {name: -vectors for name, vectors in super().encode_images(pixels).items()}


@pytest.fixture
def other(tiny: TinyEncoder) -> Iterator[OtherEncoder]:
    encoder = OtherEncoder()
    encoders.register_encoder("other", lambda: encoder)
    yield encoder
    encoders.unregister_encoder("other")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- Several in one collection ----


def test_spaces_with_the_same_name_get_different_names(tiny: TinyEncoder, other: OtherEncoder, tmp_path: Path) -> None:
    paths = paint_many(tmp_path / "photos", 5)
    index(tmp_path / "photos", encoders=["tiny", "other"])
    assert tiny.encoded == other.encoded == 5
    with Collection.open(tmp_path / "photos") as collection:
        assert [*collection.spaces] == ["visual", "semantic", "visual-2", "semantic-2"]
        ids = [item.id for item in collection.items()]
        first, second = (collection.embeddings(ids, space) for space in ("visual", "visual-2"))
        np.testing.assert_allclose(first, -second, atol=1e-3)
        for space in ("visual", "visual-2"):
            result = search(collection, Query(image=paths[2]), SearchOptions(k=1, space=space))
            assert (result.space, result.hits[0].item.uri) == (space, str(paths[2]))
            assert result.hits[0].score == pytest.approx(1, abs=1e-2)
        assert search(collection, Query(image=paths[2])).space == "visual"
        assert search(collection, "a text").space == "semantic"
        assert search(collection, "a text", SearchOptions(space="semantic-2")).space == "semantic-2"
        loaded = load_recorded(collection.encoders)
        assert [encoder.name for encoder in loaded] == ["tiny", "other"]
        assert [[space.name for space in encoder.spaces] for encoder in loaded] == [
            ["visual", "semantic"],
            ["visual-2", "semantic-2"],
        ]
        export_arrays(collection, tmp_path / "saved")
    # Saved arrays are imported with the same names.
    index(f"arrays:{tmp_path / 'saved' / 'embeddings.npy'}", tmp_path / "back")
    with Collection.open(tmp_path / "back") as back:
        assert [*back.spaces] == ["visual", "semantic", "visual-2", "semantic-2"]
        assert search(back, Query(image=paths[3]), SearchOptions(k=1, space="visual-2")).hits[0].item.uri == str(
            paths[3]
        )


def test_a_refresh_fills_all_spaces(tiny: TinyEncoder, other: OtherEncoder, tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 2)
    index(tmp_path / "photos", encoders=["tiny", "other", "tiny"])
    paint_many(tmp_path / "photos", 2, first=7)
    report = index(tmp_path / "photos")
    assert (report.added, report.total) == (2, 4)
    with Collection.open(tmp_path / "photos") as collection:
        assert collection.verify() == []
        with pytest.raises(CollectionError, match="made with the encoders tiny, other"):
            index(tmp_path / "photos", encoders=["tiny"])


def test_spaces_that_cannot_answer_a_query(tiny: TinyEncoder, tmp_path: Path) -> None:
    (path,) = paint_many(tmp_path / "photos", 1)
    index(tmp_path / "photos", encoders=["tiny"])
    with Collection.open(tmp_path / "photos") as collection:
        with pytest.raises(
            QueryError, match="space 'clip' does not exist in this collection: choose one of visual, semantic"
        ):
            search(collection, "a text", SearchOptions(space="clip"))
        with pytest.raises(QueryError, match="visual does not support text"):
            search(collection, "a text", SearchOptions(space="visual"))
        with pytest.raises(QueryError, match="visual does not support text"):
            search(collection, Query("a text", path), SearchOptions(space="visual"))


def test_an_evaluation_in_a_space(tiny: TinyEncoder, other: OtherEncoder, tmp_path: Path) -> None:
    for label in ("a", "b"):
        for seed in range(3):
            paint(tmp_path / "photos" / label / f"{label}{seed}.png", seed + 10 * (label == "b"))
    root = tmp_path / "tiny-imagenet-200"
    for label in ("n1", "n2"):
        for seed in range(3):
            paint(root / "train" / label / "images" / f"{label}_{seed}.JPEG", seed + 10 * (label == "n2"), kind="JPEG")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "words.txt").write_text("n1\tfirst\nn2\tsecond\n")
    spec = f"tiny-imagenet:{root}?split=train"
    index(spec, tmp_path / "c", encoders=["tiny", "other"])
    with Collection.open(tmp_path / "c") as collection:
        found = evaluate(collection, spec, k=2, space="visual-2")
        assert found.images is not None
        assert found.images.space == "visual-2"
        assert found.texts is None
        found = evaluate(collection, spec, k=2)
        assert found.images is not None
        assert found.texts is not None
        assert (found.images.space, found.texts.space) == ("visual", "semantic")


# ---- Names ----


@pytest.mark.parametrize("name", ["resnet50", "torch:resnet50", "timm:", "", "LITE", "hf", "clip-vit-b-32@int4"])
def test_unknown_encoder_names_are_refused(name: str) -> None:
    for load in (load_encoder, describe_encoder):
        with pytest.raises(EncoderError, match=r"Unknown encoder .*: choose one of lite, mobilenet_v3_large, "):
            load(name)


def test_encoders_of_the_original_are_known_without_their_weights() -> None:
    assert [(s.name, s.dimension) for s in describe_encoder("mobilenet_v3_large").spaces] == [("visual", 960)]
    assert [(s.name, s.dimension) for s in describe_encoder("mobilenet_v3_small").spaces] == [("visual", 576)]
    assert [(s.name, s.dimension, s.text) for s in describe_encoder("clip-vit-b-32").spaces] == [("clip", 512, True)]


def test_a_missing_encoder_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="missing"):
        load_encoder(f"onnx:{tmp_path / 'missing'}")


def test_int8_must_be_exported_first() -> None:
    with pytest.raises(EncoderError, match=r"models export mobilenet_v3_large --int8"):
        load_encoder("mobilenet_v3_large@int8")


def test_the_cache_is_where_the_user_says(empty_cache: Path) -> None:
    assert cache_folder() == empty_cache
    assert model_folder("open_clip:ViT-B-32/openai").parent == empty_cache / "models"
    assert model_folder("a/../../b").parent == empty_cache / "models"


# ---- Runtime ----


def test_the_environment_sets_the_defaults_of_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Runtime() == Runtime("auto", "auto", False)
    monkeypatch.setenv("PIXMATCHER_BACKEND", "onnx")
    monkeypatch.setenv("PIXMATCHER_DEVICE", "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert Runtime() == Runtime("onnx", "cpu", True)
    assert Runtime("torch", offline=False) == Runtime("torch", "cpu", False)
    with pytest.raises(EncoderError, match="Unknown backend 'tensorflow': choose one of auto, onnx, torch"):
        Runtime("tensorflow")


def test_options_of_the_command_line(tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 1)
    for options, words in (
        (("--encoder", "nothing"), "Unknown encoder 'nothing'"),
        (("--encoder", "lite", "--backend", "jax"), "Unknown backend 'jax'"),
        (("--weights", "w.pth"), "name it with --encoder"),
        (("--encoder", "hf:a/b", "--offline"), "lite"),
    ):
        wrong = cli("index", tmp_path / "photos", *options)
        assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1), wrong.stderr
        assert words in wrong.stderr
    assert not (tmp_path / "photos" / ".pixmatcher").exists()
    assert cli("index", tmp_path / "photos").returncode == 0
    found = cli("search", "a cat", "--space", "clip", "-c", tmp_path / "photos")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "choose one of visual, semantic" in found.stderr
    assert "semantic" in cli("search", "a cat", "--space", "semantic", "-c", tmp_path / "photos").stdout


def test_loading_keeps_the_first_names(tiny: TinyEncoder, other: OtherEncoder) -> None:
    first, second = load_encoders(["tiny", "other"])
    assert first is tiny
    assert second.recipe == other.recipe
    assert second.batch_size == other.batch_size
    second.load_images()
    assert [*second.encode_texts(["a"])] == ["semantic-2"]
