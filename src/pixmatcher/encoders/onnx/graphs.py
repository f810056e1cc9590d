"""Helpers of export and quantisation: save an ONNX network, compare two sets of embeddings.

Saving needs the library `onnx`, which running a network does not.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .networks import Floats, unit

if TYPE_CHECKING:
    import onnx

VISUAL, TEXTUAL = "visual.onnx", "textual.onnx"
"""File names of the networks of an exported folder."""
IR_VERSION = 10
"""Version of the file format; ONNX Runtime 1.18 and later read it."""
EXTERNAL_BYTES = 16 << 20
"""Weights of more bytes in total are saved in a file beside the network. It is mapped instead of read, which loads five
times faster; and an ONNX file can have 2 GB at most."""

TEXTS = (
    "",
    "cat",
    "a photo of a dog",
    "A red SPORTS CAR, parked in front of an old building!",
    "two people riding bicycles along a river at sunset",
    "children playing football in the park while their parents watch from a bench",
    "ein alter Holzsteg über einem Bergbach",
    "σπίτι 🏠 家 &amp; café",
    "an old wooden bridge over a mountain stream, with autumn leaves floating on the water " * 8,
)
"""Texts for comparing two versions of a text network."""


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write a network, whose weights must be in memory, to `path`, and large weights to a file beside it.

    Notes of the tools that made the network are removed. Large weights of `model` are no longer in memory afterwards.
    """
    import onnx

    model.ir_version = min(model.ir_version, IR_VERSION)
    del model.metadata_props[:]
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del model.graph.value_info[:]
    external = path.with_name(f"{path.name}.data")
    external.unlink(missing_ok=True)  # the library would append to it
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) <= EXTERNAL_BYTES:
        onnx.save(model, path)
        return
    onnx.save(model, path, save_as_external_data=True, location=external.name, size_threshold=1024)
    shutil.copymode(path, external)  # the library makes it readable for its owner only


def cosines(one: Floats, other: Floats) -> Floats:
    """Return the cosine of each pair of rows of two arrays (N, dimension): (N,)."""
    result: Floats = (unit(one.astype(np.float64)) * unit(other.astype(np.float64))).sum(axis=1).astype(np.float32)
    return result


def centred_cosines(one: Floats, other: Floats) -> Floats:
    """Return `cosines` after subtracting the mean of each array; low if the differences between images are lost."""
    return cosines(one - one.mean(axis=0), other - other.mean(axis=0))
