"""Images at the URLs in a list: txt, csv, tsv, json, jsonl or parquet, or a JSON mapping of indices to file names.

The names of columns that are recognised are those of the lists in use: of img2dataset and clip-retrieval (url, caption,
key), LAION (URL, TEXT), COYO (id, url, text), SBU (image_urls, captions), Open Images (ImageID, OriginalURL), others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from typing import IO, Any, TypeAlias
from urllib.parse import quote, urljoin

from ..errors import SourceError
from ..records import Entry
from ._image_urls import cannot_open, normal_url, shortened, version_of
from ._options import split_options
from .protocol import Unusable
from .text_tables import MAX_LINE, first_row, open_list, plain_name, read_lines, read_rows

MAX_JSON = 256 << 20
"""Longest json file in bytes, unpacked: it is read whole, into several times as much memory."""
_FORMATS = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_COLUMNS = {
    "url": ("url", "imageurl", "imgurl", "originalurl", "photoimageurl", "urls", "imageurls", "link"),
    "caption": ("caption", "text", "captions", "alttext", "description"),
    "label": ("label", "class", "category"),
    "id": ("id", "key", "imageid", "sampleid", "uid"),
    "author": ("author", "photographer"),
    "license": ("license", "licence"),
    "title": ("title",),
}
"""The names of columns by what they hold, as `plain_name` gives them, the likeliest first."""
_CHOSEN = ("url", "caption", "label", "id")
_DETAILS = ("id", "author", "license", "title")
_ROWS_AT_ONCE = 4096
_NAMES_SHOWN = 20
_MOST_COLUMNS = 1000
"""Of an object with more keys in json, the others are no columns."""

Value: TypeAlias = Any
"""Of a row: text where it is from a table, whatever JSON or parquet have otherwise."""


@dataclass(frozen=True)
class _Columns:
    """The positions of the columns that are used."""

    url: int
    label: int | None
    caption: int | None
    details: tuple[tuple[str, int], ...]


_JSON = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)
"""Leaves numbers as they are written: they are ids or labels here."""
_ONLY_URL = _Columns(0, None, None, ())


class UrlListSource:
    """The images of one list. The rest of the spec is `FILE`, with `?url=COLUMN` and the like behind it.

    A row that is none, or whose URL is none, is reported as `FILE:LINE`, in json and parquet `FILE:ROW`.
    """

    folder: str | None = None
    remote = thumbnails = True

    def __init__(self, rest: str) -> None:
        if "://" in rest.partition("?")[0]:
            raise SourceError(f"{rest} is remote: download the list and name the file.")
        self._path, self._chosen, self.spec = split_options("urls", rest, (*_CHOSEN, "base"))
        extension = os.path.splitext(self._path.lower().removesuffix(".gz"))[1]
        if not os.path.isfile(self._path):
            what = "is not a file" if os.path.lexists(self._path) else "does not exist"
            raise SourceError(f"{self._path} {what}: name a list of URLs.")
        if extension not in _FORMATS:
            raise SourceError(f"{self._path} is of no known kind: let its name end with {', '.join(_FORMATS)}.")
        self._format = _FORMATS[extension]
        self._base = self._chosen.pop("base", None)
        if self._base is not None:
            try:
                base = normal_url(self._base)
                if "?" in base:
                    raise ValueError("it has a ? in it")
            except ValueError as error:
                raise SourceError(f"?base= is not a URL ({error}): write it like ?base=https://host/folder/.") from None
            # It is a folder, with or without a slash at its end.
            self._base = base if base.endswith("/") else f"{base}/"

    def scan(self) -> Iterator[Entry | Unusable]:
        scans = {
            "txt": self._scan_lines,
            "csv": self._scan_table,
            "tsv": self._scan_table,
            "json": self._scan_json,
            "jsonl": self._scan_json_lines,
            "parquet": self._scan_parquet,
        }
        for found in scans[self._format]():
            # Where the list breaks off, nobody knows which items of it are behind.
            hides = isinstance(found, Unusable) and found.contents_unknown
            yield replace(found, uri=self.spec) if hides else found

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return cannot_open(uri)

    def label_names(self) -> Mapping[str, str]:
        return {}

    # The formats

    def _scan_lines(self) -> Iterator[Entry | Unusable]:
        for line in read_lines(self._path):
            if isinstance(line, Unusable):
                yield line
                continue
            number, text = line
            text = text.strip()
            if text and not text.startswith("#"):
                yield self._entry(number, (text,), _ONLY_URL)

    def _scan_table(self) -> Iterator[Entry | Unusable]:
        rows = read_rows(self._path, self._delimiter())
        header = first_row(rows, self._path)
        if self._has_no_header(header[1]):
            columns = self._numbered_columns(len(header[1]))
            rows = chain([header], rows)
        else:
            columns = self._columns(header[1])
        for row in rows:
            yield row if isinstance(row, Unusable) else self._entry(*row, columns)

    def _scan_json(self) -> Iterator[Entry | Unusable]:
        data = self._load_json()
        if isinstance(data, list):
            yield from self._objects(enumerate(data, 1))
            return
        if isinstance(data, dict) and data:
            if "url" in self._find(islice(data, _MOST_COLUMNS)):
                yield from self._json_columns(data, self._columns([*data]))
                return
            if all(isinstance(name, str) for name in data.values()) and not self._chosen:
                yield from self._json_mapping(data)
                return
            self._columns([*data])  # says what is missing
        raise SourceError(
            f"{self._path} is no list of URLs: give a list of objects or of URLs, an object of columns, "
            "or one of file names with ?base=."
        )

    def _json_columns(self, data: dict[str, Value], columns: _Columns) -> Iterator[Entry | Unusable]:
        """The rows of an object of columns: each a list, or an object by row; or one row alone."""
        values = [*data.values()]
        used = [columns.url, columns.label, columns.caption, *(position for _, position in columns.details)]
        if not isinstance(values[columns.url], (list, dict)):
            yield self._entry(1, values, columns)
            return
        if isinstance(values[columns.url], dict):
            keys = [*values[columns.url]]
            values = [[column.get(key) for key in keys] if isinstance(column, dict) else [] for column in values]
        lists = [
            column if position in used and isinstance(column, list) else [] for position, column in enumerate(values)
        ]
        for number, row in enumerate(zip_longest(*lists), 1):
            yield self._entry(number, row, columns)

    def _json_mapping(self, data: dict[str, str]) -> Iterator[Entry | Unusable]:
        """The original project's form: {"0": "a.jpg"}."""
        if self._base is None and "://" not in next(iter(data.values())):
            raise SourceError(
                f"{self._path} holds file names: give the URL of their folder, ?base=https://host/folder/."
            )
        columns = _Columns(0, None, None, (("id", 1),))
        for number, (key, name) in enumerate(data.items(), 1):
            # In a file name # and ? mean themselves.
            url = name if "://" in name else quote(name.encode("utf-8", "replace"))
            yield self._entry(number, (url, key), columns)

    def _scan_json_lines(self) -> Iterator[Entry | Unusable]:
        yield from self._objects(self._json_lines())

    def _json_lines(self) -> Iterator[tuple[int, Value] | Unusable]:
        for line in read_lines(self._path):
            if isinstance(line, Unusable):
                yield line
            elif line[1] and not line[1].isspace():
                try:
                    yield line[0], _JSON.decode(line[1])
                except (ValueError, RecursionError) as error:
                    yield Unusable(f"{self._path}:{line[0]}", "not JSON", str(error))

    def _objects(self, rows: Iterable[tuple[int, Value] | Unusable]) -> Iterator[Entry | Unusable]:
        """The rows of a list of objects or of URLs."""
        known: dict[tuple[str, ...], _Columns] = {}
        for found in rows:
            if isinstance(found, Unusable):
                yield found
                continue
            number, row = found
            if isinstance(row, dict):
                names = tuple(row)
                columns = known.get(names)
                if columns is None:
                    try:
                        columns = self._columns(names)
                    except SourceError:
                        if not known:  # the first row stands for all
                            raise
                        yield self._unusable(number, "it has no column of URLs")
                        continue
                    if len(known) > 100:
                        known.clear()
                    known[names] = columns
                yield self._entry(number, [*row.values()], columns)
            else:
                yield self._entry(number, (row,), _ONLY_URL)

    def _scan_parquet(self) -> Iterator[Entry | Unusable]:
        try:
            from pyarrow import parquet
        except ImportError:
            raise SourceError(f"Reading {self._path} needs pyarrow: pip install 'pixmatcher[parquet]'.") from None
        with open_list(self._path) as file:
            try:
                # With a buffer the pages of a column are read one by one, not all of a row group.
                table = parquet.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
                names: list[str] = table.schema_arrow.names
            except Exception as error:  # of many kinds, for a file that may hold anything
                raise SourceError(
                    f"{self._path} cannot be read as parquet ({_first_line(error)}): download it again."
                ) from error
            columns = self._columns(names)
            used = (columns.url, columns.label, columns.caption, *(position for _, position in columns.details))
            wanted = [names[position] for position in used if position is not None]
            number = 0
            try:
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                    found = dict(zip(batch.schema.names, batch.columns, strict=True))
                    values = [_as_list(found[name]) if name in found else () for name in names]
                    for row in zip_longest(*values):
                        number += 1
                        yield self._entry(number, row, columns)
            except Exception as error:  # as above
                yield Unusable(self._path, "damaged", f"behind row {number:,}: {_first_line(error)}", True)

    def _load_json(self) -> Value:
        with open_list(self._path) as file:
            try:
                content = file.read(MAX_JSON + 1)
                if len(content) > MAX_JSON:
                    raise SourceError(
                        f"{self._path} is longer than {MAX_JSON >> 20} MB: "
                        "save it as jsonl, an object a line, which is not read whole."
                    )
                return _JSON.decode(content.decode(json.detect_encoding(content)))
            except RecursionError:
                raise SourceError(f"{self._path} is no list of URLs: it is nested too deep.") from None
            except (ValueError, OSError, EOFError) as error:
                raise SourceError(
                    f"{self._path} is not whole JSON ({error}): download it again, or name it .jsonl "
                    "if it has an object a line."
                ) from error
            except Exception as error:  # of gzip, of several kinds
                raise SourceError(f"{self._path} cannot be read ({error}): download it again.") from error

    # Columns

    def _delimiter(self) -> str:
        """The delimiter of the table: a tab in tsv; in csv, which is written with others too, what its header has."""
        if self._format == "tsv":
            return "\t"
        line = next(read_lines(self._path), None)
        header = line[1] if isinstance(line, tuple) else ""
        return max(",", ";", "\t", "|", key=header.count)

    def _has_no_header(self, row: Sequence[str]) -> bool:
        return self._chosen.get("url", "").isdecimal() and self._chosen["url"] not in row

    def _numbered_columns(self, width: int) -> _Columns:
        """The columns of a table without header, chosen by their numbers from 1."""
        found = {}
        for what, number in self._chosen.items():
            if not number.isdecimal() or len(number) > 9 or not 0 < int(number) <= width:
                raise SourceError(
                    f"{self._path} has no column {shortened(number)}: choose from 1 to {width}, as in ?{what}=1."
                )
            found[what] = int(number) - 1
        return _as_columns(found)

    def _columns(self, names: Sequence[str]) -> _Columns:
        """The columns of a table with these names. Raises `SourceError` if it has none of URLs or not those chosen."""
        found = self._find(names)
        missing = [what for what in self._chosen if what not in found] or [
            what for what in ("url",) if what not in found
        ]
        if missing:
            what = missing[0]
            lacking = f"no column {shortened(self._chosen[what])}" if what in self._chosen else "no column of URLs"
            listed = ", ".join(shortened(name, 40) for name in names[:_NAMES_SHOWN]) or "none"
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            number = ", or by number if it has no header, ?url=1" if self._format in ("csv", "tsv") else ""
            raise SourceError(
                f"{self._path} has {lacking}, but {listed}{more}: choose one by name, ?{what}=NAME{number}."
            )
        return _as_columns(found)

    def _find(self, names: Iterable[str]) -> dict[str, int]:
        """The position of each column that there is, by what it holds."""
        exact: dict[str, int] = {}
        plain: dict[str, int] = {}
        for position, name in enumerate(names):
            exact.setdefault(name.strip(), position)
            plain.setdefault(plain_name(name), position)
        found = {}
        for what, usual in _COLUMNS.items():
            if what in self._chosen:
                name = self._chosen[what]
                at = exact.get(name.strip(), plain.get(plain_name(name)))
            else:
                at = next((plain[name] for name in usual if name in plain), None)
            if at is not None:
                found[what] = at
        return found

    # Rows

    def _entry(self, number: int, values: Sequence[Value], columns: _Columns) -> Entry | Unusable:
        raw = values[columns.url]
        if isinstance(raw, bytes):
            raw = raw.decode("utf-8", "surrogateescape")
        if not isinstance(raw, str):
            return self._unusable(number, "it is empty" if raw is None else "it is no text")
        try:
            url = normal_url(raw if self._base is None or not raw.strip() else urljoin(self._base, raw.strip()))
            label = None if columns.label is None else _as_text(values[columns.label])
            caption = None if columns.caption is None else _as_text(values[columns.caption])
            details = {}
            for name, position in columns.details:
                text = _as_text(values[position])
                if text is not None:
                    details[name] = text
        except _TooLongError:
            return Unusable(f"{self._path}:{number}", "too long", f"more than {MAX_LINE:,} characters in a field")
        except ValueError as error:
            return self._unusable(number, str(error))
        return Entry(url, version_of((url,)), None, label, caption, (url,), 0, details)

    def _unusable(self, number: int, detail: str) -> Unusable:
        return Unusable(f"{self._path}:{number}", "not a URL", detail)


class _TooLongError(ValueError):
    """A text is longer than any line of a table may be."""


def _as_columns(found: Mapping[str, int]) -> _Columns:
    details = tuple((name, found[name]) for name in _DETAILS if name in found)
    return _Columns(found["url"], found.get("label"), found.get("caption"), details)


def _as_text(value: Value) -> str | None:
    """A value as text that can be stored; None for one that is empty, or is no single value."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        if value is None or value != value or isinstance(value, (list, tuple, dict)):  # NaN is not itself
            return None
        value = str(value).lower() if isinstance(value, bool) else str(value)
    if len(value) > MAX_LINE:
        raise _TooLongError
    if not value.isascii() or "\0" in value:  # JSON and parquet can hold what is no text
        value = value.encode("utf-8", "replace").decode().replace("\0", "")
    return value.strip() or None


def _as_list(column: Any) -> list[Value]:
    """The values of a column of parquet; text that is none in UTF-8 as bytes."""
    import pyarrow

    try:
        values: list[Value] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pyarrow.large_binary()).to_pylist()
    return values


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
