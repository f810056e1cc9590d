"""Saved embeddings: the arrays that `pixmatcher export arrays` writes, those of the original project, and similar ones.

EMBEDDINGS.npy (N, D) is in a folder with the categories (N,) and the uris of its rows and, if PixMatcher exported them,
a card that names the encoder. The files of the original project have names that say what they hold: see
`_file_in_folder` and `_encoder_of`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from .._urls import is_file_url, is_url, local_path, path_of_file_url
from ..encoders import describe_saved
from ..errors import EncoderError, InvalidImageError, SourceError
from ..records import EncoderRecord, Entry, Space
from ._array_values import RowUris, absolute_uri, clean_text, is_valid_uri, read_strings
from ._npy import NpyArray, open_embeddings, unit_length, unusable_rows
from .archives import open_path
from .embedding_card import CARD, CATEGORIES, URIS, Card, read_card
from .protocol import Unusable

_URI_LISTS = (URIS, "image_urls.json", "images_urls.json")
_GUESSES = (("mobilnet", "mobilenet_v3_large"), ("mobilenet", "mobilenet_v3_large"), ("clip", "clip-vit-b-32"))
"""Parts of a file name, and the encoder that each indicates."""
_WORDNET_ID = re.compile(r"n\d{8}")
_OPTIONS = ("categories", "uris", "base", "encoder")

_BLOCK_BYTES = 4 << 20
"""Bytes of a file that are read at once."""


def spec_of(path: str, options: Mapping[str, str | None] | None = None) -> str:
    """Return the spec of the source for a file of embeddings and the options categories, uris, base and encoder.

    Paths become absolute.
    """
    given = {name: value for name in _OPTIONS if (value := (options or {}).get(name)) is not None}
    for name in ("categories", "uris", "base"):
        if name in given:
            given[name] = local_path(given[name])
        if name in given and not is_url(given[name]):
            given[name] = os.path.abspath(given[name])
    path = os.path.abspath(path)
    escaped = _escape(path, "%?")
    if not given and escaped == path:
        return f"arrays:{path}"
    return f"arrays:{escaped}?" + "&".join(f"{name}={_escape(value, '%&')}" for name, value in given.items())


def _escape(text: str, characters: str) -> str:
    """Return a text in which these characters and unprintable ones are escaped as %XX."""
    return "".join(quote(os.fsencode(c)) if c in characters or not c.isprintable() else c for c in text)


def parse_spec(rest: str) -> tuple[str, dict[str, str]]:
    """Return the path and the options of the rest of a spec.

    %XX is decoded in the path only if a question mark follows, or if it is the URL of a file. Raises `SourceError` for
    an unknown option.
    """
    path, mark, query = rest.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in _OPTIONS or not equals or not value or name in options:
            raise SourceError(f"{part} is not an option of saved embeddings: write one of {', '.join(_OPTIONS)}, once.")
        value = unquote(value, errors="surrogateescape")
        options[name] = value if name == "encoder" else local_path(value)
    if is_file_url(path):
        return path_of_file_url(path), options
    return (unquote(path, errors="surrogateescape") if mark else path), options


class ArraysSource:
    """Saved embeddings; the rest of the spec is `EMBEDDINGS.npy?categories=FILE&uris=FILE&base=PLACE&encoder=NAME`.

    Without an option, the files in the same folder are used. Embeddings that PixMatcher exported are used as they are;
    others are scaled to unit length, because a search compares inner products.
    """

    def __init__(self, rest: str) -> None:
        path, options = parse_spec(rest)
        self.spec = spec_of(path, options)
        self.folder: str | None = None
        self.remote = self.thumbnails = False
        self._path = os.path.abspath(path)
        place, name = os.path.split(self._path)
        first = open_embeddings(self._path)
        card = read_card(place)
        self._own = card is not None and any(saved.file == name for saved in card.spaces)
        self._names: Mapping[str, str] = {}
        if card is not None and self._own:
            self._names = card.label_names
            self._files = _saved_files(place, name, first, card, options.get("encoder"))
            self.describes = tuple(card.records(self._files))
        else:
            record = _encoder_of(name, options.get("encoder"), first.shape[1])
            space = _fitting_space(first, record)
            self._files = {space.name: first}
            self.describes = (EncoderRecord(record.name, record.fingerprint, (space,)),)
        self._rows = first.shape[0]
        self.batch_size = max(1, 2 * _BLOCK_BYTES // (4 * sum(file.shape[1] for file in self._files.values())))

        categories = options.get("categories") or _file_in_folder(place, _category_names(name, self._own))
        self._labels = None
        if categories is not None:
            self._labels = [clean_text(text) or None for text in read_strings(categories, self._rows, "category")]
        self._base = options.get("base")
        uris = options.get("uris") or _file_in_folder(
            place, (URIS,) if self._own or _is_of_tiny_imagenet(name) else _URI_LISTS
        )
        self._uris: Sequence[str]
        if uris is not None:
            below = self._base or os.path.dirname(os.path.abspath(uris))
            self._uris = [absolute_uri(uri, below) for uri in read_strings(uris, self._rows, "uri")]
        else:
            self._uris = self._implied_uris(place)
        # If several rows have the same uri, the first is used.
        self._row_of: dict[str, int] = {}
        for row, uri in enumerate(self._uris):
            self._row_of.setdefault(uri, row)

    def scan(self) -> Iterator[Entry | Unusable]:
        step = max(1, _BLOCK_BYTES // max(file.row_bytes for file in self._files.values()))
        for start in range(0, self._rows, step):
            rows = slice(start, min(start + step, self._rows))
            digests = [hashlib.sha256() for _ in range(rows.start, rows.stop)]
            reasons = [""] * len(digests)
            for file in self._files.values():
                block = file.read(rows)
                for digest, row in zip(digests, block, strict=True):
                    digest.update(row.data)
                for position, reason in unusable_rows(block, own=self._own):
                    reasons[position] = reason
            for row, digest, reason in zip(range(rows.start, rows.stop), digests, reasons, strict=True):
                yield self._entry(row, digest.hexdigest(), reason)

    def _entry(self, row: int, version: str, reason: str) -> Entry | Unusable:
        """Return the entry of a row, or the reason why the row cannot be used."""
        uri = self._uris[row]
        place = f"{self._path}#{row}"
        if not is_valid_uri(uri):
            return Unusable(place, "unusable uri", ascii(uri[:200]))
        if self._row_of[uri] != row:
            return Unusable(place, "same uri twice", f"row {self._row_of[uri]} has {uri} too")
        if reason:
            return Unusable(uri, reason, f"row {row} of {self._path}")
        return Entry(uri, version, label=self._labels[row] if self._labels else None)

    def embeddings(self, uris: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """Return the embeddings of entries that `scan` has listed: for each space (N, dimension) float32.

        Raises `SourceError` if they can no longer be read.
        """
        rows = np.array([self._row_of.get(uri, -1) for uri in uris], np.int64)
        if (rows < 0).any():
            raise SourceError(f"{self._path} has no embeddings of {uris[int(rows.argmin())]}.")
        found = {}
        for space, file in self._files.items():
            values = file.read(rows)
            found[space] = values.astype(np.float32) if self._own else unit_length(values)
        return found

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        if is_url(uri):
            raise InvalidImageError("not here", "saved embeddings have only the URL of the image")
        return open_path(uri)

    def label_names(self) -> Mapping[str, str]:
        """Return the names of the labels, from the card of an export or the words.txt of Tiny ImageNet."""
        if self._names or self._labels is None or self._base is None or is_url(self._base):
            return self._names
        labels = set(self._labels)
        try:
            with open(os.path.join(self._base, "words.txt"), encoding="utf-8", errors="replace") as file:
                pairs = [line.rstrip("\n").split("\t", 1) for line in file]
        except OSError:
            return {}
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in labels}

    def _implied_uris(self, place: str) -> Sequence[str]:
        """Return the uris of rows without a list of uris: those of Tiny ImageNet in its usual order, or row numbers."""
        neighbour = os.path.join(place, "tiny-imagenet-200")
        if self._base is None and os.path.isdir(neighbour):
            self._base = neighbour
        labels = self._labels or []
        if self._base is None or not labels or not all(label and _WORDNET_ID.fullmatch(label) for label in labels):
            if self._base is not None and self._base != neighbour:
                raise SourceError(
                    f"{self._path} has no uris that could be in {self._base}: name the file of the uris, uris=FILE."
                )
            return RowUris(self._path, self._rows)
        numbers: Counter[str] = Counter()
        uris = []
        for label in labels:
            assert label is not None
            uris.append(absolute_uri(f"train/{label}/images/{label}_{numbers[label]}.JPEG", self._base))
            numbers[label] += 1
        return uris


def _saved_files(place: str, name: str, first: NpyArray, card: Card, encoder: str | None) -> dict[str, NpyArray]:
    """Return the existing file of each space of an export; if `name` is not the first file of the card, only that file.

    Raises `SourceError` if they are not of one export, or not of the requested encoder.
    """
    used_spaces = [saved for saved in card.spaces if saved.file == name] if card.spaces[0].file != name else card.spaces
    files = {}
    for saved in used_spaces:
        path = os.path.join(place, saved.file)
        if saved.file != name and not os.path.lexists(path):
            continue
        array = first if saved.file == name else open_embeddings(path)
        if array.shape != (card.rows, saved.space.dimension):
            raise SourceError(
                f"{path} has the shape {array.shape}, but {CARD} in the same folder says "
                f"{(card.rows, saved.space.dimension)}: export again."
            )
        files[saved.space.name] = array
    names = {saved.encoder for saved in used_spaces}
    if encoder is not None and encoder not in names:
        raise SourceError(
            f"{first.path} is of the encoder {', '.join(names)}, as {CARD} in the same folder says, not of "
            f"{encoder}: leave out --encoder."
        )
    return files


def _encoder_of(name: str, given: str | None, dimension: int) -> EncoderRecord:
    """Return the given encoder, or the one that the file name indicates. Raises `SourceError` if there is neither."""
    guess = next((encoder for part, encoder in _GUESSES if part in name.lower()), None)
    if given is None and guess is None:
        raise SourceError(
            f"The name of {name} does not say which encoder made it: name the encoder with --encoder; it need not be "
            "installed here."
        )
    try:
        return describe_saved(given or guess or "", dimension)
    except EncoderError as error:
        raise SourceError(str(error)) from error


def _fitting_space(array: NpyArray, record: EncoderRecord) -> Space:
    """Return the space of the embeddings by their dimension; of several, the first that does not support text."""
    fitting = [space for space in record.spaces if space.dimension == array.shape[1]]
    if not fitting:
        made = " or ".join(f"{space.dimension} ({space.name})" for space in record.spaces)
        raise SourceError(
            f"{array.path} has {array.shape[1]} values a row, but the encoder {record.name} makes {made}: name the "
            "encoder with --encoder."
        )
    return min(fitting, key=lambda space: space.text)


def _is_of_tiny_imagenet(name: str) -> bool:
    return name.lower().startswith("tiny_imagenet")


def _category_names(name: str, own: bool) -> Sequence[str]:
    if own:
        return (CATEGORIES,)
    changed = re.sub("embeddings", "categories", name, flags=re.IGNORECASE)
    return (changed,) if changed != name else ()


def _file_in_folder(place: str, names: Sequence[str]) -> str | None:
    """Return the path of the first of these files that exists in a folder, in upper or lower case, or None."""
    try:
        present = {name.lower(): name for name in sorted(os.listdir(place), reverse=True)}
    except OSError:
        return None
    found = [present[name.lower()] for name in names if name.lower() in present]
    return os.path.join(place, found[0]) if found else None
