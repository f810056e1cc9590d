"""What both quantised graphs share: a writer of ONNX nodes, and int8 weights that suit every processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Floats = npt.NDArray[np.float32]
Shape = Sequence["int | str"]

OPSET = 20
IR_VERSION = 9
DAMPING = 0.01
"""Share of the mean second moment that is added to each input's own, so that the moments can be inverted."""


class Writer:
    """The nodes and constants of one ONNX graph, collected step by step."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: npt.NDArray[np.generic] | np.generic) -> str:
        """Store a constant and return its name."""
        if name in self.constants:
            raise ValueError(f"There are two constants with the name {name}.")
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, op: str, inputs: Sequence[str], *outputs: str, **attributes: object) -> str:
        """Append a node and return the name of its first output."""
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def finish(
        self, name: str, inputs: Mapping[str, tuple[type, Shape]], outputs: Mapping[str, tuple[type, Shape]]
    ) -> onnx.ModelProto:
        """Check the graph and return it as a model; `inputs` and `outputs` give type and shape by name."""
        ends = [
            [
                helper.make_tensor_value_info(end, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), list(shape))
                for end, (kind, shape) in side.items()
            ]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, *ends, list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="pixmatcher")
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def quantise_rows(
    rows: Floats, *, side_by_side: bool = False, moments: npt.NDArray[np.float64] | None = None
) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return `rows` (rows, n) as int8, symmetric around zero, and the scale of each row.

    With `side_by_side`, the sum of two neighbours of the same sign is at most 128. x86 processors without VNNI
    multiply unsigned activations by signed weights with VPMADDUBSW, which adds the products of two
    neighbours in 16 bits and saturates: 255 * (127 + 127) is too large, 255 * 128 is not. So all processors
    compute the same. This loses less precision than 7 bits for all weights, because few rows have two large
    weights side by side.

    With `moments` (n, n) or (rows, n, n), the sums of x[i] * x[j] over the inputs x of the rows, weights are
    rounded one column after the other, and the following columns compensate the rounding errors according to
    the moments (GPTQ: Frantar et al., 2022). Without, each weight is rounded to the nearest integer.
    """
    scale = np.abs(rows).max(1) / 127
    if side_by_side:
        pairs = rows.reshape(len(rows), -1, 2)
        sums = np.maximum(np.maximum(pairs, 0).sum(2).max(1), np.maximum(-pairs, 0).sum(2).max(1))
        # Rounding may add one half to each of the two, so the divisor is 127 and not 128.
        scale = np.maximum(scale, sums / 127)
    scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
    if moments is None:
        return np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8), scale
    if moments.ndim == 2:
        return _round_by_moments(rows, scale, moments, side_by_side), scale
    each = [_round_by_moments(rows[[i]], scale[[i]], own, side_by_side) for i, own in enumerate(moments)]
    return np.concatenate(each), scale


def _round_by_moments(
    rows: Floats, scale: Floats, moments: npt.NDArray[np.float64], side_by_side: bool
) -> npt.NDArray[np.int8]:
    left = rows / scale[:, None].astype(np.float64)
    columns = left.shape[1]
    damped = moments + np.eye(columns) * (DAMPING * np.trace(moments) / columns + 1e-9)
    carry = np.linalg.cholesky(np.linalg.inv(damped)).T
    result = np.zeros(left.shape)
    for column in range(columns):
        rounded = np.clip(np.rint(left[:, column]), -127, 127)
        if side_by_side and column % 2:
            before = result[:, column - 1]
            room = np.where(np.sign(before) == np.sign(rounded), 128 - np.abs(before), 127)
            rounded = np.clip(rounded, -room, room)
        result[:, column] = rounded
        lost = (left[:, column] - rounded) / carry[column, column]
        left[:, column + 1 :] -= np.outer(lost, carry[column, column + 1 :])
    return result.astype(np.int8)
