"""Find out by running them how the networks of a model are used: their inputs, outputs and dimensions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...images import Recipe, normalize_pixels
from ..texts.tokenizer import open_tokenizer
from ._preprocessor import UnsupportedError
from .card import Network, TextRecipe

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def examine_image_network(
    session: InferenceSession, recipe: Recipe, file: str, *, with_text: bool
) -> tuple[Network, int]:
    """Return how the image network `file` is used, and the dimension of its embeddings.

    `with_text` says that the model also has a text network. Raises `UnsupportedError` if it cannot be used.
    """
    import numpy as np

    inputs = {given.name: given for given in session.get_inputs()}
    if "input_ids" in inputs:
        raise UnsupportedError(
            "takes images and texts together, which cannot be indexed: choose a model with two files"
        )
    pixels = inputs.get("pixel_values")
    if len(inputs) != 1 or pixels is None:
        raise UnsupportedError(
            f"takes {_list_in_words(inputs)} instead of pixel_values alone, which pixmatcher does not support"
        )
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(pixels.type)
    if dtype is None:
        raise UnsupportedError(f"takes pixels of the type {pixels.type}, which pixmatcher does not support")
    fixed = [side for side in pixels.shape[2:] if isinstance(side, int) and side != recipe.size]
    if fixed or isinstance(pixels.shape[0], int):
        raise UnsupportedError(
            f"takes images of the fixed shape {pixels.shape} only: choose one for batches of {recipe.size} pixels"
        )
    output = _output(session, ("image_embeds", "pooler_output", "last_hidden_state"))
    if output == "last_hidden_state" and with_text:
        raise UnsupportedError("has no output that can be compared with texts: choose another model")
    network = Network(file, "pixel_values", output, "first" if output == "last_hidden_state" else "none")
    black = np.zeros((2, recipe.size, recipe.size, 3), np.uint8)
    (found,) = session.run([output], {"pixel_values": normalize_pixels(black, recipe).astype(dtype)})
    return network, _dimension(found, 2, network)


def examine_text_network(session: InferenceSession, file: str, image_output: str) -> tuple[Network, int | None]:
    """Return how the text network `file` is used, and the number of ids of a text if the network fixes it.

    `image_output` is the output of the image network that is used. Raises `UnsupportedError` if it cannot be used.
    """
    inputs = {given.name: given for given in session.get_inputs()}
    if "input_ids" not in inputs or inputs.keys() - {"input_ids", "attention_mask"}:
        raise UnsupportedError(
            f"takes {_list_in_words(inputs)} instead of input_ids alone, which pixmatcher does not support"
        )
    ids = inputs["input_ids"]
    if ids.type not in ("tensor(int64)", "tensor(int32)"):
        raise UnsupportedError(f"takes ids of the type {ids.type}, which pixmatcher does not support")
    output = _output(session, ("text_embeds" if image_output == "image_embeds" else image_output,))
    mask = "attention_mask" if "attention_mask" in inputs else None
    length = ids.shape[1] if len(ids.shape) > 1 and isinstance(ids.shape[1], int) else None
    return Network(file, "input_ids", output, mask=mask), length


def check_text_network(
    session: InferenceSession, network: Network, text: TextRecipe, folder: Path, dimension: int
) -> None:
    """Embed a text. Raises `UnsupportedError` if the vector does not have the dimension of the image embeddings."""
    import numpy as np

    dtypes = {given.name: np.int32 if given.type == "tensor(int32)" else np.int64 for given in session.get_inputs()}
    ids, mask = open_tokenizer(folder / text.tokenizer, text)("a photo")
    given = {network.input: ids[None].astype(dtypes[network.input])}
    if network.mask is not None:
        given[network.mask] = mask[None].astype(dtypes[network.mask])
    (found,) = session.run([network.output], given)
    if (values := _dimension(found, 1, network)) != dimension:
        raise UnsupportedError(f"returns {values:,} values per text but {dimension:,} per image: choose another model")


def _output(session: InferenceSession, names: tuple[str, ...]) -> str:
    """Return the first of these output names that a network has."""
    outputs = [output.name for output in session.get_outputs()]
    for name in names:
        if name in outputs:
            return name
    raise UnsupportedError(
        f"returns {_list_in_words(outputs)} instead of {' or '.join(names)}, so it is not an encoder"
    )


def _list_in_words(names: Iterable[str]) -> str:
    """Return names as a list in a sentence."""
    return ", ".join(sorted(names))[:200] or "nothing"


def _dimension(found: Any, count: int, network: Network) -> int:
    """Return the dimension of an output for `count` inputs. Raises `UnsupportedError` if it has no embeddings."""
    import numpy as np

    rank = 3 if network.pooling == "first" else 2
    if found.ndim != rank or found.shape[0] != count or not found.size or not np.isfinite(found).all():
        raise UnsupportedError(
            f"returns an output {network.output} of the shape {found.shape}, which is not an embedding"
        )
    return int(found.shape[-1])
