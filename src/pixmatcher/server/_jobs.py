"""The records of jobs: one table in the state folder, which all processes of the service share.

A job is `waiting`, then `running`, and ends as `done`, `failed` or `stopped`. Each attempt to run it has a number, and
only the process of the newest attempt may change the record, so a process that was believed dead changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from .._progress import Progress
from ._problems import Problem, ProblemError

_log = logging.getLogger("pixmatcher.server")

MOST_WAITING = 32
"""Jobs that wait, of all collections of a state folder; with more, clients are asked to try again later."""
MOST_WAITING_OF_CLIENT = MOST_WAITING // 2
"""Jobs of one client that wait, so that it cannot keep the others from having any."""
MOST_CRASHES = 3
"""A job whose process died so many times is not started again."""
_KEPT_JOBS = 200
_KEPT_DAYS = 30
_LOCK_SECONDS = 10.0
_RETRY_SECONDS = 30

DATABASE_NAME = "jobs.sqlite"

_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    collection TEXT NOT NULL,
    reference TEXT NOT NULL,
    kind TEXT NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting',
    progress TEXT,
    report TEXT,
    error TEXT,
    created TEXT NOT NULL,
    started TEXT,
    ended TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    stop INTEGER NOT NULL DEFAULT 0,
    change INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX jobs_of_state ON jobs (state);
"""
_MIGRATION = "ALTER TABLE jobs ADD COLUMN client TEXT NOT NULL DEFAULT ''"
_VERSION = 2
"""The version of the table with the column of the migration, in `PRAGMA user_version`."""

JobKind = Literal["index", "forget", "watch"]
JobState = Literal["waiting", "running", "done", "failed", "stopped"]
ENDED: frozenset[JobState] = frozenset({"done", "failed", "stopped"})


class JobProgress(BaseModel):
    """How much of the current stage of a job is done."""

    stage: str
    done: int
    total: int | None
    unit: str


class Job(BaseModel):
    """A job: what was asked for, and how far it is. Times are ISO 8601."""

    id: str
    collection: str
    kind: JobKind
    request: dict[str, Any]
    state: JobState
    progress: JobProgress | None
    report: dict[str, Any] | None
    """What was done; that of a watched collection has the number of runs and the report of the last one."""
    error: Problem | None
    created: str
    started: str | None
    ended: str | None


@dataclass(frozen=True)
class JobRecord:
    """A job, and what only the service knows of it."""

    job: Job
    reference: str
    """The collection: a folder, or NAME:REST."""
    attempt: int
    crashes: int
    stop: bool
    """Whether a client asked to stop it."""
    change: int
    """A number that rises with each change of the record."""


Served = Mapping[str, str]
"""The references of the collections of a service by their names."""


class JobRecords:
    """The table of jobs. Any thread of any process may use it; each call opens the database for itself."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the state folder; it is created with the first job."""
        self.folder = folder

    @property
    def exist(self) -> bool:
        """Whether a job was ever added in this folder."""
        return (self.folder / DATABASE_NAME).exists()

    def add(self, collection: str, reference: str, kind: JobKind, request: Mapping[str, Any], client: str) -> Job:
        """Add a job of a client, which waits until it is started; remove old jobs.

        A collection that is watched or will be is not watched twice: the job that does it is returned. Raises
        `ProblemError` if too many jobs wait, of all clients or of this one, or the record cannot be written.
        """
        job_id = uuid.uuid4().hex
        with self._writing() as database:
            if kind == "watch":
                found = database.execute(
                    "SELECT * FROM jobs WHERE reference = ? AND kind = 'watch' AND state IN ('waiting', 'running') "
                    "AND NOT stop",
                    (reference,),
                ).fetchone()
                if found is not None:
                    return _record(found).job
            waiting, own = database.execute(
                "SELECT count(*), coalesce(sum(client = ?), 0) FROM jobs WHERE state = 'waiting'", (client,)
            ).fetchone()
            if waiting >= MOST_WAITING or own >= MOST_WAITING_OF_CLIENT:
                count = f"{waiting} jobs wait" if waiting >= MOST_WAITING else f"{own} jobs of yours wait"
                raise ProblemError(
                    429,
                    "too many jobs",
                    f"{count} already: try again when some of them have ended.",
                    {"Retry-After": str(_RETRY_SECONDS)},
                )
            database.execute(
                "INSERT INTO jobs (id, collection, reference, kind, request, created, client) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (job_id, collection, reference, kind, json.dumps(request), _now(), client),
            )
            _remove_old(database)
            return _record(database.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()).job

    def find(self, job_id: str, served: Served) -> JobRecord | None:
        """Return the job of this id if it belongs to one of these collections. Raises `ProblemError` as `add`."""
        found = [record for record in self._select("id = ?", job_id) if _belongs(record, served)]
        return found[0] if found else None

    def find_by_attempt(self, job_id: str, attempt: int) -> Job | None:
        """Return a running job of which this is the newest attempt."""
        found = self._running(job_id, attempt)
        return None if found is None else found.job

    def all(self, served: Served) -> list[JobRecord]:
        """Return the jobs of these collections, the newest first."""
        return [record for record in self._select("true") if _belongs(record, served)][::-1]

    def unfinished(self, served: Served) -> list[JobRecord]:
        """Return the jobs of these collections that wait or run, in the order in which they were added."""
        return [record for record in self._select("state IN ('waiting', 'running')") if _belongs(record, served)]

    def running_count(self) -> int:
        """Return how many jobs run, of all collections; watched collections are not counted."""
        return len(self._select("state = 'running' AND kind != 'watch'"))

    def request_stop(self, job_id: str) -> None:
        """Stop a job that waits, and ask the process of one that runs to stop it."""
        with self._writing() as database:
            database.execute(
                "UPDATE jobs SET state = 'stopped', ended = ?, change = change + 1 WHERE id = ? AND state = 'waiting'",
                (_now(), job_id),
            )
            database.execute(
                "UPDATE jobs SET stop = 1, change = change + 1 WHERE id = ? AND state = 'running' AND NOT stop",
                (job_id,),
            )

    def begin(self, job_id: str) -> int | None:
        """Begin an attempt at a job that waits: return the number of the attempt, or None if it does not wait."""
        with self._writing() as database:
            changed = database.execute(
                "UPDATE jobs SET state = 'running', started = coalesce(started, ?), attempt = attempt + 1, "
                "progress = NULL, change = change + 1 WHERE id = ? AND state = 'waiting'",
                (_now(), job_id),
            ).rowcount
            if not changed:
                return None
            (attempt,) = database.execute("SELECT attempt FROM jobs WHERE id = ?", (job_id,)).fetchone()
            return int(attempt)

    def stop_requested(self, job_id: str, attempt: int) -> bool:
        """Return whether the process of this attempt is to stop, because it was asked to or is not the newest."""
        found = self._running(job_id, attempt)
        return found is None or found.stop

    def set_progress(self, job_id: str, attempt: int, progress: Progress) -> None:
        """Store the progress of an attempt."""
        values = {"stage": progress.stage, "done": progress.done, "total": progress.total, "unit": progress.unit}
        self._change(job_id, attempt, "progress = ?", json.dumps(values))

    def set_report(self, job_id: str, attempt: int, report: Mapping[str, Any]) -> None:
        """Store what a job that goes on has done until now."""
        self._change(job_id, attempt, "report = ?", json.dumps(report))

    def end(
        self,
        job_id: str,
        attempt: int,
        state: JobState,
        report: Mapping[str, Any] | None = None,
        error: Problem | None = None,
    ) -> None:
        """Store how an attempt ended; `waiting` if the job is to be taken up again."""
        self._change(
            job_id,
            attempt,
            "state = ?, ended = ?, report = coalesce(?, report), error = ?",
            state,
            _now() if state in ENDED else None,
            None if report is None else json.dumps(report),
            None if error is None else error.model_dump_json(),
        )

    def note_crash(self, job_id: str, attempt: int, *, counts: bool) -> None:
        """Note that the process of an attempt died: the job waits again, or has failed if that happened too often.

        Without `counts`, the process is not blamed: it died together with the service.
        """
        problem = Problem(
            title="Internal Server Error",
            status=500,
            detail=f"The process of this job died {MOST_CRASHES} times: the log of the service may say why. What was "
            "indexed is kept.",
            reason="job crashed",
        )
        self._change(
            job_id,
            attempt,
            "crashes = crashes + ?1, ended = CASE WHEN stop OR crashes + ?1 >= ?2 THEN ?3 END, "
            "error = CASE WHEN NOT stop AND crashes + ?1 >= ?2 THEN ?4 END, "
            "state = CASE WHEN stop THEN 'stopped' WHEN crashes + ?1 >= ?2 THEN 'failed' ELSE 'waiting' END",
            int(counts),
            MOST_CRASHES,
            _now(),
            problem.model_dump_json(),
        )

    def _running(self, job_id: str, attempt: int) -> JobRecord | None:
        found = self._select("id = ? AND attempt = ? AND state = 'running'", job_id, attempt)
        return found[0] if found else None

    def _change(self, job_id: str, attempt: int, assignments: str, *values: object) -> None:
        """Change the record of a running job, if this attempt is its newest."""
        first = len(values) + 1
        with self._writing() as database:
            database.execute(
                f"UPDATE jobs SET {assignments}, change = change + 1 "
                f"WHERE id = ?{first} AND attempt = ?{first + 1} AND state = 'running'",
                (*values, job_id, attempt),
            )

    def _select(self, condition: str, *values: object) -> list[JobRecord]:
        """Return the jobs for which a condition in SQL holds, in the order in which they were added."""
        if not self.exist:
            return []
        with self._open() as database:
            found = database.execute(f"SELECT * FROM jobs WHERE {condition} ORDER BY number", values).fetchall()
        return [_record(row) for row in found]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open the database for one transaction."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the database, and create it if need be. Raises `ProblemError` for every error of the disk."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / DATABASE_NAME
            with contextlib.closing(sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA synchronous = FULL")  # a job that was accepted survives a power cut
                if _version(database) < _VERSION:
                    _create_table(database)
                yield database
        except (sqlite3.Error, OSError) as error:
            _log.warning("the records of jobs in %s cannot be used: %s", self.folder, error)
            if "full" in str(error):
                raise ProblemError(
                    507, "disk full or failing", "The disk with the records of jobs is full: make room on it."
                ) from error
            raise ProblemError(
                503,
                "jobs not available",
                "The records of jobs cannot be read or written: the log of the service says why.",
            ) from error


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _create_table(database: sqlite3.Connection) -> None:
    """Create the table, or give that of an older version the columns that it lacks."""
    # The usual journal, not a write-ahead log: on a full disk, such a database could not even be read.
    database.execute("BEGIN IMMEDIATE")
    version = _version(database)
    if version >= _VERSION:  # another process has done it
        database.execute("ROLLBACK")
        return
    for statement in filter(str.strip, _SCHEMA.split(";") if not version else ()):
        database.execute(statement)
    database.execute(_MIGRATION)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")


def _remove_old(database: sqlite3.Connection) -> None:
    oldest = datetime.now(timezone.utc) - timedelta(days=_KEPT_DAYS)
    database.execute(
        "DELETE FROM jobs WHERE ended IS NOT NULL AND (ended < ? OR number NOT IN "
        "(SELECT number FROM jobs WHERE ended IS NOT NULL ORDER BY number DESC LIMIT ?))",
        (oldest.isoformat(timespec="milliseconds"), _KEPT_JOBS),
    )


def _record(row: sqlite3.Row) -> JobRecord:
    progress, report, error = (None if row[name] is None else json.loads(row[name]) for name in _AS_JSON)
    job = Job(
        id=row["id"],
        collection=row["collection"],
        kind=row["kind"],
        request=json.loads(row["request"]),
        state=row["state"],
        progress=progress,
        report=report,
        error=error,
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
    )
    return JobRecord(job, row["reference"], row["attempt"], row["crashes"], bool(row["stop"]), row["change"])


_AS_JSON = ("progress", "report", "error")


def _belongs(record: JobRecord, served: Served) -> bool:
    """Return whether a job is of one of these collections: several services may share a state folder."""
    return served.get(record.job.collection) == record.reference


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
