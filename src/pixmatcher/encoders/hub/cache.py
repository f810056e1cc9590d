"""The user's cache of models: weights as they were downloaded, and folders of ONNX files that were exported or pulled.

weights/URL           a file of weights; the URL without its scheme, quoted
models/NAME           a folder with a card, or a link to one; the name of the encoder, quoted
models/.NAME.making   a folder that is not whole yet; models/.NAME.lock is held by whoever makes it
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import platformdirs

from ..._files import explain_disk_errors, sha256_of
from ..._locks import locked_file
from ..._progress import ProgressCallback, with_stage
from ..._urls import without_password
from ...errors import EncoderError, FetchError
from ...net.download import download
from ..names import INSTALL, KNOWN
from ..onnx.card import CARD_NAME, Card, read_card

MAX_BYTES = 8 << 30
"""Longest file that is downloaded: 13 times the weights of CLIP ViT-B/32."""


def cache_folder() -> Path:
    """Where models are kept: `PIXMATCHER_CACHE`, or the user's cache folder."""
    given = os.environ.get("PIXMATCHER_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("pixmatcher")


def model_folder(name: str) -> Path:
    """Where the ONNX files of the encoder called `name` lie, or would lie."""
    return cache_folder() / "models" / quote(name, safe="@")


def weights_file(url: str) -> Path:
    """Where weights from `url` lie, or would lie."""
    return cache_folder() / "weights" / quote(url.partition("://")[2], safe="@")


# Weights


def fetch_weights(
    url: str,
    *,
    encoder: str,
    sha256: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> Path:
    """Return the weights that `url` gives, from the cache or else downloaded into it.

    The SHA-256 of the file, also of one in the cache, must begin with `sha256`, by default with what the URL tells of
    it; see `told_sha256`. A file that is something else is deleted. `PIXMATCHER_MIRROR` names a mirror; see `mirrored`.

    Raises `EncoderError` if it is not there and `offline`, `FetchError` if it cannot be downloaded or is something
    else, `StorageError` if the disk is full.
    """
    path, begins = weights_file(url), told_sha256(url) if sha256 is None else sha256

    def fits(file: Path) -> bool:
        return not begins or sha256_of(file).startswith(begins)

    with needing_network(f"The weights of the encoder {encoder}", ways_to_weights()):
        bring(mirrored(url), path, fits, fits_finds_all=bool(begins), offline=offline, progress=progress)
    return path


def told_sha256(url: str) -> str:
    """The first digits of the SHA-256 of the file that a URL gives, as far as it tells them; otherwise "".

    torchvision and timm have 8 or more digits before the ending of the name, as `torch.hub.load_state_dict_from_url`
    checks them; OpenAI has all 64 as a folder.
    """
    path = url.partition("://")[2]
    found = re.search(r"-([0-9a-f]{8,64})\.\w+$", path) or re.search(r"/([0-9a-f]{64})/[^/]+$", path)
    return found[1] if found else ""


def mirrored(url: str) -> str:
    """The URL at the mirror of the environment variable `PIXMATCHER_MIRROR`, if it is set: MIRROR/HOST/PATH."""
    mirror = os.environ.get("PIXMATCHER_MIRROR", "").rstrip("/")
    return f"{mirror}/{url.partition('://')[2]}" if mirror else url


def ways_to_weights() -> str:
    """What to do where weights are not to be had."""
    return ways_out(cache_folder(), "name a file with --weights FILE")


def ways_out(place: Path, other: str) -> str:
    """What to do where something is not in the cache and not to be had from the network."""
    return f"copy {place} from a machine that has it, {other}, or use the bundled encoder lite"


@contextlib.contextmanager
def needing_network(what: str, ways: str) -> Iterator[None]:
    """Say the `ways` out where the block cannot download because of the network, or because it may not."""
    try:
        yield
    except OfflineError as error:
        raise EncoderError(f"{what} cannot be downloaded ({error}): {ways}.") from error
    except FetchError as error:
        if not error.transient:
            raise
        message = f"{what} cannot be downloaded ({error.detail}): try again, which goes on where it stopped, {ways}."
        raise FetchError(message, error.reason, error.detail, transient=True) from error


class OfflineError(Exception):
    """Something is not there, and the network may not be used; for `needing_network`."""

    def __init__(self, spoilt: bool = False) -> None:
        before = "what was in the cache was damaged and is deleted, and " if spoilt else ""
        super().__init__(f"{before}the network is switched off by --offline, PIXMATCHER_OFFLINE or HF_HUB_OFFLINE")


def bring(
    url: str,
    path: Path,
    fits: Callable[[Path], bool],
    *,
    size: int | None = None,
    fits_finds_all: bool = True,
    token: str | None = None,
    offline: bool = False,
    progress: ProgressCallback | None = None,
) -> None:
    """Download a file, unless one that `fits` is there already; one that does not is deleted, before as after.

    `fits_finds_all` tells that `fits` finds every wrong byte. Raises `OfflineError` if it is not there and `offline`,
    and as `download` does.
    """
    with explain_disk_errors(path.parent):
        spoilt = path.is_file()
        if spoilt:
            if (size is None or path.stat().st_size == size) and fits(path):
                return
            path.unlink()
        if offline:
            raise OfflineError(spoilt)
        path.parent.mkdir(parents=True, exist_ok=True)

    def check(part: Path) -> None:
        if not fits(part):
            raise FetchError(
                f"{without_password(url)} gave a file of another hash than it should have, and it was deleted: try again, or "
                "check the URL and the mirror."
            )

    download(
        url,
        path,
        size=size,
        max_bytes=MAX_BYTES,
        check=check,
        check_is_exact=fits_finds_all,
        progress=with_stage(progress, unquote(url.rpartition("/")[2])),
        token=token,
    )


# Folders of models


@contextlib.contextmanager
def making_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `target` in one step when the block ends well.

    A folder with a card that lies there is replaced, a link to one as well: not what it points to. Whenever the process
    is killed, the old or the new one is there; what it leaves behind, the next call deletes. Of two processes one waits
    for the other.

    Raises `EncoderError` if something else is there, `StorageError` if the disk is full, and `PixMatcherError` if the
    place cannot be written.
    """
    with alone_at(target) as half:
        delete_folder(half)
        half.mkdir()
        try:
            yield half
            put_folder(half, target)
        finally:
            delete_folder(half)


@contextlib.contextmanager
def alone_at(target: Path) -> Iterator[Path]:
    """Let no other process make the same folder during the block, and give the place for one that is not whole yet.

    There may be one already: what a process left that was stopped. Raises as `making_folder`.
    """
    target = Path(os.path.abspath(target))
    check_place(target)
    half, old = (target.with_name(f".{target.name}.{word}") for word in ("making", "old"))
    with lock_beside(target):
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)  # killed where the two cannot be exchanged in one step
        delete_folder(old)
        yield half


@contextlib.contextmanager
def lock_beside(target: Path) -> Iterator[None]:
    """Let no other process have the lock of `target`, a file or folder to be, during the block."""
    lock = target.with_name(f".{target.name}.lock")
    with explain_disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked_file(lock):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)


def check_place(target: Path) -> None:
    """Raise `EncoderError` if something lies at `target` that is neither an empty folder nor one with a card."""
    if not target.name:
        raise EncoderError(f"{target} cannot be replaced: choose another folder.")
    if not os.path.lexists(target) or (target.is_symlink() and not target.exists()):
        return
    if not target.is_dir():
        raise EncoderError(f"{target} is there already and is no folder: choose another folder.")
    if _has_card(target):
        return
    with explain_disk_errors(target):
        if any(target.iterdir()):
            raise EncoderError(
                f"{target} is not empty and was not made by pixmatcher: choose another folder, or delete it."
            )


def _has_card(folder: Path) -> bool:
    """Whether a folder has a card, be it of files that are damaged."""
    try:
        with (folder / CARD_NAME).open("rb") as file:
            card = json.loads(file.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(card, dict) and {"fingerprint", "visual", "files"} <= card.keys()


def put_folder(half: Path, target: Path) -> None:
    """Put a folder, or a link to one, in its place beside it in one step; for a block of `alone_at`."""
    target = Path(os.path.abspath(target))
    check_place(target)
    with explain_disk_errors(target.parent):
        try:
            os.replace(half, target)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        if not _exchange(half, target):
            old = target.with_name(f".{target.name}.old")
            target.rename(old)
            half.rename(target)
            half = old
        delete_folder(half)


_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What `rename` says where it would have to put a folder, or a link, in the place of a folder or a link to one."""


def _exchange(one: Path, other: Path) -> bool:
    """Let two places of one disk change their names in one step; whether that can be done here."""
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        rename_swap = 2
        return not libc.renamex_np(first, second, ctypes.c_uint(rename_swap))
    at_fdcwd, rename_exchange = -100, 2
    if not hasattr(libc, "renameat2"):
        return False
    return not libc.renameat2(at_fdcwd, first, at_fdcwd, second, ctypes.c_uint(rename_exchange))


def delete_folder(place: Path) -> None:
    """Delete a folder or a link, if there is one."""
    if place.is_symlink():
        place.unlink()
    elif os.path.lexists(place):
        shutil.rmtree(place)


def link_model(name: str, folder: Path) -> None:
    """Let the encoder called `name` be the one in `folder`, wherever that lies.

    Raises as `read_card` and `making_folder`.
    """
    folder, place = Path(os.path.realpath(folder)), model_folder(name)
    read_card(folder)
    if os.path.realpath(place) == str(folder):
        return
    with alone_at(place) as half:
        delete_folder(half)
        half.symlink_to(folder, target_is_directory=True)
        put_folder(half, place)


@dataclass(frozen=True)
class CachedModel:
    """A folder of the cache that is, or should be, an encoder."""

    name: str
    folder: Path
    """As it is in the cache; a link where the encoder lies elsewhere."""
    bytes: int
    """All its files together."""
    card: Card | None
    """None if it is damaged: then `problem` says how."""
    problem: str = ""


def cached_models() -> list[CachedModel]:
    """The models of the cache by name, also damaged ones; it is not read whether each byte is right.

    Raises `PixMatcherError` if the cache cannot be read.
    """
    folder = cache_folder() / "models"
    found = []
    with explain_disk_errors(folder):
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        card, problem = None, ""
        try:
            card = read_card(entry)
        except EncoderError as error:
            problem = str(error)
        found.append(CachedModel(unquote(entry.name), entry, _bytes_in(entry), card, problem))
    return found


def _bytes_in(folder: Path) -> int:
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(inner, name)).st_size
    return total


def damaged_files(card: Card, folder: Path) -> list[str]:
    """The names of a folder's files that are not, byte by byte, what its card says."""
    return [name for name, stored in card.files.items() if not _is_whole(folder / name, stored.sha256)]


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def needs_torch(name: str) -> str:
    """What to tell whoever wants an encoder that PyTorch is needed for."""
    known = KNOWN.get(name)
    pull = f"run `pixmatcher models pull {name}`, " if known is not None and known.onnx_repo else ""
    return (
        f"The encoder {name} needs PyTorch until it is exported: {pull}run `{INSTALL}`, copy {model_folder(name)} from "
        f"a machine where `pixmatcher models export {name}` made it, or use the bundled encoder lite."
    )
