"""Open Images, from its own metadata files (https://storage.googleapis.com/openimages/web/download_v7.html).

The columns of a CSV file show what it is:

- an image list: ImageID, OriginalURL and mostly Subset, OriginalLandingURL, License, Author, Title, Thumbnail300KURL,
  Rotation;
- image-level labels: ImageID, LabelName, Confidence; not boxes, which have more;
- class descriptions: LabelName, DisplayName, often without this header.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import IO

from ..errors import SourceError
from ..records import Entry
from ._image_labels import ImageLabels, column_positions
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
_ROWS_AT_ONCE = 1000
_SPLITS_SHOWN = 10


@dataclass
class _Files:
    """The files of the data set by their content, sorted by name."""

    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Lists of images without URLs."""
    unreadable: list[Unusable] = field(default_factory=list)


class OpenImagesSource:
    """The images of Open Images.

    The rest of the spec is the folder of its CSV files, or an image list, whose labels and their names are in the other
    files of its folder; `?split=NAME` after it selects one Subset.
    """

    folder: str | None = None
    remote = thumbnails = True

    def __init__(self, rest: str) -> None:
        self._path, options, self.spec = split_options("open-images", rest, ("split",))
        split = options.get("split", "all").lower()
        self._split = None if split == "all" else _SPLITS.get(split, split)
        if not os.path.isdir(self._path) and not os.path.isfile(self._path):
            what = "is neither a folder nor a file" if os.path.lexists(self._path) else "does not exist"
            raise SourceError(
                f"{self._path} {what}: name the folder of the csv files of Open Images, or its image list."
            )

    def scan(self) -> Iterator[Entry | Unusable]:
        files = self._list_files()
        yield from files.unreadable
        names: dict[str, str] = {}
        for path in files.names:
            yield from _read_names(path, names)
        found = False
        others: set[str] = set()
        with closing(ImageLabels()) as labels:
            for path in self._label_files_of_split(files.labels):
                yield from labels.load(path)
            labels.complete()
            for path in files.images:
                for entry in self._read_images(path, labels, names, others):
                    found = found or isinstance(entry, Entry) or entry.contents_unknown
                    yield entry
        if not found and others:
            listed = ", ".join(sorted(others)[:_SPLITS_SHOWN])
            raise SourceError(
                f"{self._path} has no images of the split {self._split}, but of {listed}: choose another with ?split=."
            )

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return cannot_open(uri)

    def label_names(self) -> Mapping[str, str]:
        """Return the display names of the class descriptions; `scan` reports their errors."""
        names: dict[str, str] = {}
        with suppress(SourceError):
            for path in self._list_files().names:
                for _ in _read_names(path, names):
                    pass
        return names

    def _list_files(self) -> _Files:
        """Return the files of the data set. Raises `SourceError` if there is no image list."""
        files = _Files()
        folder = self._path if os.path.isdir(self._path) else os.path.dirname(self._path)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise SourceError(f"{folder} cannot be read ({error.strerror or error}): check its permissions.") from error
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
            expected = "the one with the columns ImageID and OriginalURL, such as validation-images-with-rotation.csv"
            if files.ids:
                raise SourceError(f"{files.ids[0]} lists images without their URLs: name the image list, {expected}.")
            raise SourceError(f"{self._path} has no image list of Open Images: name {expected}.")
        return files

    def _label_files_of_split(self, paths: list[str]) -> list[str]:
        """Return the files of labels, except those whose name says another split."""
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
        self, path: str, labels: ImageLabels, names: Mapping[str, str], others: set[str]
    ) -> Iterator[Entry | Unusable]:
        """Yield the images of a list; the names of other splits are added to `others`."""
        rows = read_rows(path, ",")
        columns = column_positions(first_row(rows, path)[1])
        image_id = columns["imageid"]
        if self._split is not None:
            if "subset" not in columns:
                raise SourceError(f"{path} has no column Subset: leave out ?split=.")
            rows = _rows_of_split(rows, columns["subset"], self._split, others)
        while block := list(islice(rows, _ROWS_AT_ONCE)):
            found = labels.of([row[1][image_id].strip() for row in block if isinstance(row, tuple)])
            for row in block:
                if isinstance(row, tuple):
                    yield _entry(path, *row, columns, found, names)
                elif row.contents_unknown:
                    # After damage it is unknown which images follow.
                    yield replace(row, uri=self.spec, detail=f"{path} {row.detail}")
                else:
                    yield row


def _rows_of_split(rows: Iterator[Row], subset: int, split: str, others: set[str]) -> Iterator[Row]:
    """Yield the rows of a split; the names of up to 10 other splits are added to `others`."""
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
    """Return the image of a row, or what is wrong with the row."""
    rotated = fields[columns["rotation"]].strip().lower() if "rotation" in columns else ""
    if rotated not in _ROTATIONS:
        return Unusable(f"{path}:{number}", "wrong rotation", f"{shortened(rotated)} is not a multiple of 90 degrees")
    rotation = _ROTATIONS[rotated]
    try:
        url = normal_url(fields[columns["originalurl"]])
    except ValueError as error:
        return Unusable(f"{path}:{number}", "not a URL", str(error))
    urls: tuple[str, ...] = (url,)
    small = fields[columns["thumbnail300kurl"]] if "thumbnail300kurl" in columns else ""
    if small:
        with suppress(ValueError):  # the original remains
            # Smaller sizes of Flickr are upright, so for a rotation the original is preferred.
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


def _kind_of(path: str) -> str | None:
    """Return the field of `_Files` for a file, or None. Raises `SourceError` if its first line cannot be read."""
    row = first_row(read_rows(path, ","), path)[1]
    names = {*column_positions(row)}
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
    """Load the names of labels, and yield the invalid rows of the file."""
    for row in read_rows(path, ","):
        if isinstance(row, Unusable):
            yield replace(row, contents_unknown=False)
            continue
        label, name = row[1][0].strip(), row[1][1].strip()
        if label and name and plain_name(label) != "labelname":
            names[label] = name
