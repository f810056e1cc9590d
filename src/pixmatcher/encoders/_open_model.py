"""Open the model that a name refers to, with ONNX Runtime or PyTorch."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

from ..errors import EncoderError
from ._names import INSTALL, INT8, reference_of, torch_installed
from ._protocol import Encoder
from ._runtime import Runtime

logger = logging.getLogger("pixmatcher.encoders")


def open_model(name: str, runtime: Runtime) -> Encoder:
    """Open the encoder called `name`: its ONNX files if this machine has them, otherwise with PyTorch.

    Raises `EncoderError` if the name is unknown, or neither is possible.
    """
    from ._cache import model_folder, torch_missing_message

    if (exported := onnx_folder(name, runtime)) is not None:
        return _open_folder(exported, name, runtime)
    kind, rest = reference_of(name)
    folder = model_folder(name)
    torch_requested = _is_torch_requested(folder, runtime)
    if name.endswith(INT8) and kind != "hf":
        raise EncoderError(
            f"The encoder {name} does not exist yet: run `pixmatcher models export {name.removesuffix(INT8)} --int8`."
        )
    if kind == "hf":
        if runtime.backend == "torch":
            raise EncoderError(
                f"The encoder {name} consists of ONNX files, which PyTorch does not run: leave out torch."
            )
        from .hub.client import pull_onnx

        pull_onnx(rest, folder, name=name, offline=runtime.offline, progress=runtime.progress)
        return _open_folder(folder, name, runtime)
    if runtime.backend != "onnx" and torch_installed():
        from .torch.models import import_library

        import_library("torch", f"The encoder {name}")
        from .torch.encoder import open_torch_encoder

        logger.debug("Backend torch for %s: %s", name, "requested" if torch_requested else f"{folder} does not exist")
        return open_torch_encoder(name, runtime)
    if torch_requested:
        raise EncoderError(f"PyTorch was requested for {name} but is not installed: run `{INSTALL}`, or omit torch.")
    if model_folder(name + INT8).is_dir():
        raise EncoderError(f"The encoder {name} exists here in int8 only: use the name {name}{INT8}.")
    if runtime.backend == "onnx" and torch_installed():
        raise EncoderError(f"The encoder {name} has not been exported: run `pixmatcher models export {name}` first.")
    raise EncoderError(torch_missing_message(name))


def onnx_folder(name: str, runtime: Runtime) -> Path | None:
    """Return the folder of ONNX files that an encoder is opened from; None if it is opened in another way.

    Raises `EncoderError` if the name is unknown.
    """
    from ._cache import model_folder

    kind, rest = reference_of(name)
    if kind == "onnx":
        return Path(rest)
    folder = model_folder(name)
    return folder if folder.is_dir() and not _is_torch_requested(folder, runtime) else None


def check_bundled_device(name: str, device: str) -> None:
    """Raise `EncoderError` if ONNX Runtime, which runs the bundled encoder, cannot use a device.

    Devices of PyTorch are allowed where it is installed: they are meant for the other encoders of a collection.
    """
    from .onnx.providers import PROVIDERS, provider_of

    if device in ("auto", "cpu") or (torch_installed() and re.fullmatch(r"cuda(:\d+)?|mps", device)):
        return
    if device not in PROVIDERS:
        raise EncoderError(f"The encoder {name} cannot run on {device!r}: choose auto, cpu, {', '.join(PROVIDERS)}.")
    provider_of(device)


def _is_torch_requested(folder: Path, runtime: Runtime) -> bool:
    """Return whether the runtime asks for PyTorch to run a model, of which `folder` would be the ONNX files."""
    return runtime.backend == "torch" or (
        runtime.backend == "auto" and _needs_torch(runtime.device, exported=folder.is_dir())
    )


def _needs_torch(device: str, *, exported: bool) -> bool:
    """Return whether PyTorch is what runs a model on a device; CUDA is left to PyTorch where both have it."""
    from .onnx.providers import ONNX_ONLY, has_provider

    if device in ("auto", "cpu", *ONNX_ONLY):
        return False
    return torch_installed() or not (exported and has_provider(device))


def _open_folder(folder: Path, name: str, runtime: Runtime) -> Encoder:
    from .onnx.encoder import OnnxEncoder
    from .onnx.layout import read_model
    from .onnx.providers import provider_of

    logger.debug("Backend onnx for %s: its files are in %s", name, folder)
    provider_of(runtime.device)  # raises an error before any image is read
    return OnnxEncoder(replace(read_model(folder), name=name), folder, runtime.device)
