"""The names of the encoders that PixMatcher can open, and the reference that each name stands for.

A name is one of `KNOWN`, or a reference: `torchvision:NAME`, `timm:NAME`, `open_clip:ARCH/TAG`, `hf:REPO` or
`onnx:FOLDER`. With `@int8` at its end it means the int8 export of that encoder, except for a folder, whose own name may
end so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import EncoderError
from ..records import Space

INT8 = "@int8"
INSTALL = "pip install 'pixmatcher[torch]'"


@dataclass(frozen=True)
class Known:
    """An encoder of a model library that has a short name."""

    reference: str
    """The reference that the name stands for."""
    space: Space
    licence: str
    megabytes: int
    """Size of the weights."""
    about: str
    onnx_repo: str | None = None
    """A repository of the hub that offers it as ONNX files."""


KNOWN = {
    "mobilenet_v3_large": Known(
        "torchvision:mobilenet_v3_large/IMAGENET1K_V1",
        Space("visual", 960),
        "BSD-3-Clause",
        21,
        "MobileNetV3-Large of torchvision, ImageNet",
    ),
    "mobilenet_v3_small": Known(
        "torchvision:mobilenet_v3_small/IMAGENET1K_V1",
        Space("visual", 576),
        "BSD-3-Clause",
        10,
        "MobileNetV3-Small of torchvision, ImageNet",
    ),
    "clip-vit-b-32": Known(
        "open_clip:ViT-B-32-quickgelu/openai",
        Space("clip", 512, text=True),
        "MIT",
        605,
        "CLIP ViT-B/32 of OpenAI, by open_clip",
        onnx_repo="Xenova/clip-vit-base-patch32",
    ),
}

TORCH_KINDS = ("torchvision", "timm", "open_clip")
FORMS = "torchvision:NAME, timm:NAME, open_clip:ARCH/TAG, hf:REPO, onnx:FOLDER"


def is_reference(name: str) -> bool:
    """Return whether a name is one of `KNOWN` or has the form of a reference."""
    return _split_reference(name) is not None


def reference_of(name: str, *, also: Iterable[str] = ()) -> tuple[str, str]:
    """Return the kind and the rest of the reference that `name` means, such as ("timm", "resnet50").

    Raises `EncoderError` if it is neither known nor a reference; the message also lists the names in `also`.
    """
    reference = _split_reference(name)
    if reference is None:
        names = ", ".join(["lite", *KNOWN, *also])
        raise EncoderError(f"Unknown encoder {name!r}: choose one of {names}, or {FORMS}.")
    return reference


def _split_reference(name: str) -> tuple[str, str] | None:
    """Return the kind and the rest of the reference that a name stands for; None if it is not a reference."""
    bare = name if name.startswith("onnx:") else name.removesuffix(INT8)
    kind, colon, rest = (KNOWN[bare].reference if bare in KNOWN else bare).partition(":")
    return (kind, rest) if colon and rest and kind in (*TORCH_KINDS, "hf", "onnx") else None


def torch_installed() -> bool:
    """Return whether PyTorch is installed. It is not imported, which would take seconds."""
    spec = find_spec("torch")
    return spec is not None and spec.origin is not None  # a folder called torch in the current one has none
