"""Small encoders as ONNX files, with inputs, outputs and further files as in repositories of hubs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pixmatcher.encoders import Encoder

SIZE, DIMENSION = 16, 6
WORDS = ["<pad>", "<start>", "<end>", "<unknown>", "a", "photo", "of", "cat", "dog"]
PIXELS = np.random.default_rng(1).normal(size=(3, DIMENSION)).astype(np.float32)
"""What the average colour of an image is multiplied with."""
CLIP_MEAN, CLIP_STD = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
WORD_VECTORS = np.random.default_rng(2).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)
PATCH = 4
PATCHES = np.random.default_rng(3).normal(size=(DIMENSION, 3, PATCH, PATCH)).astype(np.float32)


def network(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, list[Any]],
    constants: dict[str, np.ndarray],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def vision(
    output: str = "image_embeds", *, size: Any = SIZE, batch: Any = "batch", dimension: int = DIMENSION, **more: Any
) -> bytes:
    """A network for images: the average colour times `PIXELS`, with the other outputs that encoders have."""
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], [output]),
        helper.make_node("Unsqueeze", [output, "one"], ["last_hidden_state"]),
    ]
    inputs = {"pixel_values": (TensorProto.FLOAT, [batch, 3, size, size]), **more}
    outputs = {"last_hidden_state": [batch, 1, dimension], output: [batch, dimension]}
    constants = {"weights": np.resize(PIXELS, (3, dimension)), "one": np.array([1], np.int64)}
    return network(nodes, inputs, outputs, constants)


def text(
    output: str = "text_embeds", *, mask: bool = False, length: Any = "length", dimension: int = DIMENSION
) -> bytes:
    """A network for texts: the sum of the vectors of the words, or of the words in the mask."""
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["found"])]
    if mask:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["floats", "last"], ["column"]),
            helper.make_node("Mul", ["found", "column"], ["kept"]),
        ]
    nodes.append(helper.make_node("ReduceSum", ["kept" if mask else "found", "one"], [output], keepdims=0))
    inputs = {"input_ids": (TensorProto.INT64, ["batch", length])}
    if mask:
        inputs["attention_mask"] = (TensorProto.INT64, ["batch", length])
    constants = {"words": np.resize(WORD_VECTORS, (len(WORDS), dimension)), "one": np.array([1], np.int64)}
    return network(nodes, inputs, {output: ["batch", dimension]}, constants | {"last": np.array([2], np.int64)})


def patches() -> bytes:
    """A network with a vector for each patch of an image, like DINOv2."""
    nodes = [
        helper.make_node("Conv", ["pixel_values", "patches"], ["grid"], strides=[PATCH, PATCH]),
        helper.make_node("Reshape", ["grid", "shape"], ["row"]),
        helper.make_node("Transpose", ["row"], ["last_hidden_state"], perm=[0, 2, 1]),
    ]
    inputs = {"pixel_values": (TensorProto.FLOAT, ["batch", 3, "height", "width"])}
    constants = {"patches": PATCHES, "shape": np.array([0, DIMENSION, -1], np.int64)}
    return network(nodes, inputs, {"last_hidden_state": ["batch", "patches", DIMENSION]}, constants)


def outside(model: bytes, location: str) -> tuple[bytes, bytes]:
    """Return the network with its weights in an external file of this name, and the content of that file."""
    loaded = onnx.load_from_string(model)
    data = io.BytesIO()
    for tensor in loaded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            at, raw = data.tell(), numpy_helper.to_array(tensor).tobytes()
            data.write(raw)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", str(at)), ("length", str(len(raw)))):
                tensor.external_data.add(key=key, value=value)
    return bytes(loaded.SerializeToString()), data.getvalue()


def tokenizer() -> bytes:
    """A tokenizer with the vocabulary `WORDS` that puts a text between <start> and <end>."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unknown>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    made.add_special_tokens(["<pad>", "<start>", "<end>"])
    return made.to_str().encode()


def as_json(**values: object) -> bytes:
    return json.dumps(values).encode()


CLIP_IMAGES: dict[str, object] = {
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": CLIP_MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": CLIP_STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": SIZE},
}


def clip(**changed: bytes) -> dict[str, bytes]:
    """The files of a repository of CLIP; an argument with the name of a file, without its extension, replaces it."""
    files = {
        "README.md": b"# CLIP",
        "config.json": as_json(model_type="clip", text_config={"max_position_embeddings": 12}),
        "preprocessor_config.json": as_json(**CLIP_IMAGES),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": as_json(model_max_length=12, pad_token={"content": "<end>"}),
        "onnx/vision_model.onnx": vision(),
        "onnx/text_model.onnx": text(mask=True),
    }
    return _changed(files, changed)


def siglip(**changed: bytes) -> dict[str, bytes]:
    """The files of a repository of SigLIP: pooled outputs, no mask, texts of 64 ids."""
    images = CLIP_IMAGES | {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
    }
    del images["crop_size"], images["do_center_crop"]
    files = {
        "config.json": as_json(model_type="siglip", text_config={"model_type": "siglip_text_model"}),
        "preprocessor_config.json": as_json(**images),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": as_json(model_max_length=64, pad_token="<pad>"),
        "onnx/vision_model.onnx": vision("pooler_output"),
        "onnx/text_model.onnx": text("pooler_output"),
    }
    return _changed(files, changed)


def mobileclip(**changed: bytes) -> dict[str, bytes]:
    """The files of a repository of MobileCLIP: images are not normalised, texts have a fixed length."""
    images = CLIP_IMAGES | {"do_normalize": False, "resample": 2, "image_processor_type": "CLIPFeatureExtractor"}
    files = {
        "config.json": as_json(model_type="clip"),
        "preprocessor_config.json": as_json(**images),
        "tokenizer.json": tokenizer(),
        "onnx/vision_model.onnx": vision(),
        "onnx/text_model.onnx": text(length=7),
    }
    return _changed(files, changed)


def dinov2(**changed: bytes) -> dict[str, bytes]:
    """The files of a repository of DINOv2: images only, the first of the last hidden states."""
    images = CLIP_IMAGES | {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 20},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    files = {
        "config.json": as_json(model_type="dinov2"),
        "preprocessor_config.json": as_json(**images),
        "onnx/model.onnx": patches(),
    }
    return _changed(files, changed)


def _changed(files: dict[str, bytes], changed: dict[str, bytes]) -> dict[str, bytes]:
    for name, content in changed.items():
        (path,) = (path for path in files if Path(path).stem == name)
        files[path] = content
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# What they should give


def some_pixels() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def colours(mean: list[float], std: list[float]) -> np.ndarray:
    """Return the expected result of the networks for images, computed in float64."""
    values = (some_pixels().astype(np.float64) / 255 - mean) / std
    return unit(values.mean(axis=(1, 2)) @ PIXELS)


def sum_of(words: str) -> np.ndarray:
    """Return the expected result of the networks for texts."""
    return unit(sum(WORD_VECTORS[WORDS.index(word)].astype(np.float64) for word in words.split()))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def check(encoder: Encoder, images: np.ndarray, texts: dict[str, str] | None = None) -> None:
    """Compare the embeddings of an encoder with the expected ones."""
    (space,) = encoder.spaces
    found = encoder.encode_images(some_pixels())
    np.testing.assert_allclose(found[space.name], images, atol=1e-5)
    if texts is not None:
        found = encoder.encode_texts(list(texts))
        np.testing.assert_allclose(found[space.name], [sum_of(words) for words in texts.values()], atol=1e-5)
