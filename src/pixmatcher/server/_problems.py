"""Errors as answers: problem details for HTTP APIs (RFC 9457), with the stable `reason` of the library's errors."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from .._text import as_unicode
from ..client.wire import STATUS_OF_ERROR
from ..errors import FetchError, InvalidImageError, PixMatcherError
from ._advice import sentence_for_clients
from .settings import Limits

MEDIA_TYPE = "application/problem+json"
FORM_TYPE = "multipart/form-data"


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str = "about:blank"
    title: str
    """The name of the status."""
    status: int
    detail: str
    """One sentence that says what is wrong and what to do."""
    reason: str
    """A short fixed phrase to count and compare by."""
    error: str | None = None
    """The class of the error in the Python library, for its client; absent for errors of the service alone."""
    cause: str | None = None
    """What is wrong with an image, without the sentence around it."""


class ProblemError(PixMatcherError):
    """A request that the service refuses, with its status; `reason` is a short fixed phrase."""

    def __init__(self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


def too_many_values(limits: Limits) -> ProblemError:
    """Return the problem of JSON with more commas than these limits allow."""
    return ProblemError(
        413,
        "too many values",
        f"The JSON of a request may have at most {limits.json_values:,} commas in lists and texts: send less at once.",
    )


_SENTENCES = {
    400: "The body of the request cannot be read: check it and its Content-Type.",
    404: "Nothing has this address: /docs lists the routes.",
    405: "This address has no such method: /docs lists the routes.",
}
"""What an error of the framework means, which it says in two words."""


def problem_of(error: PixMatcherError) -> Problem:
    """Return an error of the library as a problem."""
    name = cause = None
    sentence = str(error) if isinstance(error, ProblemError) else sentence_for_clients(error)
    if isinstance(error, ProblemError):
        status, reason = error.status, error.reason
    else:
        status, reason = next((code, reason) for kind, code, reason in STATUS_OF_ERROR if isinstance(error, kind))
        reason = reason or getattr(error, "reason", "")
        name = type(error).__name__
        cause = as_unicode(error.detail) if isinstance(error, (InvalidImageError, FetchError)) else None
    title, detail = HTTPStatus(status).phrase, as_unicode(sentence)
    return Problem(title=title, status=status, detail=detail, reason=reason, error=name, cause=cause)


def media_type(request: Request) -> str:
    """Return the media type of the body of a request; JSON if it names none."""
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Return whether a media type is one of JSON."""
    return kind == "application/json" or kind.endswith("+json")


def media_type_problem(supported: str, other: str = "") -> ProblemError:
    """Return the problem of a body that is not what is `supported`; `other` is named beside the type of JSON."""
    return ProblemError(
        415,
        "media type not supported",
        f"The body must be {supported}: send it with the header Content-Type: application/json{other}.",
    )


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as a response."""
    return Response(
        problem.model_dump_json(exclude_none=True), problem.status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the schema of a route says of the problems with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def add_handlers(app: FastAPI) -> None:
    """Make an application answer every error with a problem, and describe problems in its schema."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()  # made once, then the same object
        schema.setdefault("components", {}).setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
        return schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.exception_handler(PixMatcherError)
    async def _(request: Request, error: PixMatcherError) -> Response:
        headers = error.headers if isinstance(error, ProblemError) else None
        problem = problem_of(error)
        problem.detail = request.app.state.server.collections.without_paths(problem.detail)
        return problem_response(problem, headers)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["loc"] == ("body",) and not (is_json(kind := media_type(request)) or kind == FORM_TYPE):
            return problem_response(problem_of(media_type_problem("JSON")))
        place = ".".join(str(part) for part in first["loc"])
        detail = f"{place}: {first['msg']}."
        return problem_response(
            Problem(title=HTTPStatus(422).phrase, status=422, detail=as_unicode(detail), reason="request not valid")
        )

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        detail = _SENTENCES.get(error.status_code, as_unicode(str(error.detail)))
        problem = Problem(title=phrase, status=error.status_code, detail=detail, reason=phrase.lower())
        return problem_response(problem, error.headers)

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> Response:
        detail = "The service failed: this is a defect, please report it with the log of the service."
        return problem_response(
            Problem(title=HTTPStatus(500).phrase, status=500, detail=detail, reason="internal error")
        )
