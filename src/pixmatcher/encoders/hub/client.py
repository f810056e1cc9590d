"""Download files and encoders from the hub of models into the cache."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from ..._progress import ProgressCallback
from ..._urls import without_password
from ...errors import EncoderError, FetchError
from .._cache import cache_folder, damaged_files
from .._folders import delete_folder, locked_beside, locked_folder, put_folder
from .._names import INT8
from ..onnx.card import CARD_NAME, Card, read_card, write_card
from ..onnx.external import external_files
from ..onnx.layout import CONFIG, LONGEST, PREPROCESSOR, TOKENIZER, TOKENIZER_CONFIG, beside, find_layout, read_layout
from ._api import HubFile, Repository, endpoint, gated_error, hub_token, look_up
from .download import (
    MAX_BYTES,
    OfflineError,
    download_missing,
    explaining_failures,
    remedies,
    remedies_for_weights,
)

logger = logging.getLogger("pixmatcher.encoders")


def fetch_hub_file(
    repo: str,
    path: str,
    *,
    encoder: str,
    revision: str = "main",
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return a file of a repository, from the cache or else downloaded into it.

    Once downloaded, the file stays at its commit. A file of the cache that is damaged is deleted and downloaded again.
    Raises as `fetch_weights`, and `EncoderError` if the repository or the file does not exist or may not be read.
    """
    target = cache_folder() / "weights" / quote(f"hf:{repo}@{revision}/{path}", safe="@")
    note = target.with_name(f"{target.name}.json")
    with explaining_failures(f"The weights of the encoder {encoder}", remedies_for_weights()):
        if _matches_note(target, note):
            return target
        if offline and not target.is_file():
            raise OfflineError
        with locked_beside(target):
            if _matches_note(target, note):
                return target
            was_damaged = target.is_file()
            target.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            if offline:
                raise OfflineError(was_damaged)
            repository = look_up(repo, revision)
            if path not in repository.files:
                raise EncoderError(f"The repository {repo} has no file {path}: choose another one.")
            note.write_text(json.dumps({"commit": repository.commit} | asdict(repository.files[path])))
            _download(repository, path, target, progress)
    return target


def _matches_note(target: Path, note: Path) -> bool:
    """Return whether a file of the cache exists and has the hash that was noted when it was downloaded."""
    try:
        with note.open("rb") as file:
            known = json.loads(file.read(10_000))
        del known["commit"]
        return target.is_file() and HubFile(**known).matches(target)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def pull_onnx(
    repo: str, folder: Path, *, name: str, offline: bool = False, progress: ProgressCallback | None = None
) -> Card:
    """Download the ONNX encoder of a repository, written OWNER/NAME or OWNER/NAME@REVISION, to `folder`.

    If `name` ends with `@int8`, the quantised files are downloaded. A folder that has the newest commit is not changed;
    another one is replaced in one step. If a call is stopped, the next one uses the bytes that were received.

    Raises `EncoderError` if the repository does not exist or may not be read, has no encoder that can be used, or
    `offline` forbids the download; `FetchError` if it cannot be downloaded, `StorageError` if the disk is full.
    """
    repo, _, revision = repo.partition("@")
    other = "name a folder that has its files with --encoder onnx:FOLDER"
    with explaining_failures(f"The encoder {name}", remedies(folder, other)):
        if offline:
            raise OfflineError
        repository = look_up(repo, revision or "main")
        with locked_folder(folder) as unfinished:
            if (card := _current_card(folder, name, repository.commit)) is not None:
                logger.debug("%s is at the newest commit %s already", name, repository.commit)
                return card
            unfinished.mkdir(exist_ok=True)
            try:
                card = _fill(unfinished, repository, name, progress)
            except EncoderError:  # the files are of no use
                delete_folder(unfinished)
                raise
            put_folder(unfinished, folder)
    logger.info("Downloaded %s at the commit %s to %s", name, repository.commit, folder)
    return card


def _fill(folder: Path, repository: Repository, name: str, progress: ProgressCallback | None) -> Card:
    """Download the files of an encoder to a folder, delete other files there, and write its card."""
    needed = _download_all(repository, folder, int8=name.endswith(INT8), progress=progress)
    for path in folder.rglob("*"):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in needed:
            path.unlink()
    source = f"{without_password(endpoint())}/{repository.name}/tree/{repository.commit}"
    notes = {"commit": repository.commit}
    card = read_layout(folder, name=name, licence=repository.licence, source=source, notes=notes)
    write_card(card, folder)
    return card


def _current_card(folder: Path, name: str, commit: str) -> Card | None:
    """Return the card of a folder if the folder is intact and has that name and commit, otherwise None."""
    if not (folder / CARD_NAME).is_file():
        return None
    try:
        card = read_card(folder)
    except EncoderError:
        return None
    same = card.name == name and (card.notes or {}).get("commit") == commit
    return card if same and not damaged_files(card, folder) else None


def _download_all(repository: Repository, folder: Path, *, int8: bool, progress: ProgressCallback | None) -> set[str]:
    """Download the files of a repository that an encoder needs, and return their paths."""
    layout = find_layout(repository.files, ["int8" if int8 else "fp32"])
    if layout is None:
        existing = sorted(path for path in repository.files if path.endswith(".onnx"))
        listed = f"it has {', '.join(existing)[:300]}" if existing else "it has no ONNX files"
        expected = "int8 ONNX files" if int8 else "ONNX files of an encoder in the usual layout"
        raise EncoderError(f"The repository {repository.name} has no {expected} ({listed}): choose another one.")
    if PREPROCESSOR not in repository.files or (layout.textual and TOKENIZER not in repository.files):
        missing = TOKENIZER if PREPROCESSOR in repository.files else PREPROCESSOR
        raise EncoderError(f"The repository {repository.name} has ONNX files but no {missing}: choose another one.")
    texts = (TOKENIZER, TOKENIZER_CONFIG) if layout.textual else ()
    paths = [path for path in (PREPROCESSOR, CONFIG, *texts) if path in repository.files]
    for path in paths:
        if repository.files[path].bytes > LONGEST[path]:
            raise EncoderError(f"The file {path} of the repository {repository.name} is too long: choose another one.")
    networks = [layout.visual, layout.textual] if layout.textual else [layout.visual]
    for path in [*paths, *networks]:
        _download(repository, path, folder / path, progress)
    for network in networks:
        try:
            paths += [beside(network, name) for name in sorted(external_files(folder / network))]
        except ValueError as error:
            raise EncoderError(
                f"The file {network} of the repository {repository.name} cannot be used ({error}): choose another one."
            ) from error
    for path in paths:
        if path not in repository.files:
            raise EncoderError(f"The repository {repository.name} lacks its file {path}: choose another one.")
        _download(repository, path, folder / path, progress)
    return {*paths, *networks}


def _download(repository: Repository, path: str, target: Path, progress: ProgressCallback | None) -> None:
    """Download a file of a repository, unless it exists."""
    file = repository.files[path]
    if file.bytes > MAX_BYTES:
        raise EncoderError(f"The file {path} of the repository {repository.name} is too long: choose another one.")
    url = f"{endpoint()}/{repository.name}/resolve/{repository.commit}/{quote(path)}"
    try:
        download_missing(url, target, file.matches, size=file.bytes, token=hub_token(), progress=progress)
    except FetchError as error:
        if error.reason in ("HTTP 401", "HTTP 403"):
            raise gated_error(repository.name) from error
        raise
