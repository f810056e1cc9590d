"""Download files of models into the cache, and say what to do if that is not possible."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from ..._files import explain_disk_errors, sha256_of
from ..._progress import ProgressCallback, with_stage
from ..._urls import without_password
from ...errors import EncoderError, FetchError
from ...net.download import download
from .._cache import cache_folder, check_cache_writable, weights_file

logger = logging.getLogger("pixmatcher.encoders")

MAX_BYTES = 8 << 30
"""Length of the longest file that is downloaded: 13 times the weights of CLIP ViT-B/32."""


def fetch_weights(
    url: str,
    *,
    encoder: str,
    sha256: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return the file of weights at `url`, from the cache or else downloaded into it.

    The SHA-256 of the file, also of a file in the cache, must begin with `sha256`, by default with `sha256_from_url`. A
    file with another hash is deleted. `PIXMATCHER_MIRROR` names a mirror; see `mirrored`.

    Raises `EncoderError` if the file is not in the cache and `offline` forbids the download, `FetchError` if it cannot
    be downloaded or has another hash, `StorageError` if the disk is full.
    """
    path, prefix = weights_file(url), sha256_from_url(url) if sha256 is None else sha256

    def is_right(file: Path) -> bool:
        return not prefix or sha256_of(file).startswith(prefix)

    with explaining_failures(f"The weights of the encoder {encoder}", remedies_for_weights()):
        download_missing(mirrored(url), path, is_right, check_is_exact=bool(prefix), offline=offline, progress=progress)
    return path


def sha256_from_url(url: str) -> str:
    """Return the first hexadecimal digits of the SHA-256 of a file that its URL contains, or "".

    The URLs of torchvision and timm have 8 or more digits before the extension, which `torch.hub` checks too; those of
    OpenAI have all 64 as the name of a folder.
    """
    path = url.partition("://")[2]
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", path) or re.search(r"/([0-9a-f]{64})/[^/]+$", path)
    return found[1] if found else ""


def mirrored(url: str) -> str:
    """Return MIRROR/HOST/PATH of a URL if the environment variable `PIXMATCHER_MIRROR` is set, else the URL."""
    mirror = os.environ.get("PIXMATCHER_MIRROR", "").rstrip("/")
    return f"{mirror}/{url.partition('://')[2]}" if mirror else url


def remedies_for_weights() -> str:
    """Return what a user can do if weights cannot be downloaded."""
    return remedies(cache_folder(), "name a file with --weights FILE")


def remedies(path: Path, other: str) -> str:
    """Return what a user can do if `path` cannot be downloaded; `other` is one more possibility."""
    return f"copy {path} from a machine that has it, {other}, or use the bundled encoder lite"


@contextlib.contextmanager
def explaining_failures(what: str, remedy: str) -> Iterator[None]:
    """Add what failed and a remedy to the errors of the block that mean: no network, or downloads are forbidden."""
    try:
        yield
    except OfflineError as error:
        raise EncoderError(f"{what} cannot be downloaded ({error}): {remedy}.") from error
    except FetchError as error:
        if not error.transient:
            raise
        message = (
            f"{what} cannot be downloaded ({error.detail}): try again, which continues where it stopped, {remedy}."
        )
        raise FetchError(message, error.reason, error.detail, transient=True) from error


class OfflineError(Exception):
    """A file is not in the cache, and downloads are forbidden; see `explaining_failures`."""

    def __init__(self, was_damaged: bool = False) -> None:
        before = "the file in the cache was damaged and has been deleted, and " if was_damaged else ""
        super().__init__(f"{before}downloads are forbidden by --offline, PIXMATCHER_OFFLINE or HF_HUB_OFFLINE")


def download_missing(
    url: str,
    path: Path,
    is_right: Callable[[Path], bool],
    *,
    size: int | None = None,
    check_is_exact: bool = True,
    token: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> None:
    """Download a file to `path`, unless the right file exists. A wrong file is deleted, old or downloaded.

    `check_is_exact` says that `is_right` finds every wrong byte. Raises `OfflineError` if a download is needed and
    `offline` forbids it, and as `download`.
    """
    with explain_disk_errors(path.parent):
        exists = path.is_file()
        if exists:
            if (size is None or path.stat().st_size == size) and is_right(path):
                return
            path.unlink()
        if offline:
            raise OfflineError(was_damaged=exists)
        check_cache_writable()
        path.parent.mkdir(parents=True, exist_ok=True)

    def check(part: Path) -> None:
        if not is_right(part):
            raise FetchError(
                f"The file from {without_password(url)} has a wrong hash and was deleted: try again, or "
                "check the URL and the mirror."
            )

    download(
        url,
        path,
        size=size,
        max_bytes=MAX_BYTES,
        check=check,
        check_is_exact=check_is_exact,
        progress=with_stage(progress, unquote(url.rpartition("/")[2])),
        token=token,
    )
