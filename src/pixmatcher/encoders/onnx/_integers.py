"""ONNX networks rewritten to compute in 8-bit integers.

A quantised tensor is written as QuantizeLinear and DequantizeLinear after the operator that computes it. ONNX Runtime
replaces an operator between quantised tensors by one for integers, if it has one; other operators stay in fp32.

Sources: one scale an output channel (Jacob et al., 2018; Krishnamoorthi, 2018); the operators and which of them ONNX
Runtime replaces: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ._graph import Activation, Graph, attribute
from .networks import Floats

LARGE_TABLE = 1 << 20
"""Tables of tokens with at least this many values are stored in integers."""
_MICROSOFT = "com.microsoft"


def quantise_rows(rows: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return `rows` (rows, n) as int8, symmetric around zero, and the scale of each row.

    Two neighbours 2i and 2i + 1 of the same sign add up to 128 at most: x86 processors without VNNI add the products of
    two weights with unsigned activations in 16 bits, which hold 255 * 128 but not 255 * (127 + 127). So all processors
    compute the same, with less loss than by the usual 7 bits for all weights.
    """
    even = rows if rows.shape[1] % 2 == 0 else np.pad(rows, ((0, 0), (0, 1)))
    pairs = even.reshape(len(rows), -1, 2)
    sums = np.maximum(np.maximum(pairs, 0).sum(axis=2).max(axis=1), np.maximum(-pairs, 0).sum(axis=2).max(axis=1))
    # Rounding may add one half to each of the two: divide by 127, not by 128.
    scale = np.maximum(np.abs(rows).max(axis=1), sums) / 127
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8), scale


def to_integers(
    model: onnx.ModelProto, activations: Mapping[str, Activation], chosen: Collection[str]
) -> onnx.ModelProto:
    """Return the network with the `chosen` layers, and the operators between them, in integers.

    Large tables of tokens are stored in integers too. A network with matrix products in integers takes one image or
    text per call: the scale of a product depends on its whole input, and an embedding must not depend on its batch.
    """
    return _Rewriter(model, activations, chosen).model


class _Rewriter:
    """Writes the nodes of the new network one after the other; `model` is the result."""

    def __init__(self, model: onnx.ModelProto, activations: Mapping[str, Activation], chosen: Collection[str]) -> None:
        self.old = Graph(model)
        self.activations = activations
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.integers: dict[str, tuple[str, str]] = {}
        """For each quantised tensor, the names of its integers and of its zero point."""
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
        """Add an operator with the inputs `given` and the output `made`, and return `made`."""
        node = helper.make_node(op, given, [made], name=f"{made}/{op}", domain=domain, **attributes)
        self.nodes.append(node)
        return made

    def constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        """Add a constant, unless one of this name exists, and return its name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def scale_and_zero(self, name: str, low: float, high: float) -> list[str]:
        """Return the names of the scale and the zero point for 256 values from `low` to `high`, with 0 among them."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / 255, float(np.finfo(np.float32).tiny))
        self.scales[name] = scale
        return [
            self.constant(f"{name}/scale", np.float32(scale)),
            self.constant(f"{name}/zero", np.uint8(round(-low / scale))),
        ]

    def quantised(self, name: str) -> str:
        """Quantise the tensor `name` if needed, and return the name under which operators in integers read it."""
        if name in self.integers:
            return name if name in self.made_in_integers else f"{name}/rounded"
        observed = self.activations[name]
        return self._round(name, f"{name}/rounded", self.scale_and_zero(name, observed.low, observed.high))

    def _round(self, name: str, made: str, ends: list[str], source: str | None = None) -> str:
        """Quantise a tensor by the scale and zero point `ends`, and return it as `made`."""
        integers = self.add("QuantizeLinear", [source or name, *ends], f"{name}/integers")
        self.integers[name] = (integers, ends[1])
        return self.add("DequantizeLinear", [integers, *ends], made)

    def result_name(self, name: str) -> str:
        """Return the name of the result of an operator in integers, before `quantise_result` quantises it to `name`."""
        return f"{name}/exact"

    def quantise_result(self, name: str, low: float | None = None, high: float | None = None) -> None:
        """Quantise the result of an operator in integers to the tensor `name`, for all nodes that read it.

        A ReLU or ReLU6 after it needs no operator: the range of the integers clips at both ends.
        """
        observed = self.activations[name]
        low, high = observed.low if low is None else low, observed.high if high is None else high
        exact = self.result_name(name)
        while (after := self._sole_reader(name)) is not None and after.output[0] in self.activations:
            bounds = self._bounds(after)
            if bounds is None or bounds[0] != 0:
                break
            self.dropped.add(after.name)
            name = after.output[0]
            low, high = 0.0, min(self.activations[name].high, bounds[1])
        self._round(name, name, self.scale_and_zero(name, max(low, self._floor(name)), high), exact)
        self.made_in_integers.add(name)

    def _floor(self, name: str) -> float:
        """Return the value below which HardSwish, x * HardSigmoid(x), is 0; -inf if the readers are not HardSwish."""
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
        """Return the limits of the output of a Relu or Clip, or None for other nodes."""
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
        """Add a convolution in integers, whose bias corrects the rounding of the weights."""
        entered = self.quantised(node.input[0])
        weight = self.old.weight(node.input[1])
        assert weight is not None
        # Integer kernels read all channels of a pixel before those of the next one.
        rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        integers, scale = quantise_rows(rows)
        given = self.old.weight(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        bias = np.zeros(len(weight), np.float32) if given is None else given
        # The bias corrects the change of the mean of each output by rounding.
        lost = (rows - integers * scale[:, None]).reshape(len(rows), -1, weight.shape[1]).sum(axis=1)
        entering = self.activations[node.input[0]].means.reshape(int(attribute(node, "group", 1)), 1, -1)
        bias = bias + (lost.reshape(len(entering), -1, weight.shape[1]) * entering).sum(axis=2).ravel()
        # The bias of a channel with very small weights must still fit into 32 bits.
        least = np.abs(bias) / (2**30 * self.scales[node.input[0]])
        integers[least > scale] = 0
        scale = np.maximum(scale, least).astype(np.float32)
        out, into, height, width = weight.shape
        name = node.name
        stored = np.ascontiguousarray(integers.reshape(out, height, width, into).transpose(0, 3, 1, 2))
        of_bias = (scale * np.float32(self.scales[node.input[0]])).astype(np.float32)
        weights = self._scaled_per_channel(f"{name}/weight", stored, scale)
        biases = self._scaled_per_channel(
            f"{name}/bias", np.rint(bias / of_bias.astype(np.float64)).astype(np.int32), of_bias
        )
        made = helper.make_node("Conv", [entered, weights, biases], [self.result_name(node.output[0])], name=name)
        made.attribute.extend(node.attribute)
        self.nodes.append(made)
        self.quantise_result(node.output[0])

    def _scaled_per_channel(self, name: str, integers: npt.NDArray[Any], scale: Floats) -> str:
        """Add integers with a scale for each channel, and return their name."""
        given = [
            self.constant(f"{name}/integers", integers),
            self.constant(f"{name}/scale", scale),
            self.constant(f"{name}/zero", np.zeros(len(scale), integers.dtype)),
        ]
        return self.add("DequantizeLinear", given, name, axis=0)

    def _multiply(self, node: onnx.NodeProto) -> None:
        """Add a product with a constant matrix, whose other factor is quantised for each image."""
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
        """Write a look-up in a table whose rows are integers, each with its own scale."""
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

    # Operators between layers

    def _between(self, node: onnx.NodeProto) -> bool:
        """Write an operator without weights in integers, if its input is in integers. Return False if not possible."""
        read = [name for name in node.input if name]
        made = node.output[0]
        if node.domain or not any(name in self.made_in_integers for name in read) or made not in self.activations:
            return False
        if node.op_type in ("Add", "Mul") and all(name in self.activations for name in read):
            self._copy(node, [self.quantised(name) for name in read])
            self.quantise_result(made)
        elif node.op_type == "MaxPool" and len(node.output) == 1:
            self._copy(node, read)
            # Its output values are among its input values.
            before = self.activations[read[0]] if read[0] in self.activations else self.activations[made]
            self.quantise_result(made, before.low, before.high)
        elif self._is_gate_input(node):
            self.add("GlobalAveragePool", read[:1], self.result_name(made))
            self.quantise_result(made)
        elif node.op_type == "Sigmoid":
            self._copy(node, read)
            self.quantise_result(made, 0.0, 1.0)
        elif node.op_type == "HardSigmoid" and max(self.activations[made].shape[2:], default=1) > 1:
            self._ramp(node)
        else:
            return False
        return True

    def _copy(self, node: onnx.NodeProto, given: list[str]) -> None:
        """Add an operator unchanged, with the inputs `given`."""
        made = helper.make_node(node.op_type, given, [self.result_name(node.output[0])], name=node.name)
        made.attribute.extend(node.attribute)
        self.nodes.append(made)

    def _is_gate_input(self, node: onnx.NodeProto) -> bool:
        """Return whether a node averages each channel for a convolution; an average for the embedding stays in fp32."""
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
        """Write HardSigmoid, clip(alpha * x + beta, 0, 1), as a sum whose range is from 0 to 1.

        The product alpha * x needs no operator: the same integers are read with another scale.
        """
        given, made = node.input[0], node.output[0]
        alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        integers, zero = self.integers[given]
        scale = self.constant(f"{made}/slope", np.float32(alpha * self.scales[given]))
        scaled = self.add("DequantizeLinear", [integers, scale, zero], f"{made}/scaled")
        ends = [self.constant(f"{made}/beta_scale", np.float32(beta / 255)), self.constant("zero", np.uint8(0))]
        level = self.constant(f"{made}/beta_integer", np.uint8(255))
        self.add("Add", [scaled, self.add("DequantizeLinear", [level, *ends], f"{made}/beta")], self.result_name(made))
        self.quantise_result(made, 0.0, 1.0)

    def _finish(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the rewritten network with the weights that it uses."""
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
    """Yield the names of the tensors that nodes read, also inside branches and loops."""
    for node in nodes:
        yield from node.input
        for own in node.attribute:
            yield from _read_by(own.g.node)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the same inputs and outputs, and no nodes."""
    empty = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    empty.graph.name = model.graph.name
    empty.graph.input.extend(model.graph.input)
    empty.graph.output.extend(model.graph.output)
    return empty
