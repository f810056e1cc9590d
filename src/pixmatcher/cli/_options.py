"""The options and arguments that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ..errors import QueryError

CollectionOption = Annotated[
    str | None,
    typer.Option(
        "--collection",
        "-c",
        metavar="COLLECTION",
        help="The folder of the collection, or the folder that contains it; or http://HOST:8600/c/NAME, a collection "
        "of a service; or NAME:REST, one in the store of an installed package. By default, the nearest collection in "
        "or above the current folder.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PrivateHostsOption = Annotated[
    bool, typer.Option("--allow-private-hosts", help="Also fetch image URLs from private and loopback addresses.")
]
SpaceOption = Annotated[
    str | None,
    typer.Option(help="The embedding space to search; by default, it depends on the query.", show_default=False),
]
MegapixelsOption = Annotated[float, typer.Option(min=0.001, help="Refuse images with more megapixels.")]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|onnx|torch",
        help="The software that runs the encoders: ONNX Runtime or PyTorch.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|cpu|cuda|mps|...",
        help="The device that runs the image networks: auto, cpu, cuda or mps with PyTorch; auto, cpu, cuda, tensorrt, "
        "coreml, openvino or directml with ONNX Runtime, which also runs lite.",
        show_default=False,
    ),
]
OnOption = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="PLACE",
        help="Where images are decoded and encoded: ray (the Ray cluster of this machine, started if there "
        "is none) or ray://HOST:PORT. By default in this process.",
        show_default=False,
    ),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Do not download models.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Use the weights in this state dict or safetensors file."),
]
ImageQueryArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="An image path, an image URL, or - for an image on standard input.")
]


def pixels_of(megapixels: float) -> int:
    """Return the value of `MegapixelsOption` in pixels. Raises `QueryError` if it is not a finite number."""
    if not math.isfinite(megapixels):
        raise QueryError("--max-megapixels must be a number.")
    return int(megapixels * 1e6)
