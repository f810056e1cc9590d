"""The hub's HTTP interface: what a repository contains at one commit, and the user's token.

The hub's endpoints are those that its own client uses (https://github.com/huggingface/huggingface_hub, `hf_api.py` and
`file_download.py`): `api/models/REPO/revision/REVISION`, `api/models/REPO/tree/COMMIT` and `REPO/resolve/COMMIT/PATH`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..._files import sha256_of
from ..._urls import without_password
from ...errors import EncoderError, FetchError
from ...net.stream import stream
from ..onnx.card import is_inside

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
    """The SHA-1 by which git identifies its content."""
    sha256: str | None
    """The SHA-256 in hexadecimal; None for short files, which git itself stores."""

    def matches(self, file: Path) -> bool:
        """Return whether a file on disk has this content."""
        return _git_blob_hash(file) == self.blob if self.sha256 is None else sha256_of(file) == self.sha256


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    commit: str
    licence: str
    files: Mapping[str, HubFile]
    """The files by their paths."""


def endpoint() -> str:
    """Return the URL of the hub, or of the mirror that the hub's variable `HF_ENDPOINT` names."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def look_up(repo: str, revision: str = "main") -> Repository:
    """Return the files of a repository, as the hub reports them.

    Raises `EncoderError` if the repository or the revision does not exist or may not be read, `FetchError` if the hub
    cannot be reached.
    """
    if not _NAME.fullmatch(repo) or ".." in repo or "--" in repo:
        raise EncoderError(f"{repo[:100]!r} is not the name of a repository: write it as OWNER/NAME.")
    if not _REVISION.fullmatch(revision):
        raise EncoderError(
            f"{revision[:100]!r} is not a revision of the repository {repo}: give a branch, tag or commit."
        )
    info, _ = _get_json(f"{endpoint()}/api/models/{repo}/revision/{quote(revision, safe='')}", repo, revision)
    commit = info.get("sha") if isinstance(info, dict) else None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _wrong_answer_error()
    first = url = f"{endpoint()}/api/models/{repo}/tree/{commit}?recursive=true"
    files: dict[str, HubFile] = {}
    for _ in range(_MAX_PAGES):
        page, following = _get_json(url, repo, revision)
        for file in _files(page, repo):
            files[file.path] = file
        if following is None:
            return Repository(repo, commit, _licence(info), files)
        url = f"{first.partition('?')[0]}?{following}"
    raise EncoderError(f"The repository {repo} has more than {_MAX_PAGES},000 files: choose another one.")


# The hub's answers


def _get_json(url: str, repo: str, revision: str) -> tuple[Any, str | None]:
    """Return the JSON that the hub answers, and the query string of the next page if there is one."""
    headers: dict[str, str] = {}
    answer = bytearray()
    try:
        for piece in stream(url, max_bytes=_MAX_ANSWER, token=hub_token(), on_response=headers.update):
            if piece.position == 0:
                answer.clear()
            answer += piece.data
    except FetchError as error:
        code = headers.get("x-error-code", "")
        if error.reason == "HTTP 403" or code == "GatedRepo":
            raise gated_error(repo) from error
        if code == "RevisionNotFound":
            raise EncoderError(f"The repository {repo} has no revision {revision}: choose another one.") from error
        if error.reason in ("HTTP 401", "HTTP 404"):
            raise EncoderError(
                f"The repository {repo} does not exist or is private: check the name, or set HF_TOKEN to a token that "
                "may read it."
            ) from error
        raise
    following = re.search(r"<[^>]*\?([^>]*)>\s*;\s*rel=\"?next\"?", headers.get("link", ""))
    try:
        return json.loads(bytes(answer)), following[1] if following else None
    except (ValueError, RecursionError) as error:
        raise _wrong_answer_error() from error


def gated_error(repo: str) -> EncoderError:
    page = f"{without_password(endpoint())}/{repo}"
    return EncoderError(
        f"The repository {repo} requires that you accept its terms: do so at {page} and set HF_TOKEN to your token."
    )


def _wrong_answer_error() -> EncoderError:
    return EncoderError(
        f"{without_password(endpoint())} does not answer as the hub does: check HF_ENDPOINT and the network."
    )


def _files(page: Any, repo: str) -> list[HubFile]:
    """Return the files of a page of the file list. Raises `EncoderError` for a wrong answer or a path outside."""
    if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
        raise _wrong_answer_error()
    files = []
    for entry in page:
        if entry.get("type") != "file":
            continue
        path, size, blob, lfs = (entry.get(key) for key in ("path", "size", "oid", "lfs"))
        sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
        is_valid = isinstance(path, str) and isinstance(blob, str) and type(size) is int and size >= 0
        if not is_valid or (lfs is not None and not (isinstance(sha256, str) and _HASH.fullmatch(sha256))):
            raise _wrong_answer_error()
        if not is_inside(path):
            raise EncoderError(
                f"The repository {repo} names a file {path[:100]!r}, which is refused: choose another one."
            )
        files.append(HubFile(path, size, blob, sha256))
    return files


def _licence(info: Mapping[str, Any]) -> str:
    """Return the licence that a repository states, such as `apache-2.0`, or "unknown"."""
    data, tags = info.get("cardData"), info.get("tags")
    stated: list[object] = [data.get(key) for key in ("license_name", "license")] if isinstance(data, dict) else []
    if isinstance(tags, list):
        stated += [tag.removeprefix("license:") for tag in tags if str(tag).startswith("license:")]
    named = (text for text in stated if isinstance(text, str) and re.fullmatch(r"[ -~]{1,100}", text))
    return next(named, "unknown")


def _git_blob_hash(path: Path) -> str:
    """Return the hash by which git identifies the content of a file (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hub_token() -> str | None:
    """Return the user's token, found as by the hub's own client. Raises `EncoderError` if it cannot be a token."""
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token and os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() not in ("1", "on", "yes", "true"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
        home = Path(os.environ.get("HF_HOME") or cache)
        with contextlib.suppress(OSError, ValueError):
            token = Path(os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or home / "token")).read_text("ascii")
    token = token.strip()
    if token and not _TOKEN.fullmatch(token):
        raise EncoderError("HF_TOKEN, or the hub's token file, does not contain a token: correct it, or remove it.")
    return token or None
