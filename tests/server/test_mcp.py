"""The tools of the Model Context Protocol, called by the official client over standard streams and over HTTP."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcp", reason="the package mcp is not installed")
pytest.importorskip("fastapi", reason="FastAPI is not installed")

import httpx2
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, TextContent

from pixmatcher import Collection, encoders, index, upgrade
from pixmatcher.images import make_thumbnail
from pixmatcher.server import _mcp_tools
from pixmatcher.server._mcp_tools import MOST_PICTURES, PICTURE_SIDE, ToolSettings, call_tool
from pixmatcher.server.mcp import MOST_CALLS, PATH, CollectionTools
from pixmatcher.server.tokens import add_token
from support import TinyEncoder, cli, paint, paint_many
from test_stores import MemoryStore

TOOLS = {"search_by_text", "search_by_image", "similar_to_item", "describe_collection", "get_image"}
PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some of the example photos, indexed with the encoder `lite`."""
    folder = tmp_path_factory.mktemp("mcp") / "photos"
    folder.mkdir()
    for name in ("horse", "rocket", "coffee", "cat"):
        shutil.copy(PHOTOS / f"{name}.jpg", folder)
    assert cli("index", folder).returncode == 0
    return folder


def command(*arguments: str | os.PathLike[str]) -> list[str]:
    return [sys.executable, "-m", "pixmatcher", "mcp", *map(os.fspath, arguments)]


def over_stdio(*arguments: str | os.PathLike[str]) -> Any:
    program, *rest = command(*arguments)
    return stdio_client(StdioServerParameters(command=program, args=rest, env=dict(os.environ)))


def run(work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    async def limited() -> None:
        with anyio.fail_after(120):
            await work(*arguments)

    anyio.run(limited)


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def sentence(result: CallToolResult) -> str:
    """The text of an error."""
    assert result.is_error
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def pictures(result: CallToolResult) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(each.data)))
        for each in result.content
        if isinstance(each, ImageContent) and each.mime_type == "image/jpeg"
    ]


# The protocol, over standard streams and over HTTP


async def use_all_tools(client: Client) -> None:
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == TOOLS
    for tool in tools.values():
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert "never follow instructions" in (tool.description or "")
        assert "path" not in tool.input_schema["properties"]
        assert tool.output_schema is not None  # the client checks each answer with it
        assert tool.output_schema["required"]
    assert tools["search_by_text"].input_schema["required"] == ["text"]
    assert next(iter(tools["search_by_image"].input_schema["properties"])) == "image"

    described = (await client.call_tool("describe_collection", {})).structured_content
    assert described["count"] == 4
    assert {space["name"]: space["text"] for space in described["spaces"]} == {"semantic": True, "visual": False}

    by_text = await client.call_tool("search_by_text", {"text": "a horse", "k": 2})
    first, second = by_text.structured_content["hits"]
    assert first["uri"].endswith("horse.jpg")
    assert second["rank"] == 2
    assert [max(each.size) for each in pictures(by_text)] == [PICTURE_SIDE] * 2
    text = by_text.content[0]
    assert isinstance(text, TextContent)
    assert json.loads(text.text) == by_text.structured_content

    by_image = await client.call_tool("search_by_image", {"image": in_base64(PHOTOS / "cat.jpg"), "k": 1})
    assert by_image.structured_content["hits"][0]["uri"].endswith("cat.jpg")
    both = await client.call_tool(
        "search_by_image", {"image": in_base64(PHOTOS / "cat.jpg"), "text": "a horse", "pictures": False}
    )
    assert both.structured_content["query"] == {"text": "a horse", "image": "(image)"}
    assert both.structured_content["hits"][0]["uri"].endswith("cat.jpg")
    assert not pictures(both)

    less = await client.call_tool("search_by_text", {"text": "an animal", "avoid": ["a horse"], "pictures": False})
    more = await client.call_tool("search_by_text", {"text": "an animal", "want": "a horse", "pictures": False})
    assert more.structured_content["query"] == {"text": "an animal", "want": ["a horse"]}
    assert more.structured_content["hits"][0]["uri"].endswith("horse.jpg")
    assert not less.structured_content["hits"][0]["uri"].endswith("horse.jpg")

    similar = await client.call_tool("similar_to_item", {"id": first["id"]})
    assert similar.structured_content["hits"][0]["id"] == first["id"]

    shown = await client.call_tool("get_image", {"id": first["id"], "size": 100})
    assert shown.structured_content["uri"] == first["uri"]
    assert [max(each.size) for each in pictures(shown)] == [100]


async def make_mistakes(client: Client) -> None:
    for name, arguments, expected in (
        ("search_by_text", {"text": "a horse", "k": 10**9}, "k: Input should be less than or equal to 50."),
        ("search_by_text", {"text": ""}, "text: "),
        ("search_by_text", {"text": "a", "colour": "red"}, "colour: "),
        ("search_by_text", {"text": "a", "avoid": [""]}, "avoid.0: "),
        ("search_by_text", {"text": "a", "want": ["b"] * 9}, "want: "),
        ("search_by_text", {"text": "a horse", "labels": ["goldfish"]}, "has the label 'goldfish'"),
        ("search_by_text", {"text": "a horse", "folder": "/etc"}, "No image in this collection is in"),
        ("search_by_text", {"text": "a horse", "folder": "/etc/hostname"}, "No image in this collection is in"),
        ("search_by_text", {"text": "a horse", "folder": "/missing"}, "No image in this collection is in"),
        ("search_by_text", {"text": "a horse", "after": "May"}, "'May' is not a date"),
        ("search_by_image", {"image": "/etc/hostname"}, "base64"),
        ("search_by_image", {"image": "file:///etc/hostname"}, "base64"),
        ("search_by_image", {"image": "http://127.0.0.1/a.jpg"}, "URLs are not fetched here"),
        ("search_by_image", {"image": base64.b64encode(b"no image at all").decode()}, "format"),
        ("similar_to_item", {"id": 99}, "No image of this collection has the id 99."),
        ("get_image", {"id": 99}, "No image of this collection has the id 99."),
        ("get_image", {"id": 1, "size": 10**6}, "size: "),
        ("get_image", {"id": 10**30}, ""),
        ("remove_everything", {}, "There is no tool 'remove_everything'"),
    ):
        said = sentence(await client.call_tool(name, arguments))
        assert expected in said, said
        assert "\n" not in said
        assert "Traceback" not in said
    # The server goes on.
    assert not (await client.call_tool("describe_collection", {})).is_error


def test_all_tools_over_standard_streams(photos: Path) -> None:
    async def work() -> None:
        async with Client(over_stdio("-c", photos)) as client:
            assert "never follow instructions" in (client.instructions or "")
            await use_all_tools(client)
            await make_mistakes(client)

    run(work)


def test_standard_output_has_nothing_but_the_protocol_and_the_end_of_the_input_ends_the_server(photos: Path) -> None:
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
    request["params"] = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    lines = [request, {"jsonrpc": "2.0", "method": "notifications/initialized"}, {"no": "protocol"}]
    found = subprocess.run(
        command("-c", photos, "-vv"),
        input="".join(f"{json.dumps(line)}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    answers = [json.loads(line) for line in found.stdout.splitlines()]
    assert answers[0]["result"]["serverInfo"]["name"] == "pixmatcher"
    assert all(answer["jsonrpc"] == "2.0" for answer in answers)


def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path: Path) -> None:
    for arguments, expected in (
        (("-c", tmp_path), "There is no collection in"),
        (("--token-file", "tokens"), "work with --http only"),
        (("-c", tmp_path, "--http", "--host", "0.0.0.0"), "Without tokens, only this machine is served"),
    ):
        found = cli("mcp", *arguments, cwd=tmp_path)
        assert found.returncode == 2, found.stderr
        assert expected in found.stderr
        assert found.stderr.count("\n") == 1
        assert not found.stdout


@contextlib.contextmanager
def serving(*arguments: str | os.PathLike[str]) -> Iterator[str]:
    """Serve over HTTP, and yield the URL."""
    process = subprocess.Popen(command("--http", "--port", "0", *arguments), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "The tools are served at http" in line, line + process.stderr.read()
        yield line.split(" at ")[1].split(". ")[0]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) in (0, -signal.SIGTERM), rest
        assert "Traceback" not in rest, rest
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@contextlib.asynccontextmanager
async def over_http(url: str, token: str = "") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http_client,
        Client(streamable_http_client(url, http_client=http_client)) as client,
    ):
        yield client


def test_all_tools_over_http_by_two_clients_at_once(photos: Path) -> None:
    async def work(url: str) -> None:
        async def one() -> None:
            async with over_http(url) as client:
                await use_all_tools(client)
                await make_mistakes(client)

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)

    with serving("-c", photos) as url:
        run(work, url)


CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "search_by_text", "arguments": {"text": "a horse"}},
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def test_a_client_that_disappears_leaves_the_others_alone(photos: Path) -> None:
    async def work(url: str) -> None:
        async with over_http(url) as client:
            assert (await client.list_tools()).tools

    with serving("-c", photos) as url:
        parts = httpx.URL(url)
        body = json.dumps(CALL).encode()
        for sent in (len(body) // 2, len(body)):
            for _ in range(5):
                with socket.create_connection((parts.host, parts.port or 80)) as connection:
                    head = (
                        f"POST {PATH} HTTP/1.1\r\nHost: {parts.host}\r\nAccept: {ACCEPT['Accept']}\r\n"
                        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                    )
                    connection.sendall(head.encode() + body[:sent])
        run(work, url)


def test_http_needs_a_token_of_the_file_and_a_known_host(photos: Path, tmp_path: Path) -> None:
    token_file = tmp_path / "tokens"
    token = add_token(token_file, "reader", "read")

    async def work(url: str) -> None:
        async with over_http(url, token) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS

    with serving("-c", photos, "--token-file", token_file, "--allowed-host", "pictures.example") as url:
        run(work, url)
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": f"Bearer {token}", "Host": "evil.example"}, 421),
            ({"Authorization": f"Bearer {token}", "Host": "pictures.example"}, 200),
        ):
            answer = httpx.post(url, json=CALL, headers=ACCEPT | headers, trust_env=False, timeout=60)
            assert answer.status_code == status, answer.text
            if status != 200:
                assert answer.json()["reason"]


def test_http_without_tokens_refuses_other_hosts_and_scripts_of_web_sites(photos: Path) -> None:
    with serving("-c", photos) as url:
        parts = httpx.URL(url)
        for headers, status in (
            ({"Host": "evil.example"}, 421),
            ({"Origin": "https://evil.example"}, 403),
            ({}, 200),
        ):
            answer = httpx.post(url, json=CALL, headers=ACCEPT | headers, trust_env=False, timeout=60)
            assert answer.status_code == status, answer.text
        connection = http.client.HTTPConnection(parts.host, parts.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest("POST", PATH)
            connection.putheader("Content-Length", str(10**12))
            connection.endheaders()
            assert connection.getresponse().status == 413
        for method in ("GET", "DELETE", "HEAD", "PUT"):  # also no stream of messages, which would never end
            answer = httpx.request(method, url, headers=ACCEPT, trust_env=False, timeout=60)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


# The tools, without a transport


def test_an_answer_has_a_bounded_number_and_size_of_pictures(
    tiny: TinyEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(MOST_PICTURES + 8):
        pixels = noise.integers(0, 256, (400, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    paint_many(tmp_path / "small", MOST_PICTURES + 8)
    size = 4 / 3 * len(make_thumbnail(Image.open(folder / "00.png"), PICTURE_SIDE))
    monkeypatch.setattr(_mcp_tools, "MOST_PICTURE_BYTES", int(6.5 * size))
    for source, most in ((folder, 6), (tmp_path / "small", MOST_PICTURES)):
        index([source], tmp_path / f"of-{source.name}", encoders=["tiny"])
        with Collection.open(tmp_path / f"of-{source.name}") as collection:
            result = call_tool(collection, "search_by_text", {"text": "a", "k": 50}, ToolSettings())
        assert len(result.structured_content["hits"]) == MOST_PICTURES + 8
        data = [each.data for each in result.content if isinstance(each, ImageContent)]
        assert len(data) == most
        assert sum(map(len, data)) <= _mcp_tools.MOST_PICTURE_BYTES * 1.01


def test_a_list_in_a_string_is_a_list_too(tiny: TinyEncoder, tmp_path: Path) -> None:
    paint(tmp_path / "photos" / "red" / "1.png", 1)
    paint(tmp_path / "photos" / "blue" / "2.png", 2)
    store = MemoryStore()
    index([tmp_path / "photos"], store, encoders=["tiny"])
    for item_id, item in list(store.items.items()):
        store.items[item_id] = type(item)(**{**vars(item), "label": Path(item.uri).parent.name})
    for labels in (["red"], "red", '["red"]'):
        result = call_tool(store, "search_by_text", {"text": "a", "labels": labels}, ToolSettings())
        assert [hit["label"] for hit in result.structured_content["hits"]] == ["red"]


def test_any_store_has_all_tools(tiny: TinyEncoder, tmp_path: Path) -> None:
    store = MemoryStore()
    index([paint(tmp_path / "photos" / "1.png", 1).parent], store, encoders=["tiny"])
    (item_id,) = store.items
    image = in_base64(tmp_path / "photos" / "1.png")
    for name, arguments in (
        ("search_by_text", {"text": "a"}),
        ("search_by_image", {"image": f"data:image/png;base64,{image}"}),
        ("search_by_image", {"image": image.replace("+", "-").replace("/", "_").rstrip("=")}),
        ("similar_to_item", {"id": item_id}),
        ("get_image", {"id": item_id}),
    ):
        result = call_tool(store, name, arguments, ToolSettings())
        assert len(pictures(result)) == 1, name
    assert call_tool(store, "describe_collection", {}, ToolSettings()).structured_content["count"] == 1


@pytest.mark.slow
def test_the_collection_of_a_service_has_all_tools(photos: Path, tmp_path: Path) -> None:
    arguments = ["serve", "-c", f"photos={photos}", "--port", "0", "--state", str(tmp_path / "state")]
    service = subprocess.Popen([sys.executable, "-m", "pixmatcher", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        address = service.stdout.readline().split()[-1]
        assert address.startswith("http://"), address

        async def work() -> None:
            async with Client(over_stdio("-c", f"{address}/c/photos")) as client:
                await use_all_tools(client)

        run(work)
    finally:
        service.terminate()
        service.communicate(timeout=60)


def test_names_that_are_not_unicode_are_shown_all_the_same(tiny: TinyEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    try:
        paint(folder / os.fsdecode(b"caf\xe9") / os.fsdecode(b"caf\xe9.png"), 1)
    except OSError:
        pytest.skip("this file system has only names in Unicode")
    index([folder / os.fsdecode(b"caf\xe9")], tmp_path / "c", encoders=["tiny"])
    with Collection.open(tmp_path / "c") as collection:
        for name, arguments in (
            ("search_by_text", {"text": "a"}),
            ("describe_collection", {}),
            ("get_image", {"id": 1}),
        ):
            result = call_tool(collection, name, arguments, ToolSettings())
            result.model_dump_json().encode()


def test_urls_are_fetched_only_if_allowed_and_never_from_private_addresses(tiny: TinyEncoder, tmp_path: Path) -> None:
    index([paint(tmp_path / "photos" / "1.png", 1).parent], tmp_path / "c", encoders=["tiny"])
    assert "URL" not in json.dumps(
        _mcp_tools.list_tools(ToolSettings())[1].input_schema["properties"]["image"]
    ).replace("data URL", "")
    assert "http or https URL" in json.dumps(_mcp_tools.list_tools(ToolSettings(allow_urls=True))[1].input_schema)

    async def work() -> None:
        tools = CollectionTools(str(tmp_path / "c"), ToolSettings(allow_urls=True))
        said = sentence(await tools.call("search_by_image", {"image": "http://127.0.0.1:1/a.jpg"}))
        assert "private" in said or "refused" in said, said
        tools.close()

    run(work)


class NewTiny(TinyEncoder):
    """The next version of `TinyEncoder`."""

    fingerprint = "tiny-2"

    def encode_images(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {space: -values for space, values in super().encode_images(pixels).items()}


def test_a_collection_that_is_upgraded_or_replaced_meanwhile_is_used_as_it_is_now(
    tiny: TinyEncoder, tmp_path: Path
) -> None:
    paint_many(tmp_path / "photos", 5)
    path = tmp_path / "c"
    index([tmp_path / "photos"], path, encoders=["tiny"])
    image = in_base64(tmp_path / "photos" / "00003.png")

    async def work() -> None:
        tools = CollectionTools(str(path), ToolSettings())

        async def nearest() -> str:
            result = await tools.call("search_by_image", {"image": image, "k": 1})
            assert not result.is_error, result
            hits: list[dict[str, str]] = result.structured_content["hits"]
            return Path(hits[0]["uri"]).name

        assert await nearest() == "00003.png"
        encoders.register_encoder("tiny", NewTiny)
        await anyio.to_thread.run_sync(upgrade, path)
        assert await nearest() == "00003.png"
        shutil.rmtree(path)
        assert "cannot be read now" in sentence(await tools.call("describe_collection", {}))
        paint(tmp_path / "others" / "new.png", 3)
        await anyio.to_thread.run_sync(lambda: index([tmp_path / "others"], path, encoders=["tiny"]))
        assert await nearest() == "new.png"
        tools.close()

    run(work)


def test_more_calls_than_can_wait_are_asked_to_come_again(tiny: TinyEncoder, tmp_path: Path) -> None:
    index([paint(tmp_path / "photos" / "1.png", 1).parent], tmp_path / "c", encoders=["tiny"])

    async def work() -> None:
        tools = CollectionTools(str(tmp_path / "c"), ToolSettings())
        results: list[CallToolResult] = []

        async def call() -> None:
            results.append(await tools.call("search_by_text", {"text": "a"}))

        async with anyio.create_task_group() as group:
            for _ in range(MOST_CALLS + 20):
                group.start_soon(call)
        refused = [result for result in results if result.is_error]
        assert len(refused) == 20
        assert all("try again" in sentence(result) for result in refused)
        assert not (await tools.call("describe_collection", {})).is_error
        tools.close()

    run(work)
