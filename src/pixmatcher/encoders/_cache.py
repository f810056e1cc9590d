"""The user's cache of models: downloaded weights, and folders of ONNX files that were exported or downloaded.

weights/URL           a file of weights; the URL without its scheme, quoted
models/NAME           a folder with a card, or a link to one; the name of the encoder, quoted
devices/HASH.json     the images a second that an encoder reaches on each device of a machine
models/.NAME.making   an unfinished folder; the process that makes it holds models/.NAME.lock
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from .._files import explain_disk_errors, sha256_of
from .._user_folders import expanded, user_cache_folder
from ..errors import NO_ROOM, EncoderError, PixMatcherError
from ._folders import delete_folder, locked_folder, put_folder
from ._names import INSTALL, KNOWN
from .onnx.card import Card, read_card


def cache_folder() -> Path:
    """Return the folder of the cache: `PIXMATCHER_CACHE`, or `pixmatcher` in the user's cache folder.

    Raises `PixMatcherError` if the user has no home folder for it.
    """
    given = os.environ.get("PIXMATCHER_CACHE")
    return expanded(given) if given else user_cache_folder()


def check_cache_writable() -> None:
    """Create the folder of the cache. Raises `PixMatcherError` if that is impossible, or it cannot be written."""
    folder = cache_folder()
    reason = os.strerror(errno.EACCES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        if error.errno in NO_ROOM:
            return  # the download explains that
        reason = error.strerror or str(error)
    raise PixMatcherError(
        f"{folder}, the folder for downloaded and exported encoders, cannot be written ({reason}): set "
        "PIXMATCHER_CACHE to a folder that you may write."
    )


def model_folder(name: str) -> Path:
    """Return the folder for the ONNX files of the encoder called `name`; it may not exist."""
    return cache_folder() / "models" / quote(name, safe="@")


def weights_file(url: str) -> Path:
    """Return the file for the weights from `url`; it may not exist."""
    return cache_folder() / "weights" / quote(url.partition("://")[2], safe="@")


def link_model(name: str, folder: Path) -> None:
    """Make the cache find the encoder called `name` in `folder`, which stays where it is.

    Raises as `read_card` and `making_folder`.
    """
    folder, link = Path(os.path.realpath(folder)), model_folder(name)
    read_card(folder)
    if os.path.realpath(link) == str(folder):
        return
    with locked_folder(link) as unfinished:
        delete_folder(unfinished)
        unfinished.symlink_to(folder, target_is_directory=True)
        put_folder(unfinished, link)


@dataclass(frozen=True)
class CachedModel:
    """A folder of the cache that holds an encoder, perhaps a damaged one."""

    name: str
    folder: Path
    """Its path in the cache, which may be a link to another folder."""
    bytes: int
    """The sum of the lengths of its files."""
    card: Card | None
    """None if the encoder is damaged."""
    problem: str = ""
    """What is damaged, or ""."""


def cached_models() -> list[CachedModel]:
    """Return the models of the cache by name, also damaged ones. The contents of their files are not checked.

    Raises `PixMatcherError` if the cache cannot be read.
    """
    try:
        folder = cache_folder() / "models"
    except PixMatcherError:
        return []  # there is no place for a cache
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
    """Return the names of the files of a folder whose SHA-256 is not the one of the card."""
    return [name for name, stored in card.files.items() if not _has_sha256(folder / name, stored.sha256)]


def _has_sha256(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except OSError:
        return False


def torch_missing_message(name: str) -> str:
    """Return the message for an encoder that cannot be used without PyTorch on this machine."""
    known = KNOWN.get(name)
    pull = f"run `pixmatcher models pull {name}`, " if known is not None and known.onnx_repo else ""
    return (
        f"The encoder {name} needs PyTorch until it is exported: {pull}run `{INSTALL}`, copy {model_folder(name)} from "
        f"a machine where `pixmatcher models export {name}` made it, or use the bundled encoder lite."
    )
