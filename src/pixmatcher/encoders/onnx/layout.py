"""Folders of ONNX files as hubs offer them: what lies where, and the card that says how to use it.

The usual layout has `onnx/vision_model.onnx` and `onnx/text_model.onnx`, or `onnx/model.onnx` for images only, with
`preprocessor_config.json`, `config.json`, `tokenizer.json` and `tokenizer_config.json` beside `onnx/`, as the library
transformers reads them and its exporter optimum writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from ...errors import EncoderError
from ...images import Recipe, normalize_pixels
from ...records import Space
from ..texts.tokenizer import open_tokenizer
from .card import CARD_NAME, LARGEST_SIDE, Card, Network, TextRecipe, fingerprint_of, is_inside, read_card, store_files
from .external import external_files
from .networks import open_network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PREPROCESSOR = "preprocessor_config.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
LONGEST = {PREPROCESSOR: 1 << 20, CONFIG: 1 << 20, TOKENIZER_CONFIG: 4 << 20, TOKENIZER: 64 << 20}
"""Bytes of the files beside the networks, at most; tokenizers of 256,000 tokens have some 34 MB."""
MOST_IDS = 512
"""A text is cut there also where a network could take more: each text is filled up to that length."""
_ENDINGS: dict[Literal["fp32", "int8"], tuple[str, ...]] = {"fp32": ("",), "int8": ("_quantized", "_int8")}


class _MisfitError(ValueError):
    """The predicate of a sentence about a file that cannot be used."""


@dataclass(frozen=True)
class Layout:
    """The networks of a folder, by their paths in it."""

    visual: str
    textual: str | None
    precision: Literal["fp32", "int8"]


def find_layout(names: Container[str], precisions: Iterable[Literal["fp32", "int8"]] = _ENDINGS) -> Layout | None:
    """The networks among files called so, of the first of these precisions that there is, or None."""
    for precision in precisions:
        for folder in ("onnx/", ""):
            for ending in _ENDINGS[precision]:
                visual, textual, alone = (
                    f"{folder}{what}{ending}.onnx" for what in ("vision_model", "text_model", "model")
                )
                if visual in names:
                    if textual in names:
                        return Layout(visual, textual, precision)
                    if f"{folder}text_model.onnx" not in names:
                        return Layout(visual, None, precision)
                elif alone in names:
                    return Layout(alone, None, precision)
    return None


def beside(network: str, name: str) -> str:
    """The path, in the folder of the model, of a file whose name an ONNX file holds.

    Raises `ValueError` if it leads out of that file's folder.
    """
    if not is_inside(name):
        raise ValueError(f"it keeps its weights in {name[:100]!r}, outside its folder")
    return (PurePosixPath(network).parent / name).as_posix()


def read_layout(
    folder: Path,
    *,
    name: str | None = None,
    licence: str = "unknown",
    source: str | None = None,
    notes: Mapping[str, str | float] | None = None,
) -> Card:
    """The card of a folder in the usual layout of the hub; `name` and `source` are by default the folder itself.

    Its networks are run once, to see what they give. Raises `EncoderError` if it is no such folder, a file in it is
    damaged, or it is an encoder that cannot be used as its authors meant.
    """
    folder = Path(folder).absolute()
    files = _Folder(folder, source or str(folder))
    layout = find_layout(files)
    if layout is None:
        raise EncoderError(
            f"{folder} holds no model: it has neither a card.json nor onnx/vision_model.onnx nor onnx/model.onnx."
        )
    with files.using(PREPROCESSOR):
        recipe = _recipe(files.json(PREPROCESSOR))
    networks = [layout.visual] if layout.textual is None else [layout.visual, layout.textual]
    weights = list(networks)
    for network in networks:
        with files.using(network):
            for external in sorted(external_files(folder / network)):
                path = beside(network, external)
                if path not in files:
                    raise _MisfitError(f"keeps its weights in {external}, which is missing")
                weights.append(path)
    with files.using(layout.visual):
        visual, dimension = _look_at_images(open_network(folder / layout.visual, optimise=False), recipe, layout)
    textual = text = None
    if layout.textual is not None:
        weights.append(TOKENIZER)
        with files.using(TOKENIZER):
            pad_id = _pad_id(files)
        with files.using(layout.textual):
            session = open_network(folder / layout.textual, optimise=False)
            textual, text = _look_at_texts(session, files, layout.textual, visual.output, pad_id)
            _check_texts(session, textual, text, folder, dimension)
    beside_them = [name for name in (PREPROCESSOR, CONFIG, TOKENIZER_CONFIG) if name in files]
    with files.using(""):
        stored = store_files(folder, list(dict.fromkeys([*weights, *beside_them])))
    return Card(
        name=name or f"onnx:{folder}",
        fingerprint=fingerprint_of({path: stored[path].sha256 for path in weights}, recipe, visual, textual, text),
        space=Space("visual", dimension) if text is None else Space("clip", dimension, text=True),
        recipe=recipe,
        visual=visual,
        precision=layout.precision,
        licence=licence,
        source=files.shown,
        files=stored,
        textual=textual,
        text=text,
        notes=notes,
    )


@dataclass(frozen=True)
class _Folder(Container[str]):
    """The files of a folder: plain ones, or links to such, as the hub's own client leaves them."""

    path: Path
    shown: str
    """What the folder is called in messages."""

    def __contains__(self, name: object) -> bool:
        return (self.path / str(name)).is_file()

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Turn what is wrong with a file into one sentence; each library raises its own."""
        shown = f"{self.shown}/{name}".rstrip("/")
        try:
            yield
        except EncoderError:
            raise
        except _MisfitError as error:
            raise EncoderError(f"{shown} {error}.") from error
        except Exception as error:
            reason = " ".join(str(error).replace(f"{self.path}/", "").split())[:300].rstrip(".")
            raise EncoderError(
                f"{shown} cannot be used ({reason}): download it again, or take another model."
            ) from error

    def json(self, name: str) -> dict[str, Any]:
        """The content of a file that holds a JSON object; empty if it is not there."""
        if name not in self:
            return {}
        with self.using(name):
            with (self.path / name).open("rb") as file:
                data = file.read(LONGEST[name] + 1)
            if len(data) > LONGEST[name]:
                raise _MisfitError(f"is longer than {LONGEST[name] >> 20} MB")
            values = json.loads(data)
            if not isinstance(values, dict):
                raise _MisfitError("is damaged: download it again")
        return values


# Images


@dataclass(frozen=True)
class _Family:
    """What the image processors of a family do where their file does not say it."""

    square: bool
    """Whether a size that is one number means both sides, otherwise the shortest."""
    crop: bool
    resample: int


_FAMILIES = {
    "CLIP": _Family(square=False, crop=True, resample=3),
    "Bit": _Family(square=False, crop=True, resample=3),
    "Siglip": _Family(square=True, crop=False, resample=3),
    "ViT": _Family(square=True, crop=False, resample=2),
    "DINOv3ViT": _Family(square=True, crop=False, resample=2),
}
"""By the beginning of the name of their class; the defaults are those of `image_processing_*.py` in transformers."""
_INTERPOLATIONS: dict[object, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""By the numbers of `PIL.Image.Resampling`."""
_ELSE = ("do_pad", "do_flip_channel_order", "rescale_offset", "include_top", "do_thumbnail", "do_align_long_axis")
"""What else some image processors do."""


def _recipe(config: Mapping[str, Any]) -> Recipe:
    """The recipe that a file `preprocessor_config.json` describes. Raises `_MisfitError` if there is none for it."""
    if not config:
        raise _MisfitError("is missing or empty, so it is not known how the model wants its images")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")[:100]
    family = next((family for name, family in _FAMILIES.items() if kind.startswith(name)), None)
    if also := [key for key in _ELSE if config.get(key)]:
        raise _MisfitError(f"asks for {also[0]}, which pixmatcher does not do")
    if config.get("do_resize") is False:
        raise _MisfitError("asks for images that are not resized, which pixmatcher does not do")
    form, side = _side(config.get("size"), family)
    crop = config.get("do_center_crop")
    if crop is None:
        crop = family.crop if family else config.get("crop_size") is not None
    if crop:
        given = config.get("crop_size", side)
        _, kept = _side(given, _FAMILIES["ViT"])
    else:
        kept = side
    if form == "shortest" and not crop:
        raise _MisfitError("asks for images that are not square, which pixmatcher does not make")
    if kept > side:
        raise _MisfitError(f"asks for {side} pixels of which {kept} are kept, which pixmatcher does not do")
    resample = config.get("resample", family.resample if family else None)
    interpolation = None if isinstance(resample, bool) else _INTERPOLATIONS.get(resample)
    if interpolation is None:
        raise _MisfitError(f"asks for the interpolation {str(resample)[:20]}, which pixmatcher does not do")
    mean, std = _normalisation(config)
    return Recipe(kept, kept / side, interpolation, mean, std, form)


def _side(size: object, family: _Family | None) -> tuple[Literal["shortest", "squash"], int]:
    """What becomes of the sides of an image, and the pixels of the shortest, or of both."""
    form: Literal["shortest", "squash"] = "squash"
    if isinstance(size, dict):
        told = {key: value for key, value in size.items() if value is not None}
        if told.keys() == {"shortest_edge"}:
            form, size = "shortest", told["shortest_edge"]
        elif told.keys() == {"height", "width"} and told["height"] == told["width"]:
            size = told["height"]
    elif family is not None and not family.square:
        form = "shortest"
    elif family is None:
        size = None
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIDE:
        raise _MisfitError("describes a size of images that pixmatcher does not make")
    return form, size


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of values in [0, 1]."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean, std = _three(config.get("image_mean")), _three(config.get("image_std"))
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if not _is_number(factor) or factor <= 0 or min(std) <= 0:
        raise _MisfitError("normalises images in a way that is not possible")
    if not math.isclose(255 * factor, 1, rel_tol=1e-6):
        # What the network is given is (x * factor - mean) / std of a byte x, and a recipe's x / 255 is in [0, 1].
        mean, std = _scaled(mean, 255 * factor), _scaled(std, 255 * factor)
    return mean, std


def _three(values: object) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise _MisfitError("has no mean and standard deviation of three colours")
    red, green, blue = map(float, values)
    return red, green, blue


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def _scaled(values: tuple[float, float, float], divisor: float) -> tuple[float, float, float]:
    red, green, blue = (value / divisor for value in values)
    return red, green, blue


# Networks


def _look_at_images(session: InferenceSession, recipe: Recipe, layout: Layout) -> tuple[Network, int]:
    """How the image network is used, and how many values it gives."""
    import numpy as np

    inputs = {given.name: given for given in session.get_inputs()}
    if "input_ids" in inputs:
        raise _MisfitError(
            "takes images and texts at once, which cannot be indexed: take a model that has them in two files"
        )
    pixels = inputs.get("pixel_values")
    if len(inputs) != 1 or pixels is None:
        raise _MisfitError(f"takes {_listed(inputs)} instead of pixel_values alone, so it is not known how to use it")
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}.get(pixels.type)
    if dtype is None:
        raise _MisfitError(f"takes pixels of the type {pixels.type}, which is not known")
    fixed = [side for side in pixels.shape[2:] if isinstance(side, int) and side != recipe.size]
    if fixed or isinstance(pixels.shape[0], int):
        raise _MisfitError(
            f"takes images of the fixed shape {pixels.shape} only: take one for batches of {recipe.size} pixels"
        )
    output = _output(session, ("image_embeds", "pooler_output", "last_hidden_state"))
    if output == "last_hidden_state" and layout.textual is not None:
        raise _MisfitError("gives no embedding that texts could be compared with: take another model")
    network = Network(layout.visual, "pixel_values", output, "first" if output == "last_hidden_state" else "none")
    black = np.zeros((2, recipe.size, recipe.size, 3), np.uint8)
    (found,) = session.run([output], {"pixel_values": normalize_pixels(black, recipe).astype(dtype)})
    return network, _dimension(found, 2, network)


def _look_at_texts(
    session: InferenceSession, files: _Folder, file: str, image_output: str, pad_id: int
) -> tuple[Network, TextRecipe]:
    """How the text network is used."""
    inputs = {given.name: given for given in session.get_inputs()}
    if "input_ids" not in inputs or inputs.keys() - {"input_ids", "attention_mask"}:
        raise _MisfitError(f"takes {_listed(inputs)} instead of input_ids alone, so it is not known how to use it")
    ids = inputs["input_ids"]
    if ids.type not in ("tensor(int64)", "tensor(int32)"):
        raise _MisfitError(f"takes ids of the type {ids.type}, which is not known")
    output = _output(session, ("text_embeds" if image_output == "image_embeds" else image_output,))
    mask = "attention_mask" if "attention_mask" in inputs else None
    length = _context_length(files, ids.shape[1:])
    return Network(file, "input_ids", output, mask=mask), TextRecipe(TOKENIZER, length, pad_id)


def _check_texts(session: InferenceSession, network: Network, text: TextRecipe, folder: Path, dimension: int) -> None:
    """Embed a text. Raises `_MisfitError` if it is not as long as the embeddings of images."""
    import numpy as np

    dtypes = {given.name: np.int32 if given.type == "tensor(int32)" else np.int64 for given in session.get_inputs()}
    ids, mask = open_tokenizer(folder / text.tokenizer, text)("a photo")
    given = {network.input: ids[None].astype(dtypes[network.input])}
    if network.mask is not None:
        given[network.mask] = mask[None].astype(dtypes[network.mask])
    (found,) = session.run([network.output], given)
    if (values := _dimension(found, 1, network)) != dimension:
        raise _MisfitError(f"gives {values:,} values a text, but there are {dimension:,} an image: take another model")


def _output(session: InferenceSession, names: tuple[str, ...]) -> str:
    """The first of these outputs that a network has."""
    outputs = [output.name for output in session.get_outputs()]
    for name in names:
        if name in outputs:
            return name
    raise _MisfitError(f"gives {_listed(outputs)} and not {' or '.join(names)}, so it is no encoder that can be used")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))[:200] or "nothing"


def _dimension(found: Any, count: int, network: Network) -> int:
    """How many values an embedding has, of `count` that a network gave. Raises `_MisfitError` if it gave none."""
    import numpy as np

    rank = 3 if network.pooling == "first" else 2
    if found.ndim != rank or found.shape[0] != count or not found.size or not np.isfinite(found).all():
        raise _MisfitError(f"gives an output {network.output} of the shape {found.shape} that is no embedding")
    return int(found.shape[-1])


# Texts


def _context_length(files: _Folder, fixed: list[object]) -> int:
    """How many ids the text network takes: where its shape does not say it, as its configuration does."""
    if fixed and isinstance(fixed[0], int):
        return fixed[0]
    config = files.json(CONFIG)
    inner = config.get("text_config")
    told: list[Any] = [
        inner.get("max_position_embeddings") if isinstance(inner, dict) else None,
        config.get("max_position_embeddings"),
        64 if str(config.get("model_type")).startswith("siglip") else None,  # its class's default, left out in files
        files.json(TOKENIZER_CONFIG).get("model_max_length"),
    ]
    for length in told:
        if _is_number(length) and length >= 3:
            return min(int(length), MOST_IDS)
    raise _MisfitError("does not tell how long a text may be, nor do the files beside it: take another model")


def _pad_id(files: _Folder) -> int:
    """The id that fills a text up: as the tokenizer's configuration says, or else the tokenizer, or else 0."""
    from tokenizers import Tokenizer

    path = files.path / TOKENIZER
    if TOKENIZER not in files:
        raise _MisfitError("is missing, so it is not known how the model wants its texts")
    if path.stat().st_size > LONGEST[TOKENIZER]:
        raise _MisfitError(f"is longer than {LONGEST[TOKENIZER] >> 20} MB")
    tokenizer = Tokenizer.from_file(str(path))
    token = files.json(TOKENIZER_CONFIG).get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is None and tokenizer.padding is not None:
        found = tokenizer.padding["pad_id"]
    return int(found or 0)


def read_model(folder: Path) -> Card:
    """What a folder of ONNX files is: by its card, or else by the usual layout of the hub.

    Raises `EncoderError` if it is neither, or damaged.
    """
    return read_card(folder) if (folder / CARD_NAME).is_file() else read_layout(folder)
