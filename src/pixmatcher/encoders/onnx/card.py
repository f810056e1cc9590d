"""`card.json`: what a folder of ONNX files is, where it comes from, and how it is to be used.

A folder that `pixmatcher models export` or `pull` makes holds the networks of one encoder, its tokenizer, and a card.
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
"""Of the images that an encoder takes, in pixels."""

Pooling: TypeAlias = 'Literal["none", "first", "mean"]'
Cleaning: TypeAlias = 'Literal["none", "clip"]'


@dataclass(frozen=True)
class Network:
    """An ONNX file and the names of what goes in and comes out.

    Images go in as pixels (N, H, W, 3) where the input is of uint8, and normalised (N, 3, H, W) where it is of floats.
    """

    file: str
    input: str
    output: str
    pooling: Pooling = "none"
    """What becomes of an output (N, tokens, dimension): the first token or the mean of all is the embedding."""
    mask: str | None = None
    """Of a text network, the input that is 1 for what is text and 0 for what is padding, if it has one."""


@dataclass(frozen=True)
class TextRecipe:
    """How a text becomes the ids (N, context_length) that a text network takes."""

    tokenizer: str
    """File of the `tokenizers` library."""
    context_length: int
    """Ids of a text, whole; longer ones are cut before the closing one."""
    pad_id: int
    cleaning: Cleaning = "none"
    """What is done before the tokenizer: `clip` is what CLIP's own does, see `clip_text.clean`."""
    causal: bool = False
    """Whether the network takes texts without the padding behind them, and embeds them the same: CLIP's can."""


@dataclass(frozen=True)
class StoredFile:
    """A file of the folder: its length in bytes and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Card:
    """The content of `card.json`."""

    name: str
    """What `--encoder` takes; in a collection it tells which encoder made the embeddings."""
    fingerprint: str
    space: Space
    recipe: Recipe
    visual: Network
    precision: Literal["fp32", "int8"]
    licence: str
    source: str
    """Where the weights come from."""
    files: Mapping[str, StoredFile]
    textual: Network | None = None
    text: TextRecipe | None = None
    notes: Mapping[str, str | float] | None = None
    """What else is worth knowing, such as the agreement of int8 with fp32."""


def read_card(folder: Path) -> Card:
    """Read the card of a folder and check that its files are there, in their length.

    Raises `EncoderError` if one is missing or of another length, or the card is none.
    """
    path = folder / CARD_NAME
    try:
        values = json.loads(path.read_bytes())
        if values.pop("format") != CARD_FORMAT:
            raise EncoderError(
                f"{path} has a format that this version of pixmatcher does not know: upgrade pixmatcher."
            )
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
            what = "is not as it was written" if file.is_file() else "is missing"
            raise EncoderError(f"{file} {what}: export or pull the encoder {card.name} again.")
    return card


def _check_values(card: Card) -> None:
    """Raise `ValueError` if a value is not of its type, or no image or text could be prepared with it."""
    recipe, networks = card.recipe, [network for network in (card.visual, card.textual) if network is not None]
    texts = [card.name, card.fingerprint, card.licence, card.source, card.space.name]
    texts += [value for network in networks for value in (network.file, network.input, network.output)]
    texts += [network.mask for network in networks if network.mask is not None]
    whole = [card.space.dimension, recipe.size, *(stored.bytes for stored in card.files.values())]
    colours = [*recipe.mean, *recipe.std]
    if card.text is not None:
        texts.append(card.text.tokenizer)
        whole += [card.text.context_length, card.text.pad_id]
    sound = {
        "texts": all(isinstance(value, str) for value in texts),
        "whole numbers": all(type(value) is int and value >= 0 for value in whole),
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
    if wrong := [what for what, is_sound in sound.items() if not is_sound]:
        raise ValueError(f"its {wrong[0]} cannot be right")


def is_inside(name: str) -> bool:
    """Whether a path leads from a folder to something inside it, and is written in its plainest form."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts) and "\0" not in name and "\\" not in name


def write_card(card: Card, folder: Path) -> None:
    """Write `card.json`, the last file of a folder: without it the folder is none."""
    text = json.dumps({"format": CARD_FORMAT} | asdict(card), indent=2)
    (folder / CARD_NAME).write_text(text + "\n", encoding="utf-8")


def store_files(folder: Path, names: list[str]) -> dict[str, StoredFile]:
    """Length and SHA-256 of the files of a folder."""
    return {name: StoredFile((folder / name).stat().st_size, sha256_of(folder / name)) for name in names}


def fingerprint_of(weights: Mapping[str, str], recipe: Recipe, *more: object) -> str:
    """Hash what shapes an embedding: the hashes of weights (name -> SHA-256), the recipe, and what else there is."""
    shaping = [sorted(weights.items()), asdict(recipe), *map(repr, more)]
    return hashlib.sha256(json.dumps(shaping).encode()).hexdigest()[:16]
