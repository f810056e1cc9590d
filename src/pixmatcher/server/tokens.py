"""Tokens of the service, and the file that keeps their hashes.

Each line is `NAME SCOPE sha256:HEX`, with `until:TIME` behind it for a token that expires. Empty lines and lines that
begin with # are ignored. A token has 256 random bits, so a plain hash of it cannot be turned back by trying.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, get_args

from .._files import temporary_path
from .._locks import locked_file
from ..errors import NO_ROOM, PixMatcherError, StorageError

Scope = Literal["read", "write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "pxm_"
"""What each token begins with, so that programs that look for secrets in files find it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_UNTIL = "until:"
_MAX_DAYS = 36_500


@dataclass(frozen=True)
class Token:
    """What is known of a token: everything but the token itself."""

    name: str
    scope: Scope
    """`write` includes `read`."""
    sha256: str
    """The SHA-256 of the token in hexadecimal."""
    until: datetime | None = None
    """When it expires, in UTC."""

    def line(self) -> str:
        """Return the line of the file."""
        until = "" if self.until is None else f" {_UNTIL}{self.until:%Y-%m-%dT%H:%M:%SZ}"
        return f"{self.name} {self.scope} sha256:{self.sha256}{until}"


def read_tokens(file: Path) -> list[Token]:
    """Return the tokens of a file. Raises `PixMatcherError` if it cannot be read, or a line is not valid."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise PixMatcherError(
            f"The token file {file} cannot be read ({reason}): create one with "
            "`pixmatcher tokens add NAME --scope read --file FILE`, or correct the path."
        ) from error
    tokens: dict[str, Token] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token = _parse(line.split())
        if token is None or token.name in tokens:
            problem = "is not NAME SCOPE sha256:HEX" if token is None else "has a name that an earlier line has"
            raise PixMatcherError(f"Line {number} of the token file {file} {problem}: correct or delete the line.")
        tokens[token.name] = token
    return [*tokens.values()]


def _parse(fields: list[str]) -> Token | None:
    if len(fields) not in (3, 4) or not _NAME.fullmatch(fields[0]) or not _HASH.fullmatch(fields[2]):
        return None
    scope = next((scope for scope in SCOPES if scope == fields[1]), None)
    if scope is None:
        return None
    until = None
    if len(fields) == 4:
        try:
            until = datetime.strptime(fields[3], f"{_UNTIL}%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
        except ValueError:
            return None
    return Token(fields[0], scope, fields[2].removeprefix("sha256:"), until)


def find_token(tokens: Iterable[Token], secret: str) -> Token | None:
    """Return the token that `secret` is, also if it has expired, or None.

    The time that this takes does not depend on which token it is, or how much of one is right.
    """
    digest = _digest(secret)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest):
            found = token
    return found


def add_token(file: Path, name: str, scope: Scope, *, days: float | None = None) -> str:
    """Add a new token to a file, which is created if it is missing, and return the token: it is kept nowhere.

    With `days`, it expires after that time. Raises `PixMatcherError` if the name is taken or not valid, the days are
    not, or the file cannot be read or written.
    """
    if not _NAME.fullmatch(name):
        raise PixMatcherError(
            f"{name!r} cannot be the name of a token: use at most 64 letters, digits, '.', '_', '@' and '-'."
        )
    if days is not None and not 0 < days <= _MAX_DAYS:
        raise PixMatcherError(
            f"A token cannot be valid for {days:g} days: write more than 0 and at most {_MAX_DAYS:,}."
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    until = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    with _changing(file) as (tokens, lines):
        if any(token.name == name for token in tokens):
            raise PixMatcherError(
                f"The token file {file} has a token {name} already: remove it first, or choose another name."
            )
        lines.append(Token(name, scope, _digest(secret), until).line())
    return secret


def remove_token(file: Path, name: str) -> None:
    """Remove a token from a file. Raises `PixMatcherError` if it is not there, or the file cannot be used."""
    read_tokens(file)  # a file that is missing is not created
    with _changing(file) as (tokens, lines):
        if all(token.name != name for token in tokens):
            raise PixMatcherError(
                f"The token file {file} has no token {name}: see `pixmatcher tokens list --file FILE`."
            )
        lines[:] = [line for line in lines if line.split()[:1] != [name]]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def _changing(file: Path) -> Iterator[tuple[list[Token], list[str]]]:
    """Yield the tokens and lines of a file, none if it is missing, and write the lines as the block leaves them.

    The file is replaced in one step by one that only its owner can read. It is locked meanwhile, so that of two
    changes at once none undoes the other. Raises `PixMatcherError` if it cannot be read or written.
    """
    place = Path(os.path.realpath(file))  # a link stays a link
    try:
        with locked_file(place):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            yield read_tokens(file), lines
            _replace(place, lines)
    except OSError as error:
        problem = f"The token file {file} cannot be written ({error.strerror or error})"
        if error.errno in NO_ROOM:
            raise StorageError(f"{problem}: make room on its disk, and run the same command again.") from error
        raise PixMatcherError(f"{problem}: name another file.") from error


def _replace(file: Path, lines: Iterable[str]) -> None:
    new = temporary_path(file)
    new.unlink(missing_ok=True)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as written:
            written.write("".join(f"{line}\n" for line in lines))
            written.flush()
            os.fsync(descriptor)
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
        raise
