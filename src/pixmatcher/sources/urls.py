"""Images at the URLs in a list: txt, csv, tsv, json, jsonl or parquet, or a JSON mapping of indices to file names.

The recognised names of columns are those of common lists: img2dataset and clip-retrieval (url, caption,
key), LAION (URL, TEXT), COYO (id, url, text), SBU (image_urls, captions), Open Images (ImageID, OriginalURL), others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from typing import IO
from urllib.parse import quote, urljoin

from ..errors import SourceError
from ..records import Entry
from ._cell_values import TooLongError, Value, as_list, as_text, first_line
from ._image_urls import cannot_open, normal_url, separator_of, shortened, version_of, written_url
from ._options import split_options
from .protocol import Unusable
from .text_tables import MAX_LINE, check_is_text, first_row, open_list, plain_name, read_lines, read_rows, text_of

MAX_JSON = 256 << 20
"""Longest JSON file in bytes, decompressed: all of it is read, into several times as much memory."""
_FORMATS = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
_COLUMNS = {
    "url": ("url", "imageurl", "imgurl", "originalurl", "photoimageurl", "urls", "imageurls", "link"),
    "caption": ("caption", "text", "captions", "alttext", "description"),
    "label": ("label", "class", "category"),
    "id": ("id", "key", "imageid", "sampleid", "uid"),
    "author": ("author", "photographer"),
    "license": ("license", "licence"),
    "title": ("title",),
}
"""The names of columns by their content, as `plain_name` returns them, the most likely first."""
_CHOSEN = ("url", "caption", "label", "id")
_DETAILS = ("id", "author", "license", "title")
_ROWS_AT_ONCE = 4096
_NAMES_SHOWN = 20
_LINES_AHEAD = 100
"""The lines of a txt file that are read ahead, to find out how it is written."""
_MOST_COLUMNS = 1000
"""Further keys of a JSON object are not columns."""


@dataclass(frozen=True)
class _Columns:
    """The positions of the columns that are used."""

    url: int
    label: int | None
    caption: int | None
    details: tuple[tuple[str, int], ...]


_JSON = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=lambda _: None)
"""Keeps numbers as they are written, because they are ids or labels."""
_ONLY_URL = _Columns(0, None, None, ())


class UrlListSource:
    """The images of one list. The rest of the spec is `FILE`, with options such as `?url=COLUMN` after it.

    An invalid row, or a row with an invalid URL, is reported as `FILE:LINE`, in JSON and Parquet as `FILE:ROW`.
    """

    folder: str | None = None
    remote = thumbnails = True

    def __init__(self, rest: str) -> None:
        if "://" in rest.partition("?")[0]:
            raise SourceError(f"{rest} is remote: download the list and name the file.")
        self._path, self._chosen, self.spec = split_options("urls", rest, (*_CHOSEN, "base"))
        self.notes: list[str] = []
        """What the last scan found out about the file, such as its encoding: sentences."""
        extension = os.path.splitext(self._path.lower().removesuffix(".gz"))[1]
        if not os.path.isfile(self._path):
            what = "is not a file" if os.path.lexists(self._path) else "does not exist"
            raise SourceError(f"{self._path} {what}: name a list of URLs.")
        if extension in _SPREADSHEETS:
            raise SourceError(f"{self._path} is a spreadsheet: save it as CSV UTF-8, and name that file.")
        if extension not in _FORMATS:
            raise SourceError(f"{self._path} is of an unknown kind: its name must end with {', '.join(_FORMATS)}.")
        self._format = _FORMATS[extension]
        self._base = self._chosen.pop("base", None)
        if self._base is not None:
            try:
                base = normal_url(self._base)
                if "?" in base:
                    raise ValueError("it contains a ?")
            except ValueError as error:
                raise SourceError(f"?base= is not a URL ({error}): write it like ?base=https://host/folder/.") from None
            # It is a folder, with or without a slash at the end.
            self._base = base if base.endswith("/") else f"{base}/"

    def scan(self) -> Iterator[Entry | Unusable]:
        self.notes.clear()
        scans = {
            "txt": self._scan_lines,
            "csv": self._scan_table,
            "tsv": self._scan_table,
            "json": self._scan_json,
            "jsonl": self._scan_json_lines,
            "parquet": self._scan_parquet,
        }
        for found in scans[self._format]():
            # After damage it is unknown which items follow.
            unknown = isinstance(found, Unusable) and found.contents_unknown
            yield replace(found, uri=self.spec) if unknown else found

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return cannot_open(uri)

    def label_names(self) -> Mapping[str, str]:
        return {}

    # The formats

    def _scan_lines(self) -> Iterator[Entry | Unusable]:
        lines = read_lines(self._path, self.notes)
        first = [*islice(lines, _LINES_AHEAD)]
        texts = [line[1] for line in first if isinstance(line, tuple) and _is_content(line[1])]
        if texts and self._is_table(texts[0]):
            yield from self._scan_table()
            return
        separator = separator_of(texts)
        for line in chain(first, lines):
            if isinstance(line, Unusable):
                yield line
            elif _is_content(line[1]):
                # Programs write tables without a header also as txt: a URL, a tab, and other columns.
                fields = line[1].strip().split("\t")
                text = next((field for field in fields if "://" in field), line[1])
                yield self._entry(line[0], (text,), _ONLY_URL, separator)

    def _is_table(self, line: str) -> bool:
        """Return whether the first line of a txt file is a header, as in "Unicode text" of Excel."""
        return "://" not in line and any(
            len(fields := line.split(delimiter)) > 1 and "url" in self._find_columns(fields) for delimiter in "\t;,"
        )

    def _scan_table(self) -> Iterator[Entry | Unusable]:
        chosen = plain_name(self._chosen["url"]) if "url" in self._chosen else None
        names = _COLUMNS["url"] if chosen is None else (chosen,)
        rows = read_rows(self._path, "\t" if self._format == "tsv" else None, names=names, notes=self.notes)
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
            if "url" in self._find_columns(islice(data, _MOST_COLUMNS)):
                yield from self._json_columns(data, self._columns([*data]))
                return
            if all(isinstance(name, str) for name in data.values()) and not self._chosen:
                yield from self._json_mapping(data)
                return
            self._columns([*data])  # raises an error that says what is missing
        raise SourceError(
            f"{self._path} is not a list of URLs: give a list of objects or of URLs, an object of columns, "
            "or one of file names with ?base=."
        )

    def _json_columns(self, data: dict[str, Value], columns: _Columns) -> Iterator[Entry | Unusable]:
        """Yield the rows of an object of columns: each column a list, or an object by row; or a single row."""
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
        """Yield the rows of the format of the original project: {"0": "a.jpg"}."""
        if self._base is None and "://" not in next(iter(data.values())):
            raise SourceError(
                f"{self._path} contains file names: give the URL of their folder, ?base=https://host/folder/."
            )
        columns = _Columns(0, None, None, (("id", 1),))
        for number, (key, name) in enumerate(data.items(), 1):
            # In a file name, # and ? are ordinary characters.
            url = name if "://" in name else quote(name.encode("utf-8", "replace"))
            yield self._entry(number, (url, key), columns)

    def _scan_json_lines(self) -> Iterator[Entry | Unusable]:
        yield from self._objects(self._json_lines())

    def _json_lines(self) -> Iterator[tuple[int, Value] | Unusable]:
        for line in read_lines(self._path, self.notes):
            if isinstance(line, Unusable):
                yield line
            elif line[1] and not line[1].isspace():
                try:
                    yield line[0], _JSON.decode(line[1])
                except (ValueError, RecursionError) as error:
                    yield Unusable(f"{self._path}:{line[0]}", "not JSON", str(error))

    def _objects(self, rows: Iterable[tuple[int, Value] | Unusable]) -> Iterator[Entry | Unusable]:
        """Yield the rows of a list of objects or of URLs."""
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
                        if not known:  # the first row decides for all
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
                # With a buffer, single pages of a column are read, not whole row groups.
                table = parquet.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True)
                names: list[str] = table.schema_arrow.names
            except Exception as error:  # pyarrow raises many classes for damaged files
                raise SourceError(
                    f"{self._path} cannot be read as parquet ({first_line(error)}): download it again."
                ) from error
            columns = self._columns(names)
            used = (columns.url, columns.label, columns.caption, *(position for _, position in columns.details))
            used_names = [names[position] for position in used if position is not None]
            number = 0
            try:
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=used_names):
                    found = dict(zip(batch.schema.names, batch.columns, strict=True))
                    values = [as_list(found[name]) if name in found else () for name in names]
                    for row in zip_longest(*values):
                        number += 1
                        yield self._entry(number, row, columns)
            except Exception as error:  # as above
                yield Unusable(self._path, "damaged", f"after row {number:,}: {first_line(error)}", True)

    def _load_json(self) -> Value:
        with open_list(self._path) as file:
            try:
                content = file.read(MAX_JSON + 1)
                if len(content) > MAX_JSON:
                    raise SourceError(
                        f"{self._path} is longer than {MAX_JSON >> 20} MB: "
                        "save it as jsonl, one object in each line, which is read line by line."
                    )
                check_is_text(self._path, content)
                encoding = json.detect_encoding(content)
                if encoding.startswith("utf-8"):
                    return _JSON.decode(text_of(self._path, content, self.notes))
                return _JSON.decode(content.decode(encoding))
            except SourceError:
                raise
            except RecursionError:
                raise SourceError(f"{self._path} is not a list of URLs: it is nested too deeply.") from None
            except (ValueError, OSError, EOFError) as error:
                raise SourceError(
                    f"{self._path} is not complete JSON ({error}): download it again, or rename it to .jsonl "
                    "if it has one object in each line."
                ) from error
            except Exception as error:  # gzip raises several classes
                raise SourceError(f"{self._path} cannot be read ({error}): download it again.") from error

    # Columns

    def _has_no_header(self, row: Sequence[str]) -> bool:
        """Return whether the column of URLs is chosen by its number, so that the first row is not a header."""
        return self._chosen.get("url", "").isdecimal() and self._chosen["url"] not in row

    def _numbered_columns(self, width: int) -> _Columns:
        """Return the columns of a table without a header, chosen by their numbers from 1."""
        found = {}
        for what, number in self._chosen.items():
            if not number.isdecimal() or len(number) > 9 or not 0 < int(number) <= width:
                raise SourceError(
                    f"{self._path} has no column {shortened(number)}: choose from 1 to {width}, as in ?{what}=1."
                )
            found[what] = int(number) - 1
        return _as_columns(found)

    def _columns(self, names: Sequence[str]) -> _Columns:
        """Return the columns of a table. Raises `SourceError` if a chosen column or a column of URLs is missing."""
        found = self._find_columns(names)
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

    def _find_columns(self, names: Iterable[str]) -> dict[str, int]:
        """Return the position of each column that exists, by its content."""
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

    def _entry(self, number: int, values: Sequence[Value], columns: _Columns, separator: str = "") -> Entry | Unusable:
        """Return the image of a row, or why the row cannot be used; `separator` is the character after every URL."""
        raw = values[columns.url]
        if isinstance(raw, bytes):
            raw = raw.decode("utf-8", "surrogateescape")
        if not isinstance(raw, str):
            return self._unusable(number, "it is empty" if raw is None else "it is not text")
        try:
            written = written_url(raw, separator)
            url = normal_url(written if self._base is None or not written else urljoin(self._base, written))
            label = None if columns.label is None else as_text(values[columns.label])
            caption = None if columns.caption is None else as_text(values[columns.caption])
            details = {}
            for name, position in columns.details:
                text = as_text(values[position])
                if text is not None:
                    details[name] = text
        except TooLongError:
            return Unusable(f"{self._path}:{number}", "too long", f"more than {MAX_LINE:,} characters in a field")
        except ValueError as error:
            return self._unusable(number, str(error))
        return Entry(url, version_of((url,)), None, label, caption, (url,), 0, details)

    def _unusable(self, number: int, detail: str) -> Unusable:
        return Unusable(f"{self._path}:{number}", "not a URL", detail)


def _is_content(line: str) -> bool:
    """Return whether a line of a txt file is neither blank nor a comment."""
    text = line.strip()
    return bool(text) and not text.startswith("#")


def _as_columns(found: Mapping[str, int]) -> _Columns:
    details = tuple((name, found[name]) for name in _DETAILS if name in found)
    return _Columns(found["url"], found.get("label"), found.get("caption"), details)
