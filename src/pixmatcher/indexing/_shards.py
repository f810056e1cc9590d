"""Shards: the part of a source that one of several machines encodes, and the names that decide it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from .._urls import is_url
from ..errors import ShardError

MOST_SHARDS = 99_999
_FOLDER = re.compile(r"shard-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a source; `number` counts from 1. `str()` of it is NUMBER/COUNT, such as 3/64."""

    number: int
    count: int

    def __post_init__(self) -> None:
        """Raises `ShardError` if there is no such shard."""
        if not 1 <= self.count <= MOST_SHARDS:
            raise ShardError(f"{self.count:,} shards cannot be made: choose from 1 to {MOST_SHARDS:,}.")
        if not 1 <= self.number <= self.count:
            raise ShardError(f"There is no shard {self}: the shards are 1/{self.count} to {self.count}/{self.count}.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard of a text such as 3/64. Raises `ShardError` if it names none."""
        number, _, count = text.strip().partition("/")
        if not (re.fullmatch("[0-9]{1,9}", number) and re.fullmatch("[0-9]{1,9}", count)):
            raise ShardError(f"{text!r} is not a shard: write the number and the count of shards, such as 3/64.")
        return cls(int(number), int(count))

    @property
    def folder(self) -> str:
        """The name of the folder with its files."""
        return f"shard-{self.number:05}-of-{self.count:05}"

    def has(self, digest: int) -> bool:
        """Return whether the entry with this `digest_of` its name belongs to this shard."""
        return digest % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def shard_of_folder(name: str) -> Shard | None:
    """Return the shard whose files are in the folder of this name; None for any other name."""
    match = _FOLDER.fullmatch(name)
    return Shard(int(match[1]), int(match[2])) if match and 0 < int(match[1]) <= int(match[2]) else None


def digest_of(*texts: str) -> int:
    """Return the same number from 0 to 2**64 - 1 for the same texts, in all processes and on all machines."""
    text = "\0".join(texts).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


@dataclass(frozen=True)
class SourcePlace:
    """Where the files of a source are on one machine, so that they have the same names on all machines.

    `folder` ends in a slash. It is the folder that a spec names, or the one of the file that a spec names; "" for
    sources that are at the same place for all machines, such as lists of URLs.
    """

    spec: str
    folder: str

    @classmethod
    def of(cls, spec: str) -> SourcePlace:
        """Return the place of the source with this spec."""
        if os.path.isabs(spec):
            return cls(spec, os.path.join(spec, ""))
        path = re.split(r"[?*\[{]", spec.partition(":")[2], maxsplit=1)[0]
        is_path = path.startswith("/") and not path.startswith("//")
        return cls(spec, os.path.join(os.path.dirname(path), "") if is_path else "")

    @property
    def source_name(self) -> str:
        """The spec without the folder: the same on all machines."""
        return "folder" if os.path.isabs(self.spec) else self.spec.replace(self.folder, "", 1)

    def name_of(self, uri: str) -> str:
        """Return the name of an entry: its uri, relative to the folder if it is below it."""
        return uri.removeprefix(self.folder)

    def uri_of(self, name: str) -> str:
        """Return the uri of the entry with this name."""
        return name if not self.folder or os.path.isabs(name) or is_url(name) else self.folder + name


def numbers_text(numbers: Sequence[int]) -> str:
    """Return ascending numbers as Slurm writes them, such as "3,7-9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
