"""The bundled encoder: EfficientNet-Lite2 for images and all-MiniLM-L6-v2 for texts, in int8 on ONNX Runtime.

One pass of the image network computes the vectors of two spaces:

- `visual`: the square roots of its pooled features, projected so that images of the same thing are near each other, of
  length 1. For similar images.
- `semantic`: the classes that the network recognises, comparable with text embeddings; see docs/explanations/lite.md.
  Its vectors do not have length 1: a text scores 1 at most, an excellent match about 0.8, an unrelated image about 0.

`tools/build_lite.py` makes the files, and `card.json` beside them states the origin of each part.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...images import Recipe
from ...records import Calibration, Calibrations, Space
from ..onnx.networks import Floats, Lazy, loading, open_network, unit
from ..texts.tokenizer import MAX_CHARACTERS, require_unicode
from ._readable import has_latin

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FILES = Path(__file__).with_name("files")
RECIPE = Recipe(size=260, interpolation="bilinear", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
BATCH_SIZE = 4

CLASSES = 1000
GROUPS = 144
"""Number of sets of classes with a common name, such as the dogs."""
VISUAL_DIMENSION = 384
CONCEPT_DIMENSION = 248
"""Dimensions of the meaning in `semantic`: more add nothing, and all together are divisible by 16 for fast scans."""
SPACES: tuple[Space, ...] = (
    Space("visual", VISUAL_DIMENSION),
    Space("semantic", CONCEPT_DIMENSION + CLASSES + GROUPS, text=True),
)

NAME_TEMPERATURE = 0.05
"""Temperature of the softmax over the similarities of a text to the names: a class named exactly gets nearly 1."""
NAME_WEIGHT = 2.0
"""Weight of the classes that a text names, relative to the meaning of the text."""
DOUBT = 0.5
"""Weight of the similarities if one word stands exactly for a class; with two such words, its square."""

MOST_CLASSES, SHARE_UNITS = 5, 127
"""A word stands for up to `MOST_CLASSES` classes and groups, with shares in units of 1 / `SHARE_UNITS`."""
LONGEST_NAME = 4
"""Number of words of the longest name that is looked up."""

MAX_TOKENS = 256
"""Number of tokens, and of words, of a text that are used."""


def softmax(values: Floats) -> Floats:
    """Return the softmax of `values` (..., d) over the last axis."""
    powers = np.exp(values - values.max(-1, keepdims=True))
    result: Floats = powers / powers.sum(-1, keepdims=True)
    return result


def fingerprint_of(hashes: Mapping[str, str]) -> str:
    """Return a hash of all that determines an embedding: hashes of the files (name -> SHA-256) and the constants."""
    recipe = {name: value for name, value in asdict(RECIPE).items() if name != "resize"}  # a later field
    shaping: list[Any] = [sorted(hashes.items()), recipe, [asdict(space) for space in SPACES]]
    shaping += [NAME_TEMPERATURE, NAME_WEIGHT, DOUBT, MAX_TOKENS, MAX_CHARACTERS]
    return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:16]


def _errors_explained(path: Path) -> AbstractContextManager[None]:
    """Explain errors of loading a bundled file."""
    return loading(path, "`lite`", "install pixmatcher again")


def _open_network(path: Path, *, optimise: bool = True) -> InferenceSession:
    with _errors_explained(path):
        return open_network(path, optimise=optimise)


class _ImageSide:
    """The image network, and the small network that computes embeddings from its outputs."""

    def __init__(self, folder: Path) -> None:
        self.network = _open_network(folder / "visual.onnx")
        # A second network instead of NumPy, whose matrix products start threads that compete with the caller's.
        self.heads = _open_network(folder / "heads.onnx")

    def run(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the features and the class logits of pixels (N, H, W, 3) uint8."""
        features, logits = self.network.run(None, {"pixels": pixels})
        return features, logits

    def embed(self, features: Floats, logits: Floats) -> dict[str, Floats]:
        """Return the embeddings of both spaces from the outputs of `run`."""
        visual, semantic = self.heads.run(None, {"features": features, "logits": logits})
        return {"visual": visual, "semantic": semantic}


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case and without accents, hyphens kept and a possessive 's removed."""
    plain = re.sub(r"[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text)).replace("\u2019", "'").lower()
    return [re.sub(r"'s?$", "", word) for word in re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*'?", plain)]


def word_key(name: str) -> int:
    """Return the key of a name (words separated by one space) in the table of names."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def singulars(name: str) -> Iterator[str]:
    """Yield `name`, and the words of which it may be the regular plural."""
    yield name
    for plural, singular in (("ies", "y"), ("es", ""), ("s", ""), ("men", "man")):
        if name.endswith(plural) and not name.endswith("ss"):
            yield name[: -len(plural)] + singular


class TextVectors:
    """Computes the `semantic` vectors of texts from the arrays of `texts.npz`; see docs/explanations/lite.md."""

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        self.basis = arrays["basis"].astype(np.float32)  # (384, 248)
        self.mean = arrays["mean"]  # (384,)
        self.names = arrays["names"].astype(np.float32)  # (names of all classes and groups, 384)
        # Where in `names` each class and group begins (1144,).
        self.first_names = arrays["first_names"].astype(np.intp)
        self.scale = arrays["scale"]  # ()
        self.word_keys = arrays["word_keys"]  # (names,) sorted
        self.word_rows = arrays["word_rows"]  # (names,): the row of each in the two below
        self.word_nouns = arrays["word_nouns"]  # (names,): whether it is mostly a noun
        self.row_members, self.row_shares = arrays["row_members"], arrays["row_shares"]  # (rows, MOST_CLASSES)

    def embed(self, text: str, embedding: Floats) -> Floats:
        """Return the `semantic` vector (1392,) of a text and its MiniLM embedding (384,)."""
        # einsum, since a matrix product would start NumPy's threads, which cost more than they save here.
        similarity = np.einsum("nd,d->n", self.names, embedding)
        similarity = np.maximum.reduceat(similarity, self.first_names)
        named = softmax(np.divide(similarity, NAME_TEMPERATURE, dtype=np.float32))
        shares = self.class_shares(text)
        certainty = float(shares.sum())
        if certainty > 0:
            doubt = DOUBT**certainty
            named = doubt * named + (1 - doubt) / certainty * shares
        meaning = np.einsum("d,dk->k", unit(embedding - self.mean), self.basis)
        vector: Floats = np.concatenate([meaning, np.float32(NAME_WEIGHT) * named]) * self.scale
        return vector

    def class_shares(self, text: str) -> Floats:
        """Return the weight of each class and group (1144,) in the words of `text`; a word adds 1 at most."""
        shares = np.zeros(len(self.first_names), np.float32)
        found = self._names_in(words(text[:MAX_CHARACTERS])[:MAX_TOKENS])
        # A word that is mostly not a noun ("watch", "duck") counts only if the text has no noun.
        for place in [place for place in found if self.word_nouns[place]] or found:
            row = self.word_rows[place]
            np.add.at(shares, self.row_members[row], self.row_shares[row] / np.float32(SHARE_UNITS))
        return shares

    def _names_in(self, text: Sequence[str]) -> list[int]:
        """Return the positions in `word_keys` of the names in a text, from left to right; the longest name wins."""
        tried = [
            (start, length, word_key(name))
            for start in range(len(text))
            for length in range(min(LONGEST_NAME, len(text) - start), 0, -1)
            for written in [" ".join(text[start : start + length])]
            for name in (*singulars(written), *(singulars(written.replace("-", " ")) if "-" in written else ()))
        ]
        if not tried:
            return []
        keys = np.array([key for _, _, key in tried], np.int64)
        places = np.minimum(np.searchsorted(self.word_keys, keys), len(self.word_keys) - 1)
        found, after = [], 0
        for at in np.flatnonzero(self.word_keys[places] == keys):
            start, length, _ = tried[at]
            if start >= after:
                found.append(int(places[at]))
                after = start + length
        return found


class _TextSide:
    """The text network, its tokenizer, and the arrays that turn its output into embeddings."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.session = _open_network(folder / "textual.onnx", optimise=False)
        with _errors_explained(folder / "tokenizer.json"):
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # The file is opened here, since np.load does not close a damaged file.
        with (
            _errors_explained(folder / "texts.npz"),
            (folder / "texts.npz").open("rb") as file,
            np.load(file, allow_pickle=False) as stored,
        ):
            self.vectors = TextVectors({name: stored[name] for name in stored.files})

    def run(self, text: str) -> Floats:
        """Return the MiniLM embedding (384,) of `text`, of length 1."""
        require_unicode(text)
        ids = self.tokenizer.encode(text[:MAX_CHARACTERS]).ids
        embedding: Floats = self.session.run(None, {"ids": np.array(ids, np.int64)})[0]
        return embedding

    def embed(self, text: str) -> Floats:
        """Return the `semantic` vector (1392,) of `text`."""
        return self.vectors.embed(text, self.run(text))


class LiteEncoder:
    """Embeds images in `visual` and `semantic`, texts in `semantic`; see `pixmatcher.encoders.Encoder`.

    The image side and the text side are each loaded at their first use: a text query loads no image network, indexing
    loads no text network.
    """

    name = "lite"
    spaces = SPACES
    recipe = RECIPE
    batch_size = BATCH_SIZE
    text_language = "English"

    def __init__(self, folder: Path = FILES) -> None:
        with _errors_explained(folder / "card.json"):
            card = json.loads((folder / "card.json").read_bytes())
            self.fingerprint: str = card["fingerprint"]
            self.calibrations: Calibrations = {
                space: {kind: Calibration(*numbers) for kind, numbers in kinds.items()}
                for space, kinds in card.get("calibration", {}).items()
            }
        self._images = Lazy(lambda: _ImageSide(folder))
        self._texts = Lazy(lambda: _TextSide(folder))

    def reads_text(self, text: str) -> bool:
        """Return whether `encode_texts` can read any of `text`: it has a letter of the Latin script, or a digit.

        Raises `QueryError` if the text is not valid Unicode.
        """
        require_unicode(text)
        return has_latin(text)

    def load_images(self) -> None:
        """Load the image side, which is otherwise loaded at its first use."""
        self._images.get()

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> dict[str, Floats]:
        """Embed pixels (N, 260, 260, 3): `visual` (N, 384), `semantic` (N, 1392)."""
        return self.embed_outputs(*self.run_network(pixels))

    def encode_texts(self, texts: Sequence[str]) -> dict[str, Floats]:
        """Embed texts: `semantic` (N, 1392). Only the first 256 tokens of a text are used.

        Raises `QueryError` if a text is not valid Unicode, such as after decoding bytes that were not UTF-8.
        """
        vectors = np.empty((len(texts), SPACES[1].dimension), np.float32)
        if texts:
            side = self._texts.get()
            # One by one: the text network takes one text, and an embedding must not depend on its neighbours.
            for vector, text in zip(vectors, texts, strict=True):
                vector[:] = side.embed(text)
        return {"semantic": vectors}

    def run_network(self, pixels: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return the raw outputs for pixels (N, 260, 260, 3): features (N, 1280) and logits (N, 1000)."""
        return self._images.get().run(pixels)

    def embed_outputs(self, features: Floats, logits: Floats) -> dict[str, Floats]:
        """Return the embeddings for the raw outputs of `run_network`."""
        return self._images.get().embed(features, logits)
