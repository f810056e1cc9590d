"""Watch the sources of a collection: index changes seconds after they happen, and everything from time to time.

The operating system reports changes below folders of this machine. It does not report those that another machine makes
on a network disk, and other kinds of sources cannot be watched: these are found by the refresh from time to time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from .._progress import Progress, ProgressCallback
from ..collection import Collection, KeepsFolderNotes, Store, WritableStore, open_collection
from ..encoders import Runtime
from ..errors import CollectionError, CollectionLockedError, FetchError, SourceError, StorageError
from ..images import DEFAULT_MAX_PIXELS
from ..sources import open_source
from ..sources.folder import FolderSource
from ._pipeline import index
from ._report import IndexReport

_log = logging.getLogger("pixmatcher.indexing")

DEFAULT_EVERY = 60.0
"""Seconds between two refreshes of all sources."""
_SETTLE_SECONDS = 1.0
"""A run begins when nothing has changed for this time, so that files are not read before they are complete."""
_MOST_UNSETTLED_SECONDS = 10.0
"""Where something changes all the time, a run begins so long after the first change."""
_MOST_PAUSE_SECONDS = 30.0
"""After a run, the next one waits as long as that took, but not longer than this: half of a core stays free."""
_LOCK_SECONDS = 1.0
_WAKE_SECONDS = 0.5
_EVENT_GROUP_MS, _EVENT_STEP_MS = 400, 50
_POLL_MS = 10_000
"""On systems that report no changes at all, the package that watches looks at all files itself, not more often."""

Result = TypeVar("Result")


class _StoppedError(Exception):
    """The event `stop` was set during a run."""


def retry_while_locked(
    work: Callable[[], Result],
    on_wait: Callable[[CollectionLockedError], object] = lambda error: None,
    pause: Callable[[float], object] = time.sleep,
) -> Result:
    """Call `work`, again and again as long as another process writes to the collection; return its result.

    `on_wait` is called once if it must wait. `pause` waits for a number of seconds; what it raises ends the waiting.
    """
    waits = False
    while True:
        try:
            return work()
        except CollectionLockedError as error:
            if not waits:
                on_wait(error)
            waits = True
        pause(_LOCK_SECONDS)


def watch(
    collection: str | os.PathLike[str] | None = None,
    *,
    every: float = DEFAULT_EVERY,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    allow_private: bool = False,
    runtime: Runtime | None = None,
    on_report: Callable[[IndexReport], object] = lambda report: None,
    on_note: Callable[[str], object] = lambda note: None,
    on_wait: Callable[[CollectionLockedError], object] = lambda error: None,
    progress: ProgressCallback | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Keep a collection up to date until `stop` is set, or until an interrupt (Ctrl-C) ends the call.

    All sources are refreshed at the beginning and `every` so many seconds. If the operating system reports a change
    below a folder that is a source, that source is refreshed about a second after the last change.

    Arguments:
        collection: The folder of a collection that exists, or NAME:REST of an installed package; by default the nearest
            collection in or above the current folder.
        max_pixels, allow_private, runtime, progress: As for `index`.
        on_report: Called with the report of each run.
        on_note: Called with a sentence when something prevents a run, or when changes are not reported; not again while
            the same thing does.
        on_wait: Called once when a run must wait for another process that writes.
        stop: Set it to end the watching: the run that is under way stops, and what it has stored stays stored.

    Raises `CollectionError` or `EncoderError` if the collection cannot be written, and `SourceError` if the first run
    cannot begin.
    """
    reference = os.fspath(collection if collection is not None else Collection.find())
    stop = stop or threading.Event()
    changes = _Changes(stop)
    watcher = _Watcher(changes, on_note)

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise _StoppedError

    def show(made: Progress) -> None:
        if stop.is_set():
            raise _StoppedError
        if progress is not None:
            progress(made)

    def run(specs: list[str] | None) -> IndexReport:
        return retry_while_locked(
            lambda: index(
                specs,
                reference,
                max_pixels=max_pixels,
                allow_private=allow_private,
                runtime=runtime,
                progress=show,
            ),
            on_wait,
            pause,
        )

    try:
        changed: list[str] | None = None  # None for all sources
        first, last_note, next_refresh = True, "", 0.0
        while not stop.is_set():
            started = time.monotonic()
            if changed is None:
                watcher.watch(_folders_of(reference))  # before the run, so that no change is missed between them
                next_refresh = started + every
            else:
                # A source that was forgotten must not come back, and one that is missing is reported by the refresh.
                own = {folder.spec for folder in _folders_of(reference).folders}
                changed = [spec for spec in changed if spec in own and os.path.isdir(spec)]
            try:
                if changed is None or changed:
                    on_report(run(changed))
                first, last_note = False, ""
            except (SourceError, StorageError, FetchError) as error:
                if first and isinstance(error, SourceError):
                    raise
                if str(error) != last_note:
                    last_note = str(error)
                    on_note(last_note)
            took = time.monotonic() - started
            changed = changes.wait(next_refresh, time.monotonic() + min(took, _MOST_PAUSE_SECONDS))
    except _StoppedError:
        _log.info("watching %s was stopped during a run", reference)
    finally:
        watcher.close()


@dataclass(frozen=True)
class _Watched:
    """The folder sources of a collection that exist, and the folder of the collection itself."""

    folders: Sequence[FolderSource]
    collection: str

    def roots(self) -> dict[str, tuple[int, int]]:
        """Return the folders to watch, each with its device and inode; not those inside another one."""
        found: dict[str, tuple[int, int]] = {}
        for spec in sorted(folder.spec for folder in self.folders):
            if any(spec.startswith(os.path.join(root, "")) for root in found):
                continue
            try:
                status = os.stat(spec)
            except OSError:
                continue
            found[spec] = (status.st_dev, status.st_ino)
        return found

    def sources_changed_at(self, path: str) -> list[str]:
        """Return the specs of the sources that may list something else after a change at a path."""
        if f"{path}/".startswith(os.path.join(self.collection, "")):
            return []
        return [folder.spec for folder in self.folders if folder.may_list(path)]


def _folders_of(reference: str) -> _Watched:
    """Return the folder sources of a collection. Raises `CollectionError` if it cannot be opened or written."""
    store: Store
    with closing(open_collection(reference)) as store:
        if not isinstance(store, WritableStore):
            raise CollectionError(f"{reference} can only be searched: name another collection with -c.")
        folders = []
        for spec in store.sources():
            if not os.path.isabs(spec) or not os.path.isdir(spec):
                continue
            source = open_source(spec)
            if isinstance(source, FolderSource):
                if isinstance(store, KeepsFolderNotes):
                    source.restore(store.folder_notes(spec))
                folders.append(source)
        return _Watched(folders, str(store.path))


class _Changes:
    """The sources that have changed since the last run."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._condition = threading.Condition()
        self._sources: dict[str, None] = {}
        self._first = self._last = 0.0

    def add(self, sources: Sequence[str]) -> None:
        """Note that sources have changed just now."""
        if not sources:
            return
        with self._condition:
            self._last = time.monotonic()
            if not self._sources:
                self._first = self._last
            self._sources.update(dict.fromkeys(sources))
            self._condition.notify()

    def wait(self, next_refresh: float, not_before: float) -> list[str] | None:
        """Wait until sources have changed and changes have settled, and return these; or until it is time for all.

        Both times are of the monotonic clock. Return None when all sources are to be refreshed, [] at the stop.
        """
        with self._condition:
            while not self._stop.is_set():
                now = time.monotonic()
                settled = min(self._last + _SETTLE_SECONDS, self._first + _MOST_UNSETTLED_SECONDS)
                due = max(settled, not_before) if self._sources else next_refresh
                if now >= due:
                    changed = [*self._sources]
                    self._sources.clear()
                    return None if now >= next_refresh else changed
                self._condition.wait(min(due - now, _WAKE_SECONDS))
            return []


class _Watcher:
    """Notes what the operating system reports of folders, in a thread."""

    def __init__(self, changes: _Changes, on_note: Callable[[str], object]) -> None:
        self._changes = changes
        self._on_note = on_note
        self._roots: dict[str, tuple[int, int]] = {}
        self._watched = _Watched((), "")
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._problem = self._noted = ""

    def watch(self, watched: _Watched) -> None:
        """Watch these folders from now on; those that are watched already go on.

        A folder that was deleted and created again is another one. What prevented watching before is tried again.
        """
        self._watched = watched
        roots = watched.roots()
        if roots != self._roots or self._problem or (self._thread is not None and not self._thread.is_alive()):
            self.close()
            self._roots = roots
            if roots:
                self._start([*roots])
        if self._problem and self._problem != self._noted:
            self._on_note(self._problem)
        self._noted = self._problem

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread, self._roots, self._problem = None, {}, ""

    def _start(self, roots: Sequence[str]) -> None:
        """Begin to watch; return when changes are reported, or when it is known that they are not."""
        try:
            from watchfiles import watch as reported_changes
        except ImportError:
            self._problem = (
                "Changes are found by the refresh from time to time only: to find them at once, run "
                "`pip install 'pixmatcher[watch]'`."
            )
            return
        self._stop = threading.Event()
        begun = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(reported_changes, roots, begun, self._stop), name="pixmatcher-watch", daemon=True
        )
        self._thread.start()
        begun.wait()

    def _run(
        self,
        reported_changes: Callable[..., Iterable[set[tuple[object, str]]]],
        roots: Sequence[str],
        begun: threading.Event,
        stop: threading.Event,
    ) -> None:
        try:
            found = reported_changes(
                *roots,
                watch_filter=None,
                debounce=_EVENT_GROUP_MS,
                step=_EVENT_STEP_MS,
                stop_event=stop,
                rust_timeout=_EVENT_GROUP_MS,
                yield_on_timeout=True,  # the first time, it shows that watching has begun
                raise_interrupt=False,
                force_polling=False,
                poll_delay_ms=_POLL_MS,
                ignore_permission_denied=True,
            )
            for changes in found:
                begun.set()
                for _, path in changes:
                    self._changes.add(self._watched.sources_changed_at(path))
        except Exception as error:  # the package raises errors of several kinds, and some of no documented kind
            _log.info("changes are not reported: %s", error)
            self._problem = (
                f"Changes are found by the refresh from time to time only, as the system does not report them "
                f"({_reason(error)})."
            )
        finally:
            begun.set()


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "limit" in text.lower() or "Too many open files" in text or getattr(error, "errno", None) in (24, 28):
        return "the limit of inotify is reached: raise fs.inotify.max_user_watches or max_user_instances with sysctl"
    return text
