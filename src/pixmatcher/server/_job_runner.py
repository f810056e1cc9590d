"""Start jobs, each in a process of its own, and notice those whose process died.

Every process of a service has a `JobRunner`. For each collection, the one that holds the lock of that collection starts
its jobs, oldest first and one at a time; if it dies, another takes over. A collection is watched beside its other jobs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .._locks import FileLock
from .._user_folders import user_state_folder
from ..errors import PixMatcherError
from ._jobs import Job, JobKind, JobRecord, JobRecords
from ._problems import ProblemError
from .settings import ServerSettings

_log = logging.getLogger("pixmatcher.server")

MOST_RUNNING = 2
"""Jobs that run at the same time, of all collections; watched collections are not counted."""
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_STOP = 30.0
"""A process that was asked to stop and still runs after this time is killed, which loses nothing."""
_SECONDS_TO_CLOSE = 10.0
"""The same for a service that stops."""


def lock_of_job(folder: Path, job_id: str) -> FileLock:
    """Return the lock that the process of a job holds as long as it lives; `folder` is the state folder."""
    return FileLock(folder / f"{job_id}.lock")


@dataclass
class _Process:
    """The process of an attempt that this process has started."""

    popen: subprocess.Popen[bytes]
    attempt: int
    stop_seen: float | None = None
    """When it was first seen that a client asked to stop it, by the monotonic clock."""


class JobRunner:
    """Starts the jobs of the collections of a service. `start` begins, `close` ends."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._served = {name: _full_reference(given) for name, given in settings.collections.items()}
        self._records: JobRecords | None = None
        self._locks: dict[str, FileLock] = {}
        self._processes: dict[str, _Process] = {}
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self.stopping = threading.Event()
        """Set when the service stops: who waits for events of a job is to end."""

    # What routes use

    @property
    def records(self) -> JobRecords:
        """The records of jobs. Raises `ProblemError` if there is no folder for them."""
        if self._records is None:
            try:
                self._records = JobRecords(self._settings.state_folder or user_state_folder())
            except PixMatcherError as error:
                _log.warning("there is no folder for the records of jobs: %s", error)
                raise ProblemError(
                    503,
                    "jobs not available",
                    "This service has no folder for the records of jobs: name one.",
                ) from error
        return self._records

    def add(self, collection: str, kind: JobKind, request: Mapping[str, object], client: str) -> Job:
        """Add a job of a client, and start it when it is its time. Raises `ProblemError` if that is impossible."""
        job = self.records.add(collection, self._served[collection], kind, request, client)
        self._wake.set()
        return job

    def find(self, job_id: str) -> JobRecord:
        """Return a job. Raises `ProblemError` if no collection of this service has it."""
        found = self.records.find(job_id, self._served)
        if found is None:
            raise ProblemError(404, "no such job", "No job has this id: /v1/jobs lists them.")
        return found

    def jobs(self) -> list[Job]:
        """Return all jobs of the collections of this service, the newest first."""
        return [record.job for record in self.records.all(self._served)]

    def stop(self, job_id: str) -> Job:
        """Stop a job, or ask its process to stop; return the job. What it has stored stays stored."""
        self.find(job_id)
        self.records.request_stop(job_id)
        self._wake.set()
        return self.find(job_id).job

    # Running

    def start(self) -> None:
        """Begin to start jobs, in a thread."""
        self._thread = threading.Thread(target=self._run, name="pixmatcher-jobs", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask the processes of jobs to stop, and wait for them. Their jobs are taken up again at the next start."""
        self.stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for process in self._processes.values():
            _say_stop(process.popen)
        end = time.monotonic() + _SECONDS_TO_CLOSE
        for process in self._processes.values():
            try:
                process.popen.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        for job_id in self._processes:
            with contextlib.suppress(PixMatcherError):
                self._remove_lock(job_id)
        self._processes.clear()
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()

    def _run(self) -> None:
        failed = False
        while not self.stopping.is_set():
            try:
                if self.records.exist:
                    self._look()
                failed = False
            except (PixMatcherError, OSError) as error:
                if not failed:
                    _log.warning("jobs cannot be started: %s", error)
                failed = True
            self._wake.wait(_SECONDS_BETWEEN_LOOKS)
            self._wake.clear()

    def _look(self) -> None:
        """Note which processes have ended, and start the jobs whose time has come."""
        for job_id, process in [*self._processes.items()]:
            if process.popen.poll() is not None:
                self._note_end(job_id, process)
        busy = set[tuple[str, bool]]()
        waiting = list[JobRecord]()
        for record in self.records.unfinished(self._served):
            if record.job.state == "waiting":
                waiting.append(record)
                continue
            if self._is_responsible(record.reference):
                self._check_running(record)
            busy.add(_place(record))
        for record in waiting:
            if self.stopping.is_set():
                return
            is_watch = record.job.kind == "watch"
            if _place(record) in busy or not self._is_responsible(record.reference):
                continue
            if is_watch or self.records.running_count() < MOST_RUNNING:
                self._start_job(record)
            busy.add(_place(record))

    def _is_responsible(self, reference: str) -> bool:
        """Return whether this process starts the jobs of a collection."""
        name = sha256(os.fsencode(reference)).hexdigest()[:32]
        lock = self._locks.setdefault(reference, FileLock(self.records.folder / f"collection-{name}.lock"))
        return lock.acquire()

    def _check_running(self, record: JobRecord) -> None:
        """Kill the process of a job that does not stop; note the end of one that a dead service process has started."""
        job_id = record.job.id
        process = self._processes.get(job_id)
        if process is not None:
            if not record.stop:
                return
            process.stop_seen = process.stop_seen or time.monotonic()
            if time.monotonic() - process.stop_seen > _SECONDS_TO_STOP:
                _log.warning("job %s did not stop and is killed", job_id)
                process.popen.kill()
            return
        lock = lock_of_job(self.records.folder, job_id)
        if lock.acquire():
            # A job that got nowhere may be why the service died.
            progress = record.job.progress
            self.records.note_crash(job_id, record.attempt, counts=progress is None or progress.done == 0)
            lock.release()

    def _start_job(self, record: JobRecord) -> None:
        job = record.job
        attempt = self.records.begin(job.id)
        if attempt is None:
            return
        call = {
            "state_folder": os.path.abspath(self.records.folder),
            "job": job.id,
            "attempt": attempt,
            "reference": record.reference,
            "source_folders": [os.path.abspath(folder) for folder in self._settings.source_folders],
            "allow_urls": self._settings.allow_urls,
            "allow_private": self._settings.allow_private,
        }
        try:
            # In a session of its own, Ctrl-C on the terminal of the service does not reach it. The open pipe shows
            # it that this process lives.
            popen = subprocess.Popen(
                [sys.executable, "-m", "pixmatcher.server._job_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            _log.warning("the process of job %s cannot be started: %s", job.id, error)
            self.records.end(job.id, attempt, "waiting")
            raise
        self._processes[job.id] = _Process(popen, attempt)
        _log.info("job %s started: %s of %s, attempt %d", job.id, job.kind, job.collection, attempt)
        assert popen.stdin is not None
        with contextlib.suppress(OSError):  # it died already, which is noted later
            popen.stdin.write(json.dumps(call).encode() + b"\n")
            popen.stdin.flush()

    def _note_end(self, job_id: str, process: _Process) -> None:
        _say_stop(process.popen)
        # If the process could write how it ended, this changes nothing.
        self.records.note_crash(job_id, process.attempt, counts=True)
        del self._processes[job_id]
        _log.info("the process of job %s ended with exit code %s", job_id, process.popen.returncode)
        self._remove_lock(job_id)

    def _remove_lock(self, job_id: str) -> None:
        """Delete the lock file of a job that has ended."""
        found = self.records.find(job_id, self._served)
        if found is None or found.job.ended is not None:
            with contextlib.suppress(OSError):
                lock_of_job(self.records.folder, job_id).path.unlink(missing_ok=True)


def _place(record: JobRecord) -> tuple[str, bool]:
    """Return what only one job at a time may have: the collection, for jobs that watch or for those that do not."""
    return record.reference, record.job.kind == "watch"


def _say_stop(popen: subprocess.Popen[bytes]) -> None:
    """Close the pipe of a process, which asks it to stop."""
    assert popen.stdin is not None
    with contextlib.suppress(OSError):
        popen.stdin.close()


def _full_reference(given: str) -> str:
    """Return the reference of a collection as all services write it: a folder by its full path."""
    prefix, colon, _ = given.partition(":")
    is_store = bool(colon) and not os.path.exists(given) and os.sep not in prefix
    return given if is_store else os.path.abspath(given)
