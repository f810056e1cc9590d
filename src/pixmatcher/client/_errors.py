"""Problems of the service (RFC 9457) as the errors of the library that they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import errors
from .._text import printable
from .wire import ERROR_OF_STATUS

_MAX_CHARACTERS = 4000
_CLASSES = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.PixMatcherError)
}


def error_of(problem: Mapping[str, Any], url: str) -> errors.PixMatcherError:
    """Return the error that a problem tells of: of the same class and with the same sentence, in printable characters.

    A class that this version does not know becomes the one of its status.
    """
    detail, reason, cause = (_text(problem.get(name)) for name in ("detail", "reason", "cause"))
    status, name = problem.get("status"), problem.get("error")
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    message = detail or f"{url} cannot answer this ({reason or status})."
    if kind is errors.InvalidImageError:
        return errors.InvalidImageError(reason, cause, message=message)
    if kind is errors.FetchError:
        return errors.FetchError(message, reason, cause)
    if kind is None or kind is errors.UnreadableTextError:
        kind = (
            ERROR_OF_STATUS.get(status, errors.CollectionError) if isinstance(status, int) else errors.CollectionError
        )
    error = kind.__new__(kind)  # some classes make their message from other values
    error.args = (message,)
    if isinstance(error, errors.CollectionError):
        error.problem, error.remedy = message, ""
    return error


def _text(value: Any) -> str:
    return printable(value[:_MAX_CHARACTERS]) if isinstance(value, str) else ""
