"""Export an encoder from PyTorch to a folder of ONNX files, which `OnnxEncoder` runs without PyTorch."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch  # PyTorch; this package is `pixmatcher.encoders.torch`
from torch import nn

from ...errors import EncoderError
from ...images import Recipe
from .._folders import making_folder
from ..onnx.card import Card, Network, store_files, write_card
from ..onnx.encoder import OnnxEncoder
from ..onnx.graphs import TEXTS, TEXTUAL, VISUAL, cosines, save_graph
from ..onnx.networks import Floats
from ..texts.clip import write_tokenizer
from .models import TorchModel, import_library

logger = logging.getLogger("pixmatcher.encoders")

PIXELS, IDS, EMBEDDINGS = "pixels", "ids", "embeddings"

OPSET = 18
"""The version that PyTorch writes without a conversion; ONNX Runtime 1.14 and later run it."""
LEAST_COSINE = 0.9999
"""The least cosine with PyTorch of the embedding of each image and text."""


def export_model(model: TorchModel, folder: Path) -> Card:
    """Write a folder with the networks of `model` as ONNX files, its tokenizer, and a card.

    `visual.onnx` takes `pixels` uint8 (N, size, size, 3) and normalises them itself; `textual.onnx` takes `ids` int64
    (N, context_length), or fewer ids if the card says `causal`. Both return `embeddings` float32 (N, dimension) of any
    length. The folder appears in one step, after its embeddings were compared with those of PyTorch. A folder of an
    earlier export is replaced.

    Raises `EncoderError` if the network cannot be exported, its embeddings differ, `folder` contains something else, or
    a library is missing; `StorageError` if the disk is full.
    """
    for library in ("onnx", "onnxscript"):
        import_library(library, f"To export {model.name}")
    started = time.perf_counter()
    with making_folder(folder) as unfinished:
        pixels = torch.zeros(2, model.recipe.size, model.recipe.size, 3, dtype=torch.uint8)
        _write(_Normalising(model.visual, model.recipe), pixels, unfinished / VISUAL, PIXELS, model.name)
        text = model.text
        if model.textual is not None and text is not None:
            causal = _Causal.of(model.textual)
            text = replace(text, causal=causal is not None)
            ids = torch.zeros(2, text.context_length, dtype=torch.int64)
            _write(causal or model.textual, ids, unfinished / TEXTUAL, IDS, model.name, shorter=text.causal)
            write_tokenizer(unfinished / text.tokenizer)
        card = Card(
            name=model.name,
            fingerprint=model.fingerprint,
            space=model.space,
            recipe=model.recipe,
            visual=Network(VISUAL, PIXELS, EMBEDDINGS),
            precision="fp32",
            licence=model.licence,
            source=model.source,
            files=store_files(unfinished, sorted(path.name for path in unfinished.iterdir())),
            textual=None if text is None else Network(TEXTUAL, IDS, EMBEDDINGS),
            text=text,
        )
        logger.debug("Comparing %s on ONNX Runtime with PyTorch", model.name)
        _compare(model, OnnxEncoder(card, unfinished))
        write_card(card, unfinished)
    logger.info("Exported %s to %s in %.1f s", model.name, folder, time.perf_counter() - started)
    return card


class _Normalising(nn.Module):  # type: ignore[misc]
    """Normalises pixels uint8 (N, H, W, 3) and passes them to `visual`."""

    def __init__(self, visual: nn.Module, recipe: Recipe) -> None:
        super().__init__()
        self.visual = visual
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (recipe.mean, recipe.std))
        # One factor and one term per channel. ONNX Runtime takes 0.1 ms for it with the channels first, as PyTorch has
        # them, and 1.2 ms with the channels last.
        self.register_buffer("factor", (1 / (255 * std)).float())
        self.register_buffer("term", (-mean / std).float())

    def forward(self, pixels: torch.Tensor) -> Any:
        # Without `contiguous`, PyTorch would write more operators.
        planes = pixels.permute(0, 3, 1, 2).contiguous()
        return self.visual(planes.float() * self.factor + self.term)


class _Causal(nn.Module):  # type: ignore[misc]
    """A text network of open_clip that also takes texts without the padding at their end.

    This does not change the embedding, since each token depends on earlier tokens only, and the closing token becomes
    the embedding.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def of(cls, network: Any) -> _Causal | None:
        """Return a causal version of the network, or None if the network may not be causal."""
        from open_clip.transformer import TextTransformer

        if not isinstance(network, TextTransformer):
            return None
        fits = network.pool_type == "argmax" and network.attn_mask is not None and network.cls_emb is None
        return cls(network) if fits and not network.use_pad_mask and not network.output_tokens else None

    def forward(self, ids: torch.Tensor) -> Any:
        network, length = self.network, ids.shape[1]
        tokens = network.token_embedding(ids) + network.positional_embedding[:length]
        tokens = network.ln_final(network.transformer(tokens, attn_mask=network.attn_mask[:length, :length]))
        closing = tokens[torch.arange(ids.shape[0]), ids.argmax(dim=-1)]
        projection = network.text_projection
        if projection is None:
            return closing
        return projection(closing) if isinstance(projection, nn.Linear) else closing @ projection


def _write(
    network: nn.Module, example: torch.Tensor, path: Path, given: str, name: str, *, shorter: bool = False
) -> None:
    """Write `network`, traced with `example`, for batches of any size, and also for `shorter` inputs if requested."""
    import onnx

    free = {0: torch.export.Dim("n")}
    if shorter:  # PyTorch treats the full length as a special case, ONNX does not
        example = example[:, : example.shape[1] // 2]
        free[1] = torch.export.Dim("length", min=2, max=2 * example.shape[1] - 1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                network.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[given],
                output_names=[EMBEDDINGS],
                dynamic_shapes=(free,),
                verbose=False,
            )
            if any(isinstance(program.model.graph.inputs[0].shape[axis], int) for axis in free):
                raise ValueError(f"it takes no other {given} than {tuple(example.shape)}")
            program.save(path, external_data=True)
    except Exception as error:
        cause = error.__cause__ or error  # the exporter adds long advice
        reason = str(cause).strip().partition("\n")[0]
        raise EncoderError(
            f"{name} cannot be exported to ONNX ({type(cause).__name__}: {reason}): use it with --backend torch, or "
            "choose another network."
        ) from error
    save_graph(onnx.load(path), path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the warnings, logs and prints of PyTorch and its exporter."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _compare(model: TorchModel, encoder: OnnxEncoder) -> None:
    """Raise `EncoderError` if `encoder` embeds images or texts otherwise than the networks of `model`."""
    pixels = sample_pixels(8, model.recipe.size)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.recipe.mean, model.recipe.std))
    with torch.inference_mode():
        images = model.visual((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std).numpy()
        pairs = [("image", images[:1], encoder.encode_images(pixels[:1]))]
        pairs.append(("image", images[1:], encoder.encode_images(pixels[1:])))
        if model.textual is not None and model.tokenize is not None:
            texts = model.textual(model.tokenize(TEXTS)).numpy()
            pairs.append(("text", texts, encoder.encode_texts(TEXTS)))
    for what, reference, found in pairs:
        least = float(cosines(reference, found[model.space.name]).min())
        if not least >= LEAST_COSINE:
            raise EncoderError(
                f"{model.name} exported to ONNX does not embed an {what} as PyTorch does (cosine {least:.5f}, expected "
                f"at least {LEAST_COSINE}): use it with --backend torch, or choose another network."
            )


def sample_pixels(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return random images uint8 (count, size, size, 3): coloured patches of many sizes, and noise."""
    random = np.random.default_rng(0)
    values: Floats = np.zeros((count, size, size, 3), np.float32)
    for fields in (2, 5, 13, 37, size):
        grid = random.normal(size=(count, fields, fields, 3)).astype(np.float32)
        where = np.arange(size) * fields // size
        values += grid[:, where][:, :, where] / np.sqrt(fields)
    return np.clip(128 + 90 * values, 0, 255).astype(np.uint8)
