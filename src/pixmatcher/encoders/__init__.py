"""Encoders turn images, and where they can texts, into embeddings of one or more spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from ..errors import EncoderError
from ..spaces import EncoderRecord, Space

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..images import Recipe


class Encoder(Protocol):
    """What indexing and search ask of an encoder. All methods may be called from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """Hash of the model files and the recipe: embeddings of different fingerprints must not be compared."""

    @property
    def spaces(self) -> tuple[Space, ...]: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def batch_size(self) -> int:
        """The number of images a call that encodes fastest."""

    def load_images(self) -> None:
        """Load what `encode_images` needs, which otherwise its first call does."""

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed pixels (N, H, W, 3), sized by `recipe`: for each space (N, dimension) float32."""

    def encode_texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed texts: for each space that knows texts (N, dimension) float32."""


def _load_lite() -> Encoder:
    from .lite import LiteEncoder

    return LiteEncoder()


_LOADERS: dict[str, Callable[[], Encoder]] = {"lite": _load_lite}
DEFAULT_ENCODER = "lite"

_KNOWN = {
    record.name: record
    for record in (
        EncoderRecord("mobilenet_v3_large", "", (Space("visual", 960),)),
        EncoderRecord("clip-vit-b-32", "", (Space("clip", 512, text=True),)),
    )
}
"""Encoders whose embeddings can be kept and searched, though this version cannot load them."""

__all__ = ["DEFAULT_ENCODER", "Encoder", "Space", "describe_encoder", "encoder_names", "load_encoder", "load_recorded"]


def encoder_names() -> list[str]:
    """The encoders that this version can load."""
    return sorted(_LOADERS)


@cache
def load_encoder(name: str = DEFAULT_ENCODER) -> Encoder:
    """Return the encoder called `name`, loaded once a process.

    Raises `EncoderError` if there is none of that name.
    """
    try:
        loader = _LOADERS[name]
    except KeyError:
        raise EncoderError(f"There is no encoder {name!r}: choose one of {', '.join(encoder_names())}.") from None
    return loader()


def describe_encoder(name: str) -> EncoderRecord:
    """What is known of the encoder called `name`, also where this version cannot load it.

    Raises `EncoderError` if nothing is.
    """
    if name in _LOADERS:
        encoder = load_encoder(name)
        return EncoderRecord(encoder.name, encoder.fingerprint, encoder.spaces)
    try:
        return _KNOWN[name]
    except KeyError:
        names = ", ".join(sorted({*_LOADERS, *_KNOWN}))
        raise EncoderError(f"There is no encoder {name!r}: choose one of {names}.") from None


class Recorded(Protocol):
    """An encoder as a collection remembers it."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def load_recorded(records: Iterable[Recorded]) -> list[Encoder]:
    """Return the encoders that a collection was made with.

    Where the fingerprint is not known, whichever version is there will do. Raises `EncoderError` if there is no encoder
    of a name, or it has another fingerprint.
    """
    encoders = []
    for record in records:
        if record.name not in _LOADERS:
            raise EncoderError(
                f"The collection was made with the encoder {record.name}, which this version of pixmatcher does not "
                "have: upgrade with `pip install --upgrade pixmatcher`, or search the collection by vector in Python."
            )
        encoder = load_encoder(record.name)
        if record.fingerprint not in ("", encoder.fingerprint):
            raise EncoderError(
                f"The collection was made with another version of the encoder {record.name}: delete its folder and "
                "index again, or install the version of pixmatcher that made it."
            )
        encoders.append(encoder)
    return encoders
