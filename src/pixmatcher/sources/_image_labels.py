"""The labels of Open Images, in a temporary database.

The labels of nine million images do not fit into memory. SQLite keeps the database in memory while it is small, and
then in an unnamed file in SQLITE_TMPDIR or TMPDIR.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import itemgetter

from ..errors import SourceError
from ._image_urls import shortened
from .protocol import Unusable
from .text_tables import first_row, plain_name, read_rows

_MOST_LABELS = 50
"""The most labels of an image that are stored; the data set has about thirty at most."""
_CACHE_KIB = 65_536


class ImageLabels:
    """The positive labels of all images, the most confident first, in a temporary database."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def load(self, path: str) -> Iterator[Unusable]:
        """Load the labels of a file, and yield its invalid rows."""
        if self._connection is None:
            # A database without a name is temporary: SQLite deletes its file when it opens it.
            with _errors_explained():
                self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                self._connection.execute("PRAGMA journal_mode = OFF")
                self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
                self._connection.execute("CREATE TABLE labels (image TEXT, labels TEXT)")
        rows = read_rows(path, ",")
        columns = column_positions(first_row(rows, path)[1])
        image_id, name, confidence = (columns[name] for name in ("imageid", "labelname", "confidence"))
        # The labels of an image usually follow one another, and are stored as one row.
        current = ""
        found: list[tuple[float, str]] = []
        pending: list[tuple[str, str]] = []
        for row in rows:
            if isinstance(row, Unusable):
                yield replace(row, contents_unknown=False)
                continue
            number, fields = row
            try:
                value = float(fields[confidence])
            except ValueError:
                value = -1.0
            if not 0 <= value <= 1:
                detail = f"{shortened(fields[confidence])} is not between 0 and 1"
                yield Unusable(f"{path}:{number}", "wrong confidence", detail)
                continue
            if fields[image_id] != current or len(found) == 1000:
                if found:
                    pending.append((current.strip(), _packed(found)))
                    found.clear()
                    if len(pending) >= 10_000:
                        self._insert(pending)
                current = fields[image_id]
            label = fields[name].strip().replace("\n", " ")
            if value and label:
                found.append((value, label))
        if found:
            pending.append((current.strip(), _packed(found)))
        self._insert(pending)

    def _insert(self, pending: list[tuple[str, str]]) -> None:
        """Store labels of images, and clear the list."""
        assert self._connection is not None
        with _errors_explained():
            self._connection.execute("BEGIN")
            self._connection.executemany("INSERT INTO labels VALUES (?, ?)", pending)
            self._connection.execute("COMMIT")
        pending.clear()

    def complete(self) -> None:
        """Create the index, after all files are loaded."""
        if self._connection is not None:
            with _errors_explained():
                self._connection.execute("CREATE INDEX by_image ON labels (image)")

    def of(self, images: Sequence[str]) -> dict[str, list[str]]:
        """Return the labels of images, the most confident first, equally confident ones in the order of the files."""
        if self._connection is None:
            return {}
        with _errors_explained():
            rows = self._connection.execute(
                "SELECT image, labels FROM labels WHERE image IN (SELECT value FROM json_each(?)) ORDER BY rowid",
                (json.dumps(images),),
            ).fetchall()
        packed: dict[str, str] = {}
        for image, text in rows:
            packed[image] = f"{packed[image]}\n{text}" if image in packed else text
        return {image: _unpacked(text) for image, text in packed.items()}


def _packed(found: list[tuple[float, str]]) -> str:
    """Return labels and their confidences as text: one in each line, the most confident first."""
    found.sort(key=itemgetter(0), reverse=True)  # stable also in reverse
    return "\n".join([f"{value} {label}" for value, label in found[:_MOST_LABELS]])


def _unpacked(text: str) -> list[str]:
    """Return the labels of an image without repetition."""
    found = [line.partition(" ") for line in text.split("\n")]
    found.sort(key=lambda parts: float(parts[0]), reverse=True)
    return [*dict.fromkeys([label for _, _, label in found])][:_MOST_LABELS]


@contextmanager
def _errors_explained() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise SourceError(
            f"The labels of the images cannot be sorted ({error}): set TMPDIR to a folder with more space."
        ) from error


def column_positions(header: Sequence[str]) -> dict[str, int]:
    """Return the position of each column by its plain name."""
    return {plain_name(name): position for position, name in reversed([*enumerate(header)])}
