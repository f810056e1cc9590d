"""The process of one job: `python -m pixmatcher.server._job_process`.

It reads from standard input, as one line of JSON, which job it is to run. It stops in order when a client asks for it,
and when standard input ends, because the process that started it stops or died; the job is then taken up again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._logging import show_log
from .._progress import Progress
from ..collection import Collection, ForgetsSources, WritableStore, open_collection
from ..errors import CollectionError, PixMatcherError, StorageError
from ..indexing import IndexReport, index
from ..indexing.watching import retry_while_locked, watch
from ._advice import text_for_clients
from ._job_runner import lock_of_job
from ._jobs import JobRecords, JobState
from ._problems import Problem, ProblemError, problem_of
from ._source_check import check_new_source

_log = logging.getLogger("pixmatcher.server")

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_BETWEEN_PROGRESS = 0.5
_SECONDS_TO_WRITE = 60.0
_LESS_IMPORTANT = 10
"""Added to the niceness of the process: searches come first."""


@dataclass(frozen=True)
class _Call:
    """What the process is started for."""

    state_folder: str
    job: str
    attempt: int
    reference: str
    source_folders: list[str]
    allow_urls: bool
    allow_private: bool


def main() -> int:
    """Run the job that standard input names; return the exit code."""
    show_log()
    line = sys.stdin.buffer.readline()
    if not line:
        return 0  # the process that started it died
    call = _Call(**json.loads(line))
    records = JobRecords(Path(call.state_folder))
    lock = lock_of_job(records.folder, call.job)  # held until the process ends
    if not lock.acquire():
        return 1
    if records.stop_requested(call.job, call.attempt):
        _end(records, call, "stopped")
        return 0
    with contextlib.suppress(OSError):
        os.nice(_LESS_IMPORTANT)
    return _Run(call, records).run()


class _Run:
    """One attempt at a job."""

    def __init__(self, call: _Call, records: JobRecords) -> None:
        self._call = call
        self._records = records
        self._stop: JobState | None = None
        """The state of the job after it was stopped, if it is to stop."""
        self._may_interrupt = True
        self._ended = threading.Event()
        self._stored = 0.0
        self._stage = ""

    def run(self) -> int:
        """Run the job, and store how it ended. Return the exit code."""
        state: JobState = "failed"
        report: dict[str, Any] | None = None
        error: Problem | None = None
        signal.signal(signal.SIGINT, self._raise_interrupt)
        signal.signal(signal.SIGTERM, self._raise_interrupt)
        try:
            try:
                threading.Thread(target=self._watch_input, daemon=True).start()
                threading.Thread(target=self._watch_requests, daemon=True).start()
                report = self._work()
                state = "done"
            finally:
                self._may_interrupt = False
                self._ended.set()
        except KeyboardInterrupt:
            state = self._stop or "waiting"
        except PixMatcherError as failure:
            error = self._without_place(problem_of(failure))
        except MemoryError:
            error = Problem(
                title="Insufficient Storage", status=507, detail="There is not enough memory.", reason="out of memory"
            )
        except Exception:
            _log.exception("job %s failed", self._call.job)
            error = Problem(
                title="Internal Server Error",
                status=500,
                detail="The job failed: this is a defect, please report it with the log of the service.",
                reason="internal error",
            )
        return _end(self._records, self._call, state, report, error)

    def _work(self) -> dict[str, Any]:
        found = self._records.find_by_attempt(self._call.job, self._call.attempt)
        if found is None:
            raise KeyboardInterrupt
        request = found.request
        if found.kind == "forget":
            return retry_while_locked(lambda: self._forget(request), self._note_wait)
        if found.kind == "watch":
            self._watch_collection(request)
            return {}
        return retry_while_locked(lambda: self._index(request), self._note_wait).as_json()

    def _index(self, request: Mapping[str, Any]) -> IndexReport:
        call, sources = self._call, request.get("sources")
        if sources is not None:
            with contextlib.closing(open_collection(call.reference)) as store:
                own = store.sources() if isinstance(store, WritableStore) else []
            # Once more: since the request, a folder may have become a link to another one.
            for source in sources:
                if source not in own:
                    check_new_source(source, [Path(folder) for folder in call.source_folders], call.allow_urls)
        return index(
            sources,
            call.reference,
            retry_failed=bool(request.get("retry_failed")),
            exclude=request.get("exclude"),
            hidden=request.get("hidden"),
            allow_private=call.allow_private,
            progress=self._show,
        )

    def _forget(self, request: Mapping[str, Any]) -> dict[str, Any]:
        store = open_collection(self._call.reference)
        assert isinstance(store, ForgetsSources)
        with store if isinstance(store, Collection) else contextlib.closing(store) as collection:
            source = str(request["source"])
            try:
                removed = collection.forget(source)
            except (StorageError, ProblemError):
                raise
            except CollectionError:
                # The attempt before this one may have removed it.
                if isinstance(collection, WritableStore):
                    collection.begin_writing()
                if source in collection.sources():
                    raise
                removed = 0
            return {"removed": removed, "total": len(collection)}

    def _watch_collection(self, request: Mapping[str, Any]) -> None:
        runs = 0
        notes: list[str] = []

        def note_report(report: IndexReport) -> None:
            nonlocal runs
            runs += 1
            self._store(lambda: self._records.set_report(*self._key, self._as_report(runs, report, notes)))

        watch(
            self._call.reference,
            every=float(request["every"]),
            allow_private=self._call.allow_private,
            on_report=note_report,
            on_note=notes.append,
            on_wait=self._note_wait,
            progress=self._show,
        )

    def _as_report(self, runs: int, report: IndexReport, notes: list[str]) -> dict[str, Any]:
        del notes[:-10]
        return {"runs": runs, "last": report.as_json(), "watch_notes": [*map(self._without_path, notes)]}

    @property
    def _key(self) -> tuple[str, int]:
        return self._call.job, self._call.attempt

    def _note_wait(self, _: CollectionError) -> None:
        self._show(Progress("Waiting for another process that writes", 0, None, "images"))

    def _show(self, progress: Progress) -> None:
        """Store the progress, unless that was done just now."""
        now = time.monotonic()
        is_new = progress.stage != self._stage or progress.done == progress.total
        if not is_new and now - self._stored < _SECONDS_BETWEEN_PROGRESS:
            return
        self._stage, self._stored = progress.stage, now
        self._store(lambda: self._records.set_progress(*self._key, progress))

    def _store(self, store: Callable[[], None]) -> None:
        with contextlib.suppress(PixMatcherError):  # the work goes on; how it ends is what has to be stored
            store()

    def _without_place(self, problem: Problem) -> Problem:
        return problem.model_copy(update={"detail": self._without_path(problem.detail)})

    def _without_path(self, text: str) -> str:
        """Return a text without the path of the collection, which is not for clients."""
        place = self._call.reference
        with contextlib.suppress(CollectionError):
            place = str(Collection.locate(place) or place)
        text = text_for_clients(text).replace(place, "the collection").replace(self._call.reference, "the collection")
        return text[:1].upper() + text[1:]

    # Stopping

    def _watch_input(self) -> None:
        """Wait until standard input ends: the process that started this one stops, or died."""
        with contextlib.suppress(OSError):
            while os.read(sys.stdin.fileno(), 1024):
                pass
        self._interrupt("waiting")

    def _watch_requests(self) -> None:
        """Look whether a client asks to stop the job."""
        while not self._ended.wait(_SECONDS_BETWEEN_LOOKS):
            with contextlib.suppress(PixMatcherError):
                if self._records.stop_requested(*self._key):
                    self._interrupt("stopped")
                    return

    def _interrupt(self, state: JobState) -> None:
        """Interrupt the main thread as Ctrl-C does, which indexing is made for."""
        self._stop = self._stop or state
        if not self._ended.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _raise_interrupt(self, *_: object) -> None:
        """Interrupt the work once. A signal that comes later, while the end of the job is stored, does nothing."""
        if self._may_interrupt:
            self._may_interrupt = False
            raise KeyboardInterrupt


def _end(
    records: JobRecords,
    call: _Call,
    state: JobState,
    report: Mapping[str, Any] | None = None,
    error: Problem | None = None,
) -> int:
    """Store how a job ended, and return the exit code of the process. While that fails, it is tried for a minute."""
    end = time.monotonic() + _SECONDS_TO_WRITE
    while True:
        try:
            records.end(call.job, call.attempt, state, report, error)
            return 0
        except PixMatcherError:
            if time.monotonic() > end:
                return 1
            time.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main())
