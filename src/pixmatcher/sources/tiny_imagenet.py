"""Tiny ImageNet: 200 classes of small images, unpacked or in the original zip file.

Layout: `wnids.txt` (the classes, as WordNet ids), `words.txt` (their names), `train/WNID/images/`, `val/images/`
with `val/val_annotations.txt`, and `test/images/`, which has no labels. Bounding boxes are not read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from typing import IO, Protocol
from urllib.parse import parse_qs

from ..errors import InvalidImageError, SourceError
from ..images import is_allowed_extension, open_regular_file
from ..records import Entry
from .archives import open_member
from .folder import FolderSource
from .protocol import Unusable

SPLITS = ("train", "val", "test")
_MARK = "wnids.txt"
_MAX_TEXT_BYTES = 64 << 20
"""Longest list that is read into memory; words.txt of the original has 3 MB. A small zip file may claim any length."""


class TinyImageNetSource:
    """One split of Tiny ImageNet, or all of them. The rest of the spec is `PATH` or `PATH?split=NAME`."""

    remote = thumbnails = False

    def __init__(self, rest: str) -> None:
        name, _, query = rest.partition("?")
        path = os.path.abspath(name)
        splits = parse_qs(query).get("split", ["train"])
        if (query and set(parse_qs(query)) != {"split"}) or len(splits) != 1 or splits[0] not in (*SPLITS, "all"):
            raise SourceError(f"?{query} is not a split: write ?split= with one of {', '.join(SPLITS)} or all.")
        self.spec = f"tiny-imagenet:{path}" + ("" if splits[0] == "train" else f"?split={splits[0]}")
        self._splits = SPLITS if splits[0] == "all" else (splits[0],)
        self._path = path
        self._tree: _Tree
        if os.path.isdir(path):
            self.folder: str | None = path
            self._tree = _UnpackedTree(path)
        else:
            self.folder = None
            self._tree = _ZippedTree(path)

    def scan(self) -> Iterator[Entry | Unusable]:
        for split in self._splits:
            found = False
            labels = self._val_labels() if split == "val" else {}
            for entry in self._tree.images(split):
                found = True
                if isinstance(entry, Unusable):
                    yield entry
                    continue
                # The class of a train image is the first folder; some copies have no folder `images` below it.
                wnid, slash, _ = entry.uri[len(self._tree.place(split)) :].partition("/")
                label = (wnid if slash else None) if split == "train" else labels.get(os.path.basename(entry.uri))
                yield Entry(entry.uri, entry.version, entry.modified, label)
            if not found and len(self._splits) == 1:
                raise SourceError(f"{self._path} has no images of the split {split}: choose another with ?split=.")

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return self._tree.open(uri)

    def label_names(self) -> Mapping[str, str]:
        """Return the names of the classes by their WordNet ids."""
        classes = set(self._tree.text(_MARK).split())
        pairs = (line.split("\t", 1) for line in self._tree.text("words.txt").splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] in classes}

    def _val_labels(self) -> dict[str, str]:
        """Return the label of each image of the split val by its file name."""
        lines = (line.split("\t") for line in self._tree.text("val/val_annotations.txt").splitlines())
        return {fields[0]: fields[1] for fields in lines if len(fields) > 1}


def dataset_root(names: Iterable[str]) -> str | None:
    """Return the folder of the data set in a zip file with these names, "" or ending in a slash; None without it."""
    marks = [name for name in names if name == _MARK or name.endswith("/" + _MARK)]
    return min(marks, key=len).removesuffix(_MARK) if marks else None


class _Tree(Protocol):
    """The files of the data set, in a folder or in a zip file."""

    def images(self, split: str) -> Iterable[Entry | Unusable]: ...
    def place(self, split: str) -> str:
        """Return the beginning of the uris of a split."""

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]: ...
    def text(self, name: str) -> str: ...


class _UnpackedTree:
    def __init__(self, path: str) -> None:
        roots = [path, os.path.join(path, "tiny-imagenet-200")]
        found = [root for root in roots if os.path.isfile(os.path.join(root, _MARK))]
        if not found:
            raise SourceError(f"{path} is not Tiny ImageNet, it has no {_MARK}: name the folder tiny-imagenet-200.")
        self._root = found[0]

    def images(self, split: str) -> Iterable[Entry | Unusable]:
        folder = os.path.join(self._root, split)
        return FolderSource(folder).scan() if os.path.isdir(folder) else ()

    def place(self, split: str) -> str:
        return os.path.join(self._root, split, "")

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return open_regular_file(uri)

    def text(self, name: str) -> str:
        try:
            with open_regular_file(os.path.join(self._root, name)) as file:
                return _text(file)
        except (OSError, InvalidImageError) as error:
            raise SourceError(
                f"{self._root} has no {name} that can be read ({error}): unpack the data set again."
            ) from error


class _ZippedTree:
    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise SourceError(f"{path} is not a complete zip file ({error}): download it again.") from error
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read ({error.strerror}): name the folder or the zip file of Tiny ImageNet."
            ) from error
        root = dataset_root(self._archive.namelist())
        if root is None:
            raise SourceError(f"{path} is not Tiny ImageNet, it has no {_MARK}: name the original zip file.")
        self._root = root

    def images(self, split: str) -> Iterable[Entry | Unusable]:
        below = f"{self._root}{split}/"
        for info in self._archive.infolist():
            if info.filename.startswith(below) and is_allowed_extension(info.filename):
                # The version depends on the content of the image, not on the zip file.
                version = f"{info.CRC:08x}-{info.file_size}"
                yield Entry(f"{self._path}/{info.filename}", version, _date(info.date_time))

    def place(self, split: str) -> str:
        return f"{self._path}/{self._root}{split}/"

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        return open_member(self._archive, uri.removeprefix(f"{self._path}/"))

    def text(self, name: str) -> str:
        try:
            with self._archive.open(self._root + name) as file:
                return _text(file)
        except Exception as error:  # zipfile raises many classes for a damaged file
            raise SourceError(f"{self._path} has no {name} that can be read ({error}): download it again.") from error


def _text(file: IO[bytes]) -> str:
    """Return the text of a list. Raises `OSError` if it is too long."""
    data = file.read(_MAX_TEXT_BYTES + 1)
    if len(data) > _MAX_TEXT_BYTES:
        raise OSError(f"more than {_MAX_TEXT_BYTES:,} bytes")
    return data.decode("utf-8", "replace")


def _date(fields: tuple[int, int, int, int, int, int]) -> str | None:
    """Return the time of an entry of a zip file as an ISO 8601 date; None if it is invalid."""
    try:
        return datetime(*fields).isoformat()
    except ValueError:
        return None
