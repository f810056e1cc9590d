"""The items of a collection: pages of them, their embeddings, files and thumbnails."""

from __future__ import annotations

import base64
import os
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.convertors import IntegerConvertor, register_url_convertor

from ..._text import as_unicode
from ..._urls import is_url
from ...collection import Filter, Item, Store
from ...errors import CollectionError, NoItemError, QueryError
from ...images import MEDIA_TYPES, make_thumbnail
from ...searching import OriginalFile, item_by_id, item_picture, open_original
from .._answers import PICTURE_HEADERS, FileResponse, bytes_response, inline_disposition
from .._pages import GREATEST_LIMIT, Cursor, method_of, page_by_id, page_limit
from .._problems import ProblemError, problem_responses
from .._requests import check_folder, json_response
from .._state import CollectionName, InThread, State


class _ItemIdConvertor(IntegerConvertor):
    """Item ids in paths. Python refuses to read a number of thousands of digits; such a path leads nowhere."""

    regex = "[0-9]{1,100}"


register_url_convertor("item_id", _ItemIdConvertor())
router = APIRouter(prefix="/v1/collections/{collection}/items", tags=["items"])

_GREATEST_ID = 2**63 - 1

ItemId = Annotated[int, Path(description="The id of an item.", ge=1, le=_GREATEST_ID)]
ThumbnailSide = Annotated[int, Query(description="The most pixels of its longer side.", ge=64, le=1024)]


class ItemLinks(BaseModel):
    """The paths of the pictures of an item."""

    image: str
    thumbnail: str


class ItemDescription(BaseModel):
    """An item of a collection; null stands for what is not known."""

    id: int
    uri: str
    content_hash: str
    version: str
    bytes: int | None
    width: int | None
    height: int | None
    format: str | None
    label: str | None
    label_name: str | None
    caption: str | None
    modified: str | None
    taken: str | None
    missing: float | None
    """The greatest share of the picture that can be missing, if the end of its file is."""
    details: dict[str, str]
    added: str | None
    links: ItemLinks


class ItemPage(BaseModel):
    """Items in the order of their ids, and the cursor of the next page; null after the last one."""

    items: list[ItemDescription]
    next: str | None


class EmbeddingsRequest(BaseModel):
    """Which embeddings to return."""

    ids: list[Annotated[int, Field(ge=1, le=_GREATEST_ID, strict=True)]]
    space: str


class EmbeddingsAnswer(BaseModel):
    """Embeddings in the order of the ids: rows of little-endian float32 numbers, in Base64."""

    space: str
    dimension: int
    data: str


class ItemFilter(BaseModel):
    """Which items are listed: those that meet all conditions that are given. Dates are ISO 8601."""

    label: Annotated[list[str] | None, Field(description="A label or its name; one of several is enough.")] = None
    folder: Annotated[str | None, Field(min_length=1, description="A folder or URL that the item is in or below.")] = (
        None
    )
    after: Annotated[str | None, Field(description="Taken, or else modified, on that day or later.")] = None
    before: Annotated[str | None, Field(description="Taken, or else modified, before that day.")] = None
    min_width: Annotated[int | None, Field(ge=0, le=_GREATEST_ID, description="Pixels.")] = None
    min_height: Annotated[int | None, Field(ge=0, le=_GREATEST_ID, description="Pixels.")] = None
    source: Annotated[str | None, Field(description="A source, as the collection lists it.")] = None
    cursor: Cursor = None
    limit: Annotated[int | None, Field(ge=1, le=GREATEST_LIMIT, description="The most items of the page: 100.")] = None


@router.get("", responses={200: {"model": ItemPage}, **problem_responses(404, 422, 429, 501, 503)})
async def list_items(
    collection: CollectionName, state: State, in_thread: InThread, asked: Annotated[ItemFilter, Query()]
) -> Response:
    """List the items in the order of their ids, a page at a time."""
    limit = page_limit(asked.limit, 100, state.settings.limits)
    try:
        check_folder(asked.folder)
        wanted = Filter(
            labels=None if asked.label is None else tuple(asked.label),
            folder=asked.folder,
            after=asked.after,
            before=asked.before,
            min_width=asked.min_width,
            min_height=asked.min_height,
        )
    except (CollectionError, QueryError) as error:
        raise ProblemError(422, "filter not valid", str(error)) from error

    def read(store: Store) -> dict[str, Any]:
        items_page = partial(method_of(store, "items_page"), filter=wanted, source=asked.source)
        if asked.source is not None and asked.source not in method_of(store, "sources")():
            raise ProblemError(404, "no such source", "The collection has no such source: name one that it lists.")
        page = page_by_id(items_page, asked.cursor, limit, lambda item: item.id)
        names = store.label_names()
        return {"items": [_described(collection, item, names) for item in page.values], "next": page.next}

    return json_response(await in_thread(partial(state.collections.read, collection, read)))


@router.post("/embeddings", responses={200: {"model": EmbeddingsAnswer}, **problem_responses(404, 422, 429, 503)})
async def read_embeddings(
    collection: CollectionName, state: State, in_thread: InThread, asked: EmbeddingsRequest
) -> Response:
    """Return the embeddings of items in a space."""
    if len(asked.ids) > state.settings.limits.results:
        raise ProblemError(422, "too many ids", f"Name at most {state.settings.limits.results} ids.")

    def read(store: Store) -> dict[str, Any]:
        if asked.space not in store.spaces:
            names = ", ".join(store.spaces)
            raise ProblemError(422, "no such space", f"The collection has no such space: choose one of {names}.")
        rows = store.embeddings(asked.ids, asked.space).astype("<f4")
        data = base64.b64encode(rows.tobytes()).decode()
        return {"space": asked.space, "dimension": store.spaces[asked.space].dimension, "data": data}

    return json_response(await in_thread(partial(state.collections.read, collection, read)))


@router.get("/{item_id:item_id}", responses={200: {"model": ItemDescription}, **problem_responses(404, 422, 429, 503)})
async def describe_item(collection: CollectionName, item_id: ItemId, state: State, in_thread: InThread) -> Response:
    """Return all that is known of an item."""

    def read(store: Store) -> dict[str, Any]:
        return _described(collection, _item(store, item_id), store.label_names())

    return json_response(await in_thread(partial(state.collections.read, collection, read)))


_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/*": {}}}, 304: {"description": "Not Modified"}}


@router.head("/{item_id:item_id}/image", include_in_schema=False)
@router.get(
    "/{item_id:item_id}/image",
    response_class=Response,
    responses={**_PICTURE, 206: {"content": {"image/*": {}}}, **problem_responses(404, 416, 422, 429, 503)},
)
async def item_image(
    collection: CollectionName, item_id: ItemId, state: State, in_thread: InThread, request: Request
) -> Response:
    """Return the original file of an item, or a range of its bytes. Nothing is fetched for a remote image."""

    def read(store: Store) -> tuple[Item, OriginalFile | None]:
        item = _item(store, item_id)
        return item, open_original(item, max_pixels=state.settings.limits.image_pixels)

    item, original = await in_thread(partial(state.collections.read, collection, read))
    thumbnail = _links(collection, item)["thumbnail"]
    if is_url(item.uri):
        detail = f"The image is not on this server, and it is not fetched: use its thumbnail, {thumbnail}."
        raise ProblemError(404, "image is remote", detail)
    if original is None:
        detail = f"The file of the image is missing, or cannot be read as an image now: try its thumbnail, {thumbnail}."
        raise ProblemError(404, "image not available", detail)
    headers = {
        **PICTURE_HEADERS,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": inline_disposition(os.path.basename(item.uri)),
    }
    media_type = MEDIA_TYPES.get(original.format, "application/octet-stream")
    return FileResponse(request, original.file, original.size, media_type, headers, f'"{original.tag}"')


@router.head("/{item_id:item_id}/thumbnail", include_in_schema=False)
@router.get(
    "/{item_id:item_id}/thumbnail",
    response_class=Response,
    responses={**_PICTURE, **problem_responses(404, 422, 429, 503)},
)
async def item_thumbnail(
    collection: CollectionName,
    item_id: ItemId,
    state: State,
    in_thread: InThread,
    request: Request,
    size: ThumbnailSide = 256,
) -> Response:
    """Return a small JPEG of an item."""

    def read(store: Store) -> tuple[Item, Store]:
        return _item(store, item_id), store

    item, store = await in_thread(partial(state.collections.read, collection, read))
    key = (collection, item.uri, item.content_hash, item.version, size)
    entry = state.thumbnails.get(key)
    if entry is None:
        make = partial(_thumbnail, item, store, size, state.settings.limits.image_pixels)
        jpeg = await in_thread(make)
        if jpeg is None:
            detail = "There is no picture of this item: its file is missing, or cannot be read as an image now."
            raise ProblemError(404, "image not available", detail)
        entry = state.thumbnails.put(key, jpeg)
    return bytes_response(
        request, entry[0], "image/jpeg", {**PICTURE_HEADERS, "Cache-Control": "private, max-age=300"}, entry[1]
    )


def _thumbnail(item: Item, store: Store, side: int, max_pixels: int) -> bytes | None:
    picture = item_picture(item, store, side, max_pixels=max_pixels)
    return None if picture is None else make_thumbnail(picture, side)


def _described(collection: str, item: Item, label_names: dict[str, str]) -> dict[str, Any]:
    name = label_names.get(item.label) if item.label is not None else None
    return {
        **item.as_json(),
        "label_name": None if name is None else as_unicode(name),
        "links": _links(collection, item),
    }


def _links(collection: str, item: Item) -> dict[str, str]:
    base = f"/v1/collections/{quote(collection, safe='')}/items/{item.id}"
    return {"image": f"{base}/image", "thumbnail": f"{base}/thumbnail"}


def _item(store: Store, item_id: int) -> Item:
    """Return the item of a path. Raises `ProblemError` if there is none."""
    try:
        return item_by_id(store, item_id)
    except NoItemError as error:
        raise ProblemError(404, "no such item", str(error)) from error
