"""What indexing and search ask of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..records import Space

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
