"""The image network of `lite` in C, for x86 processors on which it is faster than ONNX Runtime.

`_network.h` computes from the weights in `visual.onnx` the same integers as ONNX Runtime. It is compiled for three
sets of instructions when the package is built. Without them, and on other processors, ONNX Runtime runs the network.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..._libraries import load_library
from ._onnx_file import Constants, Node, read_onnx

Floats: TypeAlias = "npt.NDArray[np.float32]"

SIDE = 260
_PANEL = 16
"""Output channels of a panel of weights."""
_LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class Instructions:
    """A set of instructions that the network is compiled for, and how the weights are arranged for it."""

    name: str
    library: Path
    lanes: int
    """Channels that are computed at a time."""
    rows: int
    """Rows that a depthwise layer multiplies at a time."""
    weight: type[np.signedinteger[Any]]
    """The type of the weights of a depthwise layer."""
    pairs: bool
    """Whether the products of two groups of channels are added in 16 bits, where they fit."""


_HERE = Path(__file__).parent
AVX512 = Instructions("AVX-512 with VNNI", _HERE / "_network_avx512.so", lanes=16, rows=4, weight=np.int8, pairs=False)
AVX_VNNI = Instructions("AVX-VNNI", _HERE / "_network_avxvnni.so", lanes=8, rows=4, weight=np.int8, pairs=False)
AVX2 = Instructions("AVX2", _HERE / "_network_avx2.so", lanes=8, rows=2, weight=np.int16, pairs=True)
ALL = (AVX512, AVX_VNNI, AVX2)
"""From the fastest to the slowest."""


class _Pointwise(ctypes.Structure):
    _fields_ = (
        ("channels", ctypes.c_int32),
        ("results", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("paired", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
        ("zero", ctypes.c_int32),
    )


class _Depthwise(ctypes.Structure):
    _fields_ = (
        ("channels", ctypes.c_int32),
        ("kernel", ctypes.c_int32),
        ("stride", ctypes.c_int32),
        ("before", ctypes.c_int32),
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("factors", ctypes.c_void_p),
    )


class _Block(ctypes.Structure):
    _fields_ = (
        ("expand", _Pointwise),
        ("depthwise", _Depthwise),
        ("project", _Pointwise),
        ("side", ctypes.c_int32),
        ("result_side", ctypes.c_int32),
        ("skips", ctypes.c_int32),
        ("skip_factors", ctypes.c_float * 2),
        ("shift", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("zero", ctypes.c_int32),
        ("statistics", ctypes.c_int32),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        ("stem", _Pointwise),
        ("head", _Pointwise),
        ("block_count", ctypes.c_int32),
        ("feature_side", ctypes.c_int32),
        ("classes", ctypes.c_int32),
        ("blocks", ctypes.POINTER(_Block)),
        ("feature_scale", ctypes.c_float),
        ("class_weights", ctypes.c_void_p),
        ("class_scales", ctypes.c_void_p),
        ("class_bias", ctypes.c_void_p),
    )


class ImageNetwork:
    """The image network, read from `visual.onnx`. Its method may be called from several threads."""

    def __init__(self, path: Path, instructions: Instructions) -> None:
        """Read the weights. Raises `ValueError` if the file is not the network that `tools/lite_visual.py` writes."""
        library = _library(instructions.library)
        if library is None:
            raise ValueError(f"{instructions.library.name} was not compiled")
        self._run = library.pixmatcher_lite_run
        nodes, constants = read_onnx(path.read_bytes())
        pair = library.pixmatcher_lite_pair if instructions.pairs else None
        try:
            self._network = _Arranger(nodes, constants, instructions, pair)
        except (KeyError, IndexError) as error:
            raise ValueError(f"{path} is another network than expected ({error!r})") from error

    def run(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        """Return features, logits and statistics, one row each for an image, of pixels (N, 260, 260, 3) uint8.

        Raises `MemoryError` if there is not enough memory.
        """
        pixels, network = np.ascontiguousarray(pixels), self._network
        if pixels.shape[1:] != (SIDE, SIDE, 3) or pixels.dtype != np.uint8:
            raise ValueError(f"pixels {pixels.shape} of {pixels.dtype} instead of (N, {SIDE}, {SIDE}, 3) of uint8")
        outputs = tuple(np.empty((len(pixels), width), np.float32) for width in network.widths)
        places = [array.ctypes.data for array in (pixels, *outputs)]
        if not self._run(ctypes.byref(network.made), places[0], len(pixels), *places[1:]):
            raise MemoryError
        features, logits, statistics = outputs
        return features, logits, statistics


class _Arranger:
    """Arranges the weights as `_network.h` reads them, and keeps them in memory."""

    def __init__(
        self, nodes: list[Node], constants: Constants, instructions: Instructions, pair: Callable[..., int] | None
    ) -> None:
        self._constants, self._instructions, self._pair = constants, instructions, pair
        self._kept: list[npt.NDArray[np.uint8]] = []
        convolutions = {node.outputs[0].removesuffix("_conv"): node for node in nodes if node.operator == "Conv"}
        summarised = {node.outputs[0].removesuffix("_values") for node in nodes if node.outputs[0].endswith("_values")}
        blocks, entering, side, statistics = [], "stem", SIDE // 2, 0
        for number in range(sum(name.endswith("_depthwise") for name in convolutions)):
            block, name = _Block(), f"block{number}"
            if number:
                block.expand = self._pointwise(f"{name}_expand", entering)
                block.depthwise = self._depthwise(convolutions[f"{name}_depthwise"], f"{name}_expand")
            else:
                block.depthwise = self._depthwise(convolutions[f"{name}_depthwise"], entering)
            block.project = self._pointwise(f"{name}_project", f"{name}_depthwise")
            block.side, block.result_side = side, -(-side // block.depthwise.stride)
            leaving, added = f"{name}_project", f"{name}_project_added"
            if f"{added}_scale" in constants:
                self._skip(block, leaving, entering, added)
                leaving = added
            block.scale, block.zero = self._scale(leaving), self._zero(leaving)
            block.statistics = leaving in summarised
            statistics += 2 * block.project.results * block.statistics
            blocks.append(block)
            entering, side = leaving, block.result_side
        network = _Network(stem=self._pointwise("stem", "image"), head=self._pointwise("head", entering))
        network.block_count, network.feature_side = len(blocks), side
        network.blocks = (_Block * len(blocks))(*blocks)
        network.feature_scale = self._scale("head")
        classes = constants["classifier_q"]
        network.classes = classes.shape[1]
        network.class_weights = self._keep(classes)
        network.class_scales = self._keep(constants["scale"])
        network.class_bias = self._keep(constants["classifier_bias"])
        self.made = network
        self.widths = network.head.results, network.classes, statistics

    def _scale(self, name: str) -> np.float32:
        scale: np.float32 = np.float32(self._constants[f"{name}_scale"])
        return scale

    def _zero(self, name: str) -> int:
        return int(self._constants[f"{name}_zero"])

    def _keep(self, values: npt.NDArray[Any]) -> int:
        """Copy `values` to an address that begins a cache line, keep them there, and return the address."""
        room = np.zeros(values.nbytes + 2 * _LINE, np.uint8)
        start = -room.ctypes.data % _LINE
        room[start : start + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        self._kept.append(room)
        return int(room.ctypes.data) + start

    def _sums(self, name: str, entering: str, rows: npt.NDArray[np.int8]) -> dict[str, int]:
        """Return the addresses of the bias and of the factors; the bias includes the zero point of the input."""
        constants, zero = self._constants, self._zero(entering)
        bias = constants[f"{name}_bias_q"] - zero * rows.sum(axis=1, dtype=np.int32)
        factors = self._scale(entering) * constants[f"{name}_weight_scale"] / self._scale(name)
        return {"bias": self._keep(self._padded(bias.astype(np.int32))), "factors": self._keep(self._padded(factors))}

    def _padded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return values of channels, followed by zeros for those that are only there to fill a vector."""
        missing = -len(values) % self._instructions.lanes
        return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])

    def _pointwise(self, name: str, entering: str) -> _Pointwise:
        """Return a convolution whose windows are one after the other in memory, as they are for 1x1."""
        weights = self._constants[f"{name}_weight_q"]
        rows = np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).reshape(len(weights), -1)
        made = _Pointwise(rows.shape[1], len(rows), zero=self._zero(name), **self._sums(name, entering, rows))
        rows, groups = self._padded(rows), rows.shape[1] // 4
        panels, orders = [], np.tile(np.arange(groups, dtype=np.uint16), (-(-len(rows) // _PANEL), 1))
        paired = [0] * len(orders) if self._pair is None else []
        for order, start in zip(orders, range(0, len(rows), _PANEL), strict=True):
            panel = np.ascontiguousarray(rows[start : start + _PANEL].reshape(-1, groups, 4).transpose(1, 0, 2))
            if self._pair is not None:
                paired.append(self._pair(panel.ctypes.data, groups, panel.shape[1], order.ctypes.data))
                if paired[-1] < 0:
                    raise ValueError(f"the weights of {name} are too large for {self._instructions.name}")
            panels.append(panel[order].reshape(-1))
        made.weights, made.order = self._keep(np.concatenate(panels)), self._keep(orders)
        made.paired = self._keep(np.array(paired, np.uint16))
        return made

    def _depthwise(self, node: Node, entering: str) -> _Depthwise:
        name = node.outputs[0].removesuffix("_conv")
        weights = self._constants[f"{name}_weight_q"][:, 0]
        channels, kernel = weights.shape[:2]
        lanes, together = self._instructions.lanes, self._instructions.rows
        if self._zero(entering) or self._zero(name):
            raise ValueError(f"{name} has a zero point")
        if channels % lanes:
            raise ValueError(f"{name} has {channels} channels")
        strides, pads = node.attributes["strides"], node.attributes["pads"]
        # With a stride of 1, two rows of results are computed from the same rows: the weights of the second one begin
        # a row later.
        sets = (kernel + together) // together
        rows = np.zeros((channels, 2 if strides[0] == 1 else 1, sets * together, kernel), self._instructions.weight)
        for number in range(rows.shape[1]):
            rows[:, number, number : number + kernel] = weights
        arranged = rows.reshape(-1, lanes, rows.shape[1], sets, together, kernel).transpose(0, 3, 5, 2, 1, 4)
        sums = self._sums(name, entering, weights.reshape(channels, -1))
        return _Depthwise(channels, kernel, strides[0], pads[0], weights=self._keep(arranged), **sums)

    def _skip(self, block: _Block, leaving: str, entering: str, added: str) -> None:
        """Let a block add its input to its result, as a sum of floats that is rounded once."""
        factors = [self._scale(name) / self._scale(added) for name in (leaving, entering)]
        # As ONNX Runtime rounds it, which multiplies and adds in one step.
        moved = float(factors[0]) * self._zero(leaving) + float(factors[1] * np.float32(self._zero(entering)))
        block.skips, block.skip_factors = 1, tuple(factors)
        block.shift = np.float32(self._zero(added)) - np.float32(moved)


def fastest_instructions() -> Instructions | None:
    """Return the instructions with which the network is faster here than in ONNX Runtime; None if there are none."""
    for instructions in ALL:
        library = _library(instructions.library)
        if library is not None and library.pixmatcher_lite_suits():
            return instructions
    return None


@cache
def _library(path: Path) -> ctypes.CDLL | None:
    library = load_library(path, "pixmatcher_lite_run", "pixmatcher_lite_suits")
    if library is not None:
        library.pixmatcher_lite_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 3]
        if hasattr(library, "pixmatcher_lite_pair"):
            library.pixmatcher_lite_pair.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    return library
