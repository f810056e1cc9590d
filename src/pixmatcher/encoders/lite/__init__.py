"""The bundled encoder: EfficientNet-Lite2 for images and all-MiniLM-L6-v2 for texts, in int8 on ONNX Runtime.

One pass of the image network computes the vectors of two spaces:

- `visual`: the square roots of its pooled features, projected so that images of the same thing are near each other, of
  length 1. For similar images.
- `semantic`: what an image shows, comparable with texts: one half was learnt from captions, the other half is about the
  classes that the network recognises; see docs/explanations/lite.md. Lengths are about 1 for images, 0.8 to 1.7
  for texts.

`tools/build_lite.py` makes the files, and `card.json` beside them states the origin of each part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...images import Recipe
from ...records import Calibration, Calibrations, Space
from .._device_choice import DeviceChoice
from ..onnx.devices import DeviceNetwork
from ..onnx.networks import Floats, Lazy, loading, open_network
from ..texts.tokenizer import MAX_CHARACTERS, require_unicode
from ._lexicon import MAX_WORDS, Lexicon
from ._readable import has_latin

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FILES = Path(__file__).with_name("files")
RECIPE = Recipe(size=260, interpolation="bilinear", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
BATCH_SIZE = 8

VISUAL_DIMENSION = 384
SCENE_DIMENSION, NAMES_DIMENSION = 384, 384
"""Dimensions of the two halves of `semantic`."""
SPACES: tuple[Space, ...] = (
    Space("visual", VISUAL_DIMENSION),
    Space("semantic", SCENE_DIMENSION + NAMES_DIMENSION, text=True),
)

MAX_TOKENS = 256
"""Number of tokens of a text that are used."""

OUTPUTS = ("features", "logits", "statistics")
Outputs: TypeAlias = "tuple[Floats, Floats, Floats]"
"""The outputs of the image network: features (N, 1280), class logits (N, 1000), statistics of blocks (N, 1024)."""


def fingerprint_of(hashes: Mapping[str, str]) -> str:
    """Return a hash of all that determines an embedding: hashes of the files (name -> SHA-256) and the constants."""
    recipe = {name: value for name, value in asdict(RECIPE).items() if name != "resize"}  # a later field
    shaping: list[Any] = [sorted(hashes.items()), recipe, [asdict(space) for space in SPACES]]
    shaping += [MAX_TOKENS, MAX_CHARACTERS, MAX_WORDS]
    return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:16]


def _errors_explained(path: Path) -> AbstractContextManager[None]:
    """Explain errors of loading a bundled file."""
    return loading(path, "`lite`", "install pixmatcher again")


def _open_network(path: Path, *, optimise: bool = True, device: str = "cpu") -> InferenceSession:
    with _errors_explained(path):
        return open_network(path, optimise=optimise, device=device)


def _open_image_network(path: Path, device: str) -> Callable[[npt.NDArray[np.uint8]], Outputs]:
    """Open the image network on a device; on the CPU with what is fastest, which computes the same integers."""
    from ._network import ImageNetwork, fastest_instructions

    instructions = fastest_instructions() if device == "cpu" else None
    if instructions is not None:
        with _errors_explained(path):
            return ImageNetwork(path, instructions).run
    session = _open_network(path, device=device)

    def run(pixels: npt.NDArray[np.uint8]) -> Outputs:
        features, logits, statistics = session.run(OUTPUTS, {"pixels": pixels})
        return features, logits, statistics

    return run


class _ImageSide:
    """The image network, and the small network that computes embeddings from its outputs."""

    def __init__(self, folder: Path, device: str) -> None:
        self.run: Callable[[npt.NDArray[np.uint8]], Outputs] = _open_image_network(folder / "visual.onnx", device)
        """Returns the outputs of the network for pixels (N, H, W, 3) uint8."""
        # A second network instead of NumPy, whose matrix products start threads that compete with the caller's.
        self.heads = _open_network(folder / "heads.onnx")

    def embed(self, outputs: Outputs) -> dict[str, Floats]:
        """Return the embeddings of both spaces from the outputs of `run`."""
        visual, semantic = self.heads.run(["visual", "semantic"], dict(zip(OUTPUTS, outputs, strict=True)))
        return {"visual": visual, "semantic": semantic}

    def encode(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Return the embeddings of both spaces of pixels (N, H, W, 3) uint8."""
        return self.embed(self.run(pixels))


class _TextSide:
    """The text network, its tokenizer, and the words that name classes."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.session = _open_network(folder / "textual.onnx", optimise=False)
        with _errors_explained(folder / "tokenizer.json"):
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file is opened here, since np.load does not close a damaged file.
        with (
            _errors_explained(folder / "lexicon.npz"),
            (folder / "lexicon.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            self.lexicon = Lexicon({name: stored[name] for name in stored.files})

    def embed(self, text: str) -> Floats:
        """Return the `semantic` vector (768,) of `text`."""
        require_unicode(text)
        ids = np.array(self.tokenizer.encode(text[:MAX_CHARACTERS]).ids, np.int64)
        shares = self.lexicon.class_shares(text)
        embedding: Floats = self.session.run(["semantic"], {"ids": ids, "shares": shares})[0]
        return embedding


class LiteEncoder:
    """Embeds images in `visual` and `semantic`, texts in `semantic`; see `pixmatcher.encoders.Encoder`.

    The image side and the text side are each loaded at their first use: a text query loads no image network, indexing
    loads no text network. The image network runs on `device`, see `pixmatcher.Runtime`; the text network runs on the
    CPU.
    """

    name = "lite"
    spaces = SPACES
    recipe = RECIPE
    batch_size = BATCH_SIZE
    text_language = "English"

    def __init__(self, folder: Path = FILES, device: str = "cpu") -> None:
        with _errors_explained(folder / "card.json"):
            card = json.loads((folder / "card.json").read_bytes())
            self.fingerprint: str = card["fingerprint"]
            self.calibrations: Calibrations = {
                space: {kind: Calibration(*numbers) for kind, numbers in kinds.items()}
                for space, kinds in card.get("calibration", {}).items()
            }
        self._images = DeviceNetwork(
            self.fingerprint,
            device,
            lambda device: _ImageSide(folder, device),
            batch=BATCH_SIZE,
            size=RECIPE.size,
            name=self.name,
        )
        self._texts = Lazy(lambda: _TextSide(folder))

    def reads_text(self, text: str) -> bool:
        """Return whether `encode_texts` can read any of `text`: it has a letter of the Latin script, or a digit.

        Raises `QueryError` if the text is not valid Unicode.
        """
        require_unicode(text)
        return has_latin(text)

    @property
    def device(self) -> str:
        """The GPU on which the image network runs; "" if there is none."""
        return self._images.gpu

    @property
    def device_choice(self) -> DeviceChoice:
        """The device on which the image network runs, and why."""
        return self._images.choice

    def choose_device(self) -> None:
        """Measure which device is fastest, if that is unknown and `device` is `auto`."""
        self._images.choose_device()

    def load_images(self) -> None:
        """Load the image side, which is otherwise loaded at its first use."""
        self._images.get()

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed pixels (N, 260, 260, 3): `visual` (N, 384), `semantic` (N, 768)."""
        return self._images.get().encode(pixels)

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Embed texts: `semantic` (N, 768). Only the first 256 tokens of a text are used.

        Raises `QueryError` if a text is not valid Unicode, such as after decoding bytes that were not UTF-8.
        """
        vectors = np.empty((len(texts), SPACES[1].dimension), np.float32)
        if texts:
            side = self._texts.get()
            # One by one: the text network takes one text, and an embedding must not depend on its neighbours.
            for vector, text in zip(vectors, texts, strict=True):
                vector[:] = side.embed(text)
        return {"semantic": vectors}

    def run_network(self, pixels: npt.NDArray[np.uint8]) -> Outputs:
        """Return the raw outputs for pixels (N, 260, 260, 3)."""
        return self._images.get().run(pixels)

    def embed_outputs(self, outputs: Outputs) -> dict[str, Floats]:
        """Return the embeddings for the raw outputs of `run_network`."""
        return self._images.get().embed(outputs)
