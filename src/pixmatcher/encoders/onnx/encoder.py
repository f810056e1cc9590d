"""An encoder that ONNX Runtime runs from a folder of ONNX files with a card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError
from ...images import normalize_pixels
from ...records import Space
from .._device_choice import DeviceChoice
from ..texts.tokenizer import open_tokenizer
from .card import Card, Network
from .devices import DeviceNetwork
from .networks import Floats, Lazy, loading, open_network, unit

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

BATCH_SIZE = 4


class OnnxEncoder:
    """Embeds images, and texts if the card has a text network, in its one space. All vectors have length 1.

    The image network runs on `device` (see `providers`; `auto` is the fastest one that was measured), the text network
    on the CPU.
    """

    batch_size = BATCH_SIZE

    def __init__(self, card: Card, folder: Path, device: str = "cpu") -> None:
        self.card = card
        self.name = card.name
        self.fingerprint = card.fingerprint
        self.spaces: tuple[Space, ...] = (card.space,)
        self.recipe = card.recipe
        self._visual = DeviceNetwork(
            card.fingerprint,
            device,
            lambda device: _ImageSide(card, folder, device),
            batch=BATCH_SIZE,
            size=card.recipe.size,
            name=card.name,
        )
        self._textual = Lazy(lambda: _TextSide(card, folder))

    @property
    def device(self) -> str:
        """The GPU on which the image network runs; "" if there is none."""
        return self._visual.gpu

    @property
    def device_choice(self) -> DeviceChoice:
        """The device on which the image network runs, and why."""
        return self._visual.choice

    def choose_device(self) -> None:
        """Measure which device is fastest, if that is unknown and `device` is `auto`."""
        self._visual.choose_device()

    def load_images(self) -> None:
        """Load the image network, which is otherwise loaded at its first use."""
        self._visual.get()

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed pixels (N, size, size, 3): (N, dimension) of length 1."""
        return self._visual.get().encode(pixels)

    def prepare(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Convert pixels (N, size, size, 3) to the input of the image network."""
        return self._visual.get().prepare(pixels)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Embed texts: (N, dimension) of length 1; {} if the encoder does not support text.

        Raises `QueryError` if a text is not valid Unicode.
        """
        if not self.spaces[0].text:
            return {}
        vectors = np.empty((len(texts), self.spaces[0].dimension), np.float32)
        if texts:
            side = self._textual.get()
            # One by one: an embedding must not depend on its neighbours.
            for vector, text in zip(vectors, texts, strict=True):
                vector[:] = side.embed(text)
        return {self.spaces[0].name: vectors}


_TYPES: dict[str, Any] = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class _Side:
    """An image or text network."""

    def __init__(self, card: Card, network: Network, folder: Path, *, optimise: bool, device: str = "cpu") -> None:
        self.network = network
        self._name, self._dimension, self._path = card.name, card.space.dimension, folder / network.file
        with loading(self._path, card.name, "export or pull it again"):
            self.session: InferenceSession = open_network(self._path, optimise=optimise, repack=optimise, device=device)
            given = next(given for given in self.session.get_inputs() if given.name == network.input)
            self.input_dtype = np.dtype(_TYPES[given.type])
            self.single = given.shape[:1] == [1]

    def run(self, given: dict[str, npt.NDArray[Any]]) -> Floats:
        """Return the embeddings (N, dimension) float32 of the inputs, name -> values."""
        try:
            (output,) = self.session.run([self.network.output], given)
        except Exception as error:  # the library has no error class of its own
            raise EncoderError(
                f"{self._path} cannot process its input ({error}): export or pull the encoder {self._name} again."
            ) from error
        if self.network.pooling == "first":
            output = output[:, 0]
        elif self.network.pooling == "mean":
            output = output.mean(axis=1)
        if output.ndim != 2 or output.shape[1] != self._dimension:
            raise EncoderError(
                f"{self._path} returns {output.shape} instead of {self._dimension} values: export or pull the "
                f"encoder {self._name} again."
            )
        vectors: Floats = output.astype(np.float32, copy=False)
        return vectors


class _ImageSide(_Side):
    """An image network on a device."""

    def __init__(self, card: Card, folder: Path, device: str) -> None:
        super().__init__(card, card.visual, folder, optimise=True, device=device)
        self._space, self._recipe = card.space.name, card.recipe

    def prepare(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Convert pixels (N, size, size, 3) to the input of the network."""
        dtype = self.input_dtype
        return pixels if dtype == np.uint8 else normalize_pixels(pixels, self._recipe).astype(dtype)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed pixels (N, size, size, 3): (N, dimension) of length 1."""
        given = self.prepare(pixels)
        # One by one if the network takes one image only.
        parts = np.split(given, len(given)) if self.single and len(given) > 1 else [given]
        vectors = [self.run({self.network.input: part}) for part in parts]
        return {self._space: unit(np.concatenate(vectors))}


class _TextSide(_Side):
    """A text network with its tokenizer."""

    def __init__(self, card: Card, folder: Path) -> None:
        assert card.textual is not None
        assert card.text is not None
        # Without optimising, a process that embeds one text reads only the weights that it needs from an external file.
        super().__init__(card, card.textual, folder, optimise=False)
        self.causal = card.text.causal
        path = folder / card.text.tokenizer
        with loading(path, card.name, "export or pull it again"):
            self.tokenize = open_tokenizer(path, card.text)

    def embed(self, text: str) -> Floats:
        """Return the embedding (dimension,) of `text`, of length 1."""
        ids, mask = self.tokenize(text)
        if self.causal:
            ids, mask = ids[: mask.sum()], mask[: mask.sum()]
        given = {self.network.input: ids[None].astype(self.input_dtype)}
        if self.network.mask is not None:
            given[self.network.mask] = mask[None].astype(self.input_dtype)
        vector: Floats = unit(self.run(given)[0])
        return vector
