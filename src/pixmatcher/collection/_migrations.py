"""The schema of the catalog, as numbered migrations; the number is kept in `PRAGMA user_version`.

A migration is a function that changes the schema by one version. The first one makes version 1 of an empty database,
and leaves what exists as it is. Catalogs that PixMatcher made before it numbered its schema have the version 0, and the
tables of version 1 or 2.

Migrations run before the first write of a process, in one transaction. A collection that may only be read is read as
it is.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import CollectionError

logger = logging.getLogger("pixmatcher.collection")

_TABLES = (
    "CREATE TABLE IF NOT EXISTS state (generation INTEGER NOT NULL, rows INTEGER NOT NULL)",
    "INSERT INTO state SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM state)",
    "CREATE TABLE IF NOT EXISTS sources (id INTEGER PRIMARY KEY, spec UNIQUE NOT NULL)",
    "CREATE TABLE IF NOT EXISTS items (uri UNIQUE NOT NULL, content_hash TEXT NOT NULL, version TEXT NOT NULL, "
    "bytes INTEGER, width INTEGER, height INTEGER, format TEXT, label TEXT, caption TEXT, modified TEXT, taken TEXT, "
    "added TEXT NOT NULL, id INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER UNIQUE NOT NULL, "
    "checksum INTEGER NOT NULL, source_id INTEGER REFERENCES sources (id))",
    "CREATE INDEX IF NOT EXISTS items_by_content ON items (content_hash)",
    "CREATE INDEX IF NOT EXISTS items_by_label ON items (label) WHERE label IS NOT NULL",
    "CREATE TABLE IF NOT EXISTS label_names (label TEXT PRIMARY KEY, name TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS failures (uri PRIMARY KEY, reason TEXT NOT NULL, detail TEXT NOT NULL, "
    "version TEXT NOT NULL, source_id INTEGER NOT NULL)",
)


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in _TABLES:
        connection.execute(statement)


def _add_details(connection: sqlite3.Connection) -> None:
    """Items get `details`, a JSON object of texts."""
    if "details" not in _column_names(connection, "items"):
        connection.execute("ALTER TABLE items ADD COLUMN details TEXT")


def _add_editions(connection: sqlite3.Connection) -> None:
    """The tables of `_editions` and `_reencoding`: which embeddings are the current ones, and what an upgrade did."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS editions (number INTEGER PRIMARY KEY, encoders TEXT NOT NULL, first_row INTEGER, "
        "generation INTEGER)"
    )
    connection.execute(
        "CREATE TABLE IF NOT EXISTS reencoded (id INTEGER PRIMARY KEY, place INTEGER UNIQUE NOT NULL, "
        "checksum INTEGER NOT NULL, content_hash TEXT NOT NULL, former_hash TEXT, changes TEXT)"
    )


def _add_calibrations(connection: sqlite3.Connection) -> None:
    """A collection gets calibrations of its own; each holds only for the encoder of its fingerprint."""
    connection.execute(
        "CREATE TABLE IF NOT EXISTS calibrations (space TEXT NOT NULL, kind TEXT NOT NULL, fingerprint TEXT NOT NULL, "
        "slope REAL NOT NULL, intercept REAL NOT NULL, weak_below REAL NOT NULL, PRIMARY KEY (space, kind))"
    )


def _add_missing(connection: sqlite3.Connection) -> None:
    """Items get `missing`: the share of the picture that can be missing, if the end of its file is."""
    if "missing" not in _column_names(connection, "items"):
        connection.execute("ALTER TABLE items ADD COLUMN missing REAL")


def _add_folder_notes(connection: sqlite3.Connection) -> None:
    """Sources get the fields of `FolderNotes`: `notes` is a JSON object of all but the last one, `judged`."""
    known = _column_names(connection, "sources")
    for column in ("notes TEXT", "judged BLOB"):
        if column.split()[0] not in known:
            connection.execute(f"ALTER TABLE sources ADD COLUMN {column}")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (
    _create_tables,
    _add_details,
    _add_editions,
    _add_calibrations,
    _add_missing,
    _add_folder_notes,
)
"""The migration to version 1, to version 2, and so on."""

SCHEMA_VERSION = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Change the schema of the database `path` to the newest version, in one transaction.

    Raises `CollectionError` if its version is newer than this one, `sqlite3.Error` if it cannot be written.
    """
    if schema_version(connection, path) == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = schema_version(connection, path)  # another process may have been first
        for number, migration in enumerate(MIGRATIONS[version:], start=version + 1):
            migration(connection)
            connection.execute(f"PRAGMA user_version = {number}")
            logger.info("Schema of %s changed to version %d", path, number)
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def schema_version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of the database `path`.

    Raises `CollectionError` if the schema is newer than this version of PixMatcher supports.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise CollectionError(
            f"{path} has the schema version {version}, newer than the {SCHEMA_VERSION} that this version of PixMatcher "
            "reads",
            "upgrade with `pip install --upgrade pixmatcher`.",
        )
    return version


def readable_columns(connection: sqlite3.Connection, table: str, names: Sequence[str]) -> str:
    """Return the columns to select from a table, so that one that an older schema lacks is read as NULL."""
    known = _column_names(connection, table)
    return ", ".join(name if name in known else f"NULL AS {name}" for name in names)


def _column_names(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of the columns of a table."""
    return {name for _, name, *_ in connection.execute(f"PRAGMA table_info ({table})")}
