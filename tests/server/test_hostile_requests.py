"""Requests that are made to fail: numbers, texts and paths that no client sends, and clients that leave."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from service_process import Client, request, serving

from pixmatcher.server import Limits, ServerSettings, create_app

BASE = "/v1/collections/photos"


@pytest.fixture(scope="module")
def service(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    state = tmp_path_factory.mktemp("state")
    app = create_app(ServerSettings({"photos": str(photos)}, state_folder=state))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("ending", ["", "/image", "/thumbnail"])
@pytest.mark.parametrize("digits", [30, 101, 5000])
def test_an_id_of_many_digits_is_no_defect(service: TestClient, digits: int, ending: str) -> None:
    assert service.get(f"{BASE}/items/{'9' * digits}{ending}").status_code in (404, 422)


@pytest.mark.parametrize("text", ["\ud800", "/\ud800", "\0", "/\0"])
@pytest.mark.parametrize(
    ("route", "key"), [("has-items-in", "folder"), ("count-to-forget", "source"), ("query", "filter")]
)
def test_a_path_that_no_system_has_is_refused(service: TestClient, route: str, key: str, text: str) -> None:
    values = {key: text} if key != "filter" else {"query": {"text": "a"}, "options": {"filter": {"folder": text}}}
    answer = service.post(
        f"{BASE}/store/{route}", content=json.dumps(values), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["reason"]) == (422, "request not valid")


def test_the_current_folder_of_the_service_stays_unknown(service: TestClient) -> None:
    query = {"query": {"text": "a"}, "options": {"filter": {"folder": "~root"}}}
    for answer in (
        service.get(f"{BASE}/items", params={"folder": "."}),
        service.post(f"{BASE}/store/has-items-in", json={"folder": "."}),
        service.post(f"{BASE}/store/query", json=query),
    ):
        assert answer.status_code == 422
        assert str(Path.cwd()) not in answer.text


_READY = """
import sys
from fastapi.testclient import TestClient
from pixmatcher.encoders import _registry
from pixmatcher.server import ServerSettings, create_app

with TestClient(create_app(ServerSettings({"photos": sys.argv[1], "gone": sys.argv[2]}))) as client:
    print(client.get("/readyz").status_code, _registry._load_once.cache_info().currsize)
"""


def test_a_service_that_is_ready_has_loaded_its_encoder(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _READY, str(photos), str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "503 1\n", done.stderr


MANY = b"[" + b"0," * 300_000 + b"0]"


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (f"{BASE}/search", b'{"want": %s}' % MANY),
        (f"{BASE}/search/batch", b'{"queries": %s}' % MANY),
        (f"{BASE}/items/embeddings", b'{"ids": %s, "space": "visual"}' % MANY),
        (f"{BASE}/store/items", b'{"ids": %s}' % MANY),
        (f"{BASE}/sources", b'{"sources": %s}' % MANY),
        ("/v1/embeddings", b'{"input": %s, "model": "lite"}' % MANY),
    ],
)
def test_json_of_very_many_values_is_refused_before_it_is_parsed(service: TestClient, route: str, body: bytes) -> None:
    answer = service.post(route, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["reason"]) == (413, "too many values")


def test_json_in_a_form_has_the_same_limit_and_files_have_none(service: TestClient) -> None:
    answer = service.post(f"{BASE}/search", files={"query": b'{"want": %s}' % MANY})
    assert (answer.status_code, answer.json()["reason"]) == (413, "too many values")
    files = {"query": b'{"image": "upload:a"}', "a": b"," * 300_000}
    assert service.post(f"{BASE}/search", files=files).json()["reason"] != "too many values"


@pytest.mark.parametrize(
    ("route", "body", "reason"),
    [
        (f"{BASE}/search/batch", {"queries": [{"text": "a"}] * 257}, "too many queries"),
        (f"{BASE}/search/batch", {"queries": [1] * 257}, "too many queries"),
        ("/v1/embeddings", {"input": ["a"] * 257, "model": "lite"}, "too many inputs"),
        (f"{BASE}/items/embeddings", {"ids": [1] * 1001, "space": "visual"}, "too many ids"),
        (f"{BASE}/search", {"text": "a", "filter": {"labels": ["a"] * 10_001}}, "request not valid"),
    ],
)
def test_lists_have_limits(service: TestClient, route: str, body: dict[str, object], reason: str) -> None:
    answer = service.post(route, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (422, reason)


def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_no_traceback(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(ServerSettings({"photos": str(photos)}, state_folder=tmp_path))
    with caplog.at_level(logging.ERROR), serving(app, Limits()) as port:
        headers = ("Content-Type: application/json", "Content-Length: 100", "Expect: 100-continue")
        client = Client(port, request(f"{BASE}/search", *headers, method="POST"))
        client.read_until(b"100 Continue")  # the body is waited for now
        client.socket.close()
    assert not [record for record in caplog.records if record.exc_info]
