"""Long work in the background of the server: it goes on when the page is closed or loaded again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import streamlit as st

from ..errors import PixMatcherError
from .texts import sentence, t

_POLL_SECONDS = 0.7

Tell = Callable[[int, int], None]
"""Called with what is done and what is to do."""


@dataclass
class Job:
    """One run of long work. Its thread writes, the pages read."""

    name: str
    """What to call it, as a text of strangers."""
    done: int = 0
    total: int | None = None
    running: bool = True
    result: object = None
    error: Exception | None = None


@st.cache_resource(show_spinner=False)
def _jobs() -> tuple[threading.Lock, dict[Hashable, Job]]:
    return threading.Lock(), {}


def job_of(key: Hashable) -> Job | None:
    """The last run of this kind, whoever started it."""
    return _jobs()[1].get(key)


def start(key: Hashable, name: str, work: Callable[[Tell], object]) -> bool:
    """Begin a run, unless one of this kind is under way; whether it was begun."""
    lock, jobs = _jobs()
    with lock:
        last = jobs.get(key)
        if last is not None and last.running:
            return False
        job = jobs[key] = Job(name)
    threading.Thread(target=_run, args=(job, work), daemon=True).start()
    return True


def _run(job: Job, work: Callable[[Tell], object]) -> None:
    def tell(done: int, total: int) -> None:
        job.done, job.total = done, total

    try:
        job.result = work(tell)
    except PixMatcherError as error:
        job.error = error
    except Exception as error:
        logging.getLogger(__name__).exception("work in the background failed")
        job.error = error
    finally:
        job.running = False


@st.fragment(run_every=_POLL_SECONDS)
def follow(job: Job, title: str, counted: str) -> None:
    """Show how far a run is until it ends; `counted` is the name of the text that counts what is done."""
    if not job.running:
        st.rerun()
    if job.total is None:
        st.progress(0.0, text=title)
    else:
        share = job.done / job.total if job.total else 1.0
        st.progress(min(1.0, share), text=f"{title}: {t(counted, done=job.done, total=job.total)}")


def show_error(error: Exception) -> None:
    """Say why a run ended early."""
    st.error(sentence(error) if isinstance(error, PixMatcherError) else t("internal"), icon=":material/error:")
