"""Long work in a background thread of the server. It continues when the page is closed or reloaded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import streamlit as st

from .._progress import Progress, ProgressCallback
from ..errors import PixMatcherError
from ._texts import error_text, t

_POLL_SECONDS = 0.7
_log = logging.getLogger("pixmatcher.web")


@dataclass
class Job:
    """One run of long work. Its thread writes this object, and the pages read it."""

    name: str
    """The name to show; an untrusted text."""
    progress: Progress | None = None
    running: bool = True
    result: object = None
    error: Exception | None = None


@st.cache_resource(show_spinner=False)
def _jobs() -> tuple[threading.Lock, dict[Hashable, Job]]:
    """Return the lock and the last job of each key, shared by all visitors."""
    return threading.Lock(), {}


def last_job(key: Hashable) -> Job | None:
    """Return the last job with this key, of any visitor."""
    return _jobs()[1].get(key)


def start_job(key: Hashable, name: str, work: Callable[[ProgressCallback], object]) -> bool:
    """Start a job, unless one with this key is running. Return whether it was started."""
    lock, jobs = _jobs()
    with lock:
        last = jobs.get(key)
        if last is not None and last.running:
            return False
        job = jobs[key] = Job(name)
    threading.Thread(target=_run_job, args=(job, key, work), daemon=True).start()
    return True


def _run_job(job: Job, key: Hashable, work: Callable[[ProgressCallback], object]) -> None:
    """Run a job in this thread, and store its result or its error."""

    def report_progress(progress: Progress) -> None:
        job.progress = progress

    _log.info("job started: %s", key)
    started = time.perf_counter()
    try:
        job.result = work(report_progress)
        _log.info("job finished after %.1f s: %s", time.perf_counter() - started, key)
    except PixMatcherError as error:
        _log.info("job failed: %s: %s", key, error)
        job.error = error
    except Exception as error:
        _log.exception("job failed: %s", key)
        job.error = error
    finally:
        job.running = False


@st.fragment(run_every=_POLL_SECONDS)
def show_progress(job: Job, title: str) -> None:
    """Show the progress of a job until it ends."""
    if not job.running:
        st.rerun()
    progress = job.progress
    if progress is None or progress.total is None:
        st.progress(0.0, text=title)
    else:
        fraction = progress.done / progress.total if progress.total else 1.0
        count = t(f"{progress.unit}_of", done=progress.done, total=progress.total)
        st.progress(min(1.0, fraction), text=f"{title}: {count}")


def show_error(error: Exception) -> None:
    """Show why a job failed."""
    st.error(error_text(error) if isinstance(error, PixMatcherError) else t("internal"), icon=":material/error:")
