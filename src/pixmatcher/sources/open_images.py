"""Open Images, from its own metadata files (https://storage.googleapis.com/openimages/web/download_v7.html).

What a csv file is, its columns tell:

- an image list: ImageID, OriginalURL and mostly Subset, OriginalLandingURL, License, Author, Title, Thumbnail300KURL,
  Rotation;
- image-level labels: ImageID, LabelName, Confidence; not boxes, which have more;
- class descriptions: LabelName, DisplayName, often without this header.

The labels of nine million images do not fit into memory. They go to a temporary database, which SQLite keeps in memory
while it is small and then in a file that has no name, in SQLITE_TMPDIR or TMPDIR.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter
from typing import IO

from ..errors import SourceError
from ..records import Entry
from ._image_urls import cannot_open, normal_url, shortened, version_of
from ._options import split_options
from .protocol import Unusable
from .text_tables import Row, first_row, plain_name, read_rows

_LABEL = re.compile(r"/[a-z]+/\S+")
"""A label of the data set, as in /m/0cmf2."""
_IMAGE_ID = re.compile(r"(?:[a-z0-9]+/)?[0-9a-f]{16}")
_ROTATIONS = {"": 0, "nan": 0, **{f"{degrees}{end}": degrees for degrees in (0, 90, 180, 270) for end in ("", ".0")}}
_SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_DETAILS = (
    ("id", "imageid"),
    ("author", "author"),
    ("license", "license"),
    ("title", "title"),
    ("page", "originallandingurl"),
)
_MOST_LABELS = 50
"""Labels of an image that are kept, the most confident ones; the data set has up to some thirty."""
_CACHE_KIB = 65_536
_ROWS_AT_ONCE = 1000
_SPLITS_SHOWN = 10


@dataclass
class _Files:
    """The files of the data set by what they hold, each in the order of their names."""

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Lists of images without URLs."""
    unreadable: list[Unusable] = field(default_factory=list)


class OpenImagesSource:
    """The images of Open Images. The rest of the spec is the folder of its csv files, or an image list, which takes
    labels and their names from the other files of its folder; behind it `?split=NAME` for one Subset alone.
    """

    folder: str | None = None
    remote = thumbnails = True

    def __init__(self, rest: str) -> None:
        self._path, options, self.spec = split_options("open-images", rest, ("split",))
        split = options.get("split", "all").lower()
        self._split = None if split == "all" else _SPLITS.get(split, split)
        if not os.path.isdir(self._path) and not os.path.isfile(self._path):
            what = "is neither" if os.path.lexists(self._path) else "does not exist"
            raise SourceError(
                f"{self._path} {what}: name the folder of the csv files of Open Images, or its image list."
            )

    def scan(self) -> Iterator[Entry | Unusable]:
        files = self._files()
        yield from files.unreadable
        names: dict[str, str] = {}
        for path in files.names:
            yield from _read_names(path, names)
        found = False
        others: set[str] = set()
        with closing(_Labels()) as labels:
            for path in self._chosen(files.labels):
                yield from labels.load(path)
            labels.complete()
            for path in files.images:
                for entry in self._read_images(path, labels, names, others):
                    found = found or isinstance(entry, Entry) or entry.contents_unknown
                    yield entry
        if not found and others:
            listed = ", ".join(sorted(others)[:_SPLITS_SHOWN])
            raise SourceError(f"{self._path} has no images of the split {self._split}, but of {listed}.")

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return cannot_open(uri)

    def label_names(self) -> Mapping[str, str]:
        """The display names of the class descriptions; what is wrong with them, `scan` tells."""
        names: dict[str, str] = {}
        with suppress(SourceError):
            for path in self._files().names:
                for _ in _read_names(path, names):
                    pass
        return names

    def _files(self) -> _Files:
        """Find out what there is. Raises `SourceError` if there is no image list."""
        files = _Files()
        folder = self._path if os.path.isdir(self._path) else os.path.dirname(self._path)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise SourceError(f"{folder} cannot be read ({error.strerror or error}).") from error
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") or not name.lower().endswith((".csv", ".csv.gz")) or path == self._path:
                continue
            if os.path.isfile(path):
                try:
                    kind = _kind_of(path)
                except SourceError as error:
                    files.unreadable.append(Unusable(path, "cannot be read", str(error)))
                else:
                    if kind is not None:
                        getattr(files, kind).append(path)
        if folder != self._path:
            kind = _kind_of(self._path)
            files.images = [self._path] if kind == "images" else []
            files.ids = [self._path] if kind == "ids" else []
        if not files.images:
            wanted = "the one with the columns ImageID and OriginalURL, such as validation-images-with-rotation.csv"
            if files.ids:
                raise SourceError(f"{files.ids[0]} lists images without their URLs: name the image list, {wanted}.")
            raise SourceError(f"{self._path} has no image list of Open Images: name {wanted}.")
        return files

    def _chosen(self, paths: list[str]) -> list[str]:
        """The files of labels without those that are of another split by their names."""
        if self._split is None:
            return paths
        chosen = []
        for path in paths:
            words = re.findall(r"[a-z]+", os.path.basename(path).lower())
            splits = {_SPLITS[word] for word in words if word in _SPLITS}
            if not splits or self._split in splits:
                chosen.append(path)
        return chosen or paths

    def _read_images(
        self, path: str, labels: _Labels, names: Mapping[str, str], others: set[str]
    ) -> Iterator[Entry | Unusable]:
        """The images of a list; the splits that are passed over are noted in `others`."""
        rows = read_rows(path, ",")
        columns = _columns(first_row(rows, path)[1])
        image_id = columns["imageid"]
        if self._split is not None:
            if "subset" not in columns:
                raise SourceError(f"{path} has no column Subset: leave ?split= out.")
            rows = _of_split(rows, columns["subset"], self._split, others)
        while block := list(islice(rows, _ROWS_AT_ONCE)):
            found = labels.of([row[1][image_id].strip() for row in block if isinstance(row, tuple)])
            for row in block:
                if isinstance(row, tuple):
                    yield _entry(path, *row, columns, found, names)
                elif row.contents_unknown:
                    # Where the list breaks off, nobody knows which images are behind.
                    yield replace(row, uri=self.spec, detail=f"{path} {row.detail}")
                else:
                    yield row


def _of_split(rows: Iterator[Row], subset: int, split: str, others: set[str]) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, Unusable) or row[1][subset].strip().lower() == split:
            yield row
        elif len(others) < _SPLITS_SHOWN:
            others.add(row[1][subset].strip() or "none")


def _entry(
    path: str,
    number: int,
    fields: Sequence[str],
    columns: Mapping[str, int],
    labels: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
) -> Entry | Unusable:
    """The image of a row."""
    turned = fields[columns["rotation"]].strip().lower() if "rotation" in columns else ""
    if turned not in _ROTATIONS:
        return Unusable(f"{path}:{number}", "wrong rotation", f"{shortened(turned)} is not a multiple of 90 degrees")
    rotation = _ROTATIONS[turned]
    try:
        url = normal_url(fields[columns["originalurl"]])
    except ValueError as error:
        return Unusable(f"{path}:{number}", "not a URL", str(error))
    urls: tuple[str, ...] = (url,)
    small = fields[columns["thumbnail300kurl"]] if "thumbnail300kurl" in columns else ""
    if small:
        with suppress(ValueError):  # there is the original
            # Flickr's smaller sizes are upright, so what must be turned is the original, if that is to be had.
            both = (url, normal_url(small)) if rotation else (normal_url(small), url)
            urls = tuple(dict.fromkeys(both))
    details: dict[str, str] = {}
    for name, column in _DETAILS:
        text = fields[columns[column]].strip() if column in columns else ""
        if text:
            details[name] = text
    found = labels.get(details.get("id", ""), ())
    label = found[0] if found else None
    if len(found) > 1:
        details["labels"] = ", ".join([names.get(other, other) for other in found[1:]])
    return Entry(url, version_of(urls, rotation), None, label, None, urls, rotation, details)


class _Labels:
    """The positive labels of all images, most confident first, in a temporary database."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def load(self, path: str) -> Iterator[Unusable]:
        """Take in the labels of a file, and yield what is wrong with it."""
        if self._connection is None:
            # A database without a name is temporary: SQLite deletes its file when it opens it.
            with _explained():
                self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                self._connection.execute("PRAGMA journal_mode = OFF")
                self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                self._connection.execute("CREATE TABLE labels (image TEXT, labels TEXT)")
        rows = read_rows(path, ",")
        columns = _columns(first_row(rows, path)[1])
        image_id, name, confidence = (columns[name] for name in ("imageid", "labelname", "confidence"))
        # The labels of an image mostly stand together: they become one row.
        current = ""
        found: list[tuple[float, str]] = []
        waiting: list[tuple[str, str]] = []
        for row in rows:
            if isinstance(row, Unusable):
                yield replace(row, contents_unknown=False)
                continue
            number, fields = row
            try:
                sure = float(fields[confidence])
            except ValueError:
                sure = -1.0
            if not 0 <= sure <= 1:
                detail = f"{shortened(fields[confidence])} is not between 0 and 1"
                yield Unusable(f"{path}:{number}", "wrong confidence", detail)
                continue
            if fields[image_id] != current or len(found) == 1000:
                if found:
                    waiting.append((current.strip(), _packed(found)))
                    found.clear()
                    if len(waiting) >= 10_000:
                        self._put(waiting)
                current = fields[image_id]
            label = fields[name].strip().replace("\n", " ")
            if sure and label:
                found.append((sure, label))
        if found:
            waiting.append((current.strip(), _packed(found)))
        self._put(waiting)

    def _put(self, waiting: list[tuple[str, str]]) -> None:
        assert self._connection is not None
        with _explained():
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT INTO labels VALUES (?, ?)", waiting)
            self._connection.execute("COMMIT")
        waiting.clear()

    def complete(self) -> None:
        """To be called when all files are loaded."""
        if self._connection is not None:
            with _explained():
                self._connection.execute("CREATE INDEX by_image ON labels (image)")

    def of(self, images: Sequence[str]) -> dict[str, list[str]]:
        """The labels of images, the most confident first, those of the same confidence in the order of the files."""
        if self._connection is None:
            return {}
        with _explained():
            rows = self._connection.execute(
                "SELECT image, labels FROM labels WHERE image IN (SELECT value FROM json_each(?)) ORDER BY rowid",
                (json.dumps(images),),
            ).fetchall()
        packed: dict[str, str] = {}
        for image, text in rows:
            packed[image] = f"{packed[image]}\n{text}" if image in packed else text
        return {image: _unpacked(text) for image, text in packed.items()}


def _packed(found: list[tuple[float, str]]) -> str:
    """Labels and how sure they are, as they are stored: one a line, the most confident first."""
    found.sort(key=itemgetter(0), reverse=True)  # stable all the same
    return "\n".join([f"{sure} {label}" for sure, label in found[:_MOST_LABELS]])


def _unpacked(text: str) -> list[str]:
    """The labels of an image, each once."""
    found = [line.partition(" ") for line in text.split("\n")]
    found.sort(key=lambda parts: float(parts[0]), reverse=True)
    return [*dict.fromkeys([label for _, _, label in found])][:_MOST_LABELS]


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SourceError(
            f"The labels of the images cannot be put in order ({error}): set TMPDIR to a folder with more room."
        ) from error


def _columns(header: Sequence[str]) -> dict[str, int]:
    """The position of each column by its plain name."""
    return {plain_name(name): position for position, name in reversed([*enumerate(header)])}


def _kind_of(path: str) -> str | None:
    """What a file holds, by the field of `_Files` for it. Raises `SourceError` if its first line cannot be read."""
    row = first_row(read_rows(path, ","), path)[1]
    names = {*_columns(row)}
    if {"imageid", "originalurl"} <= names:
        return "images"
    if {"imageid", "labelname", "confidence"} <= names and names.isdisjoint({"xmin", "maskpath"}):
        return "labels"
    if len(row) == 2 and ({"labelname", "displayname"} <= names or _LABEL.fullmatch(row[0].strip())):
        return "names"
    if len(row) == 1 and ("imageid" in names or _IMAGE_ID.fullmatch(row[0].strip())):
        return "ids"
    return None


def _read_names(path: str, names: dict[str, str]) -> Iterator[Unusable]:
    """Take in what labels are called, and yield what is wrong with the file."""
    for row in read_rows(path, ","):
        if isinstance(row, Unusable):
            yield replace(row, contents_unknown=False)
            continue
        label, name = row[1][0].strip(), row[1][1].strip()
        if label and name and plain_name(label) != "labelname":
            names[label] = name
