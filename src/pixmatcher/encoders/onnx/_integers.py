"""ONNX networks rewritten to compute in 8-bit integers.

A tensor on a grid is written as QuantizeLinear and DequantizeLinear after what makes it. ONNX Runtime replaces an
operator between grids by one for integers; one that has none there stays as it is, in fp32.

Sources: one scale an output channel (Jacob et al., 2018; Krishnamoorthi, 2018); the operators and which of them ONNX
Runtime replaces: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from .networks import Floats

LEAST_CHANNELS = 8
"""A convolution of fewer input channels is no faster in integers, and the first one of a network harms most."""
LARGE_TABLE = 1 << 20
"""Values of a table of tokens from which on its rows are stored in integers."""
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Activation:
    """What calibration has found about a tensor of floats."""

    shape: tuple[int, ...]
    """Of one image, the first number being that of images."""
    low: float
    high: float
    """The range that its grid spans."""
    means: Floats
    """Of each channel (channels,)."""


def quantise_rows(rows: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return `rows` (rows, n) as int8, symmetric around zero, and the scale of each row.

    No two neighbours of one sign, 2i and 2i + 1, add up to more than 128: x86 processors without VNNI add the products
    of two weights with unsigned activations in 16 bits, which hold 255 * 128 and not 255 * (127 + 127). So every
    processor computes the same, and it costs less than the 7 bits for all weights that are usual.
    """
    even = rows if rows.shape[1] % 2 == 0 else np.pad(rows, ((0, 0), (0, 1)))
    pairs = even.reshape(len(rows), -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=2).max(axis=1), np.maximum(-pairs, 0).sum(axis=2).max(axis=1))
    # Rounding may add one half to each of the two, so that 127 and not 128 is divided by.
    scale = np.maximum(np.abs(rows).max(axis=1), sums) / 127
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8), scale


class Graph:
    """A network with its weights by name, its nodes by what they make, and those who read a tensor."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.ends = {end.name for end in model.graph.output}

    def weight(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a constant of floats, or None if it is none."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        return numpy_helper.to_array(tensor)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant of floats, or () if it is none."""
        tensor = self.weights.get(name)
        return () if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT else tuple(tensor.dims)

    def is_convolution(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a 2-D convolution with constant weights that pays in integers."""
        if node.op_type != "Conv" or node.domain or any(name and name not in self.weights for name in node.input[1:]):
            return False
        shape = self.shape(node.input[1])
        return len(shape) == 4 and shape[1] * int(attribute(node, "group", 1)) >= LEAST_CHANNELS

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies what it is given by a constant matrix."""
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
    """The value of an attribute of a node."""
    return next((helper.get_attribute_value(own) for own in node.attribute if own.name == name), default)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give each node a name of its own."""
    taken = Counter(node.name for node in model.graph.node)
    for number, node in enumerate(model.graph.node):
        if not node.name or taken[node.name] > 1:
            node.name = f"{node.op_type}_{number}_"


def watched(model: onnx.ModelProto) -> set[str]:
    """The tensors that `to_integers` may need to know of: what goes into and comes out of layers and beside them."""
    graph = Graph(model)
    near = ("Add", "Mul", "GlobalAveragePool", "ReduceMean", "MaxPool", "Relu", "Clip", "Sigmoid", "HardSigmoid")
    names: set[str] = set()
    if any(graph.is_convolution(node) for node in model.graph.node):
        for node in model.graph.node:
            if node.op_type in near or graph.is_convolution(node):
                names |= {*node.input[:2], *node.output}
    made = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    return names & made


def layers(model: onnx.ModelProto, seen: Mapping[str, Activation]) -> list[str]:
    """The names of the nodes that can be computed in integers and have weights, in order.

    Not among them are convolutions of a single pixel, as gates are made by: they cost nothing and harm much.
    """
    graph = Graph(model)
    return [
        node.name
        for node in model.graph.node
        if graph.is_product(node)
        or (
            graph.is_convolution(node)
            and node.input[0] in seen
            and node.output[0] in seen
            and max(seen[node.output[0]].shape[2:]) > 1
        )
    ]


def to_integers(model: onnx.ModelProto, seen: Mapping[str, Activation], chosen: Collection[str]) -> onnx.ModelProto:
    """Return the network with the `chosen` of its layers, and what lies between such, in integers.

    Large tables of tokens are stored in integers too. With products in integers the network takes one image or text
    only: their grid is that of all they are given at once, and an embedding must not depend on its neighbours.
    """
    return _Rewriter(model, seen, chosen).model


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, seen: Mapping[str, Activation], chosen: Collection[str]) -> None:
        self.old = Graph(model)
        self.seen = seen
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.grids: dict[str, tuple[str, str]] = {}
        """Of each tensor on a grid: the names of its integers and of the grid's zero."""
        self.scales: dict[str, float] = {}
        self.made_in_integers: set[str] = set()
        self.dropped: set[str] = set()
        for node in model.graph.node:
            if node.name in self.dropped:
                continue
            if node.name in chosen and node.op_type == "Conv":
                self._convolve(node)
            elif node.name in chosen:
                self._multiply(node)
            elif chosen and self._is_table(node):
                self._look_up(node)
            elif not self._between(node):
                self.nodes.append(node)
        self.model = self._finish(model)

    # Parts of a graph

    def add(self, op: str, given: list[str], made: str, domain: str = "", **attributes: Any) -> str:
        node = helper.make_node(op, given, [made], name=f"{made}/{op}", domain=domain, **attributes)
        self.nodes.append(node)
        return made

    def constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def grid(self, name: str, low: float, high: float) -> list[str]:
        """The scale and the zero of the grid of 256 values from `low` to `high` and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
        self.scales[name] = scale
        return [
            self.constant(f"{name}/scale", np.float32(scale)),
            self.constant(f"{name}/zero", np.uint8(round(-low / scale))),
        ]

    def on_grid(self, name: str) -> str:
        """The tensor `name` brought to its grid, under the name by which integers read it."""
        if name in self.grids:
            return name if name in self.made_in_integers else f"{name}/rounded"
        seen = self.seen[name]
        return self._round(name, f"{name}/rounded", self.grid(name, seen.low, seen.high))

    def _round(self, name: str, made: str, ends: list[str], source: str | None = None) -> str:
        integers = self.add("QuantizeLinear", [source or name, *ends], f"{name}/integers")
        self.grids[name] = (integers, ends[1])
        return self.add("DequantizeLinear", [integers, *ends], made)

    def makes(self, name: str) -> str:
        """The name under which an operator in integers makes `name`, which `leave` then brings to its grid."""
        return f"{name}/exact"

    def leave(self, name: str, low: float | None = None, high: float | None = None) -> None:
        """Bring what an operator in integers has made to the grid of the tensor `name`, for all who read it.

        ReLU and ReLU6 behind it need no operator: the grid itself cuts off at both ends.
        """
        seen = self.seen[name]
        low, high = seen.low if low is None else low, seen.high if high is None else high
        exact = self.makes(name)
        while (after := self._sole_reader(name)) is not None and after.output[0] in self.seen:
            bounds = self._bounds(after)
            if bounds is None or bounds[0] != 0:
                break
            self.dropped.add(after.name)
            name = after.output[0]
            low, high = 0.0, min(self.seen[name].high, bounds[1])
        self._round(name, name, self.grid(name, max(low, self._floor(name)), high), exact)
        self.made_in_integers.add(name)

    def _floor(self, name: str) -> float:
        """Below this, values all become 0: in x * HardSigmoid(x), which is HardSwish."""
        readers = self.old.readers[name]
        ramp = next((node for node in readers if node.op_type == "HardSigmoid"), None)
        product = next((node for node in readers if node.op_type == "Mul"), None)
        if ramp is None or product is None or len(readers) != 2 or name in self.old.ends:
            return -math.inf
        if set(product.input) != {name, ramp.output[0]}:
            return -math.inf
        return float(-attribute(ramp, "beta", 0.5) / attribute(ramp, "alpha", 0.2))

    def _sole_reader(self, name: str) -> onnx.NodeProto | None:
        readers = self.old.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.old.ends else None

    def _bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """What a Relu or Clip keeps its output between."""
        if node.op_type == "Relu":
            return 0.0, math.inf
        if node.op_type != "Clip":
            return None
        ends = [self.old.weight(name) for name in node.input[1:]]
        if len(ends) != 2 or ends[0] is None or ends[1] is None:
            return None
        return float(ends[0]), float(ends[1])

    # Layers

    def _convolve(self, node: onnx.NodeProto) -> None:
        entered = self.on_grid(node.input[0])
        weight = self.old.weight(node.input[1])
        assert weight is not None
        # Integer kernels read the channels of a pixel one after the other.
        rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        integers, scale = quantise_rows(rows)
        given = self.old.weight(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        bias = np.zeros(len(weight), np.float32) if given is None else given
        # What rounding changes in the mean of each output is taken back.
        lost = (rows - integers * scale[:, None]).reshape(len(rows), -1, weight.shape[1]).sum(axis=1)
        entering = self.seen[node.input[0]].means.reshape(int(attribute(node, "group", 1)), 1, -1)
        bias = bias + (lost.reshape(len(entering), -1, weight.shape[1]) * entering).sum(axis=2).ravel()
        # A channel of next to no weights still has its bias, which must fit 32 bits.
        least = np.abs(bias) / (2**30 * self.scales[node.input[0]])
        integers[least > scale] = 0
        scale = np.maximum(scale, least).astype(np.float32)
        out, into, height, width = weight.shape
        name = node.name
        stored = np.ascontiguousarray(integers.reshape(out, height, width, into).transpose(0, 3, 1, 2))
        of_bias = (scale * np.float32(self.scales[node.input[0]])).astype(np.float32)
        weights = self._channelwise(f"{name}/weight", stored, scale)
        biases = self._channelwise(f"{name}/bias", np.rint(bias / of_bias.astype(np.float64)).astype(np.int32), of_bias)
        made = helper.make_node("Conv", [entered, weights, biases], [self.makes(node.output[0])], name=name)
        made.attribute.extend(node.attribute)
        self.nodes.append(made)
        self.leave(node.output[0])

    def _channelwise(self, name: str, integers: npt.NDArray[Any], scale: Floats) -> str:
        given = [
            self.constant(f"{name}/integers", integers),
            self.constant(f"{name}/scale", scale),
            self.constant(f"{name}/zero", np.zeros(len(scale), integers.dtype)),
        ]
        return self.add("DequantizeLinear", given, name, axis=0)

    def _multiply(self, node: onnx.NodeProto) -> None:
        weight = self.old.weight(node.input[1])
        assert weight is not None
        rows = weight if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight.T
        integers, scale = quantise_rows(np.ascontiguousarray(rows))
        given = [
            node.input[0],
            self.constant(f"{node.name}/weight", np.ascontiguousarray(integers.T)),
            self.constant(f"{node.name}/scale", scale),
        ]
        if len(node.input) > 2 and node.input[2]:
            given += ["", node.input[2]]
        self.nodes.append(
            helper.make_node("DynamicQuantizeMatMul", given, list(node.output), name=node.name, domain=_MICROSOFT)
        )

    def _is_table(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Gather" or attribute(node, "axis", 0) != 0 or len(self.old.readers[node.input[0]]) != 1:
            return False
        shape = self.old.shape(node.input[0])
        return len(shape) == 2 and math.prod(shape) >= LARGE_TABLE

    def _look_up(self, node: onnx.NodeProto) -> None:
        """Rows of a table in integers, each with a scale of its own."""
        table, name = self.old.weight(node.input[0]), node.name
        assert table is not None
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        stored = self.constant(f"{name}/table", np.rint(table / scale).astype(np.int8))
        rows = self.add("Gather", [stored, node.input[1]], f"{name}/rows")
        floats = self.add("Cast", [rows], f"{name}/floats", to=onnx.TensorProto.FLOAT)
        scales = self.add(
            "Gather", [self.constant(f"{name}/scale", scale.astype(np.float32)), node.input[1]], f"{name}/scales"
        )
        self.add("Mul", [floats, scales], node.output[0])

    # What lies between layers

    def _between(self, node: onnx.NodeProto) -> bool:
        """Bring an operator without weights to integers if there is one for it and what it reads comes from such."""
        read = [name for name in node.input if name]
        made = node.output[0]
        if node.domain or not any(name in self.made_in_integers for name in read) or made not in self.seen:
            return False
        if node.op_type in ("Add", "Mul") and all(name in self.seen for name in read):
            self._copy(node, [self.on_grid(name) for name in read])
            self.leave(made)
        elif node.op_type == "MaxPool" and len(node.output) == 1:
            self._copy(node, read)
            # Its values are among those that it was given.
            before = self.seen[read[0]] if read[0] in self.seen else self.seen[made]
            self.leave(made, before.low, before.high)
        elif self._is_gate_input(node):
            self.add("GlobalAveragePool", read[:1], self.makes(made))
            self.leave(made)
        elif node.op_type == "Sigmoid":
            self._copy(node, read)
            self.leave(made, 0.0, 1.0)
        elif node.op_type == "HardSigmoid" and max(self.seen[made].shape[2:], default=1) > 1:
            self._ramp(node)
        else:
            return False
        return True

    def _copy(self, node: onnx.NodeProto, given: list[str]) -> None:
        made = helper.make_node(node.op_type, given, [self.makes(node.output[0])], name=node.name)
        made.attribute.extend(node.attribute)
        self.nodes.append(made)

    def _is_gate_input(self, node: onnx.NodeProto) -> bool:
        """Whether a node averages each channel for a convolution: not for the embedding, which keeps its precision."""
        if node.op_type == "ReduceMean":
            axes = attribute(node, "axes", [])
            if len(node.input) > 1 and node.input[1] in self.old.weights:
                axes = numpy_helper.to_array(self.old.weights[node.input[1]]).tolist()
            if sorted(axis % 4 for axis in axes) != [2, 3] or not attribute(node, "keepdims", 1):
                return False
        elif node.op_type != "GlobalAveragePool":
            return False
        return any(reader.op_type == "Conv" for reader in self.old.readers[node.output[0]])

    def _ramp(self, node: onnx.NodeProto) -> None:
        """HardSigmoid, clip(alpha * x + beta, 0, 1), as a sum whose grid cuts off at 0 and 1.

        The product alpha * x costs nothing: the same integers are read by another scale.
        """
        given, made = node.input[0], node.output[0]
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        integers, zero = self.grids[given]
        scale = self.constant(f"{made}/slope", np.float32(alpha * self.scales[given]))
        scaled = self.add("DequantizeLinear", [integers, scale, zero], f"{made}/scaled")
        ends = [self.constant(f"{made}/beta_scale", np.float32(beta / 255)), self.constant("zero", np.uint8(0))]
        level = self.constant(f"{made}/beta_integer", np.uint8(255))
        self.add("Add", [scaled, self.add("DequantizeLinear", [level, *ends], f"{made}/beta")], self.makes(made))
        self.leave(made, 0.0, 1.0)

    def _finish(self, model: onnx.ModelProto) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(_without_weights(model))
        result.graph.node.extend(self.nodes)
        if any(node.op_type == "DynamicQuantizeMatMul" for node in self.nodes):
            for given in result.graph.input:
                given.type.tensor_type.shape.dim[0].dim_value = 1
        used = set(_read_by(self.nodes))
        result.graph.initializer.extend(
            tensor for name, tensor in self.old.weights.items() if name in used and name not in self.constants
        )
        result.graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        if all(known.domain != _MICROSOFT for known in result.opset_import):
            result.opset_import.append(helper.make_opsetid(_MICROSOFT, 1))
        return result


def _read_by(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """What nodes read, also in the graphs that branches and loops hold."""
    for node in nodes:
        yield from node.input
        for own in node.attribute:
            yield from _read_by(own.g.node)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of the same inputs and outputs, and nothing in between."""
    empty = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    empty.graph.name = model.graph.name
    empty.graph.input.extend(model.graph.input)
    empty.graph.output.extend(model.graph.output)
    return empty
