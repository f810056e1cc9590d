"""Encoders in PyTorch: the networks of `torch_models.py` on a device, from several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch  # PyTorch; this module is `pixmatcher.encoders.torch`
from torch import nn

from ..errors import EncoderError, QueryError
from ..images import Recipe
from ..spaces import Space
from .networks import Floats, unit
from .runtime import Runtime
from .torch_models import TorchModel, open_torch_model

if TYPE_CHECKING:
    from . import Encoder

CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 128
MAX_CHARACTERS = 20_000
"""Texts are cut here before they are split into tokens, of which few count."""


def open_torch_encoder(name: str, runtime: Runtime) -> Encoder:
    """Load an encoder of torchvision, timm or open_clip. Raises as `open_torch_model`, and for a missing device."""
    device = choose_device(runtime.device)
    return TorchEncoder(open_torch_model(name, offline=runtime.offline, progress=runtime.progress), device)


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device called `wanted`; for `auto` the first there is of cuda, mps and cpu.

    Raises `EncoderError` if it is not there.
    """
    there = [*(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if wanted == "auto":
        return torch.device(there[0])
    name = f"{wanted}:0" if wanted == "cuda" else wanted
    if name not in there:
        raise EncoderError(f"There is no device {wanted!r}: choose one of auto, {', '.join(there)}.")
    return torch.device(name)


class TorchEncoder:
    """Embeds images, and texts where the networks include one for them, in its one space, at length 1.

    In half precision on CUDA, otherwise in float32.
    """

    def __init__(self, model: TorchModel, device: torch.device) -> None:
        self.name = model.name
        self.fingerprint = model.fingerprint
        self.spaces: tuple[Space, ...] = (model.space,)
        self.recipe: Recipe = model.recipe
        self.device = device
        self.batch_size = CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._visual = prepare(model.visual, device, self._dtype)
        self._textual = None if model.textual is None else prepare(model.textual, device, self._dtype)
        self._tokenize = model.tokenize
        # One call at a time computes, with all cores.
        self._turn = threading.Lock()

    def load_images(self) -> None:
        """Nothing is left to load."""

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed pixels (N, size, size, 3): (N, dimension) of length 1."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels must be uint8 (N, H, W, 3), not {pixels.dtype} {pixels.shape}")
        given = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        with self._turn, torch.inference_mode():
            normalised = normalise(given.to(self.device), self.recipe, self._dtype)
            vectors = self._visual(normalised).float().cpu().numpy()
        return {self.spaces[0].name: unit(vectors)}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Embed texts: (N, dimension) of length 1; nothing where the encoder knows no texts.

        Raises `QueryError` if a text holds what is no character.
        """
        if self._textual is None or self._tokenize is None:
            return {}
        vectors = np.empty((len(texts), self.spaces[0].dimension), np.float32)
        # One by one: an embedding must not depend on its neighbours.
        for vector, text in zip(vectors, texts, strict=True):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise QueryError(
                    "The text is not valid Unicode: write it in UTF-8, or set the terminal to it."
                ) from None
            with self._turn, torch.inference_mode():
                ids = self._tokenize([text[:MAX_CHARACTERS]]).to(self.device)
                vector[:] = unit(self._textual(ids)[0].float().cpu().numpy())
        return {self.spaces[0].name: vectors}


def prepare(network: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Bring a network to a device, in the order of memory that its convolutions are fastest in."""
    prepared: nn.Module = network.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    return prepared


def normalise(pixels: torch.Tensor, recipe: Recipe, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Bring pixels uint8 (N, H, W, 3) to normalised (N, 3, H, W), computed in float32 as torchvision does."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    values = pixels.permute(0, 3, 1, 2).to(torch.float32).div_(255)
    return values.sub_(mean).div_(std).to(dtype)
