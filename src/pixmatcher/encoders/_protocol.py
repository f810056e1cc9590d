"""The members that indexing and search use of an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import EncoderError
from ..records import Calibrations, Space
from ._device_choice import DeviceChoice

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..images import Recipe


class Encoder(Protocol):
    """Turns images, and texts if one of its spaces supports text, into embeddings.

    Any class with these members is an encoder; it need not inherit from this one. All methods may be called from
    several threads at once.

    More members are optional. `calibrations`, name of a space -> "text" or "image" -> `Calibration`, gives hits a
    probability; a collection's own calibrations have precedence. `reads_text(text) -> bool` says whether the encoder
    can read a text; one that it cannot read is not searched. `text_language`, such as "English", completes the message
    about such a text. `device` says where it runs, such as "cpu" or "cuda"; an encoder that has it uses a GPU where
    there is one, and gets one from a Ray cluster. `choose_device()` is called before many images are encoded, to find
    out which device is fastest. To read `calibrations`, an encoder is made but loads nothing else.
    """

    @property
    def name(self) -> str:
        """The name that collections record, and by which the encoder is found again."""

    @property
    def fingerprint(self) -> str:
        """Hash of the model files and the recipe: embeddings of different fingerprints must not be compared."""

    @property
    def spaces(self) -> tuple[Space, ...]:
        """The embedding spaces; names of a-z, 0-9, _ and -."""

    @property
    def recipe(self) -> Recipe:
        """How images are resized to the pixels that `encode_images` takes."""

    @property
    def batch_size(self) -> int:
        """The number of images per call that is encoded fastest."""

    def load_images(self) -> None:
        """Load what `encode_images` needs; otherwise its first call does. May do nothing."""

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed pixels (N, H, W, 3), sized by `recipe`: for each space (N, dimension) float32."""

    def encode_texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Embed texts: for each space that supports text (N, dimension) float32; {} if none does."""


_MEASURED_FROM = 500
"""So many images take longer than measuring the devices."""
_MEMBERS = ("name", "fingerprint", "spaces", "recipe", "batch_size", "load_images", "encode_images", "encode_texts")


def check_encoder(encoder: object) -> None:
    """Raise `EncoderError` if an object lacks a member of `Encoder`."""
    if missing := [name for name in _MEMBERS if not hasattr(encoder, name)]:
        what = encoder.__name__ if isinstance(encoder, type) else type(encoder).__name__
        raise EncoderError(f"{what} is not an encoder: it lacks {', '.join(missing)}, see pixmatcher.Encoder.")
    if isinstance(encoder, type):
        raise EncoderError(f"{encoder.__name__} is a class: give an encoder, which is an object of it.")


def calibrations_of(encoder: Encoder) -> Calibrations:
    """Return the calibrations that an encoder carries; {} if it has none."""
    carried: Calibrations = getattr(encoder, "calibrations", None) or {}
    return carried


def reads_text(encoder: Encoder, text: str) -> bool:
    """Return whether an encoder can read a text; one that does not say so can."""
    reads: Callable[[str], bool] | None = getattr(encoder, "reads_text", None)
    return reads is None or reads(text)


def device_of(encoder: Encoder) -> str:
    """Return the device on which an encoder runs; "" if it does not say so, as it always uses the processor."""
    return str(getattr(encoder, "device", ""))


def must_choose_device(encoder: Encoder) -> bool:
    """Return whether `choose_devices` would find out on which device an encoder is fastest."""
    choice = device_choice_of(encoder)
    return choice is not None and not choice.final


def choose_devices(encoders: Iterable[Encoder], count: int) -> None:
    """Let encoders find out which device is fastest, before they encode `count` images; for few, it takes too long."""
    for encoder in encoders:
        if count >= _MEASURED_FROM and (choose := getattr(encoder, "choose_device", None)):
            choose()


def device_choice_of(encoder: Encoder) -> DeviceChoice | None:
    """Return on which device an encoder runs, and why; None if it does not say so."""
    choice: DeviceChoice | None = getattr(encoder, "device_choice", None)
    return choice


def text_language(encoder: Encoder) -> str:
    """Return the language of the texts that an encoder reads; "" if it does not say so."""
    return getattr(encoder, "text_language", "")
