"""Look at the graph of an ONNX network: its weights, and the layers that integers make faster."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .networks import Floats

LEAST_CHANNELS = 8
"""Convolutions with fewer input channels are not faster in integers; the first one of a network is most sensitive."""


@dataclass(frozen=True)
class Activation:
    """What the calibration observed of a tensor of floats."""

    shape: tuple[int, ...]
    """The shape for one image, with the number of images first."""
    low: float
    high: float
    """The range that its 256 integers represent."""
    means: Floats
    """The mean of each channel (channels,)."""


class Graph:
    """A network with look-ups: its weights by name, and the nodes that read a tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.ends = {end.name for end in model.graph.output}

    def weight(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value of a constant of floats, or None for other tensors."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a constant of floats, or () for other tensors."""
        tensor = self.weights.get(name)
        return () if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT else tuple(tensor.dims)

    def is_convolution(self, node: onnx.NodeProto) -> bool:
        """Return whether a node is a 2-D convolution with constant weights that integers make faster."""
        if node.op_type != "Conv" or node.domain or any(name and name not in self.weights for name in node.input[1:]):
            return False
        shape = self.shape(node.input[1])
        return len(shape) == 4 and shape[1] * int(attribute(node, "group", 1)) >= LEAST_CHANNELS

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Return whether a node multiplies its input by a constant matrix."""
        if node.op_type not in ("MatMul", "Gemm") or node.domain or node.input[0] in self.weights:
            return False
        shape = self.shape(node.input[1])
        if len(shape) != 2 or node.op_type == "MatMul":
            return len(shape) == 2
        plain = attribute(node, "alpha", 1.0) == 1 and attribute(node, "beta", 1.0) == 1
        width = shape[0] if attribute(node, "transB", 0) else shape[1]
        bias = len(node.input) < 3 or not node.input[2] or self.shape(node.input[2]) == (width,)
        return bool(plain and bias and not attribute(node, "transA", 0))


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return the value of an attribute of a node."""
    return next((helper.get_attribute_value(own) for own in node.attribute if own.name == name), default)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a unique name."""
    taken = Counter(node.name for node in model.graph.node)
    for number, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{number}_"


def observed_tensors(model: onnx.ModelProto) -> set[str]:
    """Return the names of the tensors that `to_integers` may need: those of layers and of their neighbours."""
    graph = Graph(model)
    near = ("Add", "Mul", "GlobalAveragePool", "ReduceMean", "MaxPool", "Relu", "Clip", "Sigmoid", "HardSigmoid")
    names: set[str] = set()
    if any(graph.is_convolution(node) for node in model.graph.node):
        for node in model.graph.node:
            if node.op_type in near or graph.is_convolution(node):
                names |= {*node.input[:2], *node.output}
    made = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    return names & made


def layers(model: onnx.ModelProto, activations: Mapping[str, Activation]) -> list[str]:
    """Return the names of the nodes with weights that can be computed in integers, in order.

    Convolutions of a single pixel, which compute gates, are not among them: they take little time and are sensitive.
    """
    graph = Graph(model)
    return [
        node.name
        for node in model.graph.node
        if graph.is_product(node)
        or (
            graph.is_convolution(node)
            and node.input[0] in activations
            and node.output[0] in activations
            and max(activations[node.output[0]].shape[2:]) > 1
        )
    ]
