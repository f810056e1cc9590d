"""The files of shards: what all shards have in common, what a shard lists, and the results of its images.

    shards.json                        what all shards of the place have in common
    shard-00003-of-00064/
        listing.jsonl                  how the shard was listed, then its entries, one a line, then a checksum
        00001-5f3a9c02.zip             a part: the results of some of its images
            results.jsonl              one image a line: what an item needs, or why it failed
            embeddings/SPACE.npy       a row of float16 for each image that did not fail
            thumbnails/HASH.jpg        by content hash

A part is never changed. Of several results of one image, that of the last part counts.
"""

from __future__ import annotations

import errno
import json
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from io import BytesIO
from secrets import token_hex
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

from ..collection import Failure, Item, records_as_json, records_from_json
from ..errors import ShardError
from ..records import EncoderRecord, Entry, FolderNotes
from ..sources import Unusable
from ._shard_places import Place
from ._shards import Shard, SourcePlace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_COMMON_NAME = "shards.json"
_LISTING_NAME = "listing.jsonl"
_RESULTS_NAME = "results.jsonl"
_THUMBNAILS = "thumbnails/"
_FORMAT = 1
_PART_ENDING = ".zip"
_CONTENT = ("content_hash", "bytes", "width", "height", "format", "taken", "missing")
"""The fields of an item that come from its image; the others come from the entry."""


@dataclass(frozen=True)
class ShardOptions:
    """The options that decide what a shard contains: those of `index` of the same names."""

    max_pixels: int
    thumbnails: bool
    exclude: tuple[str, ...] | None = None
    hidden: bool | None = None


@dataclass(frozen=True)
class CommonFacts:
    """What all shards of a place have in common."""

    source: str
    """`SourcePlace.source_name`."""
    count: int
    encoders: tuple[EncoderRecord, ...]
    options: ShardOptions

    def as_json(self) -> dict[str, Any]:
        """Return the facts as a JSON object."""
        return {
            "format": _FORMAT,
            "source": self.source,
            "count": self.count,
            "encoders": records_as_json(self.encoders),
            "options": asdict(self.options),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], place: Place) -> CommonFacts:
        """Read what `as_json` returns. Raises `ShardError` if the format is newer, other errors if it is damaged."""
        if int(values["format"]) > _FORMAT:
            raise ShardError(
                f"The shards in {place.name} were made by a newer version of PixMatcher: upgrade with "
                "`pip install --upgrade pixmatcher`."
            )
        options = dict(values["options"])
        if options["exclude"] is not None:
            options["exclude"] = tuple(options["exclude"])
        encoders = records_from_json(values["encoders"])
        return cls(str(values["source"]), int(values["count"]), encoders, ShardOptions(**options))

    def difference(self, other: CommonFacts) -> str:
        """Return in words what other facts have that these have not; "" if both are the same."""
        if self.count != other.count:
            return f"{other.count} shards, not {self.count}"
        if self.source != other.source:
            return f"the source {other.source}, not {self.source}"
        if self.encoders != other.encoders:
            return f"the encoders {_names_of(other.encoders)}, not {_names_of(self.encoders)}"
        for each in fields(ShardOptions):
            if getattr(self.options, each.name) != getattr(other.options, each.name):
                return f"another value of the option {each.name}"
        return ""


def _names_of(encoders: Sequence[EncoderRecord]) -> str:
    return ", ".join(f"{record.name} ({record.fingerprint or 'any version'})" for record in encoders)


def read_common(place: Place) -> CommonFacts | None:
    """Return what the shards of a place have in common; None if it has none. Raises `ShardError` if that is damaged."""
    if _COMMON_NAME not in place.names():
        return None
    with place.read(_COMMON_NAME) as file, _damage_explained(place, _COMMON_NAME):
        return CommonFacts.from_json(json.load(file), place)


def write_common(place: Place, shard: Shard, facts: CommonFacts) -> None:
    """Store what all shards of a place have in common; the folder of `shard` must be locked."""
    content = BytesIO((json.dumps(facts.as_json(), indent=2) + "\n").encode())
    place.write(_COMMON_NAME, content, unfinished_in=shard.folder)


@dataclass(frozen=True)
class ListingFacts:
    """How the source was listed when a shard was made."""

    common: CommonFacts
    place: SourcePlace
    remote: bool
    entries: int
    """The number of entries of all shards."""
    digest: int
    """The sum of `digest_of` all their names, modulo 2**64: equal if two shards saw the same list."""
    label_names: Mapping[str, str] = field(default_factory=dict)
    notes: FolderNotes | None = None
    """Of a folder source."""
    unusable: tuple[Unusable, ...] = ()


def write_listing(place: Place, shard: Shard, facts: ListingFacts, lines: IO[bytes]) -> None:
    """Store what a shard lists; `lines` has its entries, as `entry_line` returns them."""
    head = {
        "common": facts.common.as_json(),
        "place": asdict(facts.place),
        "remote": facts.remote,
        "entries": facts.entries,
        "digest": facts.digest,
        "label_names": dict(facts.label_names),
        "notes": None if facts.notes is None else facts.notes.as_json(),
        "unusable": [asdict(each) for each in facts.unusable],
    }
    with TemporaryFile() as content:
        block = json.dumps(head).encode() + b"\n"
        lines.seek(0)
        checksum = 0
        while block:
            content.write(block)
            checksum = zlib.crc32(block, checksum)
            block = lines.read(1 << 20)
        content.write(_checksum_line(checksum))
        content.seek(0)
        place.write(f"{shard.folder}/{_LISTING_NAME}", content)


@contextmanager
def open_listing(place: Place, shard: Shard) -> Generator[tuple[ListingFacts, Iterator[Entry]] | None]:
    """Yield how a shard was listed, and its entries, whose uris are names; None if it was not listed.

    Raises `ShardError` if the file is damaged.
    """
    if _LISTING_NAME not in place.names(shard.folder):
        yield None
        return
    name = f"{shard.folder}/{_LISTING_NAME}"
    with place.read(name) as file:
        with _damage_explained(place, name):
            line = file.readline()
            head = json.loads(line)
            facts = ListingFacts(
                CommonFacts.from_json(head["common"], place),
                SourcePlace(**head["place"]),
                bool(head["remote"]),
                int(head["entries"]),
                int(head["digest"]),
                head["label_names"],
                None if head["notes"] is None else FolderNotes.from_json(head["notes"]),
                tuple(Unusable(**each) for each in head["unusable"]),
            )
        yield facts, _entries_of(place, name, file, zlib.crc32(line))


def entry_line(entry: Entry) -> bytes:
    """Return an entry as a line of a listing."""
    return _line({each.name: getattr(entry, each.name) for each in fields(Entry)})


def entries_of_lines(lines: Iterable[bytes]) -> Iterator[Entry]:
    """Yield the entries of lines as `entry_line` returns them."""
    for line in lines:
        values = json.loads(line)
        yield Entry(**values | {"urls": tuple(values.get("urls", ()))})


def _entries_of(place: Place, name: str, lines: Iterable[bytes], checksum: int) -> Iterator[Entry]:
    """Yield the entries of the rest of a listing; `checksum` is that of its first line."""
    with _damage_explained(place, name):
        for line in lines:
            if line == _checksum_line(checksum):
                return
            checksum = zlib.crc32(line, checksum)
            yield from entries_of_lines([line])
        raise ValueError("it is cut off or changed")


def _checksum_line(checksum: int) -> bytes:
    """Return the last line of a listing: the CRC-32 of the other lines."""
    return b'{"crc32": %d}\n' % checksum


@dataclass(frozen=True)
class Result:
    """What became of one entry, in the `version` that it had: an item without what the entry says, or a failure."""

    name: str
    version: str
    item: Item | None = None
    failure: Failure | None = None

    def item_of(self, entry: Entry) -> Item:
        """Return the item of the entry, of this version, that was encoded."""
        assert self.item is not None
        return replace(
            self.item,
            uri=entry.uri,
            version=entry.version,
            label=entry.label,
            caption=entry.caption,
            modified=entry.modified,
            details=entry.details,
        )


def write_part(
    place: Place,
    shard: Shard,
    number: int,
    results: Sequence[Result],
    embeddings: Mapping[str, npt.NDArray[np.float16]],
    thumbnails: Mapping[str, bytes],
) -> None:
    """Store a part of a shard.

    `embeddings` has for each space (N, dimension) float16, a row for each of the results that has an item. The name of
    the part differs from those that another process writes at the same time.
    """
    import numpy as np

    with TemporaryFile() as content:
        with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
            for space, rows in embeddings.items():
                with archive.open(f"embeddings/{space}.npy", "w") as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(rows), allow_pickle=False)
            for content_hash, jpeg in thumbnails.items():
                archive.writestr(f"{_THUMBNAILS}{content_hash}.jpg", jpeg)
            lines = b"".join(map(_result_line, results))
            archive.writestr(_RESULTS_NAME, lines, zipfile.ZIP_DEFLATED)
        content.seek(0)
        place.write(f"{shard.folder}/{number:05}-{token_hex(4)}{_PART_ENDING}", content)


def part_names(place: Place, shard: Shard) -> list[str]:
    """Return the names of the parts of a shard, in the order in which they were begun."""
    return [f"{shard.folder}/{name}" for name in place.names(shard.folder) if name.endswith(_PART_ENDING)]


def part_number(name: str) -> int:
    """Return the number of a part, by its name."""
    number = name.rpartition("/")[2].partition("-")[0]
    return int(number) if number.isdecimal() else 0


@dataclass(frozen=True)
class Part:
    """The content of a part of a shard."""

    results: list[Result]
    embeddings: dict[str, npt.NDArray[np.float16]]
    """For each space (N, dimension), a row for each of the results that has an item, in their order."""
    thumbnails: dict[str, bytes]
    """JPEG by content hash."""


def read_results(place: Place, name: str) -> list[Result]:
    """Return the results of a part. Raises `ShardError` if it is damaged."""
    with _open_archive(place, name) as archive:
        return _results_of(archive)


def read_part(place: Place, name: str, spaces: Iterable[str]) -> Part:
    """Return a part with the embeddings of these spaces. Raises `ShardError` if it is damaged."""
    import numpy as np

    with _open_archive(place, name) as archive:
        results = _results_of(archive)
        count = sum(result.item is not None for result in results)
        embeddings = {}
        for space in spaces:
            with archive.open(f"embeddings/{space}.npy") as member:
                embeddings[space] = np.lib.format.read_array(member, allow_pickle=False)
            if len(embeddings[space]) != count:
                raise ValueError(f"{len(embeddings[space])} embeddings of {count} images")
        thumbnails = {
            member.removeprefix(_THUMBNAILS).removesuffix(".jpg"): archive.read(member)
            for member in archive.namelist()
            if member.startswith(_THUMBNAILS)
        }
    return Part(results, embeddings, thumbnails)


@contextmanager
def _open_archive(place: Place, name: str) -> Iterator[zipfile.ZipFile]:
    with place.read(name) as file, _damage_explained(place, name), zipfile.ZipFile(file) as archive:
        yield archive


def _results_of(archive: zipfile.ZipFile) -> list[Result]:
    results = []
    with archive.open(_RESULTS_NAME) as lines:
        for line in lines:
            values = json.loads(line)
            name, version = values.pop("uri"), values.pop("version")
            if "reason" in values:
                failure = Failure(name, values["reason"], values.get("detail", ""), values.get("tried_as", ""))
                results.append(Result(name, version, failure=failure))
            else:
                results.append(Result(name, version, item=Item(name, **values)))
    return results


@contextmanager
def _damage_explained(place: Place, name: str) -> Iterator[None]:
    """Raise the errors that a damaged file causes as a `ShardError`."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a wrong offset leads before the file
            raise
        raise ShardError(
            f"{place.name}/{name} is damaged ({' '.join(str(error).split())}): delete it, and encode its shard again."
        ) from error


def _result_line(result: Result) -> bytes:
    values: dict[str, Any] = {"uri": result.name, "version": result.version}
    if result.item is not None:
        return _line(values | {each: getattr(result.item, each) for each in _CONTENT})
    assert result.failure is not None
    return _line(
        values | {"reason": result.failure.reason, "detail": result.failure.detail, "tried_as": result.failure.version}
    )


def _line(values: Mapping[str, Any]) -> bytes:
    """Return values as a line of JSON, without those that are empty."""
    used = {name: value for name, value in values.items() if name == "version" or value not in (None, "", (), {})}
    return json.dumps(used).encode() + b"\n"
