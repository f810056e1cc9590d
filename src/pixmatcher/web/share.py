"""Share the app: a public tunnel through Ngrok, and the password that is asked for behind it."""

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
"""Set for the app's process while it can be reached from elsewhere: the password."""

_ATTEMPTS, _WITHIN_SECONDS = 10, 60.0
_STARTUP_SECONDS = 15
"""So long the agent may take to reach Ngrok."""
_CHARACTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Without those that are easily taken for each other: 12 of them are 59 bits."""


def new_password() -> str:
    text = "".join(secrets.choice(_CHARACTERS) for _ in range(12))
    return "-".join((text[:4], text[4:8], text[8:]))


def shared_password() -> str | None:
    """The password to ask for, or None where the app is not shared."""
    return os.environ.get(SHARED_VARIABLE) or None


class Gate:
    """Compares passwords, a few a minute: visitors through a tunnel cannot be told apart, so all of them together."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._failed: deque[float] = deque()
        self._lock = threading.Lock()

    def opens(self, given: str, now: float | None = None) -> bool | None:
        """Whether this is the password; None where too many were tried, and it was not compared."""
        moment = time.monotonic() if now is None else now
        with self._lock:
            while self._failed and moment - self._failed[0] > _WITHIN_SECONDS:
                self._failed.popleft()
            if len(self._failed) >= _ATTEMPTS:
                return None
            right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._password)
            if not right:
                self._failed.append(moment)
            return right


@dataclass(frozen=True)
class Tunnel:
    """A tunnel to a port of this machine, open as long as Ngrok's agent runs."""

    url: str
    _agent: subprocess.Popen[str]

    def is_open(self) -> bool:
        return self._agent.poll() is None


def open_tunnel(port: int) -> Tunnel:
    """Open a tunnel to a port of this machine. It is closed when the process ends.

    The token is that of NGROK_AUTHTOKEN or of Ngrok's own settings, the agent the `ngrok` on the path, or else it is
    downloaded by pyngrok. Raises `PixMatcherError` without token, network or agent.
    """
    try:
        from pyngrok import conf, ngrok
        from pyngrok.exception import PyngrokError, PyngrokNgrokInstallError
    except ImportError:
        raise PixMatcherError("Sharing needs pyngrok: install it with pip install 'pixmatcher[app,share]'.") from None
    for name in ("pyngrok", "ngrok"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Its thread reads what the agent logs, which would stop otherwise when the pipe is full.
    settings = conf.PyngrokConfig(monitor_thread=True, startup_timeout=_STARTUP_SECONDS)
    if agent := shutil.which("ngrok"):
        settings.ngrok_path = agent
    if not (settings.auth_token or _has_token(Path(conf.get_config_path(settings)))):
        raise PixMatcherError(
            "Sharing needs a token of Ngrok: make one on its site, and set NGROK_AUTHTOKEN to it or run "
            "`ngrok config add-authtoken TOKEN`."
        )
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of the download
            url = ngrok.connect(str(port), "http", pyngrok_config=settings).public_url
        process = ngrok.get_ngrok_process(settings).proc
    except PyngrokNgrokInstallError as error:
        raise PixMatcherError(
            "Ngrok's agent is not there and could not be downloaded: check the network, or install ngrok."
        ) from error
    except (PyngrokError, OSError, HTTPException, ValueError) as error:  # the last two where the agent dies meanwhile
        raise PixMatcherError(_why_not(error)) from error
    if not isinstance(url, str) or not url.startswith("https://"):
        raise PixMatcherError("Ngrok gave no https address: try again.")
    return Tunnel(url, process)


def _why_not(error: Exception) -> str:
    """Why there is no tunnel, by what the agent said last or else by what pyngrok says of it."""
    said = getattr(error, "ngrok_error", None) or str(error)
    reason = re.sub(r"\s+", " ", said).strip().rstrip(".")[:300]
    if re.search("authentication failed|authtoken|ERR_NGROK_10[57]", reason):
        return f"Ngrok refuses the token ({reason}): copy the one of its site, and set NGROK_AUTHTOKEN to it."
    if re.search("lookup |dial |no such host|network is unreachable|i/o timeout|x509", reason):
        return f"Ngrok cannot be reached ({reason}): check the network."
    return f"Ngrok's agent opened no tunnel ({reason}): run `ngrok http 8501` to see what it says, or update it."


def _has_token(settings: Path) -> bool:
    try:
        return re.search(r"^\s*authtoken:\s*\S", settings.read_text(), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False
