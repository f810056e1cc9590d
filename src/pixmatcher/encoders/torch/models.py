"""The networks of torchvision, timm and open_clip by reference, with weights that are here or are fetched.

The libraries build the networks and tell the recipe; they never download anything themselves.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
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

if TYPE_CHECKING:
    from torch import Tensor, nn

Interpolation = Literal["bilinear", "bicubic", "lanczos"]


@dataclass
class TorchModel:
    """The networks of an encoder on the CPU in float32, ready to compute, and what is to be known of them."""

    name: str
    visual: nn.Module
    """Normalised pixels float32 (N, 3, H, W) -> (N, dimension), not brought to length 1."""
    textual: nn.Module | None
    """Ids int64 (N, context_length) -> (N, dimension), not brought to length 1."""
    recipe: Recipe
    space: Space
    text: TextRecipe | None
    tokenize: Callable[[Sequence[str]], Tensor] | None
    """Texts -> ids int64 (N, context_length), by the tokenizer of the reference library."""
    licence: str
    source: str
    """Where the weights come from."""
    fingerprint: str


@dataclass(frozen=True)
class Origin:
    """Where published weights lie: in a repository of the hub, otherwise at a URL."""

    repo: str = ""
    files: tuple[str, ...] = ()
    """The files of the repository that may hold the weights, the best first."""
    url: str = ""

    def __str__(self) -> str:
        return f"{self.repo} of the hub" if self.repo else self.url


@dataclass
class _Plan:
    """A network whose weights are still missing."""

    origin: Origin
    build: Callable[[StateDict], _Built]
    """Makes the networks with the weights of a file, or raises whatever the library does if they do not fit."""
    licence: str


@dataclass
class _Built:
    visual: nn.Module
    recipe: Recipe
    space: Space
    architecture: str
    """What else than weights and recipe decides what the networks compute."""
    textual: nn.Module | None = None
    text: TextRecipe | None = None
    tokenize: Callable[[Sequence[str]], Tensor] | None = None


def open_torch_model(
    name: str, *, weights: Path | None = None, offline: bool = False, progress: ProgressCallback | None = None
) -> TorchModel:
    """Build the networks of the encoder called `name` with its weights.

    They are taken from the file `weights`, otherwise from one that `import_weights` has kept, otherwise from where the
    library says they are published, downloaded unless they were before.

    Raises `EncoderError` if there is no such network, a library is missing, or the file does not hold its weights;
    `FetchError` or `StorageError` if they cannot be downloaded.
    """
    plan = _plan(name)
    kept = imported_weights(name)
    if weights is not None:
        return _assemble(name, plan, weights, read_state_dict(weights), f"the file {weights.name}")
    if kept.is_file():
        return _assemble(name, plan, kept, read_state_dict(kept), "a file that was imported")
    file = _fetch(plan.origin, name, offline, progress)
    try:
        return _assemble(name, plan, file, read_state_dict(file), str(plan.origin))
    except EncoderError:
        file.unlink(missing_ok=True)  # no use here, whatever it is
        raise


def import_weights(name: str, file: Path) -> Path:
    """Keep the weights of a file for the encoder called `name`, so that it is loaded with them from now on.

    Returns where they are kept. Raises as `open_torch_model`, `EncoderError` if the encoder lies in the cache as
    ONNX files of other weights, which would still be used, and `StorageError` if they cannot be written.
    """
    plan, tensors, kept = _plan(name), read_state_dict(file), imported_weights(name)
    fingerprint = _assemble(name, plan, file, dict(tensors), "").fingerprint
    if (exported := model_folder(name)).is_dir() and read_card(exported).fingerprint != fingerprint:
        raise EncoderError(
            f"{name} lies in {exported} with other weights, which would be used: run `pixmatcher models export {name} "
            "--weights FILE` to replace them, or leave out --weights."
        )
    save_state_dict(tensors, kept)
    return kept


def imported_weights(name: str) -> Path:
    """Where the weights that were imported for the encoder called `name` lie, or would lie."""
    return cache_folder() / "weights" / quote(name, safe="@") / "model.safetensors"


def import_library(module: str, need: str) -> Any:
    """Import PyTorch or a library on it for `need`. Raises `EncoderError` if it is not installed, or broken."""
    try:
        return import_module(module)
    except (ImportError, OSError) as error:
        raise EncoderError(f"{need} needs {module}: run `{INSTALL}`. ({error})") from error


def _plan(name: str) -> _Plan:
    kind, rest = reference_of(name)
    if kind not in _LIBRARIES:
        raise EncoderError(f"The encoder {name} is made of ONNX files: choose one of {', '.join(_LIBRARIES)}.")
    for module in ("torch", "safetensors.torch", kind):
        import_library(module, f"The encoder {name}")
    plan = _LIBRARIES[kind](name, rest)
    if name in KNOWN:
        plan.licence = KNOWN[name].licence
    return plan


def _assemble(name: str, plan: _Plan, file: Path, tensors: StateDict, source: str) -> TorchModel:
    with fitting(file, name):
        built = plan.build(tensors)
    kept: StateDict = {}
    for tower, network in (("visual", built.visual), ("text", built.textual)):
        if network is not None:
            network.eval().requires_grad_(False)
            kept |= {f"{tower}.{key}": tensor for key, tensor in network.state_dict().items()}
    fingerprint = fingerprint_of({"weights": hash_of(kept)}, built.recipe, built.architecture)
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
    """The published weights, from the cache or downloaded."""
    if not origin.repo:
        return fetch_weights(origin.url, encoder=name, offline=offline, progress=progress)
    from ..hub.client import fetch_hub_file

    refusals = []
    for file in origin.files:
        try:
            return fetch_hub_file(origin.repo, file, encoder=name, offline=offline, progress=progress)
        except EncoderError as error:  # it is not among the files, or offline not in the cache
            refusals.append(error)
    raise refusals[0]


def _unknown(what: str, given: str, choices: Iterable[str]) -> EncoderError:
    """The error for a name that a library does not know."""
    near = get_close_matches(given, list(choices), n=3, cutoff=0.5)
    return EncoderError(
        f"{what} {given!r}: did you mean {' or '.join(near)}?" if near else f"{what} {given!r}: look for its name."
    )


# ---- torchvision ----

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in the published weights of DenseNet, as modules may no longer be called."""


def _plan_torchvision(name: str, rest: str) -> _Plan:
    from torchvision import models

    architecture, _, tag = rest.partition("/")
    if architecture not in models.list_models(module=models):
        raise _unknown("torchvision has no classification network", architecture, models.list_models(module=models))
    if architecture.startswith(("mnasnet", "squeezenet")):  # of two versions; without a linear classifier
        raise EncoderError(f"{architecture} of torchvision cannot be used here: choose another network.")
    choices = models.get_model_weights(architecture)
    if tag and tag not in choices.__members__:
        raise _unknown(f"torchvision has no weights of {architecture} called", tag, [*choices.__members__, "DEFAULT"])
    weights = choices[tag or "DEFAULT"]
    transforms = weights.transforms()
    (size,), (resized,) = transforms.crop_size, transforms.resize_size
    recipe = _recipe(
        name, size, size / resized, transforms.interpolation.value, transforms.mean, transforms.std, "shortest"
    )
    # What the library's own builders set where they load weights.
    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):
        options = {"image_size": size}
    elif architecture in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "aux_logits": True, "init_weights": False}

    def build(tensors: StateDict) -> _Built:
        network = models.get_model(architecture, weights=None, **options)
        if architecture.startswith("densenet"):
            tensors = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in tensors.items()}
        network.load_state_dict(tensors)
        visual, dimension = _without_classifier(network, architecture)
        return _Built(visual, recipe, Space("visual", dimension), f"torchvision:{architecture}")

    return _Plan(Origin(url=weights.url), build, "BSD-3-Clause")


def _without_classifier(network: Any, architecture: str) -> tuple[nn.Module, int]:
    """The network up to what it feeds its last layer with, and how many values that are.

    MobileNetV3 is cut before its whole classifier, where the features are pooled.
    """
    from torch import nn

    if architecture.startswith("mobilenet_v3"):
        parts = OrderedDict(features=network.features, avgpool=network.avgpool, flatten=nn.Flatten(1))
        return nn.Sequential(parts), network.classifier[0].in_features
    for head in ("classifier", "fc", "head", "heads"):
        linear = [
            (f"{head}.{inner}" if inner else head, module)
            for inner, module in getattr(network, head, nn.Identity()).named_modules()
            if isinstance(module, nn.Linear)
        ]
        if linear:
            path, last = linear[-1]
            network.set_submodule(path, nn.Identity())
            # Those are for training: not called, and no part of what the features depend on.
            for auxiliary in ("aux1", "aux2", "AuxLogits"):
                if getattr(network, auxiliary, None) is not None:
                    setattr(network, auxiliary, None)
            return network, last.in_features
    raise EncoderError(f"{architecture} of torchvision has no features before its classes: choose another network.")


# ---- timm ----


def _plan_timm(name: str, rest: str) -> _Plan:
    import timm
    from timm.models import get_pretrained_cfg, split_model_name_tag

    architecture, tag = split_model_name_tag(rest)
    if "/" in rest or ":" in rest or not timm.is_model(architecture):
        raise _unknown("timm has no network", architecture, timm.list_models())
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if not tags:
        raise EncoderError(f"timm has no weights of {architecture}: choose another network.")
    if tag and tag not in tags:
        raise _unknown(f"timm has no weights of {architecture} called", tag, tags)
    published = get_pretrained_cfg(rest)
    named = published.hf_hub_filename or "pytorch_model.bin"
    origin = Origin(published.hf_hub_id or "", _safest(named), published.url or "")

    def build(tensors: StateDict) -> _Built:
        # With the classes that the weights have, so that every tensor must be there; then without.
        network = timm.create_model(rest, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
        network.pretrained_cfg.pop("state_dict", None)
        network.reset_classifier(0)
        config = timm.data.resolve_model_data_config(network)
        _, height, width = config["input_size"]
        if height != width:
            raise EncoderError(f"{name} takes images of {width} x {height}, not square ones: choose another network.")
        resize = {"center": "shortest", "squash": "squash"}.get(config["crop_mode"])
        if resize is None:
            raise EncoderError(f"{name} crops images in the way {config['crop_mode']!r}: choose another network.")
        share = height / int(height / config["crop_pct"])  # whole pixels before the crop
        recipe = _recipe(name, height, share, config["interpolation"], config["mean"], config["std"], resize)
        return _Built(network, recipe, Space("visual", _dimension(name, network, recipe)), f"timm:{architecture}")

    return _Plan(origin, build, published.license or "not told by timm")


def _dimension(name: str, network: nn.Module, recipe: Recipe) -> int:
    """How many values the network gives an image."""
    import torch

    with torch.inference_mode():
        given = network.eval()(torch.zeros(1, 3, recipe.size, recipe.size))
    if not isinstance(given, torch.Tensor) or given.ndim != 2:
        raise EncoderError(f"{name} does not give one vector an image: choose another network.")
    return int(given.shape[1])


# ---- open_clip ----


def _plan_open_clip(name: str, rest: str) -> _Plan:
    import open_clip
    from open_clip.factory import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    architecture, _, tag = rest.partition("/")
    config = open_clip.get_model_config(architecture) if architecture in open_clip.list_models() else None
    if config is None:
        raise _unknown("open_clip has no network", architecture, open_clip.list_models())
    published = open_clip.get_pretrained_cfg(architecture, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not tags:
            raise EncoderError(f"open_clip has no weights of {architecture}: choose another network.")
        raise _unknown(f"open_clip has no weights of {architecture} called", tag, tags)
    if "multimodal_cfg" in config:
        raise EncoderError(f"{architecture} of open_clip writes texts, which is no use here: choose another network.")
    if {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]) or "siglip" in architecture.lower():
        raise EncoderError(
            f"{architecture} of open_clip has a tokenizer that is not CLIP's own: name an ONNX export of it as hf:REPO."
        )
    repo, _, file = published.get("hf_hub", "").rpartition("/")
    origin = Origin(repo, _safest(file or "open_clip_pytorch_model.bin"), published.get("url", ""))
    quick_gelu = published.get("quick_gelu", False)

    def build(tensors: StateDict) -> _Built:
        dimension = config["embed_dim"]
        shapes = {key: value for key, value in config.items() if key not in ("custom_text", "quick_gelu")}
        shapes["vision_cfg"]["timm_model_pretrained"] = False
        network = open_clip.CustomTextCLIP(**shapes, quick_gelu=quick_gelu)
        tensors = convert_to_custom_text_state_dict(convert_state_dict(network, tensors))
        # What scales similarities in training.
        tensors = {key: tensor for key, tensor in tensors.items() if key not in ("logit_scale", "logit_bias")}
        del network.logit_scale, network.logit_bias
        network.load_state_dict(tensors)
        told = merge_preprocess_dict(PreprocessCfg(), published)
        size = network.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width or told["resize_mode"] not in ("shortest", "squash"):
            raise EncoderError(f"{name} takes images that are no squares or have borders: choose another network.")
        recipe = _recipe(name, height, 1.0, told["interpolation"], told["mean"], told["std"], told["resize_mode"])
        return _Built(
            network.visual,
            recipe,
            Space("clip", dimension, text=True),
            # The same networks have two names in open_clip.
            f"open_clip:{architecture.removesuffix('-quickgelu')} {quick_gelu}",
            network.text,
            TextRecipe("tokenizer.json", network.context_length, 0, "clip"),
            SimpleTokenizer(context_length=network.context_length),
        )

    return _Plan(origin, build, "MIT" if tag == "openai" else "not told by open_clip")


# ---- What they share ----

_LIBRARIES: dict[str, Callable[[str, str], _Plan]] = {
    "torchvision": _plan_torchvision,
    "timm": _plan_timm,
    "open_clip": _plan_open_clip,
}


def _recipe(
    name: str, size: int, crop: float, interpolation: str, mean: Sequence[float], std: Sequence[float], resize: str
) -> Recipe:
    if interpolation not in ("bilinear", "bicubic", "lanczos"):
        raise EncoderError(f"{name} wants images resized in the way {interpolation!r}: choose another network.")
    return Recipe(
        size,
        crop,
        cast("Interpolation", interpolation),
        cast("tuple[float, float, float]", tuple(float(value) for value in mean)),
        cast("tuple[float, float, float]", tuple(float(value) for value in std)),
        cast("Literal['shortest', 'squash']", resize),
    )


_SAFE = {"pytorch_model": "model", "open_clip_pytorch_model": "open_clip_model"}
"""What the libraries call safetensors where the pickle has one of their own names."""


def _safest(file: str) -> tuple[str, ...]:
    """The names under which a repository may hold the weights of `file`: as safetensors first."""
    stem = re.sub(r"\.(bin|pth|pt|safetensors)$", "", file)
    return tuple(dict.fromkeys((f"{_SAFE.get(stem, stem)}.safetensors", file)))
