"""The index of each space in Milvus: its kind by the number of rows, and how much of it a search visits."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CollectionError
from ..records import Space
from ._connection import BUILD_SECONDS, Connection
from ._notes import INDEX, Notes
from ._rows import vector_field
from ._tables import END_OF_IDS, Table

Float32 = npt.NDArray[np.float32]

EXACT, LISTS = "FLAT", "IVF_FLAT"
_MOST_EXACT_VALUES = 48_000_000
"""Up to so many values (rows x dimension), all are compared."""
_EXACT_IN_LITE = True
"""In Milvus Lite an index makes no search faster: most of the time is that of other steps."""
_MOST_LISTS = 65_536
"""The most lists that Milvus visits; more than there are means all of them."""
_SEGMENT_BYTES, _BYTES_BESIDES = 512 << 20, 2600
"""Milvus divides a collection into segments of about this size, and reckons with so much for the texts of a row."""
_MEASURED_K = 10
_QUERIES = 90
_TIMED = 15
_SECONDS_KEPT = 10.0
DEFAULT_RECALL = 0.95


@dataclass(frozen=True)
class SpaceIndex:
    """The index of a space: its kind, its lists, how many of them a search visits, and the recall@10 with these.

    `rows` are those that it was built for, and `target` is the recall that was asked for.
    """

    kind: str = EXACT
    lists: int = 0
    visited: int = 0
    recall: float = 1.0
    rows: int = 0
    target: float = DEFAULT_RECALL

    @property
    def name(self) -> str:
        """The name of the kind, for people."""
        return "exact" if self.kind == EXACT else "lists"

    def parameters(self, *, exact: bool) -> dict[str, int]:
        """Return the parameters of a search."""
        if self.kind == EXACT:
            return {}
        return {"nprobe": _MOST_LISTS if exact else self.visited}


@dataclass(frozen=True)
class Point:
    """An operating point: lists visited, the recall@10 with them, milliseconds for a query."""

    visited: int
    recall: float
    ms: float


class Indexes:
    """The indexes of all spaces. What is known of them is a note, which other processes read too."""

    def __init__(self, connection: Connection, items: Table, notes: Notes, spaces: Mapping[str, Space]) -> None:
        self._connection = connection
        self._items = items
        self._notes = notes
        self._spaces = spaces
        self._kept: tuple[float, dict[str, SpaceIndex]] | None = None

    def of(self, space: str) -> SpaceIndex:
        """Return the index of a space, as it was at most 10 seconds ago."""
        if self._kept is None or time.monotonic() - self._kept[0] > _SECONDS_KEPT:
            values: dict[str, dict[str, Any]] = self._notes.get(INDEX) or {}
            self._kept = (time.monotonic(), {name: SpaceIndex(**value) for name, value in values.items()})
        return self._kept[1].get(space, SpaceIndex())

    def update(self) -> None:
        """Build the indexes that the number of rows asks for now, and measure them."""
        rows = self._items.count()
        self._kept = None
        for space in self._spaces.values():
            current = self.of(space.name)
            exact = self._connection.is_lite and _EXACT_IN_LITE
            wanted = SpaceIndex() if exact else chosen_index(rows, space.dimension)
            if wanted.kind != current.kind or wanted.lists > 2 * current.lists:
                self.build(space.name, replace(wanted, rows=rows, target=current.target))
            if not self.of(space.name).recall:
                self.tune(space.name, current.target)

    def tune(self, space: str, target: float, queries: Float32 | None = None) -> list[Point]:
        """Measure the index of a space, and store the cheapest operating point that reaches the recall `target`.

        Return the points that were measured, in the order of their costs; none if all rows are compared.
        """
        self._kept = None
        index = replace(self.of(space), target=target)
        points: list[Point] = []
        if index.kind != EXACT:
            vectors, groups = self._queries(space, queries)
            nearest = self._ids(space, vectors, index.parameters(exact=True))
            visited = 1
            while visited < 2 * index.lists:
                index = replace(index, visited=min(visited, index.lists))
                found = self._ids(space, vectors, index.parameters(exact=False))
                shares = np.array([_share(a, b) for a, b in zip(nearest, found, strict=True)])
                recall = min(float(shares[group].mean()) for group in groups)
                index = replace(index, recall=recall)
                points.append(Point(index.visited, recall, self.milliseconds(space, vectors[:_TIMED], index)))
                if recall >= target:
                    break
                visited *= 2
        self.save(space, index)
        return points

    def milliseconds(self, space: str, vectors: Float32, index: SpaceIndex, *, exact: bool = False) -> float:
        """Return the median time of a query in milliseconds."""
        seconds = []
        for vector in vectors:
            started = time.perf_counter()
            self._ids(space, vector[np.newaxis], index.parameters(exact=exact))
            seconds.append(time.perf_counter() - started)
        return 1000 * float(np.median(seconds)) if seconds else 0.0

    def sample(self, space: str, count: int) -> Float32:
        """Return embeddings of about `count` items, chosen by their ids (N, dimension) float32."""
        field = vector_field(self._spaces, space)
        dimension = self._spaces[space].dimension
        found = [
            row[field]
            for start in range(0, END_OF_IDS, END_OF_IDS // max(1, count // 10))
            for row in self._items.some([field], after=start, most=10)
        ]
        return np.array(found, np.float32).reshape(-1, dimension)[:count]

    def _queries(self, space: str, given: Float32 | None) -> tuple[Float32, list[npt.NDArray[np.int64]]]:
        """Return queries like those of users, and the positions of those of each kind."""
        rows = self.sample(space, _QUERIES)
        third = len(rows) // 3
        random = np.random.default_rng(1)
        noisy, mixed = rows[:third].copy(), rows[third : 2 * third].copy()
        lengths = np.linalg.norm(noisy, axis=1, keepdims=True)
        noisy += 0.5 * lengths * random.standard_normal(noisy.shape, np.float32) / np.sqrt(np.float32(rows.shape[1]))
        mixed += rows[random.permutation(len(rows))[:third]] + rows[random.permutation(len(rows))[:third]]
        kinds = [noisy, mixed, rows[2 * third :], *([] if given is None else [given])]
        ends = np.cumsum([len(kind) for kind in kinds])
        groups = [np.arange(end - len(kind), end) for kind, end in zip(kinds, ends, strict=True)]
        return np.concatenate(kinds).astype(np.float32), [group for group in groups if len(group)]

    def _ids(self, space: str, vectors: Float32, parameters: Mapping[str, int]) -> list[set[int]]:
        found = self._items.search(
            vectors,
            field=vector_field(self._spaces, space),
            count=_MEASURED_K,
            condition="",
            parameters=parameters,
            fields=(),
        )
        return [{int(row["id"]) for _, row in hits} for hits in found]

    def build(self, space: str, index: SpaceIndex) -> None:
        """Build an index in the place of the present one. Searches cannot be answered meanwhile."""
        # Noted first: if this process is killed, `load` builds the index, and searches of it visit enough lists.
        self.save(space, index)
        self._connection.call("release_collection", self._items.name)
        for name in self._names(space):
            self._connection.call("drop_index", self._items.name, name)
        self._create(space, index)
        self._items.load()

    def load(self) -> None:
        """Make the items searchable, and build indexes that were dropped by a process that was killed then."""
        try:
            self._items.load()
        except CollectionError:
            dropped = [space for space in self._spaces if not self._names(space)]
            if not dropped:
                raise
            for space in dropped:
                self._create(space, self.of(space))
            self._items.load()

    def _names(self, space: str) -> list[str]:
        field = vector_field(self._spaces, space)
        return [*self._connection.call("list_indexes", self._items.name, field_name=field)]

    def _create(self, space: str, index: SpaceIndex) -> None:
        indexes = self._connection.call_local("prepare_index_params")
        indexes.add_index(
            field_name=vector_field(self._spaces, space),
            index_type=index.kind,
            metric_type="IP",
            params={"nlist": index.lists} if index.kind == LISTS else {},
        )
        self._connection.call("create_index", self._items.name, indexes, timeout=BUILD_SECONDS)

    def save(self, space: str, index: SpaceIndex) -> None:
        """Store what is known of the index of a space."""
        self._kept = None
        self.of(space)
        assert self._kept is not None
        known = {**self._kept[1], space: index}
        self._notes.put(INDEX, {"": {name: asdict(each) for name, each in known.items()}})
        self._kept = None


def chosen_index(rows: int, dimension: int) -> SpaceIndex:
    """Return the kind of index for so many rows: exact up to 48 million values, then lists.

    Milvus builds the lists of each segment by themselves, and a search visits so many of each.
    """
    if rows * dimension <= _MOST_EXACT_VALUES:
        return SpaceIndex()
    in_segment = min(rows, _SEGMENT_BYTES // (4 * dimension + _BYTES_BESIDES))
    lists = 1 << round(np.log2(4 * np.sqrt(in_segment)))
    return SpaceIndex(LISTS, lists=lists, visited=max(1, lists // 32), recall=0.0)


def _share(nearest: Sequence[int] | set[int], found: Sequence[int] | set[int]) -> float:
    return len({*nearest} & {*found}) / max(1, len(nearest))
