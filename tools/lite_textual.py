"""all-MiniLM-L6-v2 as an int8 ONNX graph for one text at a time, written node by node.

A single text needs no padding and no attention mask. Its embedding cannot depend on other texts: activations
are quantised by their own range (dynamic quantisation), which the texts of a batch would share.

Sources: BERT (Devlin et al., 2019), MiniLM (Wang et al., 2020), mean pooling as in Sentence-BERT (Reimers
and Gurevych, 2019).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from lite_int8 import Floats, Writer, quantise_rows
from onnx import TensorProto

LAYERS, HEADS, WIDTH = 6, 12, 384
MAX_TOKENS = 256
EPSILON = 1e-12


def reference(weights: dict[str, Floats], ids: npt.NDArray[np.int64]) -> Floats:
    """Compute the embedding (384,) of token ids (L,) in float32, to compare the quantised graph with it."""
    import torch
    from torch.nn import functional

    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], EPSILON)

    x = tensors["embeddings.word_embeddings.weight"][torch.from_numpy(ids)]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + tensors["embeddings.token_type_embeddings.weight"][0])
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            linear(f"{at}.attention.self.{part}", x).reshape(len(ids), HEADS, -1).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).reshape(len(ids), WIDTH)
        x = norm(f"{at}.attention.output.LayerNorm", linear(f"{at}.attention.output.dense", mixed) + x)
        inner = functional.gelu(linear(f"{at}.intermediate.dense", x))
        x = norm(f"{at}.output.LayerNorm", linear(f"{at}.output.dense", inner) + x)
    return functional.normalize(x.mean(0), dim=0).numpy()


def write_graph(weights: dict[str, Floats]) -> onnx.ModelProto:
    """Write the quantised graph: `ids` int64 (L,) -> `embedding` float32 (384,), of length 1."""
    graph = Writer()

    def linear(name: str, x: str, weight: Floats, bias: Floats) -> str:
        """Multiply quantised x (L, in) by the quantised weight (out, in)."""
        quantised, scale = quantise_rows(weight, side_by_side=True)
        graph.add("DynamicQuantizeLinear", [x], f"{x}_q", f"{x}_scale", f"{x}_zero")
        product = graph.add(
            "MatMulInteger",
            [f"{x}_q", graph.constant(f"{name}_weight", np.ascontiguousarray(quantised.T)), f"{x}_zero"],
            f"{name}_product",
        )
        floats = graph.add("Cast", [product], f"{name}_floats", to=TensorProto.FLOAT)
        both = graph.add("Mul", [f"{x}_scale", graph.constant(f"{name}_scale", scale)], f"{name}_scales")
        scaled = graph.add("Mul", [floats, both], f"{name}_scaled")
        return graph.add("Add", [scaled, graph.constant(f"{name}_bias", bias)], name)

    def norm(name: str, x: str) -> str:
        gain = [graph.constant(f"{name}_{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return graph.add("LayerNormalization", [x, *gain], name, epsilon=EPSILON)

    def shape(name: str, *sizes: int) -> str:
        return graph.constant(name, np.array(sizes, np.int64))

    words, word_scales = quantise_rows(weights["embeddings.word_embeddings.weight"])
    rows = graph.add("Gather", [graph.constant("words", words), "ids"], "rows_q")
    row_scales = graph.add("Gather", [graph.constant("word_scales", word_scales[:, None]), "ids"], "row_scales")
    rows = graph.add("Mul", [graph.add("Cast", [rows], "rows_f", to=TensorProto.FLOAT), row_scales], "rows")
    # There is only the first segment, so its embedding is added to those of the positions.
    places = weights["embeddings.position_embeddings.weight"][:MAX_TOKENS]
    places = places + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.add("Shape", ["ids"], "length")
    first = graph.add(
        "Slice",
        [graph.constant("places", places), shape("zero", 0), length, shape("first_axis", 0)],
        "first_places",
    )
    x = norm("embeddings.LayerNorm", graph.add("Add", [rows, first], "embedded"))
    heads, joined = shape("heads_shape", -1, HEADS, WIDTH // HEADS), shape("joined_shape", -1, WIDTH)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        parts = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
        matrices = [weights[f"{part}.weight"] for part in parts]
        biases = [weights[f"{part}.bias"] for part in parts]
        # The weights of the query include the division by the square root of the width of a head.
        matrices[0], biases[0] = (
            value / np.sqrt(WIDTH // HEADS).astype(np.float32) for value in (matrices[0], biases[0])
        )
        together = linear(f"{at}.qkv", x, np.concatenate(matrices), np.concatenate(biases))
        names = [f"{part}_flat" for part in parts]
        graph.add("Split", [together], *names, axis=1, num_outputs=3)
        query, key, value = (
            graph.add("Transpose", [graph.add("Reshape", [flat, heads], f"{part}_heads")], part, perm=perm)
            for part, flat, perm in zip(parts, names, ([1, 0, 2], [1, 2, 0], [1, 0, 2]), strict=True)
        )
        attention = graph.add(
            "Softmax", [graph.add("MatMul", [query, key], f"{at}.scores")], f"{at}.attention", axis=-1
        )
        mixed = graph.add("MatMul", [attention, value], f"{at}.mixed")
        mixed = graph.add("Transpose", [mixed], f"{at}.mixed_rows", perm=[1, 0, 2])
        mixed = graph.add("Reshape", [mixed, joined], f"{at}.mixed_joined")

        def dense(name: str, x: str) -> str:
            return linear(name, x, weights[f"{name}.weight"], weights[f"{name}.bias"])

        left = dense(f"{at}.attention.output.dense", mixed)
        x = norm(f"{at}.attention.output.LayerNorm", graph.add("Add", [left, x], f"{at}.attended"))
        inner = graph.add("Gelu", [dense(f"{at}.intermediate.dense", x)], f"{at}.inner")
        left = dense(f"{at}.output.dense", inner)
        x = norm(f"{at}.output.LayerNorm", graph.add("Add", [left, x], f"{at}.left"))
    mean = graph.add("ReduceMean", [x, shape("tokens_axis", 0)], "mean", keepdims=0)
    graph.add("LpNormalization", [mean], "embedding", axis=0, p=2)
    return graph.finish("minilm", {"ids": (np.int64, ["length"])}, {"embedding": (np.float32, [WIDTH])})
