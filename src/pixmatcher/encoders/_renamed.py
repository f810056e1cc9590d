"""An encoder whose spaces have other names in a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..records import Calibrations, Space
from ._device_choice import DeviceChoice
from ._protocol import Encoder, calibrations_of, device_choice_of, device_of, reads_text, text_language

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..images import Recipe


@dataclass(frozen=True)
class RenamedEncoder:
    """An encoder with some spaces renamed, since another encoder of the collection has spaces of these names."""

    encoder: Encoder
    names: Mapping[str, str]
    """Name of each space of `encoder` -> its name in the collection."""

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

    @property
    def calibrations(self) -> Calibrations:
        return {self.names.get(name, name): kinds for name, kinds in calibrations_of(self.encoder).items()}

    @property
    def device(self) -> str:
        return device_of(self.encoder)

    @property
    def text_language(self) -> str:
        return text_language(self.encoder)

    def reads_text(self, text: str) -> bool:
        return reads_text(self.encoder, text)

    @property
    def device_choice(self) -> DeviceChoice | None:
        return device_choice_of(self.encoder)

    def choose_device(self) -> None:
        if choose := getattr(self.encoder, "choose_device", None):
            choose()

    def load_images(self) -> None:
        self.encoder.load_images()

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        return {self.names[name]: vectors for name, vectors in self.encoder.encode_images(pixels).items()}

    def encode_texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        return {self.names[name]: vectors for name, vectors in self.encoder.encode_texts(texts).items()}
