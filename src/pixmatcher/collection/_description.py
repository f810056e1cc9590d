"""What is in a collection: what `pixmatcher info` shows, for every face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from .._text import as_unicode, name_as_unicode
from ..records import EncoderRecord, FolderNotes, Space
from .items import IndexDescription
from .stores import DescribesIndexes, KeepsFolderNotes, Store


@dataclass(frozen=True)
class CollectionDescription:
    """What is in a collection. What a store of another package cannot say is None or empty."""

    count: int
    """The number of items."""
    encoders: tuple[EncoderRecord, ...]
    spaces: Mapping[str, Space]
    sources: Mapping[str, FolderNotes] = field(default_factory=dict)
    """The specs of the sources, each with its notes; those of a source that is no folder are empty."""
    failed: int | None = None
    """The number of images that could not be indexed."""
    incomplete: int | None = None
    """The number of items of files whose end is missing."""
    formats: Mapping[str, int] = field(default_factory=dict)
    """The number of items of each image format, the most frequent first."""
    labels: int | None = None
    """The number of different labels."""
    indexes: Mapping[str, IndexDescription] = field(default_factory=dict)
    """The index of each space."""
    bytes: int | None = None
    """The bytes that the files of the collection take."""
    unfinished_encoders: tuple[EncoderRecord, ...] = ()
    """The encoders of an upgrade that was begun and is not finished."""

    def as_json(self) -> dict[str, Any]:
        """Return the description as a JSON object."""
        return {
            "count": self.count,
            "failed": self.failed,
            "incomplete": self.incomplete,
            "labels": self.labels,
            "formats": dict(self.formats),
            "sources": [_source_as_json(spec, notes) for spec, notes in self.sources.items()],
            "encoders": [_encoder_as_json(each) for each in self.encoders],
            "spaces": [_space_as_json(each, self.indexes.get(name)) for name, each in self.spaces.items()],
            "bytes": self.bytes,
            "unfinished_encoders": [_encoder_as_json(each) for each in self.unfinished_encoders],
        }


@runtime_checkable
class DescribesItself(Protocol):
    """What a store may have too: it knows what `describe_collection` returns, such as the client of a service."""

    def describe(self) -> CollectionDescription:
        """Return what is in the collection."""


def describe_collection(store: Store) -> CollectionDescription:
    """Return what is in a collection, or what a store of another package can say of it.

    Raises `CollectionError` if it cannot be read.
    """
    if isinstance(store, DescribesItself):
        return store.describe()
    # The methods that `Collection` has and `Store` does not require; a store may have some of them.
    known = {name: method() for name in _OPTIONAL if callable(method := getattr(store, name, None))}
    sources: list[str] = known.get("sources", [])
    notes_of = store.folder_notes if isinstance(store, KeepsFolderNotes) else lambda _: FolderNotes()
    indexes: Mapping[str, IndexDescription] = {}
    if isinstance(store, DescribesIndexes):
        indexes = store.index_descriptions()
    return CollectionDescription(
        count=len(store),
        encoders=tuple(store.encoders),
        spaces=dict(store.spaces),
        sources={spec: notes_of(spec) for spec in sources},
        failed=_length(known.get("failures")),
        incomplete=_length(known.get("incomplete")),
        formats=known.get("format_counts", {}),
        labels=_length(known.get("label_counts")),
        indexes=indexes,
        bytes=known.get("size_on_disk"),
        unfinished_encoders=known.get("unfinished_encoders", ()),
    )


_OPTIONAL = (
    *("sources", "failures", "incomplete", "format_counts", "label_counts"),
    *("size_on_disk", "unfinished_encoders"),
)


def _length(values: Any) -> int | None:
    return None if values is None else len(values)


def _source_as_json(spec: str, notes: FolderNotes) -> dict[str, Any]:
    values: dict[str, Any] = {"source": name_as_unicode(spec)}
    if notes.exclude:
        values["exclude"] = [as_unicode(pattern) for pattern in notes.exclude]
    if notes.hidden:
        values["hidden"] = True
    if notes.forgotten:
        values["forgotten"] = [as_unicode(place) for place in notes.forgotten]
    if notes.passed_over:
        values["passed_over"] = {
            as_unicode(kind): {as_unicode(extension): count for extension, count in found.items()}
            for kind, found in notes.passed_over.items()
        }
    return values


def _encoder_as_json(encoder: EncoderRecord) -> dict[str, Any]:
    return {"name": encoder.name, "fingerprint": encoder.fingerprint, "spaces": [each.name for each in encoder.spaces]}


def _space_as_json(space: Space, index: IndexDescription | None) -> dict[str, Any]:
    return {
        "name": space.name,
        "dimension": space.dimension,
        "text": space.text,
        "index": index and index.kind,
        "recall": index and index.recall,
    }
