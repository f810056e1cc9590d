"""Share the app: a public tunnel through Ngrok, protected by a password."""

from __future__ import annotations

import contextlib
import hmac
import io
import logging
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ..errors import PixMatcherError

SHARED_VARIABLE = "PIXMATCHER_SHARED"
"""Environment variable with the password. It is set in the app's process while the app is shared."""

_MAX_WRONG, _WITHIN_SECONDS = 10, 60.0
"""Number of wrong passwords within a time before all passwords are refused."""
_STARTUP_SECONDS = 15
"""Time limit for the agent to reach Ngrok."""
_CHARACTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without characters that look similar. 12 of them have 59 bits of entropy."""


def new_password() -> str:
    """Return a random password, as in `abcd-efgh-jkmn`."""
    text = "".join(secrets.choice(_CHARACTERS) for _ in range(12))
    return "-".join((text[:4], text[4:8], text[8:]))


def shared_password() -> str | None:
    """Return the password of the shared app, or None if the app is not shared."""
    return os.environ.get(SHARED_VARIABLE) or None


class PasswordCheck:
    """Compares passwords, and refuses all after too many wrong ones.

    Visitors through a tunnel cannot be distinguished, so the limit counts the wrong passwords of all of them.
    """

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._failed: deque[float] = deque()
        self._lock = threading.Lock()

    def is_correct(self, entered: str, now: float | None = None) -> bool | None:
        """Return whether the password is correct, or None after too many wrong ones, without a comparison."""
        moment = time.monotonic() if now is None else now
        with self._lock:
            while self._failed and moment - self._failed[0] > _WITHIN_SECONDS:
                self._failed.popleft()
            if len(self._failed) >= _MAX_WRONG:
                return None
            correct = hmac.compare_digest(entered.strip().encode("utf-8", "replace"), self._password)
            if not correct:
                self._failed.append(moment)
            return correct


@dataclass(frozen=True)
class Tunnel:
    """A tunnel to a port of this computer. It is open while Ngrok's agent runs."""

    url: str
    _agent: subprocess.Popen[str]

    def is_open(self) -> bool:
        """Return whether the agent runs."""
        return self._agent.poll() is None


def open_tunnel(port: int) -> Tunnel:
    """Open a tunnel to a port of this computer. It closes when the process ends.

    The token comes from NGROK_AUTHTOKEN or from Ngrok's own settings. The agent is the `ngrok` on the path; without
    one, pyngrok downloads it. Raises `PixMatcherError` without token, network or agent.
    """
    try:
        from pyngrok import conf, ngrok
        from pyngrok.exception import PyngrokError, PyngrokNgrokInstallError
    except ImportError:
        raise PixMatcherError("Sharing needs pyngrok: install it with pip install 'pixmatcher[app,share]'.") from None
    for name in ("pyngrok", "ngrok"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # The monitor thread reads the agent's log. Otherwise the agent would stop when the pipe is full.
    settings = conf.PyngrokConfig(monitor_thread=True, startup_timeout=_STARTUP_SECONDS)
    if agent := shutil.which("ngrok"):
        settings.ngrok_path = agent
    if not (settings.auth_token or _has_token(Path(conf.get_config_path(settings)))):
        raise PixMatcherError(
            "Sharing needs a token of Ngrok: create one on its site, and set NGROK_AUTHTOKEN to it or run "
            "`ngrok config add-authtoken TOKEN`."
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hides the progress of the download
            url = ngrok.connect(str(port), "http", pyngrok_config=settings).public_url
        process = ngrok.get_ngrok_process(settings).proc
    except PyngrokNgrokInstallError as error:
        raise PixMatcherError(
            "Ngrok's agent is not installed and could not be downloaded: check the network, or install ngrok."
        ) from error
    except (
        PyngrokError,
        OSError,
        HTTPException,
        ValueError,
    ) as error:  # the last two if the agent dies during the call
        raise PixMatcherError(_failure_message(error)) from error
    if not isinstance(url, str) or not url.startswith("https://"):
        raise PixMatcherError("Ngrok returned no https address: try again.")
    return Tunnel(url, process)


def _failure_message(error: Exception) -> str:
    """Return why the tunnel could not be opened, from the last message of the agent or else of pyngrok."""
    message = getattr(error, "ngrok_error", None) or str(error)
    reason = re.sub(r"\s+", " ", message).strip().rstrip(".")[:300]
    if re.search("authentication failed|authtoken|ERR_NGROK_10[57]", reason):
        return f"Ngrok refuses the token ({reason}): copy the token from its site, and set NGROK_AUTHTOKEN to it."
    if re.search("lookup |dial |no such host|network is unreachable|i/o timeout|x509", reason):
        return f"Ngrok cannot be reached ({reason}): check the network."
    return f"Ngrok's agent opened no tunnel ({reason}): run `ngrok http 8501` to see its messages, or update it."


def _has_token(settings: Path) -> bool:
    try:
        return re.search(r"^\s*authtoken:\s*\S", settings.read_text(), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False
