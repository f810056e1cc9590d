"""Embeddings of texts and images, in the shape of the endpoint of OpenAI."""

from __future__ import annotations

import base64
from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from ...records import EncoderRecord
from ...searching import embed_query
from .._problems import ProblemError
from .._requests import (
    ImageReference,
    QueryBody,
    Text,
    WholeNumber,
    at_most,
    json_response,
    load_query,
    read_body,
    request_schema,
)
from .._state import ServerState, State
from .search import PROBLEMS

router = APIRouter(prefix="/v1", tags=["embeddings"])


class ImageInput(BaseModel):
    """An image to embed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: ImageReference


_Input = Annotated[Text, Field(min_length=1)] | ImageInput


class EmbeddingsBody(BaseModel):
    """What to embed, and by which encoder."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    input: Annotated[
        _Input | Annotated[list[_Input], Field(min_length=1)],
        at_most("batch", "too many inputs", "A request may have at most {} inputs."),
    ]
    """A text, an image, or a list of them. Lists of tokens are not supported."""
    model: str
    """An encoder of a served collection, or ENCODER/SPACE; by default, its first space that supports text."""
    encoding_format: Literal["float", "base64"] = "float"
    """A list of numbers, or the base64 of little-endian float32 values."""
    dimensions: Annotated[WholeNumber, Field(ge=1, le=1 << 31)] | None = None
    """The dimension of the space; no other one is possible."""
    user: str | None = None
    """Accepted and not used."""


class EmbeddingAnswer(BaseModel):
    """The embedding of an input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class UsageAnswer(BaseModel):
    """The size of the texts: their words, as encoders of images have no tokens in common."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """The embeddings of all inputs, in their order."""

    object: Literal["list"]
    data: list[EmbeddingAnswer]
    model: str
    usage: UsageAnswer


@router.post(
    "/embeddings",
    openapi_extra=request_schema(EmbeddingsBody, form=False),
    responses={200: {"model": EmbeddingsAnswer}, **PROBLEMS},
    response_class=Response,
)
async def embed_inputs(request: Request, state: State) -> Response:
    """Return the embeddings of texts and images, as the library does; their length need not be 1."""
    until = state.admission.time_limit()
    read = await read_body(request, state, EmbeddingsBody, until)
    body: EmbeddingsBody = read.body
    inputs = body.input if isinstance(body.input, list) else [body.input]
    words = 0
    data = []
    with state.admission.place():
        record, space, dimension = await state.admission.run_in_place(
            partial(_model, state, body.model), request, until
        )
        if body.dimensions not in (None, dimension):
            raise ProblemError(422, "dimension not possible", f"The embeddings of this model have {dimension} values.")
        for index, each in enumerate(inputs):
            if isinstance(each, str):
                words += len(each.split())
                query = QueryBody(text=each)
            else:
                query = QueryBody(image=each.image)
            make_query = await load_query(query, read.uploads, request, state, until)

            def work() -> npt.NDArray[np.float32]:
                return embed_query(make_query(), [record], space=space).vector  # noqa: B023

            vector = await state.admission.run_in_place(work, request, until)
            embedding = _encoded(vector) if body.encoding_format == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": index, "embedding": embedding})
    usage = {"prompt_tokens": words, "total_tokens": words}
    return json_response({"object": "list", "data": data, "model": body.model, "usage": usage})


def _encoded(vector: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _model(state: ServerState, name: str) -> tuple[EncoderRecord, str, int]:
    """Return the encoder, the name of its space and the dimension that a name means. Raises `ProblemError` if none."""
    records = {record.name: record for record in _records(state)}
    record, space_name = records.get(name), ""
    if record is None:
        encoder, _, space_name = name.rpartition("/")
        record = records.get(encoder)
    if record is not None:
        spaces = [space for space in record.spaces if space_name in ("", space.name)]
        if spaces:
            chosen = min(spaces, key=lambda space: not space.text)
            return record, chosen.name, chosen.dimension
    names = ", ".join(f"{each.name}/{space.name}" for each in records.values() for space in each.spaces)
    raise ProblemError(404, "no such model", f"No encoder of the collections has this name; there are: {names}.")


def _records(state: ServerState) -> list[EncoderRecord]:
    """Return the encoders of all collections that can be opened now; of those with one name, the first one last."""
    records: list[EncoderRecord] = []
    for name in state.collections.names:
        try:
            records += state.collections.get(name).encoders
        except ProblemError:  # another collection may have the encoder
            continue
    return records[::-1]
