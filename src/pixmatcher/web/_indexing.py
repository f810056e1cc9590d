"""Index from the app: a folder into the open collection, or into a new collection inside that folder."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from .._progress import ProgressCallback
from ..collection import Collection
from ..datasets.examples import clear_outdated, demo_paths
from ..indexing import IndexReport, index
from ._background_jobs import Job, last_job, show_error, show_progress, start_job
from ._controls import select_collection
from ._open_collections import collection_list
from ._texts import as_markdown, t

_CREATION = "new collection"
"""Key of the jobs that create collections. One runs at a time."""
_SYSTEM_FOLDERS = frozenset(
    Path(path)
    for path in (
        *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys"),
        *("/tmp", "/usr", "/var", "/System", "/Library", "/Applications"),
    )
)
_VIRTUAL_FILE_SYSTEMS = (Path("/dev"), Path("/proc"), Path("/sys"))
"""The files inside these folders are not stored on a disk."""


def valid_folder(text: str) -> str | None:
    """Return the full path of the folder that a visitor entered, or show why it cannot be indexed and return None."""
    folder = text.strip()
    path = os.path.abspath(os.path.expanduser(folder))
    if not folder or not os.path.isdir(path):
        problem = t("folder_missing", path=folder)
    elif not os.access(path, os.R_OK | os.X_OK):
        problem = t("folder_unreadable", path=folder)
    elif is_system_folder(Path(path)):
        problem = t("folder_of_system", path=folder)
    else:
        return path
    st.error(problem, icon=":material/error:")
    return None


def is_system_folder(folder: Path) -> bool:
    """Return whether a folder is the root of a disk or belongs to the operating system."""
    real = Path(os.path.realpath(folder))
    return real == real.parent or real in _SYSTEM_FOLDERS or any(path in _VIRTUAL_FILE_SYSTEMS for path in real.parents)


def index_into(collection: Path, folder: str | None) -> None:
    """Start to index a folder into a collection. Without a folder, update the collection from its sources."""
    start_job(("index", collection), folder or "", lambda progress: index(folder, collection, progress=progress))


def create_collection(folder: str) -> None:
    """Start to create a collection in a folder, for all visitors. If the folder has a collection, show that one."""
    existing, shown = Collection.locate(folder), collection_list()
    if existing is not None:
        shown.add(existing)
        select_collection(existing)
        st.rerun()

    def work(progress: ProgressCallback) -> IndexReport:
        try:
            return index(folder, progress=progress)
        finally:
            if (created := Collection.locate(folder)) is not None:  # also after an error
                shown.add(created)

    if not start_job(_CREATION, folder, work):
        st.warning(t("index_busy"), icon=":material/hourglass:")


def create_example_collection() -> None:
    """Start to index the example photos, for all visitors."""
    photos, path = demo_paths()
    shown = collection_list()

    def work(progress: ProgressCallback) -> IndexReport:
        clear_outdated(path)
        report = index(photos, path, progress=progress)
        shown.add(report.collection)
        return report

    start_job(_CREATION, t("example_photos"), work)


def show_index_jobs(collection: Path | None = None) -> None:
    """Show the progress or the result of the last creation of a collection, and of the last indexing into this one."""
    if (job := last_job(_CREATION)) is not None:
        _show_job(job)
        if isinstance(job.result, IndexReport) and job.result.collection != collection:
            st.button(
                t("index_open"),
                key="open new",
                icon=":material/photo_library:",
                on_click=select_collection,
                args=(job.result.collection,),
            )
    if (job := last_job(("index", collection))) is not None:
        _show_job(job)


def has_index_jobs(collection: Path) -> bool:
    """Return whether `show_index_jobs` has anything to show."""
    return last_job(_CREATION) is not None or last_job(("index", collection)) is not None


def _show_job(job: Job) -> None:
    if job.running:
        show_progress(job, t("index_running", source=job.name) if job.name else t("index_updating"))
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
        for note in r.notes:
            st.info(as_markdown(note))
        if passed_over := sum(sum(counts.values()) for counts in r.passed_over.values()):
            st.caption(t("index_passed_over", count=passed_over))
