"""The queries of clients: their JSON and forms, and the images in them. No path of the server is ever read for them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .._text import values_as_unicode
from .._urls import bytes_of_data_url, is_data_url, is_url
from ..errors import QueryError
from ..net.fetch import MAX_BYTES, TIMEOUT_SECONDS, fetch
from ..searching import MAX_TEXT_CHARACTERS, Query, SearchOptions, options_from_json, query_from_json
from ._problems import FORM_TYPE, ProblemError, is_json, media_type, media_type_problem, too_many_values
from ._state import ServerState
from .settings import Limits

_T = TypeVar("_T")
Body = TypeVar("Body", bound=BaseModel)

UPLOAD = "upload:"
"""What begins the name of an image that is a file of the same form."""
_SMALL_BODY = 1 << 16
"""Bodies up to this many bytes are read in the event loop: that is faster than to give them to a thread."""
MOST_PARTS = 1000
"""The most parts of a list of a query that are read at all, before the limit of the service is looked at."""
_MOST_LABELS = 10_000
"""The most labels of a filter; more than most data sets have."""
_MOST_FIELDS = 32
"""The most fields of a form that are no files."""
_GREATEST_INTEGER = 2**63 - 1
_GREATEST_SIDE = 2**31 - 1


# It warns of each form that is not valid, which the answer says too.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(_whole)]
"""An integer as JSON Schema defines it, for which 5.0 is one too; but no text and no truth value."""

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
ImageReference = Annotated[
    str,
    Field(
        description="The image: a data URL (data:image/jpeg;base64,...), upload:FIELD for the file FIELD of the same "
        "form, or an http or https URL, if the service allows it."
    ),
]


def at_most(limit: Literal["batch"], reason: str, sentence: str) -> BeforeValidator:
    """Return a validator that refuses a list longer than a limit of the service, before it looks at its values.

    It raises `ProblemError` with this reason and sentence. The context of the validation is the limits.
    """

    def check(values: object, info: ValidationInfo) -> object:
        most = getattr(info.context, limit)
        if isinstance(values, list) and len(values) > most:
            raise ProblemError(422, reason, sentence.format(most))
        return values

    return BeforeValidator(check)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class PartBody(_Strict):
    """A part of a query: one text, one image or one item of the collection."""

    text: Text | None = None
    image: ImageReference | None = None
    id: Annotated[WholeNumber, Field(ge=0, le=_GREATEST_INTEGER)] | None = None
    """The id of an item of the collection."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """The weight of the part; 1 by default."""


class TextAndImageBody(_Strict):
    """A text, an image, or both."""

    text: Text | None = None
    image: ImageReference | None = None
    text_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """With a text and an image, the share of the text."""


class QueryBody(TextAndImageBody):
    """What to search for: a text, an image, or both, and further parts, wanted and unwanted."""

    want: Annotated[list[Text | PartBody], Field(max_length=MOST_PARTS)] | None = None
    """Further texts, images and items that results should be like."""
    avoid: Annotated[list[Text | PartBody], Field(max_length=MOST_PARTS)] | None = None
    """Texts, images and items that results should not be like."""


class FilterBody(_Strict):
    """Which items may be found: those that meet all conditions that are given."""

    labels: Annotated[list[str], Field(max_length=_MOST_LABELS)] | None = None
    """The item has one of these labels."""
    folder: str | None = None
    """The absolute path of a folder, or the beginning of a URL, that the item is in."""
    after: str | None = None
    """The image was taken on that day or later: 2024, 2024-05 or 2024-05-17."""
    before: str | None = None
    """The image was taken before that day."""
    min_width: Annotated[WholeNumber, Field(ge=0, le=_GREATEST_SIDE)] | None = None
    """The least width in pixels."""
    min_height: Annotated[WholeNumber, Field(ge=0, le=_GREATEST_SIDE)] | None = None
    """The least height in pixels."""


class OptionsBody(_Strict):
    """How to search."""

    k: Annotated[WholeNumber, Field(ge=1, le=_GREATEST_INTEGER)] = 12
    """The number of results."""
    min_score: float | None = None
    """The lowest score of a result."""
    min_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    """The lowest probability of a result to be what was asked for."""
    space: str | None = None
    """The embedding space to search; by default, the query decides."""
    exact: bool = False
    """Whether to compare the query with every embedding instead of asking the index."""
    filter: FilterBody | None = None


class SearchBody(QueryBody, OptionsBody):
    """A query and how to search for it."""

    vector: Annotated[list[float], Field(min_length=1, max_length=1 << 16)] | None = None
    """An embedding to search for in `space`, instead of texts and images."""


class BatchBody(OptionsBody):
    """Several queries and how to search for them."""

    queries: Annotated[
        list[QueryBody],
        Field(min_length=1),
        at_most("batch", "too many queries", "A batch may have at most {} queries."),
    ]


class CategoriesBody(_Strict):
    """An image, and how many categories of it to find."""

    image: ImageReference
    k: Annotated[WholeNumber, Field(ge=1, le=_GREATEST_INTEGER)] = 5
    """The number of categories."""
    space: str | None = None
    """The embedding space to search; by default, the one for images."""


@dataclass
class ReadBody:
    """The JSON of a request as a model validated it, and the files that came with it by the name of their field."""

    body: Any
    uploads: Mapping[str, bytes] = field(default_factory=dict)


def request_schema(model: type[BaseModel], *, form: bool) -> dict[str, Any]:
    """Return what the schema of a route says of its body: JSON of a model, or with `form` also a form with images."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, dict):
            reference = value.get("$ref", "")
            name = reference.removeprefix("#/$defs/")
            if isinstance(reference, str) and name in definitions:
                return inlined(definitions[name])
            return {key: inlined(each) for key, each in value.items()}
        return [inlined(each) for each in value] if isinstance(value, list) else value

    content: dict[str, Any] = {"application/json": {"schema": inlined(schema)}}
    if form:
        content[FORM_TYPE] = {"schema": _FORM_SCHEMA}
    return {"requestBody": {"required": True, "content": content}}


_FORM_SCHEMA = {
    "type": "object",
    "description": "Either `query`, the same JSON as without a form, whose images upload:FIELD are files of this form; "
    "or a file `image` and the simple fields of that JSON, such as `text` and `k`.",
    "properties": {
        "query": {"type": "string"},
        "image": {"type": "string", "format": "binary"},
    },
    "additionalProperties": True,
}


async def read_body(request: Request, state: ServerState, model: type[Body], until: float) -> ReadBody:
    """Return the body of a request: JSON, or a form with the JSON in `query` or in simple fields, and files.

    Raises `RequestValidationError` if it does not fit the model, `ProblemError` if it is neither.
    """
    kind = media_type(request)
    limits = state.settings.limits
    if kind == FORM_TYPE:
        form = await _read_form(request, limits)
        return await _in_thread_if_large(form.size, partial(_body_of_form, model, form, limits), request, state, until)
    if not is_json(kind):
        raise media_type_problem("JSON or a form", f" or {FORM_TYPE}")
    data = await request.body()
    return await _in_thread_if_large(
        len(data), lambda: ReadBody(_validated(model, data, limits)), request, state, until
    )


async def _in_thread_if_large(
    size: int, read: Callable[[], ReadBody], request: Request, state: ServerState, until: float
) -> ReadBody:
    return read() if size <= _SMALL_BODY else await state.admission.run(read, request, until)


def _validated(model: type[Body], data: bytes, limits: Limits) -> Body:
    try:
        return model.model_validate_json(data, context=limits)
    except ValidationError as error:
        raise _request_error(error) from None


def _request_error(error: ValidationError) -> RequestValidationError:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in errors])


@dataclass
class _Form:
    """The fields of a form, and its files by the name of their field."""

    fields: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """The characters of the fields, and the bytes of JSON that is sent as a file."""
        return sum(map(len, self.fields.values())) + len(self.uploads.get("query", b""))


class _FormParser(MultiPartParser):
    """Reads a form, and refuses one that is cut off; the parser of Starlette returns what has arrived of it."""

    _is_whole = False

    def on_end(self) -> None:
        """Note that the boundary at the end has arrived."""
        self._is_whole = True

    async def parse(self) -> FormData:
        """Return the fields and files. Raises `MultiPartException` if the form is not valid."""
        form = await super().parse()
        if not self._is_whole:
            await form.close()
            raise MultiPartException("Its end is missing.")
        return form


async def _read_form(request: Request, limits: Limits) -> _Form:
    found = _Form()
    most = limits.parts + 1
    parser = _FormParser(
        request.headers, request.stream(), max_files=most, max_fields=_MOST_FIELDS, max_part_size=limits.body_bytes
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ProblemError(400, "form not valid", f"The form is not valid: {error.message}") from error
    try:
        for name, value in form.multi_items():
            if name in found.fields or name in found.uploads:
                raise ProblemError(422, "request not valid", "A field of the form is there twice: give each one once.")
            if isinstance(value, UploadFile):
                found.uploads[name] = await value.read()
            else:
                found.fields[name] = value
    finally:
        await form.close()
    return found


def _body_of_form(model: type[Body], form: _Form, limits: Limits) -> ReadBody:
    query: bytes | None = form.uploads.pop("query", None)
    if query is None and "query" in form.fields:
        query = form.fields["query"].encode("utf-8", "surrogatepass")
    if query is not None:
        if query.count(b",") > limits.json_values:
            raise too_many_values(limits)
        return ReadBody(_validated(model, query, limits), form.uploads)
    values: dict[str, Any] = dict(form.fields)
    if "image" in form.uploads:
        values["image"] = UPLOAD + "image"
    try:
        return ReadBody(model.model_validate(values, strict=False, context=limits), form.uploads)
    except ValidationError as error:
        raise _request_error(error) from None


def check_query(body: QueryBody, state: ServerState) -> None:
    """Raise `ProblemError` if a query has more parts than the service allows."""
    check_parts((body.text, body.image, *(body.want or ()), *(body.avoid or ())), state)


def check_parts(parts: Sequence[object], state: ServerState) -> None:
    """Raise `ProblemError` if more of the parts of a query are given, and not None, than the service allows."""
    most = state.settings.limits.parts
    if sum(part is not None for part in parts) > most:
        raise ProblemError(422, "too many parts", f"A query may have at most {most} texts, images and items.")


def check_results(k: int, state: ServerState) -> None:
    """Raise `ProblemError` if more results are asked for than the service allows."""
    most = state.settings.limits.results
    if k > most:
        raise ProblemError(422, "too many results", f"A search has at most {most:,} results, not {k:,}.")


def options_of(body: OptionsBody, state: ServerState) -> SearchOptions:
    """Return the options of a search. Raises `ProblemError` and as `options_from_json` if they are not valid."""
    check_results(body.k, state)
    check_folder(None if body.filter is None else body.filter.folder)
    return options_from_json(body.model_dump(exclude_none=True))


def check_folder(folder: str | None) -> None:
    """Raise `QueryError` if the folder of a filter is relative: the current folder of the service is its own."""
    if folder is not None and not (folder.startswith("/") or is_url(folder)):
        raise QueryError("The folder of the filter must be an absolute path or a URL.")


async def load_query(
    body: QueryBody | CategoriesBody,
    uploads: Mapping[str, bytes],
    request: Request,
    state: ServerState,
    until: float,
) -> Callable[[], Query]:
    """Return a function that makes the query of a body in another thread; images of URLs are fetched before.

    Raises `ProblemError` if an image is neither data nor a URL that may be fetched, `FetchError` as `fetch`. The
    function raises `QueryError` as `query_from_json`.
    """
    references = [*_references(body)]
    for reference in references:
        _check_reference(reference, uploads, state)
    urls = {*filter(_is_remote, references)}
    fetched = dict(zip(urls, await asyncio.gather(*(_fetch(url, request, state, until) for url in urls)), strict=True))

    def resolve(reference: str) -> bytes:
        if reference.startswith(UPLOAD):
            return uploads[reference.removeprefix(UPLOAD)]
        if _is_remote(reference):
            return fetched[reference]
        return bytes_of_data_url(reference, MAX_BYTES)

    values = body.model_dump(exclude_none=True)
    return partial(query_from_json, values, resolve=resolve, max_pixels=state.settings.limits.image_pixels)


def _references(body: QueryBody | CategoriesBody) -> Iterator[str]:
    if body.image is not None:
        yield body.image
    if isinstance(body, QueryBody):
        for part in (*(body.want or ()), *(body.avoid or ())):
            if isinstance(part, PartBody) and part.image is not None:
                yield part.image


def _is_remote(reference: str) -> bool:
    return reference.lower().startswith(("http://", "https://"))


def _check_reference(reference: str, uploads: Mapping[str, bytes], state: ServerState) -> None:
    """Raise `ProblemError` unless a string is an image that the client sends, or a URL that may be fetched for it."""
    if reference.startswith(UPLOAD):
        if reference.removeprefix(UPLOAD) not in uploads:
            raise ProblemError(422, "image missing", "The form has no file of the name that follows upload:.")
    elif _is_remote(reference):
        if not state.settings.allow_urls:
            raise ProblemError(
                403, "URLs not allowed", "This service fetches no URLs: send the image itself, as a data URL or a file."
            )
    elif not is_data_url(reference):
        raise ProblemError(
            422, "image not valid", "An image is a data URL, an upload or an http URL; paths of files are not read."
        )


async def _fetch(url: str, request: Request, state: ServerState, until: float) -> bytes:
    work = partial(fetch, url, allow_private=state.settings.allow_private, timeout=TIMEOUT_SECONDS)
    return await state.fetches.run(work, request, until)


def json_response(values: Any) -> Response:
    """Return values as JSON."""
    return Response(json_bytes(values), media_type="application/json")


def json_bytes(values: Any) -> bytes:
    """Return values as JSON in UTF-8 that is valid Unicode. Raises `ValueError` for NaN and infinity."""
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(values_as_unicode(values), ensure_ascii=False, allow_nan=False).encode()
