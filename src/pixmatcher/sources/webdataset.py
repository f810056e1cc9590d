"""WebDataset: tar files of images with their captions and details, as img2dataset writes them.

The files of a sample are next to each other and have the same key, the name up to the first dot: KEY.jpg, KEY.txt (the
caption), KEY.json (caption, label, url, author, license, title), KEY.cls (the label). Nothing is unpacked to the disk.
"""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby, islice
from typing import IO, Any

from .._files import file_version
from .._urls import is_url
from ..errors import InvalidImageError, SourceError
from ..records import Entry
from ._tar import Member, may_be_image, members, open_member, open_tar, read_at
from .folder import as_date
from .protocol import Unusable

_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""The endings of shards in a folder. Compressed shards cannot be read and are reported."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
_MAX_SHARDS = 100_000
_MAX_TEXT_BYTES = 1 << 20
_DETAILS = ("url", "author", "license", "title")


class WebDatasetSource:
    """Tar files of images: the rest of the spec is a file, a folder or a pattern with {a..b}, {a,b} or *."""

    def __init__(self, rest: str) -> None:
        if is_url(rest) or rest.startswith("pipe:"):
            raise SourceError(f"{rest} is remote: download the shards, and name the downloaded files.")
        path = os.path.abspath(rest)
        self.spec = f"webdataset:{path}"
        self.folder: str | None = path if os.path.isdir(path) else None
        self.remote, self.thumbnails = False, True
        self._shards = dict.fromkeys(list_shards(path))
        if not any(os.path.lexists(shard) for shard in self._shards):
            raise SourceError(f"{path} has no tar files: name a tar file, a folder of them or a pattern.")

    def scan(self) -> Iterator[Entry | Unusable]:
        for shard in self._shards:
            found: list[InvalidImageError] = []
            try:
                with open_tar(shard) as descriptor:
                    yield from _scan_shard(shard, descriptor, found)
            except InvalidImageError as error:
                found.append(error)
            for damage in found:
                # The rest of its contents is unknown.
                reason = "missing shard" if damage.reason == "missing" else damage.reason
                yield Unusable(shard, reason, damage.detail, contents_unknown=True)

    def open(self, uri: str) -> AbstractContextManager[IO[bytes]]:
        shard = os.path.dirname(uri)
        while shard not in self._shards:
            above = os.path.dirname(shard)
            if above == shard:
                raise InvalidImageError("missing", "no tar file of this source contains it")
            shard = above
        return open_member(shard, uri[len(shard) + 1 :])

    def label_names(self) -> Mapping[str, str]:
        return {}


def list_shards(path: str) -> list[str]:
    """Return the tar files of a path or pattern, which may not exist. Raises `SourceError` if there are too many."""
    if os.path.isdir(path):
        try:
            names = sorted(os.listdir(path))
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
        return [os.path.join(path, name) for name in names if name.lower().endswith(_ENDINGS)]
    if os.path.lexists(path):
        return [path]
    shards: list[str] = []
    for one in _expand_braces(path):
        shards += (sorted(glob.glob(one)) if glob.has_magic(one) and not os.path.lexists(one) else None) or [one]
    return shards


def _expand_braces(pattern: str) -> list[str]:
    """Return all names that a pattern with {a..b} and {a,b} stands for, as in a shell."""
    patterns, done = [pattern], False
    while not done:
        expanded = list(islice((text for one in patterns for text in _expand_first_braces(one)), _MAX_SHARDS + 1))
        if len(expanded) > _MAX_SHARDS:
            raise SourceError(f"{pattern} stands for more than {_MAX_SHARDS:,} tar files: name fewer.")
        done = expanded == patterns
        patterns = expanded
    return list(dict.fromkeys(patterns))


def _expand_first_braces(pattern: str) -> Sequence[str]:
    """Return the names for the first braces that are a range or a list."""
    for braces in _BRACES.finditer(pattern):
        before, inside, after = pattern[: braces.start()], braces[1], pattern[braces.end() :]
        if bounds := _RANGE.fullmatch(inside):
            first, last = int(bounds[1]), int(bounds[2])
            # As in a shell, leading zeros set the number of digits.
            width = max(map(len, bounds.groups())) if any(re.match("0.", b) for b in bounds.groups()) else 0
            step = 1 if first <= last else -1
            numbers = range(first, last + step, step)[: _MAX_SHARDS + 1]
            return [f"{before}{number:0{width}}{after}" for number in numbers]
        if "," in inside:
            return [before + choice + after for choice in inside.split(",")]
    return [pattern]


def _scan_shard(shard: str, descriptor: int, found: list[InvalidImageError]) -> Iterator[Entry | Unusable]:
    """Yield the images of a tar file; an error that ends it early is appended to `found`."""

    def until_damage() -> Iterator[Member]:
        try:
            yield from members(descriptor)
        except InvalidImageError as error:
            found.append(error)

    status = os.fstat(descriptor)
    # A change of the file may have changed any image in it; then the content decides.
    state = file_version(status)
    seen: set[str] = set()
    for _, sample in groupby(until_damage(), lambda member: _key_and_ending(member.name)[0]):
        images: list[Member] = []
        texts_of: dict[str, Member] = {}
        for member in sample:
            base, ending = posixpath.basename(member.name), _key_and_ending(member.name)[1]
            is_image = may_be_image(member.name)
            if base.startswith(".") or not (is_image or ending in ("txt", "json", "cls")):
                continue
            if member.problem:
                yield Unusable(
                    f"{shard}#{member.offset}", "not a usable file", f"{member.name[:200]}: {member.problem}"
                )
            elif member.name in seen:
                yield Unusable(f"{shard}#{member.offset}", "same name twice", member.name[:200])
            else:
                seen.add(member.name)
                if is_image:
                    images.append(member)
                else:
                    texts_of[ending] = member
        if images:
            info, unusable = _sample_info(shard, descriptor, texts_of)
            yield from unusable
            for image in images:
                yield Entry(
                    f"{shard}/{image.name}",
                    f"{state}-{image.offset}-{image.size}",
                    as_date(image.modified),
                    info.label,
                    info.caption,
                    details=info.details,
                )


def _key_and_ending(name: str) -> tuple[str, str]:
    """Return the key of a sample, and the rest of the name in lower case."""
    folder, base = posixpath.split(name)
    key, _, ending = base.partition(".")
    return f"{folder}/{key}", ending.lower()


@dataclass(frozen=True)
class _SampleInfo:
    """The information about an image from the other files of its sample."""

    label: str | None
    caption: str | None
    details: Mapping[str, str]


def _sample_info(shard: str, descriptor: int, files: Mapping[str, Member]) -> tuple[_SampleInfo, list[Unusable]]:
    """Return the information in the files of a sample, by their extensions, and the files that cannot be used."""
    texts: dict[str, str] = {}
    values: dict[str, Any] = {}
    unusable = []
    for ending, member in files.items():
        try:
            texts[ending] = _read_text(descriptor, member)
            if ending == "json":
                values = _json_object(texts[ending])
        except (InvalidImageError, ValueError, RecursionError) as error:
            unusable.append(Unusable(f"{shard}/{member.name}", "text cannot be read", str(error)[:200]))
    label = values.get("label")
    info = _SampleInfo(
        _clean(texts.get("cls")) or _clean(str(label) if type(label) is int else label),
        _clean(texts.get("txt")) or _clean(values.get("caption")),
        {name: text for name in _DETAILS if (text := _clean(values.get(name)))},
    )
    return info, unusable


def _json_object(text: str) -> dict[str, Any]:
    """Return the object in a JSON text. Raises `ValueError` if it is not a JSON object."""
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def _read_text(descriptor: int, member: Member) -> str:
    """Return the text of a file. Raises `ValueError` if it is too long or not UTF-8."""
    if member.size > _MAX_TEXT_BYTES:
        raise ValueError(f"longer than {_MAX_TEXT_BYTES:,} bytes")
    try:
        return read_at(descriptor, member.size, member.offset).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error


def _clean(text: object) -> str | None:
    """Return a text that can be stored, without spaces at its ends; None if it is empty or not a text."""
    if not isinstance(text, str):
        return None
    return text.encode("utf-8", "replace").decode().replace("\0", " ").strip() or None
