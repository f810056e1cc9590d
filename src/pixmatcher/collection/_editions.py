"""Editions: the embeddings of all items by one set of encoders. One is current; an upgrade makes the next one.

The catalog decides which edition is current: in its table `editions`, that of the highest number with a `first_row`. A
later one without `first_row` is being made. An empty table means the edition 0, whose encoders `collection.json` has.
The files of each edition have other names, and its rows other numbers, so that nothing can read the rows of one edition
in the files of another.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import CollectionError
from ..records import EncoderRecord, Space
from ..vector_index.vectors import VectorFile
from ._catalog import Catalog
from ._manifest import records_as_json, records_from_json
from ._names import start_again
from .stored_maps import map_files

logger = logging.getLogger("pixmatcher.collection")

_FILE = re.compile(r"[a-z0-9_-]+(?:\.(\d+))?\.(?:f16|faiss|json|aim)(?:\.new)?")
"""Matches the name of a file of embeddings or of an index; its group is the number of an edition after the first."""


@dataclass(frozen=True)
class Edition:
    """The embeddings of all items by `encoders`.

    Its rows are numbered from `first_row`; `generation` is that of the catalog when the edition became current.
    """

    number: int
    encoders: tuple[EncoderRecord, ...]
    first_row: int = 0
    generation: int = 0

    @property
    def spaces(self) -> dict[str, Space]:
        """The spaces by name."""
        return {space.name: space for record in self.encoders for space in record.spaces}

    def vector_files(self, folder: Path) -> dict[str, VectorFile]:
        """Return the file of embeddings of each space of the collection in `folder`."""
        return {
            name: VectorFile(folder / "vectors" / f"{self._stem(name)}.f16", space.dimension, self.first_row)
            for name, space in self.spaces.items()
        }

    def index_path(self, folder: Path, space: str) -> Path:
        """Return the path of the index file of a space of the collection in `folder`."""
        return folder / "index" / f"{self._stem(space)}.faiss"

    def _stem(self, space: str) -> str:
        return f"{space}.{self.number}" if self.number else space


def current_edition(catalog: Catalog, first_encoders: tuple[EncoderRecord, ...], folder: Path) -> Edition:
    """Return the current edition; `first_encoders` are those of `collection.json`.

    Raises `CollectionError` if its encoders are not known or damaged.
    """
    found = catalog.edition_rows("first_row IS NOT NULL")
    if found:
        return _edition(found[-1], catalog, folder)
    if not first_encoders:
        raise CollectionError(f"{catalog.path} is damaged (it has no encoders)", start_again(folder))
    return Edition(0, first_encoders)


def next_edition(catalog: Catalog, folder: Path) -> Edition | None:
    """Return the edition that an unfinished upgrade makes, or None."""
    found = catalog.edition_rows("first_row IS NULL")
    return _edition(found[-1], catalog, folder) if found else None


def _edition(values: tuple[int, str, int | None, int | None], catalog: Catalog, folder: Path) -> Edition:
    number, encoders, first_row, generation = values
    try:
        records = records_from_json(json.loads(encoders), folder)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CollectionError(f"{catalog.path} is damaged (its encoders)", start_again(folder)) from error
    return Edition(number, records, first_row or 0, generation or 0)


def begin_next(catalog: Catalog, current: Edition, records: tuple[EncoderRecord, ...]) -> Edition:
    """Store that an edition of these encoders is being made, and return it. Another unfinished one ends."""
    made = Edition(current.number + 1, records)
    with catalog.writing():
        run = catalog.connection.execute
        _forget_next(catalog)
        encoders = json.dumps(records_as_json(current.encoders))
        run("INSERT OR IGNORE INTO editions VALUES (?, ?, 0, 0)", (current.number, encoders))
        run("INSERT INTO editions VALUES (?, ?, NULL, NULL)", (made.number, json.dumps(records_as_json(records))))
    return made


def abandon_next(catalog: Catalog) -> None:
    """Forget an unfinished upgrade."""
    with catalog.writing():
        _forget_next(catalog)


def _forget_next(catalog: Catalog) -> None:
    catalog.connection.execute("DELETE FROM reencoded")
    catalog.connection.execute("DELETE FROM editions WHERE first_row IS NULL")


def make_current(catalog: Catalog, made: Edition, first_row: int) -> None:
    """Make an edition the current one. Call it inside the transaction that gives the items their rows of it."""
    run = catalog.connection.execute
    run(
        "UPDATE editions SET first_row = ?, generation = (SELECT generation FROM state) WHERE number = ?",
        (first_row, made.number),
    )
    run("DELETE FROM editions WHERE number < ?", (made.number,))
    run("DELETE FROM reencoded")


def remove_leftovers(folder: Path, current: Edition, following: Edition | None) -> None:
    """Delete the files of former and abandoned editions, and the maps of spaces that do not exist any more.

    What cannot be deleted now, such as a file that is in use on Windows, stays for the next writer.
    """
    kept = {current.number, *([following.number] if following else [])}
    for name in ("vectors", "index"):
        with contextlib.suppress(OSError):
            for path in sorted((folder / name).iterdir()):
                match = _FILE.fullmatch(path.name)
                if match and int(match[1] or 0) not in kept and path.is_file():
                    _delete(path)
    if current.number:
        for path, space in map_files(folder):
            if space not in current.spaces:
                _delete(path)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        logger.info("%s deleted: an upgrade has replaced it", path)


def copy_targets(folder: Path, current: Edition, made: Edition) -> None:
    """Give the next edition the targets that `pixmatcher tune` stored for spaces of the same name.

    Raises `OSError` if the disk fails.
    """
    from ..vector_index import read_target, save_target, target_path

    for name in current.spaces.keys() & made.spaces.keys():
        former = target_path(current.index_path(folder, name))
        if former.is_file():
            save_target(target_path(made.index_path(folder, name)), read_target(former))
