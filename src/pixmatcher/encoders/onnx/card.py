"""`card.json`: the name, fingerprint, origin and preprocessing of an encoder in a folder of ONNX files.

`pixmatcher models export` and `pull` make such folders: the networks of one encoder, its tokenizer, and the card.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..._files import sha256_of
from ...errors import EncoderError
from ...images import Recipe
from ...records import Space

CARD_NAME = "card.json"
CARD_FORMAT = 1
LARGEST_SIDE = 4096
"""Longest side, in pixels, of the images that an encoder takes."""

Pooling: TypeAlias = 'Literal["none", "first", "mean"]'
Cleaning: TypeAlias = 'Literal["none", "clip"]'


@dataclass(frozen=True)
class Network:
    """An ONNX file and the names of its input and output.

    An image network with an input of uint8 takes pixels (N, H, W, 3), one with an input of floats takes normalised
    values (N, 3, H, W).
    """

    file: str
    input: str
    output: str
    pooling: Pooling = "none"
    """How an output (N, tokens, dimension) becomes an embedding: the first token, or the mean of all."""
    mask: str | None = None
    """Name of the input of a text network that is 1 for text and 0 for padding, if there is such an input."""


@dataclass(frozen=True)
class TextRecipe:
    """How a text becomes the ids (N, context_length) that a text network takes."""

    tokenizer: str
    """File of the `tokenizers` library."""
    context_length: int
    """The most ids of a text; of longer texts, the closing id and the first ids are kept."""
    pad_id: int
    cleaning: Cleaning = "none"
    """How texts are cleaned before the tokenizer: `clip` as CLIP does it, see `texts.clip.clean`."""
    causal: bool = False
    """Whether the network also takes texts without the padding at their end and embeds them the same, as CLIP's."""


@dataclass(frozen=True)
class StoredFile:
    """A file of the folder: its length in bytes and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Card:
    """The content of `card.json`."""

    name: str
    """The name for `--encoder`, which collections record."""
    fingerprint: str
    space: Space
    recipe: Recipe
    visual: Network
    precision: Literal["fp32", "int8"]
    licence: str
    source: str
    """The origin of the weights."""
    files: Mapping[str, StoredFile]
    textual: Network | None = None
    text: TextRecipe | None = None
    notes: Mapping[str, str | float] | None = None
    """Further facts, such as the agreement of int8 with fp32."""


def read_card(folder: Path) -> Card:
    """Read the card of a folder, and check that its files exist with the right length.

    Raises `EncoderError` if a file is missing or has another length, or the card is missing or damaged.
    """
    path = folder / CARD_NAME
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != CARD_FORMAT:
            raise EncoderError(f"{path} has a format of a newer version of pixmatcher: upgrade pixmatcher.")
        recipe = values.pop("recipe")
        recipe |= {"mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])}
        text, textual = values.pop("text"), values.pop("textual")
        card = Card(
            space=Space(**values.pop("space")),
            recipe=Recipe(**recipe),
            visual=Network(**values.pop("visual")),
            textual=None if textual is None else Network(**textual),
            text=None if text is None else TextRecipe(**text),
            files={name: StoredFile(**stored) for name, stored in values.pop("files").items()},
            **values,
        )
        _check_values(card)
        networks = [network.file for network in (card.visual, card.textual) if network is not None]
        if not all(map(is_inside, [*card.files, *networks, *([card.text.tokenizer] if card.text else [])])):
            raise EncoderError(f"{path} names files outside its folder: export or pull the encoder again.")
    except OSError as error:
        raise EncoderError(
            f"{path} cannot be read ({error.strerror}): name a folder that `pixmatcher models export` has made."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EncoderError(f"{path} is damaged ({error}): export or pull the encoder again.") from error
    for name, stored in card.files.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != stored.bytes:
            problem = "has another length than expected" if file.is_file() else "is missing"
            raise EncoderError(f"{file} {problem}: export or pull the encoder {card.name} again.")
    return card


def _check_values(card: Card) -> None:
    """Raise `ValueError` if a value has a wrong type, or cannot be used to prepare an image or a text."""
    recipe, networks = card.recipe, [network for network in (card.visual, card.textual) if network is not None]
    texts = [card.name, card.fingerprint, card.licence, card.source, card.space.name]
    texts += [value for network in networks for value in (network.file, network.input, network.output)]
    texts += [network.mask for network in networks if network.mask is not None]
    counts = [card.space.dimension, recipe.size, *(stored.bytes for stored in card.files.values())]
    colours = [*recipe.mean, *recipe.std]
    if card.text is not None:
        texts.append(card.text.tokenizer)
        counts += [card.text.context_length, card.text.pad_id]
    valid = {
        "texts": all(isinstance(value, str) for value in texts),
        "whole numbers": all(type(value) is int and value >= 0 for value in counts),
        "space": isinstance(card.space.text, bool) and (card.text is None) == (card.textual is None),
        "size": recipe.size <= LARGEST_SIDE,
        "interpolation": recipe.interpolation in ("bilinear", "bicubic", "lanczos"),
        "resize": recipe.resize in ("box", "shortest", "squash"),
        "mean and std": len(recipe.mean) == len(recipe.std) == 3
        and all(type(value) in (int, float) and math.isfinite(value) for value in colours)
        and min(recipe.std) > 0,
        "pooling": all(network.pooling in ("none", "first", "mean") for network in networks),
        "precision": card.precision in ("fp32", "int8"),
        "notes": card.notes is None or isinstance(card.notes, dict),
    }
    if wrong := [what for what, is_valid in valid.items() if not is_valid]:
        raise ValueError(f"wrong {wrong[0]}")


def is_inside(name: str) -> bool:
    """Return whether a relative path stays inside its folder and has no needless parts, such as "." or "//"."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and "\0" not in name and "\\" not in name


def write_card(card: Card, folder: Path) -> None:
    """Write `card.json`. It is written last, since a folder without it is not an encoder."""
    text = json.dumps({"format": CARD_FORMAT} | asdict(card), indent=2)
    (folder / CARD_NAME).write_text(text + "\n", encoding="utf-8")


def store_files(folder: Path, names: list[str]) -> dict[str, StoredFile]:
    """Return the length and SHA-256 of the files of a folder."""
    return {name: StoredFile((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}


def fingerprint_of(weights: Mapping[str, str], recipe: Recipe, *more: object) -> str:
    """Return a hash of all that determines an embedding: hashes of weights (name -> SHA-256), recipe, and `more`."""
    shaping = [sorted(weights.items()), asdict(recipe), *map(repr, more)]
    return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:16]
