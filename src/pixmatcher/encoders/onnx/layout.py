"""Read a folder of ONNX files in the layout of the hub, and make a card that says how to use it.

The usual layout has `onnx/vision_model.onnx` and `onnx/text_model.onnx`, or `onnx/model.onnx` for images only, with
`preprocessor_config.json`, `config.json`, `tokenizer.json` and `tokenizer_config.json` beside `onnx/`, as the library
transformers reads them and its exporter optimum writes them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ...errors import EncoderError
from ...records import Space
from ._examine import check_text_network, examine_image_network, examine_text_network
from ._preprocessor import UnsupportedError, is_number, read_recipe
from .card import CARD_NAME, Card, TextRecipe, fingerprint_of, is_inside, read_card, store_files
from .external import external_files
from .networks import open_network

PREPROCESSOR = "preprocessor_config.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
LONGEST = {PREPROCESSOR: 1 << 20, CONFIG: 1 << 20, TOKENIZER_CONFIG: 4 << 20, TOKENIZER: 64 << 20}
"""Most bytes of the files beside the networks; tokenizers of 256,000 tokens have about 34 MB."""
MOST_IDS = 512
"""Longer texts are cut even if a network takes more ids, since each text is padded to this length."""
_ENDINGS: dict[Literal["fp32", "int8"], tuple[str, ...]] = {"fp32": ("",), "int8": ("_quantized", "_int8")}


@dataclass(frozen=True)
class Layout:
    """The paths of the networks in a folder."""

    visual: str
    textual: str | None
    precision: Literal["fp32", "int8"]


def find_layout(names: Container[str], precisions: Iterable[Literal["fp32", "int8"]] = _ENDINGS) -> Layout | None:
    """Return the networks among these file names, in the first of the precisions that exists; None without networks."""
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
    """Return the path, in the folder of the model, of a file with weights that the network names.

    Raises `ValueError` if it is outside the folder of the network.
    """
    if not is_inside(name):
        raise ValueError(f"its weights are in {name[:100]!r}, outside its folder")
    return (PurePosixPath(network).parent / name).as_posix()


def read_layout(
    folder: Path,
    *,
    name: str | None = None,
    licence: str = "unknown",
    source: str | None = None,
    notes: Mapping[str, str | float] | None = None,
) -> Card:
    """Return a card for a folder in the usual layout of the hub; `name` and `source` are by default the folder itself.

    The networks are run once to find the shapes of their outputs. Raises `EncoderError` if the folder has another
    layout, a file is damaged, or the encoder needs steps that PixMatcher does not support.
    """
    folder = Path(folder).absolute()
    files = _Folder(folder, source or str(folder))
    layout = find_layout(files)
    if layout is None:
        raise EncoderError(
            f"{folder} contains no model: it has neither a card.json nor onnx/vision_model.onnx nor onnx/model.onnx."
        )
    with files.explaining(PREPROCESSOR):
        recipe = read_recipe(files.json(PREPROCESSOR))
    networks = [layout.visual] if layout.textual is None else [layout.visual, layout.textual]
    weights = list(networks)
    for network in networks:
        with files.explaining(network):
            for external in sorted(external_files(folder / network)):
                path = beside(network, external)
                if path not in files:
                    raise UnsupportedError(f"has its weights in {external}, which is missing")
                weights.append(path)
    with files.explaining(layout.visual):
        session = open_network(folder / layout.visual, optimise=False)
        visual, dimension = examine_image_network(session, recipe, layout.visual, with_text=layout.textual is not None)
    textual = text = None
    if layout.textual is not None:
        weights.append(TOKENIZER)
        with files.explaining(TOKENIZER):
            pad_id = _pad_id(files)
        with files.explaining(layout.textual):
            session = open_network(folder / layout.textual, optimise=False)
            textual, fixed_length = examine_text_network(session, layout.textual, visual.output)
            text = TextRecipe(TOKENIZER, fixed_length or _context_length(files), pad_id)
            check_text_network(session, textual, text, folder, dimension)
    configurations = [name for name in (PREPROCESSOR, CONFIG, TOKENIZER_CONFIG) if name in files]
    with files.explaining(""):
        stored = store_files(folder, list(dict.fromkeys([*weights, *configurations])))
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
    """The files of a folder: regular files, or links to files as the hub's own client makes them."""

    path: Path
    shown: str
    """The name of the folder in messages."""

    def __contains__(self, name: object) -> bool:
        return (self.path / str(name)).is_file()

    @contextmanager
    def explaining(self, name: str) -> Iterator[None]:
        """Raise each error of the block as an `EncoderError` about a file; each library has errors of its own."""
        shown = f"{self.shown}/{name}".rstrip("/")
        try:
            yield
        except EncoderError:
            raise
        except UnsupportedError as error:
            raise EncoderError(f"{shown} {error}.") from error
        except Exception as error:
            reason = " ".join(str(error).replace(f"{self.path}/", "").split())[:300].rstrip(".")
            raise EncoderError(
                f"{shown} cannot be used ({reason}): download it again, or choose another model."
            ) from error

    def json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file, or {} if the file does not exist."""
        if name not in self:
            return {}
        with self.explaining(name):
            with (self.path / name).open("rb") as file:
                data = file.read(LONGEST[name] + 1)
            if len(data) > LONGEST[name]:
                raise UnsupportedError(f"is longer than {LONGEST[name] >> 20} MB")
            values = json.loads(data)
            if not isinstance(values, dict):
                raise UnsupportedError("is damaged: download it again")
        return values


# Texts


def _context_length(files: _Folder) -> int:
    """Return the number of ids of a text by the configuration. Raises `UnsupportedError` if it is not stated."""
    config = files.json(CONFIG)
    inner = config.get("text_config")
    stated: list[Any] = [
        inner.get("max_position_embeddings") if isinstance(inner, dict) else None,
        config.get("max_position_embeddings"),
        64
        if str(config.get("model_type")).startswith("siglip")
        else None,  # the default of its class, which files omit
        files.json(TOKENIZER_CONFIG).get("model_max_length"),
    ]
    for length in stated:
        if is_number(length) and length >= 3:
            return min(int(length), MOST_IDS)
    raise UnsupportedError("does not state the longest text, and the files in its folder neither: choose another model")


def _pad_id(files: _Folder) -> int:
    """Return the id for padding: from the configuration of the tokenizer, or else from the tokenizer, or else 0."""
    from tokenizers import Tokenizer

    path = files.path / TOKENIZER
    if TOKENIZER not in files:
        raise UnsupportedError("is missing, so the preprocessing of texts is unknown")
    if path.stat().st_size > LONGEST[TOKENIZER]:
        raise UnsupportedError(f"is longer than {LONGEST[TOKENIZER] >> 20} MB")
    tokenizer = Tokenizer.from_file(str(path))
    token = files.json(TOKENIZER_CONFIG).get("pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is None and tokenizer.padding is not None:
        found = tokenizer.padding["pad_id"]
    return int(found or 0)


def read_model(folder: Path) -> Card:
    """Return the card of a folder of ONNX files, or a new card if it has the usual layout of the hub.

    Raises `EncoderError` if it has neither a card nor that layout, or is damaged.
    """
    return read_card(folder) if (folder / CARD_NAME).is_file() else read_layout(folder)
