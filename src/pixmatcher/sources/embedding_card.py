"""The files of an export of embeddings, and its card: a JSON file that says what the embeddings are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SourceError
from ..records import EncoderRecord, Space
from ._array_values import clean_text, read_json

EMBEDDINGS, CATEGORIES, URIS, CARD = "embeddings.npy", "categories.npy", "uris.json", "encoder.json"
"""The files of an export. The card names the encoder, and the files of further spaces."""

_SPACE_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_MAX_CARD_BYTES = 16 << 20


@dataclass(frozen=True)
class SavedSpace:
    """A file of embeddings, as the card of an export describes it."""

    file: str
    encoder: str
    fingerprint: str
    space: Space


@dataclass(frozen=True)
class Card:
    """The content of a card."""

    spaces: tuple[SavedSpace, ...]
    rows: int
    label_names: Mapping[str, str]

    def records(self, names: Mapping[str, object]) -> Iterator[EncoderRecord]:
        """Yield the encoders of the spaces with these names, each with these spaces only."""
        for encoder, fingerprint in dict.fromkeys((s.encoder, s.fingerprint) for s in self.spaces):
            spaces = tuple(
                s.space
                for s in self.spaces
                if (s.encoder, s.fingerprint) == (encoder, fingerprint) and s.space.name in names
            )
            if spaces:
                yield EncoderRecord(encoder, fingerprint, spaces)


def read_card(folder: str) -> Card | None:
    """Return the card in a folder, or None. Raises `SourceError` if it cannot be read or is damaged."""
    path = os.path.join(folder, CARD)
    if not os.path.lexists(path):
        return None
    values = read_json(path, _MAX_CARD_BYTES)
    try:
        spaces = tuple(_saved_space(value) for value in (values, *values.get("further", ())))
        names = {
            clean_text(str(label)): clean_text(str(name)) for label, name in dict(values.get("label_names", {})).items()
        }
        if len({saved.space.name for saved in spaces}) < len(spaces):
            raise ValueError("the same space twice")
        return Card(spaces, int(values["rows"]), names)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SourceError(f"{path} is not what `pixmatcher export arrays` writes ({error}): export again.") from error


def _saved_space(value: Any) -> SavedSpace:
    """Return a space of a card. Raises `ValueError`, `TypeError` or `KeyError` if it is not valid."""
    file, encoder, fingerprint, name = (value[key] for key in ("file", "encoder", "fingerprint", "space"))
    dimension, text = value["dimension"], value["text"]
    if not all(isinstance(string, str) and string.isprintable() for string in (file, encoder, fingerprint, name)):
        raise ValueError("names that are not text")
    if not _SPACE_NAME.fullmatch(name) or type(dimension) is not int or dimension < 1 or type(text) is not bool:
        raise ValueError(f"not a space: {name}")
    if os.path.basename(file) != file or not encoder:
        raise ValueError(f"not a file in the same folder: {file}")
    return SavedSpace(file, encoder, fingerprint, Space(name, dimension, text))
