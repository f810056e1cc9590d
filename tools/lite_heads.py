"""The small graphs that compute the embeddings of `lite` from the outputs of its two networks.

Weights are int8 with one scale for each output. Images are computed in float32; texts in integers, as the text network.
"""

from __future__ import annotations

from dataclasses import dataclass

import lite_semantic
import lite_visual
import numpy as np
import numpy.typing as npt
import onnx
import torch
from lite_int8 import Floats, Writer, quantise_rows
from onnx import TensorProto

BACKGROUND_AXES = 64
"""Number of directions in which the spread of scores is known."""


def as_array(tensor: torch.Tensor) -> Floats:
    """Return a tensor of the fitted layers as a float32 array."""
    values: Floats = tensor.detach().numpy().astype(np.float32)
    return values


def write_heads(
    projection: Floats, offset: Floats, groups: npt.NDArray[np.uint8], towers: lite_semantic.Towers
) -> onnx.ModelProto:
    """Write the graph: the outputs of the image network -> `visual` (N, 384), `semantic` (N, 768), both of length 1.

    `visual` is the projection (1280, 384) of the square roots of the features plus an offset (384,). `groups`
    (1000, G) says which classes each group has; `towers` are the layers of `semantic`.
    """
    graph = Writer()

    def multiply(name: str, x: str, weight: Floats) -> str:
        """Multiply x (N, in) by a weight (out, in)."""
        rows, scale = quantise_rows(weight)
        stored = graph.constant(f"{name}_q", np.ascontiguousarray(rows.T))
        product = graph.add(
            "MatMul", [x, graph.add("Cast", [stored], f"{name}_weight", to=TensorProto.FLOAT)], f"{name}_product"
        )
        return graph.add("Mul", [product, graph.constant(f"{name}_scale", scale)], f"{name}_scaled")

    def linear(name: str, x: str, layer: torch.nn.Linear) -> str:
        product = multiply(name, x, as_array(layer.weight))
        return graph.add("Add", [product, graph.constant(f"{name}_bias", as_array(layer.bias))], name)

    def number(name: str, value: float) -> str:
        return graph.constant(name, np.float32(value))

    def columns(name: str, x: str, first: int, after: int) -> str:
        ends = [
            graph.constant(f"{name}_{end}", np.array([at], np.int64))
            for end, at in (("first", first), ("after", after))
        ]
        return graph.add("Slice", [x, *ends, graph.constant(f"{name}_axis", np.array([1], np.int64))], name)

    # The features are means of outputs of ReLU6, so none is below 0.
    roots = graph.add("Sqrt", ["features"], "roots")
    projected = multiply("projection", roots, projection.T.astype(np.float32))
    graph.add(
        "LpNormalization",
        [graph.add("Add", [projected, graph.constant("offset", offset)], "shifted")],
        "visual",
        axis=1,
        p=2,
    )

    probability = graph.add("Softmax", ["logits"], "probability", axis=1)
    members = graph.add("Cast", [graph.constant("groups", groups)], "members", to=TensorProto.FLOAT)
    both = graph.add("Concat", [probability, graph.add("MatMul", [probability, members], "of_groups")], "both", axis=1)
    evidence = graph.add("Log", [graph.add("Add", [both, number("floor", lite_semantic.FLOOR)], "floored")], "evidence")
    inputs = graph.add("Concat", [roots, evidence, "statistics"], "inputs", axis=1)
    centred = graph.add("Sub", [inputs, graph.constant("mean", as_array(towers.mean))], "centred")
    scaled = graph.add("Mul", [centred, graph.constant("gain", 1 / as_array(towers.deviation))], "scaled")
    largest = lite_semantic.LARGEST
    x = graph.add("Clip", [scaled, number("least", -largest), number("largest", largest)], "x")

    seen = lite_semantic.FEATURES + lite_semantic.EVIDENCE
    features = columns("of_features", x, 0, lite_semantic.FEATURES)
    hidden = graph.add("Gelu", [linear("scene_inner", x, towers.scene_hidden)], "scene_hidden")
    direct = multiply("scene_direct", features, as_array(towers.scene_direct.weight))
    scene = graph.add("Add", [linear("scene_outer", hidden, towers.scene_out), direct], "scene_sum")
    hidden = graph.add(
        "Gelu", [linear("names_inner", columns("known", x, 0, seen), towers.names_hidden)], "names_hidden"
    )
    shown = columns("shown", x, lite_semantic.FEATURES, seen)
    direct = multiply("names_direct", shown, as_array(towers.names_direct.weight))
    names = graph.add("Add", [linear("names_outer", hidden, towers.names_out), direct], "names_sum")
    halves = [
        graph.add("LpNormalization", [half], name, axis=1, p=2) for name, half in (("scene", scene), ("names", names))
    ]
    graph.add("LpNormalization", [graph.add("Concat", halves, "halves", axis=1)], "semantic", axis=1, p=2)
    return graph.finish(
        "heads",
        {
            "features": (np.float32, ["n", lite_visual.CHANNELS]),
            "logits": (np.float32, ["n", lite_visual.CLASSES]),
            "statistics": (np.float32, ["n", lite_visual.STATISTICS]),
        },
        {
            "visual": (np.float32, ["n", projection.shape[1]]),
            "semantic": (np.float32, ["n", lite_semantic.SCENE + lite_semantic.NAMES]),
        },
    )


@dataclass(frozen=True)
class ClassNames:
    """The embeddings of the names of all classes and groups (names, 384), and the rows of each (1144, most names).

    A class with fewer names has its first one several times.
    """

    embeddings: Floats
    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, embeddings: Floats, counts: npt.NDArray[np.intp]) -> ClassNames:
        """Make it from the embeddings of all names in order, and how many each class and group has."""
        first = np.cumsum(counts) - counts
        places = np.arange(counts.max())
        return cls(embeddings, first[:, None] + np.where(places < counts[:, None], places, 0))

    def named(self, embedding: Floats, shares: Floats) -> Floats:
        """Return how much a text names each class and group (1144,), as the graph of the texts computes it."""
        similarity = (self.embeddings @ embedding)[self.rows].max(1)
        similar = lite_semantic.softmax(similarity / np.float32(lite_semantic.NAME_TEMPERATURE))
        certainty = shares.sum()
        doubt = lite_semantic.DOUBT**certainty
        result: Floats = doubt * similar + (1 - doubt) / max(certainty, 1e-9) * shares
        return result


@dataclass(frozen=True)
class Background:
    """How texts score on everyday photographs, so that the scores of different texts can be compared.

    The scores of a text q (768,) have the mean q @ mean and the variance |q @ axes|^2 + rest |q|^2. `usual` is the
    spread that texts usually have.
    """

    mean: Floats  # (768,)
    axes: Floats  # (768, r)
    rest: float
    usual: float

    @classmethod
    def of(cls, images: Floats, texts: Floats) -> Background:
        """Measure it with embeddings of images (N, 768) and texts (M, 768) of length 1."""
        mean = images.mean(0)
        variances, axes = np.linalg.eigh(np.cov(images.T.astype(np.float64)))
        strongest = np.argsort(-variances)[:BACKGROUND_AXES]
        scaled = (axes[:, strongest] * np.sqrt(variances[strongest])).astype(np.float16).astype(np.float32)
        rest = (variances.sum() - variances[strongest].sum()) / (len(variances) - BACKGROUND_AXES)
        spread = np.sqrt(((texts @ scaled) ** 2).sum(1) + rest)
        return cls(mean, scaled, float(rest), float(np.median(spread)))


def centre_images(heads: onnx.ModelProto, background: Background) -> None:
    """Subtract the mean photograph from `semantic` of the images, in the graph that `write_heads` wrote."""
    graph = _rename_output(heads, "semantic", "semantic_unit")
    graph.add("Sub", ["semantic_unit", graph.constant("background_mean", background.mean)], "semantic")
    _extend(heads, graph)


def scale_texts(network: onnx.ModelProto, background: Background) -> None:
    """Divide `semantic` of a text by the square root of the spread of its scores, in the graph of the texts."""
    graph = _rename_output(network, "semantic", "semantic_unit")
    stored = graph.constant("background_axes_half", background.axes.astype(np.float16))
    axes = graph.add("Cast", [stored], "background_axes", to=TensorProto.FLOAT)
    projected = graph.add("MatMul", ["semantic_unit", axes], "background_parts")
    variance = graph.add("ReduceSumSquare", [projected], "background_part", keepdims=0)
    rest = graph.constant("background_rest", np.float32(background.rest))
    spread = graph.add("Sqrt", [graph.add("Add", [variance, rest], "background_variance")], "background_spread")
    usual = graph.constant("background_usual", np.float32(background.usual))
    gain = graph.add("Sqrt", [graph.add("Div", [usual, spread], "background_ratio")], "background_gain")
    graph.add("Mul", ["semantic_unit", gain], "semantic")
    _extend(network, graph)


def _rename_output(model: onnx.ModelProto, name: str, other: str) -> Writer:
    """Give another name to the value `name`, and return a writer for the nodes that make it again."""
    for node in model.graph.node:
        if name in node.output:
            node.output[:] = [other if output == name else output for output in node.output]
            node.name = other
    return Writer()


def _extend(model: onnx.ModelProto, graph: Writer) -> None:
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants.values())
