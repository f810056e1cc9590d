"""EfficientNet-Lite2 as an int8 ONNX graph, written node by node.

The weights are read with PyTorch, at build time only. Batch normalisation is merged into the convolutions, the
ranges of the activations are measured on calibration images, and the graph is written in the QDQ form
(QuantizeLinear and DequantizeLinear around float operators), which ONNX Runtime fuses into integer kernels.

Sources: EfficientNet (Tan and Le, 2019) and its Lite variants (R. Liu, 2020: no squeeze-and-excitation,
ReLU6, fixed stem and head); integer quantisation with one scale for each output channel (Jacob et al., 2018;
Krishnamoorthi, 2018); rounding of the weights as in GPTQ (Frantar et al., 2022).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
import torch
from lite_int8 import Writer, quantise_rows
from onnx import TensorProto
from torch.nn import functional

SIZE = 260
CHANNELS, CLASSES = 1280, 1000

STATISTICS_OF = (
    "block4_project",
    "block5_project_added",
    "block10_project_added",
    "block14_project_added",
    "block19_project_added",
)
"""Blocks whose channels are summarised: colours, textures and parts, which the last layer no longer shows."""
STATISTICS = 2 * (48 + 48 + 88 + 120 + 208)
# The recipe of EfficientNet-Lite is (pixel - 127) / 128: a pixel is its own quantised value.
PIXEL_SCALE, PIXEL_ZERO = 1 / 128, 127

# The first convolution has 3 channels and a stride of 2, for which integer kernels are slow. FOLD
# neighbouring pixels of a row are read as one pixel of 3 * FOLD channels (the same bytes), and FOLD / 2
# neighbouring results are computed together. The results are the same, in less than half the time.
STEM, FOLD = "stem", 4

WINDOWS = 11
"""Number of rows and of columns of windows in each image and convolution from which the moments are computed."""


@dataclass(frozen=True)
class Conv:
    """One convolution that includes its batch normalisation; `relu6` says whether ReLU6 follows."""

    name: str
    weight: torch.Tensor  # (out, in / groups, height, width)
    bias: torch.Tensor  # (out,)
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]  # top, left, bottom, right
    groups: int
    relu6: bool

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in float32: x (N, in, H, W) -> (N, out, H', W')."""
        top, left, bottom, right = self.pads
        x = functional.conv2d(
            functional.pad(x, (left, right, top, bottom)),
            self.weight,
            self.bias,
            self.stride,
            groups=self.groups,
        )
        return functional.relu6(x) if self.relu6 else x


@dataclass(frozen=True)
class Block:
    """Successive convolutions; with `skip`, the input of the block is added to the output."""

    convs: tuple[Conv, ...]
    skip: bool

    @property
    def name(self) -> str:
        """The name of the output of the block."""
        return f"{self.convs[-1].name}_added" if self.skip else self.convs[-1].name


@dataclass(frozen=True)
class Network:
    """EfficientNet-Lite2, only the parts that inference needs."""

    blocks: tuple[Block, ...]
    classifier_weight: torch.Tensor  # (1000, 1280)
    classifier_bias: torch.Tensor  # (1000,)

    def run(self, pixels: npt.NDArray[np.uint8], seen: Calibration | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute in float32: pixels (N, 260, 260, 3) -> features (N, 1280), logits (N, 1000).

        `seen` gets the input and the output of each convolution.
        """
        folded = torch.from_numpy(pixels).reshape(-1, SIZE, SIZE // FOLD, 3 * FOLD)
        x = (folded.permute(0, 3, 1, 2).float() - PIXEL_ZERO) * PIXEL_SCALE
        for block in self.blocks:
            entered = x
            for conv in block.convs:
                if seen:
                    seen.enters(conv, x)
                x = conv.run(x)
                if seen:
                    seen.leaves(conv.name, x)
                if conv.name == STEM:
                    rows = x.permute(0, 2, 3, 1)
                    x = rows.reshape(len(x), SIZE // 2, SIZE // 2, -1).permute(0, 3, 1, 2)
            if block.skip:
                x = x + entered
                if seen:
                    seen.leaves(block.name, x)
        features = x.mean((2, 3))
        return features, features @ self.classifier_weight.T + self.classifier_bias


def _spread(count: int) -> torch.Tensor:
    """Return up to `WINDOWS` of the numbers below `count`, from the first to the last."""
    return torch.linspace(0, count - 1, min(count, WINDOWS)).long()


class Calibration:
    """Statistics of the activations over images, for the quantisation."""

    def __init__(self) -> None:
        self._extremes: dict[str, list[torch.Tensor]] = {}
        self.moments: dict[str, npt.NDArray[np.float64]] = {}
        """For each convolution: the sums of x[i] * x[j] over windows x of its input, in the order height,
        width, channel; (n, n), or (channels, n, n) if it is depthwise."""

    def enters(self, conv: Conv, x: torch.Tensor) -> None:
        """Add the input x (N, in, H, W) of `conv` to the moments. Some windows of each image are enough."""
        top, left, bottom, right = conv.pads
        height, width = conv.weight.shape[2:]
        padded = functional.pad(x, (left, right, top, bottom))
        rows = _spread((padded.shape[2] - height) // conv.stride[0] + 1) * conv.stride[0]
        columns = _spread((padded.shape[3] - width) // conv.stride[1] + 1) * conv.stride[1]
        rows, columns = rows[:, None] + torch.arange(height), columns[:, None] + torch.arange(width)
        # (N, in, rows, columns, height, width)
        windows = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]
        if conv.groups == 1:
            flat = windows.permute(0, 2, 3, 4, 5, 1).reshape(-1, height * width * x.shape[1])
            sums = flat.T @ flat
        else:
            flat = windows.permute(1, 0, 2, 3, 4, 5).reshape(x.shape[1], -1, height * width)
            sums = flat.transpose(1, 2) @ flat
        self.moments[conv.name] = self.moments.get(conv.name, 0) + sums.double().numpy()

    def leaves(self, name: str, value: torch.Tensor) -> None:
        """Store the lowest and the highest value of each image in the activation (N, C, H, W)."""
        self._extremes.setdefault(name, []).append(torch.stack([value.amin((1, 2, 3)), value.amax((1, 2, 3))]))

    def range(self, name: str) -> tuple[float, float]:
        """Return the range of values in which an activation is quantised.

        After ReLU6 it is the measured range. Sums have no bound and some rare large values, which would make the
        steps coarser for all others: their range is the mean of the extremes of the images.
        """
        low, high = torch.cat(self._extremes[name], 1)
        if low.min() >= 0:
            return 0.0, high.max().item()
        return low.mean().item(), high.mean().item()


def _widen(stem: Conv) -> Conv:
    """Convert the 3 x 3 stem of stride 2 to one that reads and writes folded rows; see `FOLD`."""
    out, into, height, width = stem.weight.shape
    results = FOLD // 2
    weight = torch.zeros(results, out, FOLD, into, height, 2)
    for result in range(results):
        for column in range(width):
            group, place = divmod(2 * result + column, FOLD)
            weight[result, :, place, :, :, group] = stem.weight[:, :, :, column]
    return replace(
        stem,
        weight=weight.reshape(results * out, FOLD * into, height, 2),
        bias=stem.bias.repeat(results),
        stride=(2, 1),
    )


def _merge(name: str, conv: torch.nn.Module, norm: torch.nn.Module, size: int, relu6: bool) -> tuple[Conv, int]:
    """Merge `norm` into `conv`, given the side of the input; return the result and the side of the output."""
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    stride = conv.stride[0]
    kernel = conv.kernel_size[0]
    left = -(-size // stride)
    # The padding SAME of TensorFlow: an odd pixel is added at the bottom and on the right.
    total = max((left - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    return (
        Conv(
            name=name,
            weight=(conv.weight * gain[:, None, None, None]).detach(),
            bias=(norm.bias - norm.running_mean * gain).detach(),
            stride=(stride, stride),
            pads=(before, before, after, after),
            groups=conv.groups,
            relu6=relu6,
        ),
        left,
    )


def load_network(state: dict[str, torch.Tensor]) -> Network:
    """Load the weights `state` into the architecture and reduce it to convolutions."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite2").eval()
    model.load_state_dict(state)
    stem, size = _merge(STEM, model._conv_stem, model._bn0, SIZE, relu6=True)
    blocks = [Block((_widen(stem),), skip=False)]
    for number, block in enumerate(model._blocks):
        convs = []
        parts = [
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ]
        for part, conv, norm in parts:
            if hasattr(block, conv):
                folded, size = _merge(
                    f"block{number}_{part}",
                    getattr(block, conv),
                    getattr(block, norm),
                    size,
                    relu6=part != "project",
                )
                convs.append(folded)
        entering, leaving = convs[0].weight.shape[1] * convs[0].groups, convs[-1].weight.shape[0]
        stride = max(max(conv.stride) for conv in convs)
        blocks.append(Block(tuple(convs), skip=stride == 1 and entering == leaving))
    head, _ = _merge("head", model._conv_head, model._bn1, size, relu6=True)
    blocks.append(Block((head,), skip=False))
    return Network(tuple(blocks), model._fc.weight.detach(), model._fc.bias.detach())


def write_graph(network: Network, seen: Calibration) -> onnx.ModelProto:
    """Write the graph of pixels uint8 (N, 260, 260, 3).

    It returns `features` (N, 1280), `logits` (N, 1000), and `statistics` (N, 1024) of the channels of some blocks.
    """
    graph = Writer()
    scales: dict[str, float] = {}

    def grid(name: str, scale: float, zero: int) -> list[str]:
        scales[name] = scale
        return [
            graph.constant(f"{name}_scale", np.float32(scale)),
            graph.constant(f"{name}_zero", np.uint8(zero)),
        ]

    def quantise(name: str, value: str) -> tuple[str, list[str]]:
        """Quantise `value` in the calibrated range; return the quantised tensor, and its scale and zero point.

        ReLU6 needs no operator: the range from low = 0 to high <= 6 itself limits the values.
        """
        low, high = seen.range(name)
        scale = (high - low) / 255
        ends = grid(name, scale, round(-low / scale))
        return graph.add("QuantizeLinear", [value, *ends], f"{name}_q"), ends

    def dequantise(name: str, quantised: str, ends: list[str]) -> str:
        return graph.add("DequantizeLinear", [quantised, *ends], name)

    def channelwise(name: str, integers: npt.NDArray[np.signedinteger], scale: npt.NDArray[np.float32]) -> str:
        zeros = graph.constant(f"{name}_zero", np.zeros(len(scale), integers.dtype))
        inputs = [graph.constant(f"{name}_q", integers), graph.constant(f"{name}_scale", scale), zeros]
        return graph.add("DequantizeLinear", inputs, name, axis=0)

    def convolve(conv: Conv, entered: str) -> str:
        flat = conv.weight.permute(0, 2, 3, 1).reshape(len(conv.weight), -1).numpy()
        # Depthwise kernels convert to 16 bits before they multiply, so nothing saturates.
        weight, scale = quantise_rows(flat, side_by_side=conv.groups == 1, moments=seen.moments[conv.name])
        # A channel with almost no weights still has a bias, which must fit into 32 bits.
        least = np.abs(conv.bias.numpy()) / (2**30 * scales[entered])
        if (least > scale).any():
            weight[least > scale] = 0
            scale = np.maximum(scale, least).astype(np.float32)
        out, into, height, width = conv.weight.shape
        weight = np.ascontiguousarray(weight.reshape(out, height, width, into).transpose(0, 3, 1, 2))
        bias_scale = (scale * scales[entered]).astype(np.float32)
        bias = np.rint(conv.bias.numpy() / bias_scale.astype(np.float64)).astype(np.int32)
        weights = channelwise(f"{conv.name}_weight", weight, scale)
        biases = channelwise(f"{conv.name}_bias", bias, bias_scale)
        return graph.add(
            "Conv",
            [entered, weights, biases],
            f"{conv.name}_conv",
            group=conv.groups,
            kernel_shape=[height, width],
            strides=list(conv.stride),
            pads=list(conv.pads),
        )

    def reshape(name: str, value: str, *shape: int) -> str:
        return graph.add("Reshape", [value, graph.constant(f"{name}_shape", np.array(shape, np.int64))], name)

    def transpose(name: str, value: str, *order: int) -> str:
        return graph.add("Transpose", [value], name, perm=order)

    planes = transpose("planes", reshape("folded", "pixels", -1, SIZE, SIZE // FOLD, 3 * FOLD), 0, 3, 1, 2)
    x = dequantise("image", planes, grid("image", PIXEL_SCALE, PIXEL_ZERO))
    for block in network.blocks:
        entered = x
        for conv in block.convs:
            quantised, ends = quantise(conv.name, convolve(conv, x))
            if conv.name == STEM:
                rows = transpose("stem_rows", quantised, 0, 2, 3, 1)
                unfolded = reshape("stem_unfolded", rows, -1, SIZE // 2, SIZE // 2, conv.weight.shape[0] // (FOLD // 2))
                quantised = transpose("stem_planes", unfolded, 0, 3, 1, 2)
            x = dequantise(conv.name, quantised, ends)
        if block.skip:
            x = dequantise(block.name, *quantise(block.name, graph.add("Add", [x, entered], f"{block.name}_sum")))
    graph.add("Flatten", [graph.add("GlobalAveragePool", [x], "pooled")], "features")
    # The classifier is stored in int8 and computed in float32, with features in full precision.
    classes, scale = quantise_rows(network.classifier_weight.numpy())
    integers = graph.constant("classifier_q", np.ascontiguousarray(classes.T))
    classifier = graph.add("Cast", [integers], "classifier", to=TensorProto.FLOAT)
    scaled = graph.add(
        "Mul",
        [graph.add("MatMul", ["features", classifier], "products"), graph.constant("scale", scale)],
        "sums",
    )
    graph.add("Add", [scaled, graph.constant("classifier_bias", network.classifier_bias.numpy())], "logits")
    model = graph.finish(
        "efficientnet_lite2",
        {"pixels": (np.uint8, ["n", SIZE, SIZE, 3])},
        {"features": (np.float32, ["n", CHANNELS]), "logits": (np.float32, ["n", CLASSES])},
    )
    return with_statistics(model)


def with_statistics(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the image network with the output `statistics` (N, 1024), which it may have already.

    They are the mean and the standard deviation over the image of each channel of the blocks `STATISTICS_OF`.
    """
    if any(output.name == "statistics" for output in model.graph.output):
        return model
    graph = Writer()
    values = []
    for name in STATISTICS_OF:
        # The block is dequantised once more: with one consumer each, its integer kernels stay.
        ends = [f"{name}_q", f"{name}_scale", f"{name}_zero"]
        channel = graph.add("DequantizeLinear", ends, f"{name}_values")
        mean = graph.add("GlobalAveragePool", [channel], f"{name}_mean")
        squares = graph.add("Mul", [channel, channel], f"{name}_squares")
        square = graph.add("GlobalAveragePool", [squares], f"{name}_square")
        variance = graph.add("Sub", [square, graph.add("Mul", [mean, mean], f"{name}_mean_square")], f"{name}_variance")
        deviation = graph.add("Sqrt", [graph.add("Relu", [variance], f"{name}_positive")], f"{name}_deviation")
        values += [graph.add("Flatten", [one], f"{one}s") for one in (mean, deviation)]
    graph.add("Concat", values, "statistics", axis=1)
    added = onnx.ModelProto()
    added.CopyFrom(model)
    added.graph.node.extend(graph.nodes)
    kind = onnx.TensorProto.FLOAT
    added.graph.output.append(onnx.helper.make_tensor_value_info("statistics", kind, ["n", STATISTICS]))
    onnx.checker.check_model(added, full_check=True)
    return added
