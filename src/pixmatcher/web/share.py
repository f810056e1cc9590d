"""Share the app: a public tunnel through Ngrok, and the password that is asked for behind it."""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import deque
from pathlib import Path

from ..errors import PixMatcherError

SHARED_VARIABLE = "PIXMATCHER_SHARED"
"""Set for the app's process while it can be reached from elsewhere: the password."""

_ATTEMPTS, _WITHIN_SECONDS = 10, 60.0
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


def open_tunnel(port: int) -> str:
    """Open a tunnel to a port of this machine; returns its public URL. It is closed when the process ends.

    The token is that of NGROK_AUTHTOKEN or of Ngrok's own settings, the agent the `ngrok` on the path, or else it is
    downloaded by pyngrok. Raises `PixMatcherError` without token, network or agent.
    """
    try:
        from pyngrok import conf, ngrok
        from pyngrok.exception import PyngrokError, PyngrokNgrokInstallError
    except ImportError:
        raise PixMatcherError("Sharing needs pyngrok: install it with pip install 'pixmatcher[app,share]'.") from None
    logging.getLogger("pyngrok").setLevel(logging.CRITICAL)
    settings = conf.PyngrokConfig(monitor_thread=False)
    if agent := shutil.which("ngrok"):
        settings.ngrok_path = agent
    if not (settings.auth_token or _has_token(Path(conf.get_config_path(settings)))):
        raise PixMatcherError(
            "Sharing needs a token of Ngrok: make one on its site, and set NGROK_AUTHTOKEN to it or run "
            "`ngrok config add-authtoken TOKEN`."
        )
    try:
        url = ngrok.connect(str(port), "http", pyngrok_config=settings).public_url
    except PyngrokNgrokInstallError as error:
        raise PixMatcherError("Ngrok's agent could not be downloaded: check the network, or install ngrok.") from error
    except (PyngrokError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error)).rstrip(".")[:300]
        raise PixMatcherError(f"The tunnel could not be opened ({reason}): check the token and the network.") from error
    if not isinstance(url, str) or not url.startswith("https://"):
        raise PixMatcherError("Ngrok gave no https address: try again.")
    return url


def _has_token(settings: Path) -> bool:
    try:
        return re.search(r"^\s*authtoken:\s*\S", settings.read_text(), re.MULTILINE) is not None
    except (OSError, ValueError):
        return False
