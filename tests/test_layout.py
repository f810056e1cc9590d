"""Folders of ONNX files in the layout of hubs: what is read from them, and what is refused."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hub_models as models
from hub_models import CLIP_MEAN, CLIP_STD
from pixmatcher import EncoderError, PixMatcherError, load_encoder
from pixmatcher.encoders.onnx.external import external_files
from pixmatcher.encoders.onnx.layout import read_layout
from pixmatcher.images import Recipe


def one_sentence(error: pytest.ExceptionInfo[PixMatcherError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_folder_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write(tmp_path / "model", models.clip())
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder("onnx:model")
    assert encoder.name == f"onnx:{tmp_path}/model"
    models.check(encoder, models.colours(CLIP_MEAN, CLIP_STD), {"a dog": "<start> a dog <end>"})
    card = read_layout(Path("model"))
    assert (card.source, card.licence, card.fingerprint) == (f"{tmp_path}/model", "unknown", encoder.fingerprint)
    assert read_layout(tmp_path / "model").fingerprint == encoder.fingerprint


def test_a_folder_of_links_as_in_the_cache_of_the_official_client(tmp_path: Path) -> None:
    models.write(tmp_path / "blobs", models.clip())
    for name in models.clip():
        link = tmp_path / "snapshot" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "blobs" / name)
    models.check(load_encoder(f"onnx:{tmp_path}/snapshot"), models.colours(CLIP_MEAN, CLIP_STD))


def test_the_fingerprint_depends_on_everything_that_changes_embeddings(tmp_path: Path) -> None:
    def fingerprint(**changed: bytes) -> str:
        return read_layout(models.write(tmp_path / "model", models.clip(**changed))).fingerprint

    whole = fingerprint()
    assert fingerprint() == whole
    assert fingerprint(README=b"other") == whole
    other = models.as_json(**models.CLIP_IMAGES | {"resample": 2})
    changes = [
        fingerprint(vision_model=models.vision("image_embeds", size="side")),
        fingerprint(text_model=models.text(mask=False)),
        fingerprint(tokenizer=models.tokenizer() + b"\n"),
        fingerprint(preprocessor_config=other),
        fingerprint(config=models.as_json(text_config={"max_position_embeddings": 9})),
        fingerprint(tokenizer_config=models.as_json(pad_token="<pad>")),
    ]
    assert len({whole, *changes}) == 1 + len(changes)


def recipe_for(tmp_path: Path, **changed: object) -> Recipe:
    config = {key: value for key, value in {**models.CLIP_IMAGES, **changed}.items() if value != "left out"}
    files = models.clip(preprocessor_config=models.as_json(**config), vision_model=models.vision(size="side"))
    return read_layout(models.write(tmp_path / "model", files)).recipe


OUT = "left out"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"size": 16, "crop_size": 16}, (16, 1.0, "shortest")),
        ({"size": {"shortest_edge": 32}}, (16, 0.5, "shortest")),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, (224, 0.875, "shortest")),
        ({"size": {"shortest_edge": 16, "longest_edge": None}}, (16, 1.0, "shortest")),
        ({"size": {"height": 16, "width": 16}}, (16, 1.0, "squash")),
        ({"size": {"height": 20, "width": 20}}, (16, 0.8, "squash")),
        ({"size": {"height": 16, "width": 16}, "do_center_crop": False}, (16, 1.0, "squash")),
        ({"size": {"height": 24, "width": 24}, "do_center_crop": False, "crop_size": None}, (24, 1.0, "squash")),
        ({"image_processor_type": "ViTFeatureExtractor", "size": 16, "do_center_crop": OUT}, (16, 1.0, "squash")),
        (
            {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": 16, "do_center_crop": None},
            (16, 1, "squash"),
        ),
        (
            {"image_processor_type": OUT, "feature_extractor_type": "CLIPFeatureExtractor", "do_center_crop": OUT},
            (16, 1.0, "shortest"),
        ),
    ],
)
def test_sizes(tmp_path: Path, changed: dict[str, object], expected: tuple[int, float, str]) -> None:
    recipe = recipe_for(tmp_path, **changed)
    assert (recipe.size, recipe.crop, recipe.resize) == expected


@pytest.mark.parametrize(
    ("changed", "interpolation"),
    [
        ({"resample": 1}, "lanczos"),
        ({"resample": 2}, "bilinear"),
        ({"resample": 3}, "bicubic"),
        ({"resample": OUT}, "bicubic"),
        ({"resample": OUT, "image_processor_type": "ViTImageProcessor"}, "bilinear"),
    ],
)
def test_interpolations(tmp_path: Path, changed: dict[str, object], interpolation: str) -> None:
    assert recipe_for(tmp_path, **changed).interpolation == interpolation


@pytest.mark.parametrize(
    ("changed", "to_network"),
    [
        ({}, lambda x: (x / 255 - CLIP_MEAN) / CLIP_STD),
        ({"do_normalize": False}, lambda x: x / 255),
        ({"do_normalize": False, "do_rescale": False}, lambda x: x),
        (
            {"do_rescale": False, "image_mean": [123.7, 116.3, 103.5]},
            lambda x: (x - [123.7, 116.3, 103.5]) / CLIP_STD,
        ),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]}, lambda x: (x / 127.5 - 1) / CLIP_STD),
        (
            {"rescale_factor": OUT, "do_rescale": OUT, "do_normalize": OUT},
            lambda x: (x / 255 - CLIP_MEAN) / CLIP_STD,
        ),
    ],
)
def test_normalisation(tmp_path: Path, changed: dict[str, object], to_network: Any) -> None:
    recipe = recipe_for(tmp_path, **changed)
    bytes_ = np.array([[0.0, 0, 0], [255, 128, 3]])
    ours = (bytes_ / 255 - recipe.mean) / recipe.std
    np.testing.assert_allclose(ours, to_network(bytes_), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"do_resize": False}, "not resized"),
        ({"do_pad": True}, "requires do_pad"),
        ({"do_flip_channel_order": True}, "requires do_flip_channel_order"),
        ({"size": {"longest_edge": 16}}, "requires an image size"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "requires an image size"),
        ({"size": {"height": 16, "width": 32}}, "requires an image size"),
        ({"size": {"shortest_edge": True}}, "requires an image size"),
        ({"size": {"shortest_edge": 1e400}}, "requires an image size"),
        ({"size": {"shortest_edge": 10**30}}, "requires an image size"),
        ({"size": {"shortest_edge": 0}}, "requires an image size"),
        ({"size": {"shortest_edge": [16]}}, "requires an image size"),
        ({"size": OUT}, "requires an image size"),
        ({"size": 16, "image_processor_type": "UnheardOfImageProcessor"}, "requires an image size"),
        ({"do_center_crop": False}, "not square"),
        ({"crop_size": {"height": 32, "width": 32}}, "requires a crop of 32 out of 16 pixels"),
        ({"resample": 0}, "interpolation 0"),
        ({"resample": True}, "interpolation True"),
        ({"resample": [3]}, "cannot be used|interpolation"),
        ({"resample": OUT, "image_processor_type": "UnheardOfImageProcessor"}, "interpolation None"),
        ({"image_mean": 0.5}, "no mean and standard deviation"),
        ({"image_mean": [0.5, 0.5]}, "no mean and standard deviation"),
        ({"image_mean": [0.5, 0.5, "0.5"]}, "no mean and standard deviation"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "no mean and standard deviation"),
        ({"image_std": [0, 1, 1]}, "not possible"),
        ({"image_std": None}, "no mean and standard deviation"),
        ({"rescale_factor": "1/255"}, "not possible"),
        ({"rescale_factor": 0}, "not possible"),
    ],
)
def test_unsupported_preprocessing_is_refused(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    with pytest.raises(EncoderError, match=rf"preprocessor_config\.json.* ({words})") as caught:
        recipe_for(tmp_path, **changed)
    one_sentence(caught)


INT64 = 7


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"vision_model": models.vision(input_ids=(INT64, ["batch", "length"]))}, "takes images and texts together"),
        ({"vision_model": models.vision(mask=(INT64, ["batch"]))}, "takes mask, pixel_values instead of pixel_values"),
        ({"vision_model": models.vision(size=32)}, "takes images of the fixed shape"),
        ({"vision_model": models.vision(batch=1)}, "takes images of the fixed shape"),
        ({"vision_model": models.vision("logits")}, "has no output that can be compared with texts"),
        ({"vision_model": models.patches()}, "has no output that can be compared with texts"),
        ({"vision_model": models.text()}, "takes images and texts together|instead of pixel_values"),
        ({"vision_model": b""}, "cannot be used .it is empty"),
        ({"vision_model": b"\x0a\xff\xff\xff\xff\x0f"}, "cannot be used .it is cut off"),
        ({"vision_model": b"<html>" * 100}, "cannot be used"),
        ({"vision_model": models.vision()[:-50]}, "cannot be used"),
        ({"text_model": models.vision()}, "takes pixel_values instead of input_ids"),
        ({"text_model": models.text("pooler_output")}, "returns pooler_output instead of text_embeds"),
        ({"text_model": models.text(dimension=5)}, "returns 5 values per text but 6 per image"),
        ({"tokenizer": b"{}"}, "cannot be used"),
        ({"tokenizer": b"[" * 100_000}, "cannot be used"),
        ({"config": b"[]", "tokenizer_config": b"{}"}, r"config\.json is damaged"),
        ({"config": b"{}", "tokenizer_config": b"{}"}, "does not state the longest text"),
        ({"config": b"{}", "tokenizer_config": b'{"model_max_length": 1e30}'}, "does not state the longest text"),
        (
            {"config": b'{"text_config": 3}', "tokenizer_config": b'{"model_max_length": "77"}'},
            "does not state the longest text",
        ),
        ({"config": b"[" * 100_000}, r"config\.json cannot be used"),
        ({"config": b"\xff\xfe\0"}, r"config\.json cannot be used"),
        ({"config": b" " * (1 << 20) + b"{}"}, "is longer than 1 MB"),
        ({"tokenizer_config": b" " * (4 << 20) + b"{}"}, "is longer than 4 MB"),
        ({"preprocessor_config": b"{}"}, "is missing or empty"),
        ({"preprocessor_config": b"[1]"}, r"preprocessor_config\.json is damaged"),
    ],
)
def test_unusable_folders_are_refused(tmp_path: Path, changed: dict[str, bytes], words: str) -> None:
    folder = models.write(tmp_path / "model", models.clip(**changed))
    with pytest.raises(EncoderError, match=words) as caught:
        read_layout(folder)
    assert one_sentence(caught).startswith(str(folder))


def test_a_tokenizer_that_is_too_long(tmp_path: Path) -> None:
    folder = models.write(tmp_path / "model", models.clip())
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(65 << 20)
    with pytest.raises(EncoderError, match="is longer than 64 MB") as caught:
        read_layout(folder)
    one_sentence(caught)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    for name in ("preprocessor_config.json", "tokenizer.json", "onnx/vision_model.onnx"):
        folder = models.write(tmp_path / name.replace("/", "-"), models.clip())
        (folder / name).unlink()
        (folder / name).symlink_to(folder / name)
        with pytest.raises(EncoderError, match=r"is missing|contains no model") as caught:
            read_layout(folder)
        one_sentence(caught)
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(EncoderError, match=r"is missing|contains no model"):
            read_layout(folder)
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "model\0"):
        with pytest.raises(EncoderError, match="contains no model") as caught:
            read_layout(path)
        one_sentence(caught)


def test_a_long_text_is_truncated_although_the_network_accepts_more(tmp_path: Path) -> None:
    config = models.as_json(text_config={"max_position_embeddings": 8192})
    card = read_layout(models.write(tmp_path / "model", models.clip(config=config)))
    assert card.text is not None
    assert card.text.context_length == 512


def test_all_names_of_external_weights_are_found(tmp_path: Path) -> None:
    """The library `onnx` writes the files, with weights in a graph within a graph and in attributes of nodes."""
    from onnx import TensorProto, helper, save

    def tensor(location: str) -> TensorProto:
        made = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=location)
        return made

    inner = helper.make_graph([], "inner", [], [], [tensor("inner")])
    nodes = [helper.make_node("If", ["x"], [], then_branch=inner), helper.make_node("Constant", [], ["y"])]
    nodes[1].attribute.append(helper.make_attribute("value", tensor("constant")))
    sparse = helper.make_sparse_tensor(tensor("values"), tensor("indices"), [1])
    graph = helper.make_graph(nodes, "outer", [], [], [tensor("outer")], sparse_initializer=[sparse])
    function = helper.make_function("d", "f", [], [], nodes[1:], [helper.make_opsetid("", 17)])
    model = helper.make_model(graph, functions=[function])
    save(model, tmp_path / "model.onnx")
    assert external_files(tmp_path / "model.onnx") == {"inner", "constant", "values", "indices", "outer"}


def test_random_bytes_never_crash_the_reader_of_networks(tmp_path: Path) -> None:
    whole = models.outside(models.vision(), "vision_model.onnx_data")[0]
    chance = random.Random(4)
    path = tmp_path / "model.onnx"
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed[: chance.randint(1, len(changed))])
        with contextlib.suppress(ValueError):
            assert all(isinstance(name, str) for name in external_files(path))
