"""Encoders by name: loaded once a process, run by ONNX Runtime or by PyTorch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import EncoderError
from ..records import EncoderRecord, Space
from .names import INSTALL, INT8, KNOWN, reference_of, torch_installed
from .protocol import Encoder
from .runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..images import Recipe


def _load_lite() -> Encoder:
    from .lite import LiteEncoder

    return LiteEncoder()


_LOADERS: dict[str, Callable[[], Encoder]] = {"lite": _load_lite}
DEFAULT_ENCODER = "lite"


def load_encoder(name: str = DEFAULT_ENCODER, runtime: Runtime | None = None) -> Encoder:
    """Return the encoder called `name`, loaded once a process; see `pixmatcher.encoders.models` for names.

    Raises `EncoderError` if there is none of that name or it cannot be loaded, `FetchError` or `StorageError` if it
    cannot be downloaded.
    """
    return _load(full_name(name), runtime or Runtime())


def full_name(name: str) -> str:
    """The name of an encoder as collections remember it: a folder by its absolute path.

    Raises `EncoderError` if there is none of that name.
    """
    if name in _LOADERS:
        return name
    kind, rest = reference_of(name)
    return f"onnx:{os.path.abspath(os.path.expanduser(rest))}" if kind == "onnx" else name


@cache
def _load(name: str, runtime: Runtime) -> Encoder:
    if name in _LOADERS:
        return _LOADERS[name]()
    return open_model(name, runtime)


def load_encoders(names: Sequence[str], runtime: Runtime | None = None) -> list[Encoder]:
    """Return the encoders of a new collection, no two spaces of one name. Raises as `load_encoder`."""
    encoders: list[Encoder] = []
    for name in dict.fromkeys(map(full_name, names)):
        encoder = load_encoder(name, runtime)
        taken = {space.name for earlier in encoders for space in earlier.spaces}
        renamed = {space.name: _free_name(space.name, taken) for space in encoder.spaces}
        encoders.append(encoder if all(old == new for old, new in renamed.items()) else Renamed(encoder, renamed))
    return encoders


def _free_name(name: str, taken: Container[str]) -> str:
    return next(free for free in chain([name], (f"{name}-{n}" for n in count(2))) if free not in taken)


def describe_encoder(name: str) -> EncoderRecord:
    """What is known of the encoder called `name` without loading it where it is large.

    Raises `EncoderError` if nothing is.
    """
    if name in KNOWN:  # in which version and by which recipe embeddings were made, nobody knows
        return EncoderRecord(name, "", (KNOWN[name].space,))
    if name not in _LOADERS:
        reference_of(name)
    encoder = load_encoder(name)
    return EncoderRecord(encoder.name, encoder.fingerprint, encoder.spaces)


class Recorded(Protocol):
    """An encoder as a collection remembers it."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def spaces(self) -> Sequence[Space]: ...


def load_recorded(records: Iterable[Recorded], runtime: Runtime | None = None) -> list[Encoder]:
    """Return the encoders that a collection was made with, their spaces called as they are there.

    Where the fingerprint is not known, whichever version is there will do. Raises `EncoderError` if there is no encoder
    of a name, or it has another fingerprint.
    """
    encoders = []
    for record in records:
        try:
            encoder = load_encoder(record.name, runtime)
        except EncoderError as error:
            raise EncoderError(f"The collection was made with the encoder {record.name}. {error}") from error
        if record.fingerprint not in ("", encoder.fingerprint):
            raise EncoderError(
                f"The collection was made with another version of the encoder {record.name}: delete its folder and "
                "index again, or bring back the version that made it."
            )
        renamed = {space.name: space.name for space in encoder.spaces}
        renamed |= {
            re.sub(r"-\d+$", "", space.name): space.name for space in record.spaces if space.name not in renamed
        }
        encoders.append(encoder if all(old == new for old, new in renamed.items()) else Renamed(encoder, renamed))
    return encoders


@dataclass(frozen=True)
class Renamed:
    """An encoder some of whose spaces have other names in a collection, where another encoder has these names."""

    encoder: Encoder
    names: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def spaces(self) -> tuple[Space, ...]:
        return tuple(replace(space, name=self.names[space.name]) for space in self.encoder.spaces)

    @property
    def recipe(self) -> Recipe:
        return self.encoder.recipe

    @property
    def batch_size(self) -> int:
        return self.encoder.batch_size

    def load_images(self) -> None:
        self.encoder.load_images()

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        return {self.names[name]: vectors for name, vectors in self.encoder.encode_images(pixels).items()}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        return {self.names[name]: vectors for name, vectors in self.encoder.encode_texts(texts).items()}


def open_model(name: str, runtime: Runtime) -> Encoder:
    """Load the encoder called `name`, by ONNX Runtime where its files are there, otherwise by PyTorch.

    Raises `EncoderError` if there is none of that name, or neither is possible.
    """
    from .hub.cache import model_folder, needs_torch

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
        from .hub.client import pull_onnx

        pull_onnx(rest, folder, name=name, offline=runtime.offline, progress=runtime.progress)
        return _open_folder(folder, name)
    if runtime.backend != "onnx" and torch_installed():
        from .torch.models import import_library

        import_library("torch", f"The encoder {name}")
        from .torch.encoder import open_torch_encoder

        return open_torch_encoder(name, runtime)
    if wants_torch:
        raise EncoderError(f"PyTorch is not installed, which is to run {name}: run `{INSTALL}`, or leave out torch.")
    if model_folder(name + INT8).is_dir():
        raise EncoderError(f"The encoder {name} is here in int8 only: name it {name}{INT8}.")
    if runtime.backend == "onnx" and torch_installed():
        raise EncoderError(f"The encoder {name} has not been exported: run `pixmatcher models export {name}` first.")
    raise EncoderError(needs_torch(name))


def _open_folder(folder: Path, name: str) -> Encoder:
    from .onnx.encoder import OnnxEncoder
    from .onnx.layout import read_model

    return OnnxEncoder(replace(read_model(folder), name=name), folder)
