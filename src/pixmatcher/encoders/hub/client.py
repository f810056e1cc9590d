"""The hub of models: what a repository holds, its files, and encoders that it offers as ONNX files.

The hub's endpoints are those its own client uses (https://github.com/huggingface/huggingface_hub, `hf_api.py` and
`file_download.py`): `api/models/REPO/revision/REVISION`, `api/models/REPO/tree/COMMIT` and `REPO/resolve/COMMIT/PATH`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..._files import sha256_of
from ..._progress import ProgressCallback
from ..._urls import without_password
from ...errors import EncoderError, FetchError
from ...net.stream import stream
from ..names import INT8
from ..onnx.card import CARD_NAME, Card, is_inside, read_card, write_card
from ..onnx.external import external_files
from ..onnx.layout import CONFIG, LONGEST, PREPROCESSOR, TOKENIZER, TOKENIZER_CONFIG, beside, find_layout, read_layout
from .cache import (
    MAX_BYTES,
    OfflineError,
    alone_at,
    bring,
    cache_folder,
    damaged_files,
    delete_folder,
    lock_beside,
    needing_network,
    put_folder,
    ways_out,
    ways_to_weights,
)

_NAME = re.compile(r"(?=.{1,200}$)([A-Za-z0-9]([\w.-]{0,94}\w)?/)?[A-Za-z0-9]([\w.-]{0,94}\w)?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w./-]{1,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_HASH = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[!-~]{1,1000}")
_MAX_ANSWER = 32 << 20
_MAX_PAGES = 100  # of 1,000 files each


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at one commit."""

    path: str
    bytes: int
    blob: str
    """The name that git has for its content."""
    sha256: str | None
    """In hexadecimal; None for short files, which lie in git itself."""

    def fits(self, file: Path) -> bool:
        """Whether a file on disk has this content."""
        return _blob_of(file) == self.blob if self.sha256 is None else sha256_of(file) == self.sha256


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    commit: str
    licence: str
    files: Mapping[str, HubFile]
    """By path."""


def endpoint() -> str:
    """The address of the hub, or of the mirror that its own variable `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def look_up(repo: str, revision: str = "main") -> Repository:
    """Ask the hub what a repository holds.

    Raises `EncoderError` if there is no such repository or revision, or it may not be read, `FetchError` if the hub
    cannot be reached.
    """
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise EncoderError(f"{repo[:100]!r} is no name of a repository: give it as OWNER/NAME.")
    if not _REVISION.fullmatch(revision):
        raise EncoderError(f"{revision[:100]!r} is no revision of the repository {repo}: give a branch, tag or commit.")
    info, _ = _ask(f"{endpoint()}/api/models/{repo}/revision/{quote(revision, safe='')}", repo, revision)
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _not_the_hub()
    first = url = f"{endpoint()}/api/models/{repo}/tree/{commit}?recursive=true"
    files: dict[str, HubFile] = {}
    for _ in range(_MAX_PAGES):
        page, following = _ask(url, repo, revision)
        for file in _files(page, repo):
            files[file.path] = file
        if following is None:
            return Repository(repo, commit, _licence(info), files)
        url = f"{first.partition('?')[0]}?{following}"
    raise EncoderError(f"The repository {repo} holds more than {_MAX_PAGES},000 files: take another one.")


def fetch_hub_file(
    repo: str,
    path: str,
    *,
    encoder: str,
    revision: str = "main",
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return a file of a repository, from the cache or else downloaded into it, and kept at the commit it has then.

    A file of the cache that is not as it was downloaded is deleted. Raises as `fetch_weights`, and `EncoderError` if
    there is no such repository or file, or it may not be read.
    """
    place = cache_folder() / "weights" / quote(f"hf:{repo}@{revision}/{path}", safe="@")
    note = place.with_name(f"{place.name}.json")
    with needing_network(f"The weights of the encoder {encoder}", ways_to_weights()):
        if _is_as_noted(place, note):
            return place
        if offline and not place.is_file():
            raise OfflineError
        with lock_beside(place):
            if _is_as_noted(place, note):
                return place
            spoilt = place.is_file()
            place.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            if offline:
                raise OfflineError(spoilt)
            repository = look_up(repo, revision)
            if path not in repository.files:
                raise EncoderError(f"The repository {repo} holds no file {path}: take another one.")
            note.write_text(json.dumps({"commit": repository.commit} | asdict(repository.files[path])))
            _bring(repository, path, place, progress)
    return place


def _is_as_noted(place: Path, note: Path) -> bool:
    """Whether a file of the cache is there, and as it was when it was downloaded."""
    try:
        with note.open("rb") as file:
            known = json.loads(file.read(10_000))
        del known["commit"]
        return place.is_file() and HubFile(**known).fits(place)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def pull_onnx(
    repo: str, folder: Path, *, name: str, offline: bool = False, progress: ProgressCallback | None = None
) -> Card:
    """Download the ONNX encoder of a repository, written OWNER/NAME or OWNER/NAME@REVISION, to `folder`.

    With `@int8` at the end of `name` it is the quantised one. A folder that has the repository's newest commit already
    is left as it is, another one is replaced in one step. What was received when a call is stopped, the next one uses.

    Raises `EncoderError` if the repository does not exist or may not be read, offers no encoder that can be used, or
    `offline` forbids to ask; `FetchError` if it cannot be downloaded, `StorageError` if the disk is full.
    """
    repo, _, revision = repo.partition("@")
    other = "name a folder that has its files with --encoder onnx:FOLDER"
    with needing_network(f"The encoder {name}", ways_out(folder, other)):
        if offline:
            raise OfflineError
        repository = look_up(repo, revision or "main")
        with alone_at(folder) as half:
            if (card := _card_of(folder, name, repository.commit)) is not None:
                return card
            half.mkdir(exist_ok=True)
            try:
                card = _fill(half, repository, name, progress)
            except EncoderError:  # what is no use is not kept
                delete_folder(half)
                raise
            put_folder(half, folder)
    return card


def _fill(half: Path, repository: Repository, name: str, progress: ProgressCallback | None) -> Card:
    """Bring a folder to what the encoder needs, and write its card."""
    kept = _bring_all(repository, half, int8=name.endswith(INT8), progress=progress)
    for path in half.rglob("*"):
        if not path.is_dir() and path.relative_to(half).as_posix() not in kept:
            path.unlink()
    source = f"{without_password(endpoint())}/{repository.name}/tree/{repository.commit}"
    notes = {"commit": repository.commit}
    card = read_layout(half, name=name, licence=repository.licence, source=source, notes=notes)
    write_card(card, half)
    return card


def _card_of(folder: Path, name: str, commit: str) -> Card | None:
    """The card of a folder if it is whole, of that name and commit."""
    if not (folder / CARD_NAME).is_file():
        return None
    try:
        card = read_card(folder)
    except EncoderError:
        return None
    same = card.name == name and (card.notes or {}).get("commit") == commit
    return card if same and not damaged_files(card, folder) else None


def _bring_all(repository: Repository, folder: Path, *, int8: bool, progress: ProgressCallback | None) -> set[str]:
    """Download what an encoder needs of a repository; the paths of that."""
    layout = find_layout(repository.files, ["int8" if int8 else "fp32"])
    if layout is None:
        offered = sorted(path for path in repository.files if path.endswith(".onnx"))
        offers = f"it offers {', '.join(offered)[:300]}" if offered else "it offers no ONNX files"
        wanted = "int8 ONNX files" if int8 else "ONNX files of an encoder in the usual layout"
        raise EncoderError(f"The repository {repository.name} has no {wanted} ({offers}): take another one.")
    if PREPROCESSOR not in repository.files or (layout.textual and TOKENIZER not in repository.files):
        missing = TOKENIZER if PREPROCESSOR in repository.files else PREPROCESSOR
        raise EncoderError(f"The repository {repository.name} has ONNX files but no {missing}: take another one.")
    texts = (TOKENIZER, TOKENIZER_CONFIG) if layout.textual else ()
    paths = [path for path in (PREPROCESSOR, CONFIG, *texts) if path in repository.files]
    for path in paths:
        if repository.files[path].bytes > LONGEST[path]:
            raise EncoderError(f"The file {path} of the repository {repository.name} is too long: take another one.")
    networks = [layout.visual, layout.textual] if layout.textual else [layout.visual]
    for path in [*paths, *networks]:
        _bring(repository, path, folder / path, progress)
    for network in networks:
        try:
            paths += [beside(network, name) for name in sorted(external_files(folder / network))]
        except ValueError as error:
            raise EncoderError(
                f"The file {network} of the repository {repository.name} cannot be used ({error}): take another one."
            ) from error
    for path in paths:
        if path not in repository.files:
            raise EncoderError(f"The repository {repository.name} lacks its file {path}: take another one.")
        _bring(repository, path, folder / path, progress)
    return {*paths, *networks}


def _bring(repository: Repository, path: str, place: Path, progress: ProgressCallback | None) -> None:
    """Download a file of a repository, unless it is there."""
    file = repository.files[path]
    if file.bytes > MAX_BYTES:
        raise EncoderError(f"The file {path} of the repository {repository.name} is too long: take another one.")
    url = f"{endpoint()}/{repository.name}/resolve/{repository.commit}/{quote(path)}"
    try:
        bring(url, place, file.fits, size=file.bytes, token=_token(), progress=progress)
    except FetchError as error:
        if error.reason in ("HTTP 401", "HTTP 403"):
            raise _gated(repository.name) from error
        raise


# The hub's answers


def _ask(url: str, repo: str, revision: str) -> tuple[Any, str | None]:
    """What the hub answers, from JSON, and the query of the next page if there is one."""
    headers: dict[str, str] = {}
    answer = bytearray()
    try:
        for piece in stream(url, max_bytes=_MAX_ANSWER, token=_token(), on_response=headers.update):
            if piece.position == 0:
                answer.clear()
            answer += piece.data
    except FetchError as error:
        code = headers.get("x-error-code", "")
        if error.reason == "HTTP 403" or code == "GatedRepo":
            raise _gated(repo) from error
        if code == "RevisionNotFound":
            raise EncoderError(f"The repository {repo} has no revision {revision}: give another one.") from error
        if error.reason in ("HTTP 401", "HTTP 404"):
            raise EncoderError(
                f"There is no repository {repo} that may be read: check the name, or, if it is private, set HF_TOKEN "
                "to a token that may read it."
            ) from error
        raise
    following = re.search(r"<[^>]*\?([^>]*)>\s*;\s*rel=\"?next\"?", headers.get("link", ""))
    try:
        return json.loads(bytes(answer)), following[1] if following else None
    except (ValueError, RecursionError) as error:
        raise _not_the_hub() from error


def _gated(repo: str) -> EncoderError:
    return EncoderError(
        f"The repository {repo} is only for those who accept its terms: do so on {without_password(endpoint())}/{repo}, and set "
        "HF_TOKEN to a token of yours."
    )


def _not_the_hub() -> EncoderError:
    return EncoderError(
        f"{without_password(endpoint())} does not answer as the hub does: check HF_ENDPOINT and the network."
    )


def _files(page: Any, repo: str) -> list[HubFile]:
    """The files of a page of a tree. Raises `EncoderError` if it is none, or names what lies in no repository."""
    if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
        raise _not_the_hub()
    files = []
    for entry in page:
        if entry.get("type") != "file":
            continue
        path, size, blob, lfs = (entry.get(key) for key in ("path", "size", "oid", "lfs"))
        sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
        whole = isinstance(path, str) and isinstance(blob, str) and type(size) is int and size >= 0
        if not whole or (lfs is not None and not (isinstance(sha256, str) and _HASH.fullmatch(sha256))):
            raise _not_the_hub()
        if not is_inside(path):
            raise EncoderError(
                f"The repository {repo} names a file {path[:100]!r}, which is refused: take another one."
            )
        files.append(HubFile(path, size, blob, sha256))
    return files


def _licence(info: Mapping[str, Any]) -> str:
    """The licence that a repository states, such as `apache-2.0`."""
    data, tags = info.get("cardData"), info.get("tags")
    told: list[object] = [data.get(key) for key in ("license_name", "license")] if isinstance(data, dict) else []
    if isinstance(tags, list):
        told += [tag.removeprefix("license:") for tag in tags if str(tag).startswith("license:")]
    named = (text for text in told if isinstance(text, str) and re.fullmatch(r"[ -~]{1,100}", text))
    return next(named, "unknown")


def _blob_of(path: Path) -> str:
    """The name that git has for the content of a file (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _token() -> str | None:
    """The user's token for the hub, where its own client looks for it. Raises `EncoderError` if it cannot be one."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token and os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() not in ("1", "on", "yes", "true"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        home = Path(os.environ.get("HF_HOME") or cache)
        with contextlib.suppress(OSError, ValueError):
            token = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser().read_text("ascii")
    token = token.strip()
    if token and not _TOKEN.fullmatch(token):
        raise EncoderError("HF_TOKEN, or the hub's file of that token, holds no token: set it right, or leave it out.")
    return token or None
