"""Saved embeddings: the arrays that `pixmatcher export arrays` writes, those of the original, and others like them.

Beside EMBEDDINGS.npy (N, D) lie the categories (N,) and the uris of its rows, and what our own export wrote down of the
encoder. The original's own files have names of theirs, from which the rest follows: see `_beside` and `_guess_encoder`.
The files come from anywhere: nothing is unpickled, and a header is believed only as far as the file is long.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from .._urls import is_url
from ..encoders import describe_encoder
from ..errors import EncoderError, InvalidImageError, SourceError
from ..images import open_regular_file
from ..records import EncoderRecord, Entry, Space
from .archives import open_path
from .protocol import Unusable

_NPY: Any = np.lib.format
"""The format of .npy files; older versions of NumPy have no types for it."""
EMBEDDINGS, CATEGORIES, URIS, CARD = "embeddings.npy", "categories.npy", "uris.json", "encoder.json"
"""The files of an export. The card tells what the embeddings are, and which files hold further spaces."""

_URI_LISTS = (URIS, "image_urls.json", "images_urls.json")
_GUESSES = (("mobilnet", "mobilenet_v3_large"), ("mobilenet", "mobilenet_v3_large"), ("clip", "clip-vit-b-32"))
"""What in the name of a file tells of an encoder."""
_WORDNET_ID = re.compile(r"n\d{8}")
_SPACE_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_OPTIONS = ("categories", "uris", "base", "encoder")

_MAX_DIMENSION = 1 << 16
_MAX_TEXT = 10_000
"""Characters of a category or a uri."""
_MAX_CARD_BYTES = 16 << 20
_JSON_BYTES_A_ROW = 1024
"""A list may have so many bytes a row, and some more: what is much longer cannot be one value a row."""
_BLOCK_BYTES = 4 << 20
"""Bytes of a file that are looked at in one go."""
_HEADER_BYTES = 1 << 16
_ROWS_A_MAP = 32


def spec_of(path: str, options: Mapping[str, str | None] | None = None) -> str:
    """The spec of the source for a file of embeddings, with any of the options categories, uris, base and encoder.

    Paths become absolute.
    """
    given = {name: value for name in _OPTIONS if (value := (options or {}).get(name)) is not None}
    for name in ("categories", "uris", "base"):
        if name in given and not is_url(given[name]):
            given[name] = os.path.abspath(given[name])
    path = os.path.abspath(path)
    escaped = _escape(path, "%?")
    if not given and escaped == path:
        return f"arrays:{path}"
    return f"arrays:{escaped}?" + "&".join(f"{name}={_escape(value, '%&')}" for name, value in given.items())


def _escape(text: str, characters: str) -> str:
    return "".join(quote(os.fsencode(c)) if c in characters or not c.isprintable() else c for c in text)


def parse_spec(rest: str) -> tuple[str, dict[str, str]]:
    """The path and the options of the rest of a spec. Only with a question mark behind it, %XX counts in the path.

    Raises `SourceError` for an option that there is not.
    """
    path, mark, query = rest.partition("?")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if name not in _OPTIONS or not equals or not value or name in options:
            raise SourceError(f"{part} is no option of saved embeddings: write one of {', '.join(_OPTIONS)}, once.")
        options[name] = unquote(value, errors="surrogateescape")
    return (unquote(path, errors="surrogateescape") if mark else path), options


class ArraysSource:
    """Saved embeddings; the rest of the spec is `EMBEDDINGS.npy?categories=FILE&uris=FILE&base=PLACE&encoder=NAME`.

    Without an option, what lies beside the file counts. Embeddings of our own export are taken as they are; any others
    are made unit length, since a search compares by inner product.
    """

    def __init__(self, rest: str) -> None:
        path, options = parse_spec(rest)
        self.spec = spec_of(path, options)
        self.folder: str | None = None
        self.remote = self.thumbnails = False
        self._path = os.path.abspath(path)
        place, name = os.path.split(self._path)
        first = _open_array(self._path)
        card = _read_card(place)
        self._own = card is not None and any(saved.file == name for saved in card.spaces)
        self._names: Mapping[str, str] = {}
        if card is not None and self._own:
            self._names = card.label_names
            self._files = _saved_files(place, name, first, card, options.get("encoder"))
            self.describes = tuple(card.records(self._files))
        else:
            record = _guess_encoder(name, options.get("encoder"))
            space = _fitting_space(first, record)
            self._files = {space.name: first}
            self.describes = (EncoderRecord(record.name, record.fingerprint, (space,)),)
        self._rows = first.shape[0]
        self.batch_size = max(1, 2 * _BLOCK_BYTES // (4 * sum(file.shape[1] for file in self._files.values())))

        categories = options.get("categories") or _beside(place, _category_names(name, self._own))
        self._labels = None
        if categories is not None:
            self._labels = [_clean(text) or None for text in _read_strings(categories, self._rows, "category")]
        self._base = options.get("base")
        uris = options.get("uris") or _beside(place, (URIS,) if self._own or _is_tiny(name) else _URI_LISTS)
        self._uris: Sequence[str]
        if uris is not None:
            below = self._base or os.path.dirname(os.path.abspath(uris))
            self._uris = [_placed(uri, below) for uri in _read_strings(uris, self._rows, "uri")]
        else:
            self._uris = self._implied_uris(place)
        # Of several rows of one uri the first counts.
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
                for position, reason in _unusable_rows(block, own=self._own):
                    reasons[position] = reason
            for row, digest, reason in zip(range(rows.start, rows.stop), digests, reasons, strict=True):
                yield self._entry(row, digest.hexdigest(), reason)

    def _entry(self, row: int, version: str, reason: str) -> Entry | Unusable:
        uri = self._uris[row]
        place = f"{self._path}#{row}"
        if not _may_be_uri(uri):
            return Unusable(place, "unusable uri", ascii(uri[:200]))
        if self._row_of[uri] != row:
            return Unusable(place, "same uri twice", f"row {self._row_of[uri]} has {uri} too")
        if reason:
            return Unusable(uri, reason, f"row {row} of {self._path}")
        return Entry(uri, version, label=self._labels[row] if self._labels else None)

    def embeddings(self, uris: Sequence[str]) -> dict[str, npt.NDArray[np.float32]]:
        """The embeddings of entries that `scan` listed: for each space (N, dimension) float32.

        Raises `SourceError` if they can no longer be read.
        """
        rows = np.array([self._row_of.get(uri, -1) for uri in uris], np.int64)
        if (rows < 0).any():
            raise SourceError(f"{self._path} has no embeddings of {uris[int(rows.argmin())]}.")
        found = {}
        for space, file in self._files.items():
            values = file.read(rows)
            found[space] = values.astype(np.float32) if self._own else _unit_length(values)
        return found

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        if is_url(uri):
            raise InvalidImageError("not here", "saved embeddings tell only where the image is")
        return open_path(uri)

    def label_names(self) -> Mapping[str, str]:
        """What the labels are called: by our own export, or by the words.txt of Tiny ImageNet."""
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
        """The uris where no file tells them: those of Tiny ImageNet in the order of the original, or row numbers."""
        beside = os.path.join(place, "tiny-imagenet-200")
        if self._base is None and os.path.isdir(beside):
            self._base = beside
        labels = self._labels or []
        if self._base is None or not labels or not all(label and _WORDNET_ID.fullmatch(label) for label in labels):
            if self._base is not None and self._base != beside:
                raise SourceError(f"{self._path} has no uris that could lie in {self._base}: name their file as uris.")
            return _RowUris(self._path, self._rows)
        numbers: Counter[str] = Counter()
        uris = []
        for label in labels:
            assert label is not None
            uris.append(_placed(f"train/{label}/images/{label}_{numbers[label]}.JPEG", self._base))
            numbers[label] += 1
        return uris


class _RowUris(Sequence[str]):
    """The uris of rows that have none of their own: the path of the file and the number of the row."""

    def __init__(self, path: str, rows: int) -> None:
        self._path, self._rows = path, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: Any) -> Any:
        return f"{self._path}#{range(self._rows)[row]}"


# Arrays


@dataclass(frozen=True)
class _Array:
    """An array in a .npy file whose header fits the file."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    state: tuple[int, int, int]
    """What the file looked like when its header was read."""

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Rows of the array, copied out of a memory map that lives no longer than this call.

        Raises `SourceError` if the file has changed since it was opened.
        """
        if not self.shape[0]:
            return np.empty(self.shape, self.dtype)
        if not isinstance(rows, slice) and len(rows) > _ROWS_A_MAP:
            # The system maps the surroundings of each row too: of rows far apart, few at a time.
            return np.concatenate(
                [self.read(some) for some in np.split(rows, range(_ROWS_A_MAP, len(rows), _ROWS_A_MAP))]
            )
        try:
            if _state(os.stat(self.path)) == self.state:
                mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
                return np.array(mapped[rows], order="C", subok=False)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path} cannot be read ({error}): run the same command again.") from error
        raise SourceError(f"{self.path} has changed while it was read: run the same command again.")


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _read_header(path: str) -> _Array:
    """What a .npy file holds, after its header. Raises `SourceError` if that is nothing that can be mapped."""
    again = "save it again with numpy.save"
    try:
        with open_regular_file(path) as file:
            state = _state(os.stat(path))
            # A header may claim any length; no more of it is read than an honest one has.
            head = io.BytesIO(file.read(_HEADER_BYTES))
    except (OSError, InvalidImageError) as error:
        raise SourceError(f"{path} cannot be read ({error}): name a file that numpy.save wrote.") from error
    try:
        version = _NPY.read_magic(head)
        # Version 3 is for names of fields only.
        read = {(1, 0): _NPY.read_array_header_1_0, (2, 0): _NPY.read_array_header_2_0}[version]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape, fortran_order, dtype = read(head)
    except Exception as error:  # the header is evaluated as Python's literals, and may fail in many ways
        raise SourceError(f"{path} is no .npy file that can be read: {again}.") from error
    if dtype.hasobject:
        raise SourceError(
            f"{path} holds pickled objects, which can run code when they are read: if you trust it, convert it with "
            "numpy.save(PATH, numpy.load(PATH, allow_pickle=True).astype(str)), and name the new file."
        )
    if dtype.names is not None or dtype.subdtype is not None:
        raise SourceError(f"{path} holds records with fields: save a plain array with numpy.save.")
    if fortran_order and len(shape) > 1:
        raise SourceError(f"{path} is in Fortran order: {again} after numpy.ascontiguousarray.")
    # NumPy takes True for a number here, and fails on it later.
    if any(type(length) is not int or length < 0 for length in shape):
        raise SourceError(f"{path} is damaged, it claims the shape {shape}: {again}.")
    needed = head.tell() + dtype.itemsize * math.prod(shape)
    if needed > state[1]:
        raise SourceError(f"{path} is cut short, of {needed:,} bytes it has {state[1]:,}: copy or download it again.")
    return _Array(path, dtype, shape, head.tell(), state)


def _open_array(path: str) -> _Array:
    """A file of embeddings (N, D). Raises `SourceError` if it cannot be one."""
    array = _read_header(path)
    if len(array.shape) != 2 or not 1 <= array.shape[1] <= _MAX_DIMENSION:
        raise SourceError(f"{path} has the shape {array.shape}: embeddings have one row an image, (N, D).")
    if array.dtype.kind != "f" or array.dtype.itemsize not in (2, 4, 8) or not array.dtype.isnative:
        raise SourceError(
            f"{path} holds values of the type {array.dtype.str}: save it again as numpy.float32, float16 or float64."
        )
    return array


def _unusable_rows(block: npt.NDArray[Any], *, own: bool) -> Iterator[tuple[int, str]]:
    """The position and the reason of each row of (N, D) that cannot be an embedding."""
    greatest = np.abs(block).max(axis=1)  # of a row with NaN it is NaN
    limit = np.finfo(np.float16).max if own else np.finfo(block.dtype).max
    with np.errstate(invalid="ignore"):
        doubtful = ~(greatest <= limit) if own else ~((greatest <= limit) & (greatest > 0))
    for position in np.flatnonzero(doubtful).tolist():
        value = greatest[position]
        if not np.isfinite(value):
            yield position, "NaN or infinite values"
        else:
            yield position, "only zeros" if value == 0 else "values too large"


def _unit_length(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Rows (N, D), each finite and not zero, divided by their length: float32."""
    rows = rows.astype(np.promote_types(rows.dtype, np.float32), copy=False)
    # By the greatest value first, so that no square leaves the range of float32.
    scaled: npt.NDArray[np.float32] = (rows / np.abs(rows).max(axis=1, keepdims=True)).astype(np.float32)
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled


# The card of our own export


@dataclass(frozen=True)
class SavedSpace:
    """A file of embeddings as the card of an export describes it."""

    file: str
    encoder: str
    fingerprint: str
    space: Space


@dataclass(frozen=True)
class _Card:
    spaces: tuple[SavedSpace, ...]
    rows: int
    label_names: Mapping[str, str]

    def records(self, names: Mapping[str, object]) -> Iterator[EncoderRecord]:
        """The encoders of the spaces of these names, with those of their spaces."""
        for encoder, fingerprint in dict.fromkeys((s.encoder, s.fingerprint) for s in self.spaces):
            spaces = tuple(
                s.space
                for s in self.spaces
                if (s.encoder, s.fingerprint) == (encoder, fingerprint) and s.space.name in names
            )
            if spaces:
                yield EncoderRecord(encoder, fingerprint, spaces)


def _read_card(folder: str) -> _Card | None:
    """The card in a folder, if there is one. Raises `SourceError` if it cannot be read or is damaged."""
    path = os.path.join(folder, CARD)
    if not os.path.lexists(path):
        return None
    values = _read_json(path, _MAX_CARD_BYTES)
    try:
        spaces = tuple(_saved_space(value) for value in (values, *values.get("further", ())))
        names = {_clean(str(label)): _clean(str(name)) for label, name in dict(values.get("label_names", {})).items()}
        if len({saved.space.name for saved in spaces}) < len(spaces):
            raise ValueError("a space twice")
        return _Card(spaces, int(values["rows"]), names)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SourceError(f"{path} is not what `pixmatcher export arrays` writes ({error}): export again.") from error


def _saved_space(value: Any) -> SavedSpace:
    """A description out of a card. Raises `ValueError` and the like if it makes no sense."""
    file, encoder, fingerprint, name = (value[key] for key in ("file", "encoder", "fingerprint", "space"))
    dimension, text = value["dimension"], value["text"]
    if not all(isinstance(string, str) and string.isprintable() for string in (file, encoder, fingerprint, name)):
        raise ValueError("names that are no text")
    if not _SPACE_NAME.fullmatch(name) or type(dimension) is not int or dimension < 1 or type(text) is not bool:
        raise ValueError(f"no space: {name}")
    if os.path.basename(file) != file or not encoder:
        raise ValueError(f"no file beside it: {file}")
    return SavedSpace(file, encoder, fingerprint, Space(name, dimension, text))


def _saved_files(place: str, name: str, first: _Array, card: _Card, encoder: str | None) -> dict[str, _Array]:
    """The file of each space of an export that is there; where another than the first is named, that alone.

    Raises `SourceError` if they are not of one export, or the encoder is not the one asked for.
    """
    wanted = [saved for saved in card.spaces if saved.file == name] if card.spaces[0].file != name else card.spaces
    files = {}
    for saved in wanted:
        path = os.path.join(place, saved.file)
        if saved.file != name and not os.path.lexists(path):
            continue
        array = first if saved.file == name else _open_array(path)
        if array.shape != (card.rows, saved.space.dimension):
            raise SourceError(
                f"{path} has the shape {array.shape}, but by {CARD} beside it {(card.rows, saved.space.dimension)}: "
                "export again."
            )
        files[saved.space.name] = array
    names = {saved.encoder for saved in wanted}
    if encoder is not None and encoder not in names:
        raise SourceError(f"{first.path} is of the encoder {', '.join(names)}, by {CARD} beside it: not of {encoder}.")
    return files


# What else is known of an array


def _guess_encoder(name: str, given: str | None) -> EncoderRecord:
    """The encoder by its name, or by what the name of the file tells. Raises `SourceError` if it is not known."""
    guess = next((encoder for part, encoder in _GUESSES if part in name.lower()), None)
    if given is None and guess is None:
        raise SourceError(f"{name} does not tell which encoder made it: name the encoder with --encoder.")
    try:
        return describe_encoder(given or guess or "")
    except EncoderError as error:
        raise SourceError(str(error)) from error


def _fitting_space(array: _Array, record: EncoderRecord) -> Space:
    """The space that the embeddings are of, by their dimension: the first for images only, if there are several."""
    fitting = [space for space in record.spaces if space.dimension == array.shape[1]]
    if not fitting:
        made = " or ".join(f"{space.dimension} ({space.name})" for space in record.spaces)
        raise SourceError(
            f"{array.path} has {array.shape[1]} values a row, but the encoder {record.name} makes {made}: name its "
            "encoder with --encoder."
        )
    return min(fitting, key=lambda space: space.text)


def _is_tiny(name: str) -> bool:
    return name.lower().startswith("tiny_imagenet")


def _category_names(name: str, own: bool) -> Sequence[str]:
    if own:
        return (CATEGORIES,)
    changed = re.sub("embeddings", "categories", name, flags=re.IGNORECASE)
    return (changed,) if changed != name else ()


def _beside(place: str, names: Sequence[str]) -> str | None:
    """The first of these files, in whatever case, in a folder, if one is there."""
    try:
        present = {name.lower(): name for name in sorted(os.listdir(place), reverse=True)}
    except OSError:
        return None
    found = [present[name.lower()] for name in names if name.lower() in present]
    return os.path.join(place, found[0]) if found else None


def _read_strings(path: str, rows: int, what: str) -> list[str]:
    """One string for each row, out of a .npy file, a JSON list, or a JSON object of row numbers to strings.

    Raises `SourceError` if it cannot be read or has another number of values.
    """
    values: list[Any]
    if path.lower().endswith(".npy"):
        array = _read_header(path)
        if len(array.shape) != 1 or array.dtype.kind not in "USiu" or array.dtype.itemsize > 4 * _MAX_TEXT:
            raise SourceError(f"{path} is no list of strings: save one {what} a row with numpy.save.")
        _check_count(path, array.shape[0], rows, what)
        texts = array.read(slice(None))
        # Python takes some characters beyond Unicode without a word, and fails on them later.
        if array.dtype.kind == "U" and array.dtype.itemsize and _beyond_unicode(texts):
            raise SourceError(f"{path} holds no valid text: save one {what} a row with numpy.save.")
        values = texts.tolist()
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
    found = _read_json(path, (rows + 1024) * _JSON_BYTES_A_ROW)
    if not isinstance(found, (list, dict)):
        raise SourceError(f"{path} is no list: write a JSON list with one {what} a row.")
    _check_count(path, len(found), rows, what)
    values = found if isinstance(found, list) else [found.get(str(row)) for row in range(rows)]
    for row, value in enumerate(values):
        if value is None and what == "category":
            values[row] = ""
        elif not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise SourceError(f"{path} has no {what} for the row {row}: write a JSON list with one string a row.")
    return values


def _beyond_unicode(texts: npt.NDArray[np.str_]) -> bool:
    characters = np.frombuffer(texts.tobytes(), texts.dtype.str[0] + "u4")
    return bool((characters > sys.maxunicode).any())


def _check_count(path: str, count: int, rows: int, what: str) -> None:
    if count != rows:
        raise SourceError(f"{path} has {count:,} values for {rows:,} embeddings: give the file with one {what} a row.")


def _read_json(path: str, most_bytes: int) -> Any:
    try:
        with open_regular_file(path) as file:
            data = file.read(most_bytes + 1)
    except (OSError, InvalidImageError) as error:
        raise SourceError(f"{path} cannot be read ({error}): name a JSON file.") from error
    if len(data) > most_bytes:
        raise SourceError(f"{path} is larger than {most_bytes:,} bytes: it cannot belong to these embeddings.")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is no valid JSON ({error}): write it again.") from error


def _placed(uri: str, below: str) -> str:
    """A uri that is absolute: a URL or path as it is, a name below a URL or folder."""
    if (uri.startswith("/") and uri.isascii() and "//" not in uri) or not _may_be_uri(uri):
        return uri
    # As a collection gives it back.
    uri = os.fsdecode(os.fsencode(uri))
    if is_url(uri):
        return uri
    if is_url(below) and not uri.startswith("/"):
        return f"{below.rstrip('/')}/{uri}"
    return "/" + os.path.normpath(os.path.join(below, uri)).lstrip("/")


def _may_be_uri(uri: str) -> bool:
    try:
        return bool(uri) and "\0" not in uri and len(uri) <= _MAX_TEXT and bool(os.fsencode(uri))
    except UnicodeEncodeError:
        return False


def _clean(text: str) -> str:
    """The text, with what is not valid Unicode replaced."""
    return text.encode("utf-8", "replace").decode()
