"""int8 versions of small networks: their results, the layers that stay in fp32, and refused calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hub_models import tokenizer
from pixmatcher import load_encoder
from pixmatcher.encoders.onnx._integers import quantise_rows
from pixmatcher.encoders.onnx.card import Card, Network, TextRecipe, read_card, store_files, write_card
from pixmatcher.encoders.onnx.graphs import cosines
from pixmatcher.encoders.onnx.quantize import quantize_model
from pixmatcher.errors import EncoderError
from pixmatcher.images import Recipe
from pixmatcher.records import Space

SIZE = 32


class Maker:
    """Writes a network node by node, with seeded random weights."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def floats(self, *shape: int, spread: float = 1.0) -> str:
        return self.constant((self.random.normal(size=shape) * spread).astype(np.float32))

    def add(self, op: str, *given: str, **attributes: object) -> str:
        made = f"tensor{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(given), [made], **attributes))
        return made

    def conv(
        self, given: str, into: int, out: int, side: int = 1, *, group: int = 1, stride: int = 1, far: float = 0
    ) -> str:
        """Add a convolution whose results are around `far`."""
        weight = self.floats(out, into // group, side, side, spread=1.4 / np.sqrt(into // group * side * side))
        bias = self.constant((self.random.normal(size=out) * 0.3 + far).astype(np.float32))
        pads = [side // 2] * 4
        return self.add("Conv", given, weight, bias, group=group, strides=[stride, stride], pads=pads)

    def planes(self) -> str:
        """The pixels, normalised, (N, 3, H, W)."""
        floats = self.add("Cast", self.add("Transpose", "pixels", perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
        return self.add("Div", self.add("Sub", floats, self.number(128)), self.number(64))

    def number(self, value: float) -> str:
        return self.constant(np.float32(value))

    def pooled(self, given: str) -> str:
        return self.add("Flatten", self.add("GlobalAveragePool", given))

    def centred(self, given: str, pixels: np.ndarray, folder: Path) -> str:
        """Subtract the mean over these images, so that embeddings point in all directions."""
        so_far = list(self.nodes)
        self.finish(folder / "visual.onnx", given)
        self.nodes = so_far
        session = onnxruntime.InferenceSession(folder / "visual.onnx", providers=["CPUExecutionProvider"])
        (vectors,) = session.run(None, {"pixels": pixels})
        return self.add("Sub", given, self.constant(vectors.mean(axis=0)))

    def finish(self, path: Path, output: str, given: str = "pixels") -> None:
        kinds = {"pixels": (TensorProto.UINT8, ["n", SIZE, SIZE, 3]), "ids": (TensorProto.INT64, ["n", "length"])}
        self.nodes.append(helper.make_node("Identity", [output], ["embeddings"]))
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(given, *kinds[given])],
            [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", None])],
            self.constants,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def mobile(folder: Path) -> Card:
    """The parts that MobileNetV3 and EfficientNet are made of: depthwise, gates, HardSwish, SiLU, ReLU6, sums."""
    make = Maker()
    x = make.add("HardSwish", make.conv(make.planes(), 3, 16, 3, stride=2))
    deep = make.add("Clip", make.conv(x, 16, 16, 3, group=16), make.number(0), make.number(6))
    gate = make.conv(make.add("Relu", make.conv(make.add("GlobalAveragePool", deep), 16, 8)), 8, 16)
    gated = make.add("Mul", make.add("HardSigmoid", gate, alpha=1 / 6, beta=0.5), deep)
    x = make.add("Add", x, make.conv(gated, 16, 16))
    x = make.conv(x, 16, 40)
    x = make.add("Mul", x, make.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    x = make.conv(x, 40, 48, 3, stride=2)
    x = make.add("Mul", x, make.add("Sigmoid", x))
    x = make.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    make.finish(folder / "visual.onnx", make.pooled(make.add("Relu", make.conv(x, 48, 64))))
    return write(folder, 64)


def write(folder: Path, dimension: int, *, text: bool = False) -> Card:
    """Write the card of a folder that holds the networks."""
    (folder / "card.json").unlink(missing_ok=True)
    if text:
        (folder / "tokenizer.json").write_bytes(tokenizer())
    card = Card(
        name="small",
        fingerprint="f" * 16,
        space=Space("clip" if text else "visual", dimension, text=text),
        recipe=Recipe(SIZE),
        visual=Network("visual.onnx", "pixels", "embeddings"),
        precision="fp32",
        licence="MIT",
        source="these tests",
        files=store_files(folder, sorted(path.name for path in folder.iterdir())),
        textual=Network("textual.onnx", "ids", "embeddings") if text else None,
        text=TextRecipe("tokenizer.json", 12, 0, causal=True) if text else None,
    )
    write_card(card, folder)
    return card


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Images of coloured fields, each with a contrast of its own."""
    random = np.random.default_rng(1)
    fields = random.normal(size=(48, 4, 4, 3)) * random.uniform(20, 90, (48, 1, 1, 1)) + random.normal(
        128, 40, (48, 1, 1, 3)
    )
    return np.clip(fields, 0, 255).astype(np.uint8).repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)


def vectors_of(folder: Path, pixels: np.ndarray) -> np.ndarray:
    (vectors,) = load_encoder(f"onnx:{folder}").encode_images(pixels).values()
    return vectors


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_convolutional_network_is_computed_in_integers_and_agrees(
    small: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    fp32, target = mobile(small), tmp_path / "int8"
    card = quantize_model(small, target, pixels)
    assert (card.name, card.precision, card.recipe) == ("small@int8", "int8", fp32.recipe)
    assert card.fingerprint != fp32.fingerprint
    assert read_card(target) == card
    assert card.notes is not None
    assert {"images_per_second", "images_per_second_fp32", "agreement_5th_percentile"} <= card.notes.keys()
    exact, found = vectors_of(small, pixels), vectors_of(target, pixels)
    agreement = cosines(exact[::2], found[::2])  # images that were not used for the calibration
    assert card.notes["agreement"] == pytest.approx(agreement.mean(), abs=1e-4)
    assert agreement.mean() > 0.99
    assert cosines(exact - exact.mean(0), found - found.mean(0)).mean() > 0.97
    ops = operators(target / "visual.onnx")
    assert "HardSigmoid" in ops, "the gate stays as it is"
    assert not {"HardSwish", "Clip"} & set(ops)
    # Alone or among others, an image has the same embedding.
    assert np.array_equal(vectors_of(target, pixels[:1]), found[:1])


def test_the_most_sensitive_layers_stay_in_fp32(small: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    make = Maker()
    x = make.add("Relu", make.conv(make.planes(), 3, 16, 3, stride=2))
    for _ in range(7):
        x = make.add("Relu", make.conv(x, 16, 16, 3))
    # The differences in this network are far smaller than its quantisation steps.
    x = make.add("Sub", make.conv(x, 16, 16, far=5000), make.number(5000))
    make.finish(small / "visual.onnx", make.centred(make.pooled(x), pixels, small))
    write(small, 16)
    card = quantize_model(small, tmp_path / "int8", pixels, name="mine@int8")
    assert card.name == "mine@int8"
    assert card.notes is not None
    assert card.notes["layers_in_fp32"] == 1
    assert float(card.notes["agreement"]) > 0.99
    assert operators(tmp_path / "int8" / "visual.onnx").count("QuantizeLinear") >= 7


def test_a_network_that_int8_spoils_is_refused(small: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    make = Maker()
    x = make.conv(make.planes(), 3, 16, 3, stride=2)
    for _ in range(4):
        x = make.add("Sub", make.conv(make.add("Tanh", x), 16, 16, far=5000), make.number(5000))
    make.finish(small / "visual.onnx", make.centred(make.pooled(x), pixels, small))
    write(small, 16)
    with pytest.raises(
        EncoderError,
        match=r"^small in int8 agrees with fp32 by a mean cosine of 0\.\d+ at most, less than 0\.97: use it in fp32",
    ):
        quantize_model(small, tmp_path / "int8", pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_matrix_products_have_a_scale_for_each_image(small: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    make = Maker()
    patches = make.add("Conv", make.planes(), make.floats(24, 3, 8, 8, spread=0.1), strides=[8, 8])
    rows = make.add("Reshape", patches, make.constant(np.array([0, 24, -1], np.int64)))
    x = make.add("Transpose", rows, perm=[0, 2, 1])
    x = make.add("Add", make.add("MatMul", x, make.floats(24, 50, spread=0.2)), make.floats(50))
    x = make.add("ReduceMean", make.add("Tanh", x), make.constant(np.array([1], np.int64)), keepdims=0)
    x = make.add("Gemm", x, make.floats(30, 50), make.floats(30), transB=1)
    make.finish(small / "visual.onnx", x)
    write(small, 30)
    card = quantize_model(small, tmp_path / "int8", pixels)
    assert card.notes is not None
    assert float(card.notes["agreement"]) > 0.99
    assert operators(tmp_path / "int8" / "visual.onnx").count("DynamicQuantizeMatMul") == 2
    together = vectors_of(tmp_path / "int8", pixels[:5])
    assert together.shape == (5, 30)
    for one, alone in zip(together, pixels[:5], strict=True):
        assert np.array_equal(one, vectors_of(tmp_path / "int8", alone[None])[0])


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_text_network_is_in_int8_if_it_agrees(small: Path, pixels: np.ndarray, tmp_path: Path, spoilt: bool) -> None:
    mobile(small)
    make = Maker()
    table, weights = make.random.normal(size=(1 << 13, 128)), make.random.normal(size=(128, 64))
    if spoilt:  # with one value this large, all others are quantised to 0 in a product
        table[:, 0], weights[0] = 1e5, 0
    tables = (make.constant(values.astype(np.float32)) for values in (table, weights))
    rows = make.add("Gather", next(tables), "ids")
    rows = make.add("ReduceMean", rows, make.constant(np.array([1], np.int64)), keepdims=0)
    make.finish(small / "textual.onnx", make.add("MatMul", rows, next(tables)), "ids")
    fp32 = write(small, 64, text=True)
    card = quantize_model(small, tmp_path / "int8", pixels)
    assert card.text == fp32.text
    assert card.notes is not None
    texts = ["a cat", "dog", "a photo of a dog"]
    exact, found = (load_encoder(f"onnx:{folder}").encode_texts(texts)["clip"] for folder in (small, tmp_path / "int8"))
    smaller = card.files["textual.onnx"].bytes < fp32.files["textual.onnx"].bytes / 3
    assert smaller is not spoilt
    if spoilt:
        assert "fp32" in str(card.notes["text"])
        assert np.array_equal(found, exact)
    else:
        assert float(card.notes["text_agreement"]) > 0.99
        assert cosines(exact, found).min() > 0.99


def test_calls_that_cannot_be_calibrated_are_refused_in_one_sentence(
    small: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    mobile(small)
    with pytest.raises(EncoderError, match="int8 needs 20 or more images for the calibration, not 19: name more"):
        quantize_model(small, tmp_path / "int8", pixels[:19])
    quantize_model(small, tmp_path / "int8", pixels)
    with pytest.raises(EncoderError, match="small@int8 is in int8 already: name one in fp32"):
        quantize_model(tmp_path / "int8", tmp_path / "again", pixels)
    make = Maker()
    make.finish(small / "visual.onnx", make.pooled(make.planes()))
    write(small, 3)
    with pytest.raises(EncoderError, match="has no layers that int8 makes faster: use it in fp32"):
        quantize_model(small, tmp_path / "again", pixels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8", "small"]


@pytest.mark.parametrize("width", [1, 6, 7])
def test_no_two_neighbouring_weights_overflow_16_bits(width: int) -> None:
    rows = np.random.default_rng(width).normal(size=(200, width)).astype(np.float32)
    rows[:50] = np.abs(rows[:50])
    rows[0] = 0
    integers, scale = quantise_rows(rows)
    even = np.pad(integers.astype(int), ((0, 0), (0, width % 2))).reshape(200, -1, 2)
    for sign in (1, -1):
        assert np.maximum(sign * even, 0).sum(axis=2).max() <= 128
    assert np.abs(integers * scale[:, None] - rows).max() <= scale.max() / 2 * 1.001
