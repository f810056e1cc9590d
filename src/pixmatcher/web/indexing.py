"""Index from the app: a folder into a collection that is there, or into a new one inside that folder."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from ..collection import Collection
from ..datasets.examples import clear_outdated, demo_paths
from ..indexing import IndexReport, index
from . import state
from .controls import look_at
from .jobs import Job, Tell, follow, job_of, show_error, start
from .texts import t

_NEW = "new collection"
"""What the runs are called that make collections: one at a time."""
_SYSTEM = frozenset(
    Path(path)
    for path in (
        *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys"),
        *("/tmp", "/usr", "/var", "/System", "/Library", "/Applications"),
    )
)
_NO_FILES = (Path("/dev"), Path("/proc"), Path("/sys"))
"""What is below these are no files on a disk."""


def folder_of(text: str) -> str | None:
    """The full path of the folder that a visitor named; where it is none to index, that is said instead."""
    folder = text.strip()
    path = os.path.abspath(os.path.expanduser(folder))
    if not folder or not os.path.isdir(path):
        problem = t("folder_missing", path=folder)
    elif not os.access(path, os.R_OK | os.X_OK):
        problem = t("folder_unreadable", path=folder)
    elif is_of_system(Path(path)):
        problem = t("folder_of_system", path=folder)
    else:
        return path
    st.error(problem, icon=":material/error:")
    return None


def is_of_system(folder: Path) -> bool:
    """Whether a folder is the root of a disk, or one that belongs to the system."""
    real = Path(os.path.realpath(folder))
    return real == real.parent or real in _SYSTEM or any(above in _NO_FILES for above in real.parents)


def index_into(collection: Path, folder: str | None) -> None:
    """Begin to index a folder into a collection, or to look for changes in what it has."""
    start(("index", collection), folder or "", lambda tell: index(folder, collection, progress=tell))


def make_collection(folder: str) -> None:
    """Begin to make a collection in a folder, for all visitors; one that is there is shown at once."""
    there, shelf = Collection.locate(folder), state.shelf()
    if there is not None:
        shelf.add(there)
        look_at(there)
        st.rerun()

    def work(tell: Tell) -> IndexReport:
        try:
            return index(folder, progress=tell)
        finally:
            if (made := Collection.locate(folder)) is not None:  # also where the run broke off
                shelf.add(made)

    if not start(_NEW, folder, work):
        st.warning(t("index_busy"), icon=":material/hourglass:")


def make_example_collection() -> None:
    """Begin to index the example photos, for all visitors."""
    photos, path = demo_paths()
    shelf = state.shelf()

    def work(tell: Tell) -> IndexReport:
        clear_outdated(path)
        report = index(photos, path, progress=tell)
        shelf.add(report.collection)
        return report

    start(_NEW, t("example_photos"), work)


def show_runs(collection: Path | None = None) -> None:
    """How far the last runs are, or how they ended: those that made collections, and those of this one."""
    if (job := job_of(_NEW)) is not None:
        _show(job)
        if isinstance(job.result, IndexReport) and job.result.collection != collection:
            st.button(
                t("index_open"),
                key="open new",
                icon=":material/photo_library:",
                on_click=look_at,
                args=(job.result.collection,),
            )
    if (job := job_of(("index", collection))) is not None:
        _show(job)


def is_of_interest(collection: Path) -> bool:
    """Whether there is a run to show."""
    return job_of(_NEW) is not None or job_of(("index", collection)) is not None


def _show(job: Job) -> None:
    if job.running:
        follow(job, t("index_running", source=job.name) if job.name else t("index_refresh"), "images_of")
    elif job.error is not None:
        show_error(job.error)
    elif isinstance(job.result, IndexReport):
        r = job.result
        text = t(
            "index_done",
            added=r.added,
            changed=r.changed,
            moved=r.moved,
            removed=r.removed,
            failed=len(r.failures),
        )
        st.success(text, icon=":material/check_circle:")
