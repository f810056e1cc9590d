"""Requests that are made to fail: numbers, texts and paths that no client sends, and clients that leave."""

from __future__ import annotations

import json
import logging
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
