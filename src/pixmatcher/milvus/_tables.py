"""A collection of Milvus as a table: rows in, rows out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._connection import BUILD_SECONDS, Connection
from ._expressions import all_of

Row = Mapping[str, Any]

MOST_ROWS = 16_384
"""The greatest number of rows that Milvus returns at once."""
END_OF_IDS = 2**63 - 1
LATE_SECONDS = 10.0
"""Reads that do not wait see what was written so long ago; with the settings of a new server, 5 seconds."""
_IDS_AT_ONCE = 4000
_BYTES_AT_ONCE = 8 << 20
"""Milvus takes up to 64 MB at once."""
_MOST_ROWS_OF_LITE, _BYTES_OF_LITE = 50_000, 48 << 20
"""Milvus Lite has no limit of rows, and reads all of them for each page, so that few large pages are best."""


def id_of(*parts: str) -> int:
    """Return the id of what these texts name, from 1 to 2**63 - 2: a part of their SHA-256."""
    digest = hashlib.sha256(b"\0".join(map(_encoded, parts))).digest()
    return int.from_bytes(digest[:8], "big") % (END_OF_IDS - 1) + 1


def _encoded(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


class Table:
    """A collection of Milvus, which exists. The first field, `id`, is the key."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name
        # The first read of a process sees all that was written before it, and so does the first after a write.
        # Later ones may miss what others wrote in the last seconds (`LATE_SECONDS`), and take a fraction of the time.
        self._current = False
        self._met = False
        """Whether a read of this process has waited."""
        self._schema: Mapping[str, Any] | None = None

    def load(self) -> None:
        """Make the rows searchable, which they stay."""
        self._connection.call("load_collection", self.name, timeout=BUILD_SECONDS)

    def put(self, rows: Sequence[Row], *, row_bytes: int, awaited: bool = True) -> None:
        """Store rows, or replace those of the same ids; `row_bytes` is about the size of one.

        `awaited` says that the next read must see them.
        """
        self._connection.check_writable()
        if self._schema is None:
            self._schema = self._connection.schema(self.name)
        for block in _blocks(rows, max(1, _BYTES_AT_ONCE // row_bytes)):
            self._connection.put_columns(self.name, _columns(block, self._schema), self._schema)
            self._current = self._current and not awaited

    def delete(self, ids: Sequence[int]) -> None:
        """Delete the rows of these ids."""
        self._connection.check_writable()
        for block in _blocks(ids, _IDS_AT_ONCE):
            self._connection.call("delete", self.name, ids=[*block])
            self._current = False

    def count(self, condition: str = "") -> int:
        """Return the number of rows that meet a condition."""
        return int(self._read("query", filter=condition, output_fields=["count(*)"])[0]["count(*)"])

    def get(
        self, ids: Sequence[int], fields: Sequence[str], *, row_bytes: int = 1000, late: bool = False
    ) -> dict[int, Row]:
        """Return the rows of these ids that exist, by id; with `late`, maybe as they were some seconds ago."""
        found: dict[int, Row] = {}
        for block in _blocks(ids, min(_IDS_AT_ONCE, max(1, _BYTES_AT_ONCE // row_bytes))):
            listed = ", ".join(map(str, block))
            rows = self._read("query", filter=f"id in [{listed}]", output_fields=["id", *fields], late=late)
            found |= {row["id"]: row for row in rows}
        return found

    def first(self, condition: str, fields: Sequence[str] = ()) -> Row | None:
        """Return a row that meets a condition, or None."""
        rows = self._read("query", filter=condition, output_fields=["id", *fields], limit=1)
        return rows[0] if rows else None

    def some(self, fields: Sequence[str], *, after: int, most: int) -> list[Row]:
        """Return up to `most` rows whose id is above `after`, near to it but not in any order."""
        width = END_OF_IDS // max(1, self.count()) * most
        found = self._read(
            "query",
            filter=f"id > {after} and id <= {min(END_OF_IDS, after + width)}",
            output_fields=["id", *fields],
            limit=most,
        )
        return [*found]

    def rows(
        self, fields: Sequence[str], condition: str = "", *, after: int = 0, row_bytes: int = 1000, whole: bool = True
    ) -> Iterator[Row]:
        """Yield the rows that meet a condition and whose id is above `after`, in the order of their ids.

        They are read in pages. `whole` says that most rows meet the condition.
        """
        lite = self._connection.is_lite
        most_rows, most_bytes = (_MOST_ROWS_OF_LITE, _BYTES_OF_LITE) if lite else (MOST_ROWS, _BYTES_AT_ONCE)
        most = max(1, min(most_rows, most_bytes // row_bytes))
        pages = max(1, self.count() * 3 // (2 * most)) if whole else 1
        width = max(1, -(-END_OF_IDS // pages))
        start = after + 1
        while start < END_OF_IDS:
            end = min(END_OF_IDS, start + width)
            found = self._read(
                "query",
                filter=all_of(f"id >= {start}", f"id < {end}", condition),
                output_fields=["id", *fields],
                limit=most,
            )
            if len(found) == most and width > 1:
                width = max(1, width // 2)  # the page may not be complete
                continue
            yield from sorted(found, key=lambda row: int(row["id"]))
            if len(found) < most // 4:
                width *= 2
            start = end

    def search(
        self,
        vectors: npt.NDArray[np.float32],
        *,
        field: str,
        count: int,
        condition: str,
        parameters: Mapping[str, int],
        fields: Sequence[str],
    ) -> list[list[tuple[float, Row]]]:
        """Return for each of the vectors (Q, dimension) up to `count` rows, and the inner products with them.

        The highest ones are returned, best first.
        """
        found = self._read(
            "search",
            data=[*vectors],
            anns_field=field,
            limit=count,
            filter=condition,
            search_params={"metric_type": "IP", "params": dict(parameters)},
            output_fields=[*fields],
        )
        return [[(float(hit["distance"]), {"id": hit["id"], **hit["entity"]}) for hit in hits] for hits in found]

    def flush(self) -> None:
        """Write to disk what is in memory, so that it is indexed."""
        self._connection.call("flush", self.name, timeout=BUILD_SECONDS)

    def catch_up(self) -> None:
        """Wait until all that was written can be read, by other processes too."""
        self._current = False
        self.count()

    def _read(self, method: str, *, late: bool = False, **options: Any) -> Any:
        waits = not (self._current or (late and self._met))
        if not self._connection.is_lite:  # each read of Milvus Lite sees all that was written
            options["consistency_level"] = "Strong" if waits else "Bounded"
        found = self._connection.call(method, self.name, **options)
        if waits:
            self._current = self._met = True
        return found


def _columns(rows: Sequence[Row], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows as columns, with lists for the embeddings."""
    columns = []
    for field in schema["fields"]:
        values: Any = [row[field["name"]] for row in rows]
        if isinstance(values[0], np.ndarray):
            values = np.stack(values).tolist()
        columns.append({"name": field["name"], "type": field["type"], "values": values})
    return columns


def _blocks(values: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
