"""Open the networks of torchvision, timm and open_clip by reference, with local or downloaded weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..._progress import ProgressCallback
from ...errors import EncoderError
from ...images import Recipe
from ...records import Space
from .._cache import cache_folder, model_folder
from .._names import INSTALL, KNOWN, reference_of
from ..hub.download import fetch_weights
from ..onnx.card import TextRecipe, fingerprint_of, read_card
from ._checkpoints import StateDict, fitting, hash_of, read_state_dict, save_state_dict
from ._libraries import LIBRARIES, NetworkPlan, Origin

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger("pixmatcher.encoders")


@dataclass
class TorchModel:
    """The networks of an encoder on the CPU in float32, with their weights, recipe and origin."""

    name: str
    visual: nn.Module
    """Normalised pixels float32 (N, 3, H, W) -> vectors (N, dimension) of any length."""
    textual: nn.Module | None
    """Ids int64 (N, context_length) -> vectors (N, dimension) of any length."""
    recipe: Recipe
    space: Space
    text: TextRecipe | None
    tokenize: Callable[[Sequence[str]], Tensor] | None
    """Texts -> ids int64 (N, context_length), by the tokenizer of the reference library."""
    licence: str
    source: str
    """The origin of the weights."""
    fingerprint: str


def open_torch_model(
    name: str, *, weights: Path | None = None, offline: bool = False, progress: ProgressCallback | None = None
) -> TorchModel:
    """Build the networks of the encoder called `name` with its weights.

    The weights are from the file `weights`, or else from a file that `import_weights` has stored, or else from where
    the library publishes them; they are downloaded once.

    Raises `EncoderError` if the network is unknown, a library is missing, or the file has other weights; `FetchError`
    or `StorageError` if the weights cannot be downloaded.
    """
    plan = _plan(name)
    imported = imported_weights(name)
    if weights is not None:
        return _assemble(name, plan, weights, read_state_dict(weights), f"the file {weights.name}")
    if imported.is_file():
        return _assemble(name, plan, imported, read_state_dict(imported), "a file that was imported")
    file = _fetch(plan.origin, name, offline, progress)
    try:
        return _assemble(name, plan, file, read_state_dict(file), str(plan.origin))
    except EncoderError:
        file.unlink(missing_ok=True)  # it has no usable weights
        raise


def import_weights(name: str, file: Path) -> Path:
    """Store the weights of a file in the cache, so that the encoder called `name` is loaded with them from now on.

    Return the stored file. Raises as `open_torch_model`, `EncoderError` if the cache has ONNX files of the encoder with
    other weights, which would still be used, and `StorageError` if the file cannot be written.
    """
    plan, tensors, imported = _plan(name), read_state_dict(file), imported_weights(name)
    fingerprint = _assemble(name, plan, file, dict(tensors), "").fingerprint
    if (exported := model_folder(name)).is_dir() and read_card(exported).fingerprint != fingerprint:
        raise EncoderError(
            f"{exported} has {name} with other weights, which would still be used: run `pixmatcher models export "
            f"{name} --weights FILE` to replace them, or leave out --weights."
        )
    save_state_dict(tensors, imported)
    logger.info("Imported the weights of %s from %s to %s", name, file, imported)
    return imported


def imported_weights(name: str) -> Path:
    """Return the file for imported weights of the encoder called `name`; it may not exist."""
    return cache_folder() / "weights" / quote(name, safe="@") / "model.safetensors"


def import_library(module: str, user: str) -> Any:
    """Import a library that `user` needs. Raises `EncoderError` if it is not installed, or broken."""
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise EncoderError(f"{user} needs {module}: run `{INSTALL}`. ({error})") from error


def _plan(name: str) -> NetworkPlan:
    """Return the plan to build a network. Raises `EncoderError` if its library is not installed."""
    kind, rest = reference_of(name)
    if kind not in LIBRARIES:
        raise EncoderError(f"The encoder {name} consists of ONNX files: choose one of {', '.join(LIBRARIES)}.")
    for module in ("torch", "safetensors.torch", kind):
        import_library(module, f"The encoder {name}")
    plan = LIBRARIES[kind](name, rest)
    if name in KNOWN:
        plan.licence = KNOWN[name].licence
    return plan


def _assemble(name: str, plan: NetworkPlan, file: Path, tensors: StateDict, source: str) -> TorchModel:
    """Build the network of a plan with its weights, and compute its fingerprint."""
    with fitting(file, name):
        built = plan.build(tensors)
    tensors_used: StateDict = {}
    for tower, network in (("visual", built.visual), ("text", built.textual)):
        if network is not None:
            network.eval().requires_grad_(False)
            tensors_used |= {f"{tower}.{key}": tensor for key, tensor in network.state_dict().items()}
    fingerprint = fingerprint_of({"weights": hash_of(tensors_used)}, built.recipe, built.architecture)
    return TorchModel(
        name,
        built.visual,
        built.textual,
        built.recipe,
        built.space,
        built.text,
        built.tokenize,
        plan.licence,
        source,
        fingerprint,
    )


def _fetch(origin: Origin, name: str, offline: bool, progress: ProgressCallback | None) -> Path:
    """Return the file of the published weights, from the cache or downloaded."""
    if not origin.repo:
        return fetch_weights(origin.url, encoder=name, offline=offline, progress=progress)
    from ..hub.client import fetch_hub_file

    refusals = []
    for file in origin.files:
        try:
            return fetch_hub_file(origin.repo, file, encoder=name, offline=offline, progress=progress)
        except EncoderError as error:  # not in the repository, or offline and not in the cache
            refusals.append(error)
    raise refusals[0]
