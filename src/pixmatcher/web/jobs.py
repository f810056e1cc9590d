"""Indexing in the background of the server: it goes on when the page is closed or loaded again."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from ..errors import PixMatcherError
from ..indexing import IndexReport, index


@dataclass
class Job:
    """One run of indexing. Its thread writes, the pages read."""

    source: str
    """The folder, or "" for all sources that the collection has."""
    done: int = 0
    total: int | None = None
    report: IndexReport | None = None
    error: Exception | None = None

    @property
    def running(self) -> bool:
        return self.report is None and self.error is None


@st.cache_resource(show_spinner=False)
def _jobs() -> tuple[threading.Lock, dict[Path, Job]]:
    return threading.Lock(), {}


def job_of(collection: Path) -> Job | None:
    """The last run of indexing of a collection, whoever started it."""
    return _jobs()[1].get(collection)


def start_indexing(collection: Path, folder: str | None) -> None:
    """Index a folder into a collection, or refresh it, unless a run for this collection is under way."""
    lock, jobs = _jobs()
    with lock:
        last = jobs.get(collection)
        if last is not None and last.running:
            return
        job = jobs[collection] = Job(folder or "")
    threading.Thread(target=_run, args=(job, collection, folder), daemon=True).start()


def _run(job: Job, collection: Path, folder: str | None) -> None:
    def tell(done: int, total: int) -> None:
        job.done, job.total = done, total

    try:
        job.report = index(folder, collection, progress=tell)
    except PixMatcherError as error:
        job.error = error
    except Exception as error:
        logging.getLogger(__name__).exception("indexing failed")
        job.error = error
