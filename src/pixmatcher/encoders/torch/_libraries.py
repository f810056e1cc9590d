"""How torchvision, timm and open_clip build their networks, and where each publishes the weights.

The libraries build the networks and define their recipes. They never download anything themselves.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, cast

from ...errors import EncoderError
from ...images import Recipe
from ...records import Space
from ..onnx.card import TextRecipe
from ._checkpoints import StateDict

if TYPE_CHECKING:
    from torch import Tensor, nn

Interpolation = Literal["bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class Origin:
    """Where weights are published: in a repository of the hub, or else at a URL."""

    repo: str = ""
    files: tuple[str, ...] = ()
    """The files of the repository that may have the weights, the preferred one first."""
    url: str = ""

    def __str__(self) -> str:
        return f"{self.repo} of the hub" if self.repo else self.url


@dataclass
class NetworkPlan:
    """How to build a network when its weights are available."""

    origin: Origin
    build: Callable[[StateDict], BuiltNetworks]
    """Builds the networks with weights; if these do not fit, it raises any exception."""
    licence: str


@dataclass
class BuiltNetworks:
    """Networks with their weights, and how images and texts are prepared for them."""

    visual: nn.Module
    recipe: Recipe
    space: Space
    architecture: str
    """What determines the embeddings besides the weights and the recipe."""
    textual: nn.Module | None = None
    text: TextRecipe | None = None
    tokenize: Callable[[Sequence[str]], Tensor] | None = None


def _unknown_name_error(what: str, given: str, choices: Iterable[str]) -> EncoderError:
    near = get_close_matches(given, list(choices), n=3, cutoff=0.5)
    return EncoderError(
        f"{what} {given!r}: did you mean {' or '.join(near)}?" if near else f"{what} {given!r}: check the name."
    )


# ---- torchvision ----

_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Old names in the published weights of DenseNet; modules may no longer have a dot in their name."""


def _plan_torchvision(name: str, rest: str) -> NetworkPlan:
    from torchvision import models

    architecture, _, tag = rest.partition("/")
    if architecture not in models.list_models(module=models):
        raise _unknown_name_error(
            "torchvision has no classification network", architecture, models.list_models(module=models)
        )
    if architecture.startswith(("mnasnet", "squeezenet")):  # two versions of weights; no linear classifier
        raise EncoderError(f"{architecture} of torchvision cannot be used here: choose another network.")
    choices = models.get_model_weights(architecture)
    if tag and tag not in choices.__members__:
        raise _unknown_name_error(
            f"torchvision has no weights of {architecture} called", tag, [*choices.__members__, "DEFAULT"]
        )
    weights = choices[tag or "DEFAULT"]
    transforms = weights.transforms()
    (size,), (resized,) = transforms.crop_size, transforms.resize_size
    recipe = _recipe(
        name, size, size / resized, transforms.interpolation.value, transforms.mean, transforms.std, "shortest"
    )
    # What the library's own builders set when they load weights.
    options: dict[str, Any] = {}
    if architecture.startswith("vit_"):
        options = {"image_size": size}
    elif architecture in ("googlenet", "inception_v3"):
        options = {"transform_input": True, "aux_logits": True, "init_weights": False}

    def build(tensors: StateDict) -> BuiltNetworks:
        network = models.get_model(architecture, weights=None, **options)
        if architecture.startswith("densenet"):
            tensors = {_OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in tensors.items()}
        network.load_state_dict(tensors)
        visual, dimension = _without_classifier(network, architecture)
        return BuiltNetworks(visual, recipe, Space("visual", dimension), f"torchvision:{architecture}")

    return NetworkPlan(Origin(url=weights.url), build, "BSD-3-Clause")


def _without_classifier(network: Any, architecture: str) -> tuple[nn.Module, int]:
    """Return the network without its last layer, and the dimension of its output.

    MobileNetV3 is cut before its whole classifier, after the pooling of the features.
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
            # Auxiliary heads are for training only; the features do not depend on them.
            for auxiliary in ("aux1", "aux2", "AuxLogits"):
                if getattr(network, auxiliary, None) is not None:
                    setattr(network, auxiliary, None)
            return network, last.in_features
    raise EncoderError(f"{architecture} of torchvision has no features before its classes: choose another network.")


# ---- timm ----


def _plan_timm(name: str, rest: str) -> NetworkPlan:
    import timm
    from timm.models import get_pretrained_cfg, split_model_name_tag

    architecture, tag = split_model_name_tag(rest)
    if "/" in rest or ":" in rest or not timm.is_model(architecture):
        raise _unknown_name_error("timm has no network", architecture, timm.list_models())
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if not tags:
        raise EncoderError(f"timm has no weights of {architecture}: choose another network.")
    if tag and tag not in tags:
        raise _unknown_name_error(f"timm has no weights of {architecture} called", tag, tags)
    published = get_pretrained_cfg(rest)
    file = published.hf_hub_filename or "pytorch_model.bin"
    origin = Origin(published.hf_hub_id or "", _with_safetensors(file), published.url or "")

    def build(tensors: StateDict) -> BuiltNetworks:
        # Build it with the classifier of the weights, so that every tensor is checked; then remove the classifier.
        network = timm.create_model(rest, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors})
        network.pretrained_cfg.pop("state_dict", None)
        network.reset_classifier(0)
        config = timm.data.resolve_model_data_config(network)
        _, height, width = config["input_size"]
        if height != width:
            raise EncoderError(f"{name} takes images of {width} x {height}, not square ones: choose another network.")
        resize = {"center": "shortest", "squash": "squash"}.get(config["crop_mode"])
        if resize is None:
            raise EncoderError(
                f"{name} requires the crop mode {config['crop_mode']!r}, which is not supported: choose another one."
            )
        share = height / int(height / config["crop_pct"])  # the crop is of whole pixels
        recipe = _recipe(name, height, share, config["interpolation"], config["mean"], config["std"], resize)
        return BuiltNetworks(
            network, recipe, Space("visual", _dimension(name, network, recipe)), f"timm:{architecture}"
        )

    return NetworkPlan(origin, build, published.license or "not stated by timm")


def _dimension(name: str, network: nn.Module, recipe: Recipe) -> int:
    """Return the number of values that the network returns for an image."""
    import torch

    with torch.inference_mode():
        given = network.eval()(torch.zeros(1, 3, recipe.size, recipe.size))
    if not isinstance(given, torch.Tensor) or given.ndim != 2:
        raise EncoderError(f"{name} does not return one vector per image: choose another network.")
    return int(given.shape[1])


# ---- open_clip ----


def _plan_open_clip(name: str, rest: str) -> NetworkPlan:
    import open_clip
    from open_clip.factory import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    architecture, _, tag = rest.partition("/")
    config = open_clip.get_model_config(architecture) if architecture in open_clip.list_models() else None
    if config is None:
        raise _unknown_name_error("open_clip has no network", architecture, open_clip.list_models())
    published = open_clip.get_pretrained_cfg(architecture, tag)
    if not published:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if not tags:
            raise EncoderError(f"open_clip has no weights of {architecture}: choose another network.")
        raise _unknown_name_error(f"open_clip has no weights of {architecture} called", tag, tags)
    if "multimodal_cfg" in config:
        raise EncoderError(
            f"{architecture} of open_clip generates texts, which is not supported: choose another network."
        )
    if {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]) or "siglip" in architecture.lower():
        raise EncoderError(
            f"{architecture} of open_clip has another tokenizer than CLIP: use an ONNX export of it as hf:REPO."
        )
    repo, _, file = published.get("hf_hub", "").rpartition("/")
    origin = Origin(repo, _with_safetensors(file or "open_clip_pytorch_model.bin"), published.get("url", ""))
    quick_gelu = published.get("quick_gelu", False)

    def build(tensors: StateDict) -> BuiltNetworks:
        dimension = config["embed_dim"]
        shapes = {key: value for key, value in config.items() if key not in ("custom_text", "quick_gelu")}
        shapes["vision_cfg"]["timm_model_pretrained"] = False
        network = open_clip.CustomTextCLIP(**shapes, quick_gelu=quick_gelu)
        tensors = convert_to_custom_text_state_dict(convert_state_dict(network, tensors))
        # These scale similarities in training only.
        tensors = {key: tensor for key, tensor in tensors.items() if key not in ("logit_scale", "logit_bias")}
        del network.logit_scale, network.logit_bias
        network.load_state_dict(tensors)
        preprocessing = merge_preprocess_dict(PreprocessCfg(), published)
        size = network.visual.image_size
        height, width = (size, size) if isinstance(size, int) else size
        if height != width or preprocessing["resize_mode"] not in ("shortest", "squash"):
            raise EncoderError(f"{name} takes images that are not square or have borders: choose another network.")
        recipe = _recipe(
            name,
            height,
            1.0,
            preprocessing["interpolation"],
            preprocessing["mean"],
            preprocessing["std"],
            preprocessing["resize_mode"],
        )
        return BuiltNetworks(
            network.visual,
            recipe,
            Space("clip", dimension, text=True),
            # open_clip has two names for the same networks.
            f"open_clip:{architecture.removesuffix('-quickgelu')} {quick_gelu}",
            network.text,
            TextRecipe("tokenizer.json", network.context_length, 0, "clip"),
            SimpleTokenizer(context_length=network.context_length),
        )

    return NetworkPlan(origin, build, "MIT" if tag == "openai" else "not stated by open_clip")


# ---- All libraries ----

LIBRARIES: dict[str, Callable[[str, str], NetworkPlan]] = {
    "torchvision": _plan_torchvision,
    "timm": _plan_timm,
    "open_clip": _plan_open_clip,
}


def _recipe(
    name: str, size: int, crop: float, interpolation: str, mean: Sequence[float], std: Sequence[float], resize: str
) -> Recipe:
    """Return the recipe for the settings of a library. Raises `EncoderError` for an unsupported interpolation."""
    if interpolation not in ("bilinear", "bicubic", "lanczos"):
        raise EncoderError(
            f"{name} requires the interpolation {interpolation!r}, which is not supported: choose another network."
        )
    return Recipe(
        size,
        crop,
        cast("Interpolation", interpolation),
        cast("tuple[float, float, float]", tuple(float(value) for value in mean)),
        cast("tuple[float, float, float]", tuple(float(value) for value in std)),
        cast("Literal['shortest', 'squash']", resize),
    )


_SAFE = {"pytorch_model": "model", "open_clip_pytorch_model": "open_clip_model"}
"""The names of safetensors files for pickles that have one of the libraries' own names."""


def _with_safetensors(file: str) -> tuple[str, ...]:
    """Return the names that the weights of `file` may have in a repository, safetensors first."""
    stem = re.sub(r"\.(bin|pth|pt|safetensors)$", "", file)
    return tuple(dict.fromkeys((f"{_SAFE.get(stem, stem)}.safetensors", file)))
