"""The names of encoders: which there are, and what each refers to.

A name is one of `KNOWN`, or a reference: `torchvision:NAME`, `timm:NAME`, `open_clip:ARCH/TAG`, `hf:REPO` or
`onnx:FOLDER`. With `@int8` at its end it means the int8 export of that encoder, but for a folder, which may be called
so.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import EncoderError
from ..records import Space

INT8 = "@int8"
INSTALL = "pip install 'pixmatcher[torch]'"


@dataclass(frozen=True)
class Known:
    """An encoder that has a name of its own."""

    reference: str
    """The same encoder as its reference library names it."""
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


def reference_of(name: str) -> tuple[str, str]:
    """Return the kind and the rest of the reference that `name` means, such as ("timm", "resnet50").

    Raises `EncoderError` if it is neither known nor a reference.
    """
    bare = name if name.startswith("onnx:") else name.removesuffix(INT8)
    kind, colon, rest = (KNOWN[bare].reference if bare in KNOWN else bare).partition(":")
    if colon and rest and kind in (*TORCH_KINDS, "hf", "onnx"):
        return kind, rest
    raise EncoderError(f"There is no encoder {name!r}: choose one of lite, {', '.join(KNOWN)}, or {FORMS}.")


def torch_installed() -> bool:
    """Whether PyTorch is there; it is not imported, which would take seconds."""
    spec = find_spec("torch")
    return spec is not None and spec.origin is not None  # any folder called torch, such as the current one's, has none
