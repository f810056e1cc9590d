"""Measure the limits of this machine, with which other results can be compared.

    python benchmarks/limits.py

It prints the speed of reading memory, the multiply-adds of 8-bit integers per second in ONNX Runtime (in one large
matrix product and in the network of `lite`), and the speed of decoding JPEGs. All cores are used. Results are the best
of several rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from decode import by_pillow, encoded, large_photo
from onnx import TensorProto, helper, shape_inference

from pixmatcher import load_encoder, open_image
from pixmatcher._cores import usable_cores
from pixmatcher.encoders import lite

GIB = 1 << 30


def best(work: Callable[[], object], rounds: int = 7) -> float:
    """Return the seconds of the fastest round."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def memory() -> float:
    """Return the bytes per second that are read when arrays are summed that are larger than any cache."""
    parts = [np.ones(GIB // 8, np.uint64) for _ in range(usable_cores())]
    with ThreadPoolExecutor(len(parts)) as pool:
        return GIB * len(parts) / best(lambda: list(pool.map(np.sum, parts)))


def product() -> float:
    """Return the multiply-adds per second of one product of large matrices of 8-bit integers."""
    side = 2048
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    values = [helper.make_tensor_value_info(name, kind, [side, side]) for name, kind in (
        ("a", TensorProto.UINT8), ("b", TensorProto.INT8), ("c", TensorProto.INT32))]  # fmt: skip
    graph = helper.make_graph([node], "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    inputs = {"a": np.ones((side, side), np.uint8), "b": np.ones((side, side), np.int8)}
    return side**3 / best(lambda: session.run(None, inputs))


def multiply_adds(path: Path) -> int:
    """Return the multiply-adds for one image in all convolutions and matrix products of an ONNX file."""
    graph = shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {
        value.name: [each.dim_value or 1 for each in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output, *graph.value_info]
    }
    shapes |= {weights.name: list(weights.dims) for weights in graph.initializer}
    # A DequantizeLinear node has the weights of a layer.
    shapes |= {
        n.output[0]: shapes[n.input[0]]
        for n in graph.node
        if n.input and n.input[0] in shapes and n.op_type == "DequantizeLinear"
    }
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weights, output = shapes[node.input[1]], shapes[node.output[0]]
            each = int(np.prod(weights[1:])) if node.op_type == "Conv" else weights[0]
            total += int(np.prod(output[1:])) * each
    return total


def network() -> tuple[float, int]:
    """Return the images per second of the network of `lite`, and the multiply-adds for one image."""
    encoder = load_encoder()
    pixels = np.random.default_rng(0).integers(
        0, 256, (lite.BATCH_SIZE, lite.RECIPE.size, lite.RECIPE.size, 3), np.uint8
    )
    encoder.encode_images(pixels)
    with ThreadPoolExecutor(usable_cores()) as pool:
        seconds = best(lambda: list(pool.map(encoder.encode_images, [pixels] * 20)))
    return 20 * len(pixels) / seconds, multiply_adds(Path(lite.__file__).with_name("files") / "visual.onnx")


def decoding(data: bytes) -> float:
    """Return the bytes of JPEG per second, for photos of 12 megapixels that are decoded at an eighth of their scale."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return 20 * len(data) / best(lambda: list(pool.map(lambda _: open_image(data, min_side=260), range(20))), 4)


def main() -> None:
    print(f"{usable_cores()} of {os.cpu_count()} cores")
    print(f"memory: {memory() / 1e9:.1f} GB/s read")
    peak, (rate, each) = product(), network()
    print(f"8-bit multiply-adds: {peak / 1e9:,.0f} billion per second in one large product")
    print(f"network of lite: {each / 1e6:,.0f} million multiply-adds for an image, {rate:.0f} images/s")
    print(f"  {rate * each / 1e9:,.0f} billion per second, {rate * each / peak:.0%} of the speed of the product")
    data = encoded(large_photo(None), "JPEG", quality=87)
    ours = decoding(data)
    with by_pillow():
        pillow = decoding(data)
    print(f"JPEG of {len(data) / 1e6:.1f} MB at 1/8: {ours / 1e6:,.0f} MB/s, with Pillow {pillow / 1e6:,.0f} MB/s")


if __name__ == "__main__":
    main()
