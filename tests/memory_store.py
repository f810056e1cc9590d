"""A store in memory, as another package may have one. It uses nothing of `Collection`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pixmatcher import Filter, Hit, Item
from pixmatcher.collection import ComparisonResult, Failure, Neighbour, StoredItems
from pixmatcher.records import EncoderRecord, Entry, Space
from support import TinyEncoder

Float32 = npt.NDArray[np.float32]


class MemoryStore:
    """A store in memory that compares a query with all embeddings. It uses nothing of `Collection`."""

    opened: ClassVar[dict[str, MemoryStore]] = {}
    """What `memory:NAME` opens, by name."""

    def __init__(self, name: str = "photos") -> None:
        self.path = Path(f"memory:{name}")
        self.encoders = (EncoderRecord(TinyEncoder.name, TinyEncoder.fingerprint, TinyEncoder.spaces),)
        self.spaces: dict[str, Space] = {space.name: space for space in TinyEncoder.spaces}
        self.items: dict[int, Item] = {}
        self.source_of: dict[int, str] = {}
        self.vectors: dict[str, dict[int, Float32]] = {name: {} for name in self.spaces}
        self.names: dict[str, str] = {}
        self.failed: dict[str, tuple[str, Failure]] = {}
        self.known_sources: list[str] = []
        self.closed = 0

    def __len__(self) -> int:
        return len(self.items)

    def search(
        self,
        vector: npt.ArrayLike,
        *,
        space: str,
        k: int = 12,
        min_score: float | None = None,
        filter: Filter | None = None,
        exact: bool = False,
    ) -> list[Hit]:
        allowed = None if filter is None or filter.labels is None else self.labels_called(filter.labels)
        scores = {
            item_id: float(stored @ np.asarray(vector, np.float32))
            for item_id, stored in self.vectors[space].items()
            if allowed is None or self.items[item_id].label in allowed
        }
        best = sorted(scores, key=lambda item_id: (-scores[item_id], item_id))[:k]
        return [
            Hit(rank, scores[item_id], self.items[item_id])
            for rank, item_id in enumerate(best, start=1)
            if min_score is None or scores[item_id] >= min_score
        ]

    def nearest_labelled(self, vector: npt.ArrayLike, *, space: str, k: int, labels: int) -> list[Neighbour]:
        hits = [hit for hit in self.search(vector, space=space, k=len(self)) if hit.item.label is not None]
        return [Neighbour(hit.item.label or "", hit.score, hit.item) for hit in hits[:k]]

    def embeddings(self, ids: Iterable[int], space: str) -> Float32:
        return np.array([self.vectors[space][item_id] for item_id in ids])

    def label_names(self) -> dict[str, str]:
        return dict(self.names)

    def labels_called(self, texts: Iterable[str]) -> set[str]:
        wanted = {*texts}
        labels = {item.label for item in self.items.values() if item.label is not None}
        return {label for label in labels if label in wanted or self.names.get(label) in wanted}

    def thumbnail(self, content_hash: str) -> bytes | None:
        return None

    def close(self) -> None:
        self.closed += 1

    # Writing

    def begin_writing(self) -> None:
        pass

    def sources(self) -> list[str]:
        return self.known_sources

    def compare_sources(self, sources: Sequence[str]) -> MemoryComparison:
        self.known_sources += [source for source in sources if source not in self.known_sources]
        return MemoryComparison(self, sources)

    def set_label_names(self, names: Mapping[str, str]) -> None:
        self.names.update(names)

    def remove(self, ids: Iterable[int]) -> int:
        removed = [item_id for item_id in ids if self.items.pop(item_id, None) is not None]
        for stored in self.vectors.values():
            for item_id in removed:
                del stored[item_id]
        return len(removed)

    def update_indexes(self, *, progress: object = None) -> None:
        pass

    def put(self, item: Item, source: str, vectors: Mapping[str, Float32]) -> bool:
        """Store an item; return whether it replaced one."""
        old = next((item_id for item_id, other in self.items.items() if other.uri == item.uri), None)
        item_id = old or max(self.items, default=0) + 1
        self.items[item_id] = replace(item, id=item_id)
        self.source_of[item_id] = source
        for space, vector in vectors.items():
            self.vectors[space][item_id] = vector
        self.failed.pop(item.uri, None)
        return old is not None


class MemoryComparison:
    def __init__(self, store: MemoryStore, sources: Sequence[str]) -> None:
        self._store = store
        self._sources = list(sources)
        self._seen: dict[str, tuple[str, Entry]] = {}
        self._pending: list[tuple[str, Entry]] = []
        self._missing: list[int] = []

    def add_entries(self, source: str, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._seen.setdefault(entry.uri, (source, entry))

    def compare(
        self,
        *,
        unknown_paths: Sequence[str] = (),
        unknown_sources: Sequence[str] = (),
        missing: Sequence[int] = (),
        decoder_capabilities: str = "",
        retry_failed: bool = False,
        keep_newer: bool = False,
    ) -> ComparisonResult:
        stored = {item.uri: item for item in self._store.items.values()}
        unchanged = newer = 0
        for uri, (source, entry) in self._seen.items():
            if uri in stored and stored[uri].version == entry.version:
                unchanged += 1
            elif keep_newer and uri in stored and (stored[uri].modified or "") > (entry.modified or "9999"):
                newer += 1
            elif retry_failed or uri not in self._store.failed or self._store.failed[uri][1].version != entry.version:
                self._pending.append((source, entry))
        self._missing = [
            item_id
            for item_id, item in self._store.items.items()
            if item.uri not in self._seen and self._store.source_of[item_id] not in unknown_sources
        ]
        self._missing = [item_id for item_id in self._missing if self._store.source_of[item_id] in self._sources]
        waiting = {entry.uri for _, entry in self._pending}
        for uri, (source, _) in [*self._store.failed.items()]:
            if source in self._sources and uri not in self._seen and uri not in waiting:
                del self._store.failed[uri]
        return ComparisonResult(unchanged, 0, len(self._pending), newer=newer)

    def other_sources(self) -> list[str]:
        return [source for source in self._store.known_sources if source not in self._sources]

    def item_count(self, source: str) -> int:
        return [*self._store.source_of.values()].count(source)

    def unlisted_items(self, sources: Sequence[str]) -> Iterator[tuple[int, str]]:
        return iter(())

    def pending(self, source: str) -> Iterator[Entry]:
        return (entry for listed_by, entry in self._pending if listed_by == source)

    def missing(self) -> list[int]:
        return self._missing

    def failures(self) -> list[Failure]:
        return [failure for source, failure in self._store.failed.values() if source in self._sources]

    def known_contents(self, content_hashes: Sequence[str]) -> set[str]:
        return {item.content_hash for item in list(self._store.items.values())}.intersection(content_hashes)

    def store(
        self,
        source: str,
        items: Sequence[Item],
        embeddings: Mapping[str, npt.ArrayLike],
        thumbnails: Mapping[str, bytes],
    ) -> StoredItems:
        arrays = {space: np.asarray(values, np.float32) for space, values in embeddings.items()}
        changed = [
            self._store.put(item, source, {space: values[row] for space, values in arrays.items()})
            for row, item in enumerate(items)
        ]
        return StoredItems(added=changed.count(False), changed=changed.count(True))

    def store_known(self, source: str, items: Sequence[Item]) -> StoredItems:
        added = changed = 0
        for item in items:
            (same, *_) = [i for i, other in self._store.items.items() if other.content_hash == item.content_hash]
            vectors = {space: stored[same] for space, stored in self._store.vectors.items()}
            if self._store.put(item, source, vectors):
                changed += 1
            else:
                added += 1
        return StoredItems(added=added, changed=changed)

    def record_failures(self, source: str, failures: Iterable[Failure], *, remove: Iterable[str] = ()) -> int:
        self._store.failed.update({failure.uri: (source, failure) for failure in failures})
        uris = {*remove}
        return self._store.remove([item_id for item_id, item in self._store.items.items() if item.uri in uris])


def opened_memory(name: str) -> MemoryStore:
    """The function of the entry point `memory`."""
    return MemoryStore.opened.setdefault(name, MemoryStore(name))
