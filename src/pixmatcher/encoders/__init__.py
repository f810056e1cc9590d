"""Encoders turn images, and where they can texts, into embeddings of one or more spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

from ..errors import EncoderError
from ..spaces import Space

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

__all__ = ["DEFAULT_ENCODER", "Encoder", "Space", "load_encoder", "load_recorded"]


@cache
def load_encoder(name: str = DEFAULT_ENCODER) -> Encoder:
    """Return the encoder called `name`, loaded once a process.

    Raises `EncoderError` if there is none of that name.
    """
    try:
        loader = _LOADERS[name]
    except KeyError:
        raise EncoderError(f"There is no encoder {name!r}: choose one of {', '.join(sorted(_LOADERS))}.") from None
    return loader()


class Recorded(Protocol):
    """An encoder as a collection remembers it."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...


def load_recorded(records: Iterable[Recorded]) -> list[Encoder]:
    """Return the encoders that a collection was made with.

    Raises `EncoderError` if there is none of a name, or it has another fingerprint.
    """
    encoders = []
    for record in records:
        encoder = load_encoder(record.name)
        if encoder.fingerprint != record.fingerprint:
            raise EncoderError(
                f"The collection was made with another version of the encoder {record.name}: delete its folder and "
                "index again, or install the version of pixmatcher that made it."
            )
        encoders.append(encoder)
    return encoders
