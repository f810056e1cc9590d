"""Show the log messages of PixMatcher on standard error; without this, nobody sees them.

Each package has a logger, such as `pixmatcher.net`, whose level can be set by itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TextIO

from ._text import printable

VARIABLE = "PIXMATCHER_LOG"
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_ROOT = "pixmatcher"


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Write to what `sys.stderr` is at that moment: while a progress bar is shown, it prints lines above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(_OneLineFormatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _OneLineFormatter(logging.Formatter):
    """Write control characters in messages as escapes, so that a file name cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        # A traceback has several lines; a message has one.
        return "\n".join(map(printable, lines)) if record.exc_info else printable("\n".join(lines))


def show_log(level: int = logging.WARNING, levels: Mapping[str, int] | None = None) -> None:
    """Show the messages of this level and above on standard error.

    `levels` has other levels for loggers below `pixmatcher`, by their names. A level that was set before stays if it
    shows more.
    """
    root = logging.getLogger(_ROOT)
    if not any(isinstance(handler, _StandardErrorHandler) for handler in root.handlers):
        root.addHandler(_StandardErrorHandler())
        root.setLevel(level)
    root.setLevel(min(root.level, level))
    for name, of_logger in (levels or {}).items():
        logging.getLogger(name).setLevel(of_logger)


def show_verbose_log(verbosity: int) -> None:
    """Show the messages that `-v` (1: information) or `-vv` (2: details for developers) asks for."""
    if verbosity > 0:
        show_log(logging.INFO if verbosity == 1 else logging.DEBUG)


def show_log_as(setting: str) -> None:
    """Show the messages that the environment variable PIXMATCHER_LOG asks for.

    The setting is a level (`debug`, `info`, `warning` or `error`), or several parts such as
    `pixmatcher.net=debug,info`: levels of loggers, and the level of all others. A part that is neither is reported by a
    warning.
    """
    level = logging.WARNING
    levels: dict[str, int] = {}
    unknown = []
    for part in filter(None, (part.strip() for part in setting.split(","))):
        name, equals, value = (text.strip() for text in part.rpartition("="))
        if value.lower() not in _LEVELS or (equals and f"{name}.".partition(".")[0] != _ROOT):
            unknown.append(part)
        elif equals:
            levels[name] = _LEVELS[value.lower()]
        else:
            level = _LEVELS[value.lower()]
    if _ROOT in levels:
        level = levels.pop(_ROOT)
    show_log(level, levels)
    for part in unknown:
        logging.getLogger(_ROOT).warning(
            "%s has %r, which is ignored: write it like info, or like pixmatcher.net=debug,info", VARIABLE, part
        )
