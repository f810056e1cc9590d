"""The encoders by name: which there are, where their files lie, and which of the two backends runs them.

A name is one of `KNOWN`, or a reference: `torchvision:NAME`, `timm:NAME`, `open_clip:ARCH/TAG`, `hf:REPO` or
`onnx:FOLDER`. With `@int8` at its end it means the int8 export of that encoder, but for a folder, which may be called
so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EncoderError
from ..spaces import Space
from .runtime import Runtime
from .weights import model_folder

if TYPE_CHECKING:
    from . import Encoder
    from .card import Card

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


def open_model(name: str, runtime: Runtime) -> Encoder:
    """Load the encoder called `name`, by ONNX Runtime where its files are there, otherwise by PyTorch.

    Raises `EncoderError` if there is none of that name, or neither is possible.
    """
    kind, rest = reference_of(name)
    if kind == "onnx":
        return _open_folder(Path(rest), name)
    folder = model_folder(name)
    wants_torch = runtime.backend == "torch" or (runtime.backend == "auto" and runtime.device not in ("auto", "cpu"))
    if not wants_torch and folder.is_dir():
        return _open_folder(folder, name)
    if name.endswith(INT8) and kind != "hf":
        raise EncoderError(
            f"The encoder {name} is not there: run `pixmatcher models export {name.removesuffix(INT8)} --int8`."
        )
    if kind == "hf":
        if runtime.backend == "torch":
            raise EncoderError(
                f"The encoder {name} is made of ONNX files, which PyTorch does not run: leave out torch."
            )
        from .hub import pull_onnx

        pull_onnx(rest, folder, name=name, offline=runtime.offline, progress=runtime.progress)
        return _open_folder(folder, name)
    if runtime.backend != "onnx" and torch_installed():
        from .torch_models import import_library

        import_library("torch", f"The encoder {name}")
        from .torch import open_torch_encoder

        return open_torch_encoder(name, runtime)
    if wants_torch:
        raise EncoderError(f"PyTorch is not installed, which is to run {name}: run `{INSTALL}`, or leave out torch.")
    if model_folder(name + INT8).is_dir():
        raise EncoderError(f"The encoder {name} is here in int8 only: name it {name}{INT8}.")
    if runtime.backend == "onnx" and torch_installed():
        raise EncoderError(f"The encoder {name} has not been exported: run `pixmatcher models export {name}` first.")
    raise EncoderError(needs_torch(name))


def needs_torch(name: str) -> str:
    """What to tell whoever wants an encoder that PyTorch is needed for."""
    known = KNOWN.get(name)
    pull = f"run `pixmatcher models pull {name}`, " if known is not None and known.onnx_repo else ""
    return (
        f"The encoder {name} needs PyTorch until it is exported: {pull}run `{INSTALL}`, copy {model_folder(name)} from "
        f"a machine where `pixmatcher models export {name}` made it, or use the bundled encoder lite."
    )


def read_model(folder: Path) -> Card:
    """What a folder of ONNX files is: by its card, or else by the usual layout of the hub.

    Raises `EncoderError` if it is neither, or damaged.
    """
    from .card import CARD_NAME, read_card
    from .layout import read_layout

    return read_card(folder) if (folder / CARD_NAME).is_file() else read_layout(folder)


def _open_folder(folder: Path, name: str) -> Encoder:
    from .onnx import OnnxEncoder

    return OnnxEncoder(replace(read_model(folder), name=name), folder)
