"""all-MiniLM-L6-v2 as an int8 ONNX graph for one text at a time, written node by node.

A single text needs no padding and no attention mask. Its embedding cannot depend on other texts: activations
are quantised by their own range (dynamic quantisation), which the texts of a batch would share.

Sources: BERT (Devlin et al., 2019), MiniLM (Wang et al., 2020), mean pooling as in Sentence-BERT (Reimers
and Gurevych, 2019).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lite_semantic
import numpy as np
import numpy.typing as npt
import onnx
import torch
from lite_heads import ClassNames, as_array
from lite_int8 import Floats, Writer, quantise_rows
from onnx import TensorProto

from pixmatcher.encoders import lite

LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12


SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def without_other_scripts(tokenizer: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """Return a tokenizer without the tokens that no English text has, and the old number of each token that is left.

    Unused tokens and those of other scripts go; a word with them becomes [UNK]. The network learnt English only.
    """
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    kept = [token for token in sorted(vocabulary, key=lambda token: vocabulary[token]) if _is_kept(token)]
    numbers = {token: number for number, token in enumerate(kept)}
    template = tokenizer["post_processor"]
    for special in template["special_tokens"].values():
        special["ids"] = [numbers[token] for token in special["tokens"]]
    added = [{**token, "id": numbers[token["content"]]} for token in tokenizer["added_tokens"]]
    model = {**tokenizer["model"], "vocab": numbers}
    return {**tokenizer, "model": model, "added_tokens": added}, [vocabulary[token] for token in kept]


def _is_kept(token: str) -> bool:
    if token in SPECIAL_TOKENS:
        return True
    letters = token.removeprefix("##")
    if token.startswith("[unused"):
        return False
    return all("LATIN" in unicodedata.name(one, "") if one.isalpha() else ord(one) < ord("\u2100") for one in letters)


def reference(weights: dict[str, Floats], ids: npt.NDArray[np.int64]) -> Floats:
    """Compute the embedding (384,) of token ids (L,) in float32, to compare the quantised graph with it."""
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


@dataclass(frozen=True)
class TextHead:
    """What turns a text into its vector of `semantic`: the names of the classes, and fitted layers."""

    names: ClassNames
    towers: lite_semantic.Towers


def write_graph(weights: dict[str, Floats], head: TextHead | None = None) -> onnx.ModelProto:
    """Write the quantised graph: `ids` int64 (L,) -> `embedding` float32 (384,), of length 1, and more.

    Without a head it returns the `states` (L, 384) of the tokens as well. With a head, the graph also takes `shares`
    (1144,), how much the words of the text name each class and group, and returns `semantic` (768,), of length 1.
    """
    graph = Writer()
    quantised_inputs: set[str] = set()

    def linear(name: str, x: str, weight: Floats, bias: Floats | None = None) -> str:
        """Multiply quantised x (L, in) by the quantised weight (out, in)."""
        quantised, scale = quantise_rows(weight, side_by_side=True)
        if x not in quantised_inputs:
            graph.add("DynamicQuantizeLinear", [x], f"{x}_q", f"{x}_scale", f"{x}_zero")
            quantised_inputs.add(x)
        product = graph.add(
            "MatMulInteger",
            [f"{x}_q", graph.constant(f"{name}_weight", np.ascontiguousarray(quantised.T)), f"{x}_zero"],
            f"{name}_product",
        )
        floats = graph.add("Cast", [product], f"{name}_floats", to=TensorProto.FLOAT)
        both = graph.add("Mul", [f"{x}_scale", graph.constant(f"{name}_scale", scale)], f"{name}_scales")
        scaled = graph.add("Mul", [floats, both], f"{name}_scaled")
        return scaled if bias is None else graph.add("Add", [scaled, graph.constant(f"{name}_bias", bias)], name)

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
    places = weights["embeddings.position_embeddings.weight"][: lite.MAX_TOKENS]
    places = (places + weights["embeddings.token_type_embeddings.weight"][0]).astype(np.float16)
    length = graph.add("Shape", ["ids"], "length")
    first = graph.add(
        "Slice",
        [graph.constant("places", places), shape("zero", 0), length, shape("first_axis", 0)],
        "first_places",
    )
    first = graph.add("Cast", [first], "first_floats", to=TensorProto.FLOAT)
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
    inputs: dict[str, tuple[type, list[int | str]]] = {"ids": (np.int64, ["length"])}
    outputs: dict[str, tuple[type, list[int | str]]] = {"embedding": (np.float32, [WIDTH])}
    if head is None:
        graph.add("Identity", [x], "states")
        outputs["states"] = (np.float32, ["length", WIDTH])
    else:
        _add_head(graph, linear, shape, head, x, length)
        inputs["shares"] = (np.float32, [lite_semantic.EVIDENCE])
        outputs["semantic"] = (np.float32, [lite_semantic.SCENE + lite_semantic.NAMES])
    return graph.finish("minilm", inputs, outputs)


def _add_head(
    graph: Writer, linear: Callable[..., str], shape: Callable[..., str], head: TextHead, states: str, length: str
) -> None:
    """Add the nodes from `embedding`, the states of the tokens and `shares` to `semantic`, as `Towers.texts` does."""
    towers = head.towers

    def number(name: str, value: float) -> str:
        return graph.constant(name, np.float32(value))

    def layer(name: str, x: str, fitted: torch.nn.Linear) -> str:
        return linear(name, x, as_array(fitted.weight), None if fitted.bias is None else as_array(fitted.bias))

    def small(name: str, x: str, fitted: torch.nn.Linear) -> str:
        """Multiply in float32: the layer is small."""
        product = graph.add(
            "MatMul", [x, graph.constant(f"{name}_weight", as_array(fitted.weight).T.copy())], f"{name}_sum"
        )
        return (
            product
            if fitted.bias is None
            else graph.add("Add", [product, graph.constant(f"{name}_bias", as_array(fitted.bias))], name)
        )

    # The classes and groups that the text names: by similarity, as far as its words do not name them exactly.
    row = graph.add("Unsqueeze", ["embedding", shape("row_axis", 0)], "row")
    similarity = graph.add("Squeeze", [linear("names", row, head.names.embeddings), shape("only_row", 0)], "similarity")
    of_names = graph.add(
        "Gather", [similarity, graph.constant("rows_of_names", head.names.rows.astype(np.int32))], "of_names"
    )
    nearest = graph.add("ReduceMax", [of_names, shape("names_axis", 1)], "nearest", keepdims=0)
    sharp = graph.add("Mul", [nearest, number("name_sharpness", 1 / lite_semantic.NAME_TEMPERATURE)], "sharp")
    similar = graph.add("Softmax", [sharp], "similar", axis=0)
    certainty = graph.add("ReduceSum", ["shares", shape("shares_axis", 0)], "certainty", keepdims=1)
    doubt = graph.add("Pow", [number("doubt_of_one", lite_semantic.DOUBT), certainty], "doubt")
    trust = graph.add("Sub", [number("one", 1.0), doubt], "trust")
    each = graph.add("Div", [trust, graph.add("Max", [certainty, number("tiny", 1e-9)], "some")], "each")
    exact = graph.add("Mul", ["shares", each], "exact")
    named = graph.add("Add", [graph.add("Mul", [similar, doubt], "vague"), exact], "named")

    centred = graph.add("Sub", [row, graph.constant("text_mean", as_array(towers.text_mean))], "centred")
    meaning = graph.add("Mul", [centred, number("text_gain", lite_semantic.TEXT_GAIN)], "meaning")
    weights = graph.add("Softmax", [small("pool", states, towers.pool)], "pool_weights", axis=0)
    pooled = graph.add("MatMul", [graph.add("Transpose", [weights], "pool_rows", perm=[1, 0]), states], "pooled")
    flat = graph.add("Reshape", [pooled, shape("flat_shape", 1, -1)], "flat")
    seen = graph.add("Concat", [meaning, flat], "seen", axis=1)
    hidden = graph.add("Gelu", [layer("text_inner", seen, towers.text_hidden)], "text_hidden")
    direct = layer("text_direct", meaning, towers.text_direct)
    summed = graph.add("Add", [layer("text_outer", hidden, towers.text_out), direct], "scene_sum")
    scene = graph.add("LpNormalization", [summed], "scene", axis=1, p=2)

    named_row = graph.add("Unsqueeze", [named, shape("named_axis", 0)], "named_row")
    names = graph.add("LpNormalization", [layer("names_half", named_row, towers.named)], "names_unit", axis=1, p=2)
    count = graph.add("Sub", [graph.add("Cast", [length], "tokens", to=TensorProto.FLOAT), number("two", 2.0)], "count")
    log_count = graph.add("Log", [graph.add("Max", [count, number("one_token", 1.0)], "at_least_one")], "log_count")
    most = graph.add("ReduceMax", [named, shape("most_axis", 0)], "most", keepdims=1)
    log_most = graph.add("Log", [graph.add("Add", [most, number("floor", 1e-3)], "most_floored")], "log_most")
    clues = graph.add(
        "Unsqueeze",
        [graph.add("Concat", [log_count, most, log_most], "clues", axis=0), shape("clues_axis", 0)],
        "clues_row",
    )
    inner = graph.add("Tanh", [small("gate_inner", clues, towers.gate[0])], "gate_hidden")
    of_text = graph.add(
        "Mul",
        [small("gate_direct", meaning, towers.gate_direct), number("gate_gain", lite_semantic.GATE_GAIN)],
        "gate_of_text",
    )
    power = graph.add(
        "Exp", [graph.add("Add", [small("gate_outer", inner, towers.gate[2]), of_text], "gate_sum")], "power"
    )
    weight = graph.add("Min", [power, number("most_weight", lite_semantic.MOST_WEIGHT)], "weight")
    both = graph.add("Concat", [scene, graph.add("Mul", [names, weight], "names_weighted")], "both", axis=1)
    row_vector = graph.add("LpNormalization", [both], "semantic_row", axis=1, p=2)
    graph.add("Squeeze", [row_vector, shape("semantic_axis", 0)], "semantic")
