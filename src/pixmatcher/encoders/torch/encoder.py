"""Run the networks of `models.py` with PyTorch on a device, from several threads at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch  # PyTorch; this module is `pixmatcher.encoders.torch`
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...errors import EncoderError
from ...images import Recipe
from ...records import Space
from .._runtime import Runtime
from ..onnx.networks import Floats, unit
from ..texts.tokenizer import require_unicode, shortened
from .models import TorchModel, open_torch_model

if TYPE_CHECKING:
    from .._protocol import Encoder

logger = logging.getLogger("pixmatcher.encoders")

CPU_BATCH_SIZE = 8
GPU_BATCH_SIZE = 128


def open_torch_encoder(name: str, runtime: Runtime) -> Encoder:
    """Load an encoder of torchvision, timm or open_clip. Raises as `open_torch_model` and `choose_device`."""
    device = choose_device(runtime.device)
    return TorchEncoder(open_torch_model(name, offline=runtime.offline, progress=runtime.progress), device)


def choose_device(requested: str = "auto") -> torch.device:
    """Return the device called `requested`; for `auto` the first available one of cuda, mps and cpu.

    Raises `EncoderError` if it is not available.
    """
    available = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    available += ["mps"] if torch.backends.mps.is_available() else []
    available += ["cpu"]
    if requested == "auto":
        return torch.device(available[0])
    name = f"{requested}:0" if requested == "cuda" else requested
    if name not in available:
        raise EncoderError(f"The device {requested!r} is not available: choose one of auto, {', '.join(available)}.")
    return torch.device(name)


class TorchEncoder:
    """Embeds images, and texts if the model has a text network, in its one space. All vectors have length 1.

    It computes in half precision on CUDA and in float32 elsewhere, unless `half` is given. It changes the networks of
    `model`.
    """

    def __init__(self, model: TorchModel, device: torch.device, *, half: bool | None = None) -> None:
        self.name = model.name
        self.fingerprint = model.fingerprint
        self.spaces: tuple[Space, ...] = (model.space,)
        self.recipe: Recipe = model.recipe
        self.device = device
        self.batch_size = CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE
        half = device.type == "cuda" if half is None else half
        logger.debug(
            "PyTorch %s runs %s on %s in %s", torch.__version__, model.name, device, "float16" if half else "float32"
        )
        self._visual = _Side(model.visual, device, half=half)
        self._textual = None if model.textual is None else _Side(model.textual, device, half=half)
        self._tokenize = model.tokenize

    def load_images(self) -> None:
        """Do nothing, since the networks are loaded already."""

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed pixels (N, size, size, 3): (N, dimension) of length 1."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise ValueError(f"pixels must be uint8 (N, H, W, 3), not {pixels.dtype} {pixels.shape}")
        # PyTorch requires writable arrays.
        given = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        # Callers with a batch run a thread per core; a caller with one image waits for it, so it uses all cores.
        on_cpu = self.device.type == "cpu" and len(pixels) > 1
        with torch.inference_mode(), _one_thread if on_cpu else nullcontext():
            vectors = self._visual.run(normalise(given.to(self.device), self.recipe))
        return {self.spaces[0].name: vectors}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Embed texts: (N, dimension) of length 1; {} if the encoder does not support text.

        Raises `QueryError` if a text is not valid Unicode.
        """
        if self._textual is None or self._tokenize is None:
            return {}
        vectors = np.empty((len(texts), self.spaces[0].dimension), np.float32)
        # One by one: an embedding must not depend on its neighbours.
        for vector, text in zip(vectors, texts, strict=True):
            require_unicode(text)
            with torch.inference_mode():
                vector[:] = self._textual.run(self._tokenize([shortened(text)]).to(self.device))[0]
        return {self.spaces[0].name: vectors}


class _Side:
    """A network on a device, in half precision or in float32."""

    def __init__(self, network: nn.Module, device: torch.device, *, half: bool) -> None:
        self._network = prepare(network, device)
        self._device = device
        self._half = half
        # On a GPU, calls run one after the other, since together they would need too much memory.
        self._lock: AbstractContextManager[object] = nullcontext() if device.type == "cpu" else threading.Lock()

    def run(self, given: torch.Tensor) -> Floats:
        """Return the embeddings (N, dimension) of images (N, 3, H, W) float32 or ids (N, L), at length 1."""
        with self._lock:
            if self._half:
                with torch.autocast(self._device.type, torch.float16):
                    vectors = self._network(given)
                self._half = bool(torch.isfinite(vectors).all())  # the values of some networks are too large for it
            if not self._half:
                vectors = self._network(given)
            return unit(vectors.float().cpu().numpy())


def prepare(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device in its fastest form. The given network is changed."""
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            _fold_norms(module)
    prepared: nn.Module = network.to(device=device, memory_format=torch.channels_last)
    return prepared


def _fold_norms(layers: nn.Sequential) -> None:
    """Merge each batch norm that follows a convolution into the weights of the convolution."""
    for place in range(len(layers) - 1):
        convolution, norm = layers[place], layers[place + 1]
        if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            layers[place], layers[place + 1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()


def normalise(pixels: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Convert pixels uint8 (N, H, W, 3) to normalised float32 (N, 3, H, W), computed as torchvision does."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    values = pixels.permute(0, 3, 1, 2).to(torch.float32)
    return values.div_(255).sub_(mean).div_(std)


class _OneThread:
    """Makes each calling thread compute on one core, which is faster than all cores for one call after the other.

    Measured on 2 cores, MobileNetV3-Large with decoding: 217 against 145 images/s; CLIP ViT-B/32: 20 against 18.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._threads_before = 1

    def __enter__(self) -> None:
        with self._lock:
            # The setting is per thread, but new threads start with the value that any thread set last.
            if not self._inside:
                self._threads_before = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._inside -= 1
            torch.set_num_threads(self._threads_before)


_one_thread = _OneThread()
