"""Whether the service is ready, and its metrics, of one process and of several."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from pixmatcher import Collection
from pixmatcher.collection import Item
from pixmatcher.records import Space
from pixmatcher.server import ServerSettings, create_app
from pixmatcher.server._metrics import ENCODES_WAITING, count_query


class Described:
    """The names of an encoder."""

    name = "described"
    fingerprint = "1"
    spaces = (Space("visual", 4),)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    with Collection.create(folder, [Described()]) as created:
        created.add([Item(f"/photos/{n}.jpg", f"{n:064x}") for n in range(3)], {"visual": np.eye(3, 4)})
    return folder


@pytest.fixture
def client(stored: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServerSettings({"mine": str(stored)})), raise_server_exceptions=False) as opened:
        yield opened


def values(text: str) -> dict[str, float]:
    """Return the value of each series by its name and labels, the labels sorted."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            assert match, line
            labels = ",".join(sorted((match[2] or "").split(",")))
            found[f"{match[1]}{{{labels}}}"] = float(match[3])
    return found


def scraped(client: TestClient) -> dict[str, float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return values(answer.text)


def requests_of(route: str, status: int, method: str = "GET") -> str:
    return f'pixmatcher_requests_total{{method="{method}",route="{route}",status="{status}"}}'


def test_requests_are_counted_by_the_template_of_their_route(client: TestClient) -> None:
    before = scraped(client)
    for item_id in (1, 2, 3, 99):
        client.get(f"/v1/collections/mine/items/{item_id}")
    client.get("/v1/collections/other/items/1")
    after = scraped(client)
    route = "/v1/collections/{collection}/items/{item_id}"
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown[requests_of(route, 200)] == 3
    assert grown[requests_of(route, 404)] == 2
    assert grown[f'pixmatcher_request_seconds_count{{route="{route}"}}'] == 5
    assert grown["pixmatcher_sent_bytes_total{}"] > 1000
    assert after['pixmatcher_items{collection="mine"}'] == 3
    assert after['pixmatcher_collection_available{collection="mine"}'] == 1
    assert after["process_resident_memory_bytes{}"] > 1e6
    assert after["pixmatcher_requests_running{}"] == 1, "the one that asks"


def test_bytes_of_requests_are_counted(client: TestClient) -> None:
    before = scraped(client)["pixmatcher_received_bytes_total{}"]
    client.post("/v1/collections/mine/items/embeddings", content=b" " * 5000)
    assert scraped(client)["pixmatcher_received_bytes_total{}"] - before == 5000


def test_clients_cannot_make_series(client: TestClient) -> None:
    client.get("/none/1")
    client.request("ODD", "/healthz")
    before = scraped(client)
    for number in range(50):
        client.get(f"/none/{number}")
        client.get(f"/v1/collections/name{number}/items/{number}")
        client.get(f"/v1/collections/mine/items/1/thumbnail?size={64 + number}&x{number}=y")
        client.request(f"ODD{number}", "/healthz")
    after = scraped(client)
    assert len(after) - len(before) < 40, "one new route, with its statuses and buckets, and not one for each request"
    assert not [name for name in after if "ODD" in name or "name1" in name]
    assert after[requests_of("none", 404)] - before[requests_of("none", 404)] == 50


def test_queries_and_encodes_are_counted(client: TestClient) -> None:
    before = scraped(client).get('pixmatcher_queries_total{kind="text",space="visual"}', 0)
    count_query("text", "visual")
    ENCODES_WAITING.inc(2)
    after = scraped(client)
    ENCODES_WAITING.dec(2)
    assert after['pixmatcher_queries_total{kind="text",space="visual"}'] - before == 1
    assert after["pixmatcher_encodes_waiting{}"] == 2
    assert scraped(client)["pixmatcher_encodes_waiting{}"] == 0


def test_health_and_readiness(client: TestClient, stored: Path) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    away = stored.with_name("away")
    stored.rename(away)
    client.app.state.server.readiness._until = 0.0  # type: ignore[attr-defined]
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "collection not available")
    assert "mine" in answer.json()["detail"]
    assert client.get("/healthz").status_code == 200
    assert scraped(client)['pixmatcher_collection_available{collection="mine"}'] == 0
    away.rename(stored)
    client.app.state.server.readiness._until = 0.0  # type: ignore[attr-defined]
    assert client.get("/readyz").status_code == 200


def test_readiness_is_tried_once_for_many_clients(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = Collection.search

    def counted(self: Collection, *arguments: object, **options: object) -> object:
        searches.append(threading.get_ident())
        return search(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Collection, "search", counted)
    monkeypatch.setattr("pixmatcher.server._readiness._KEPT_SECONDS", 1000)
    for _ in range(20):
        assert client.get("/readyz").status_code == 200
    assert len(searches) == 1


def test_an_empty_collection_is_ready(tmp_path: Path) -> None:
    Collection.create(tmp_path / "c", [Described()]).close()
    with TestClient(create_app(ServerSettings({"mine": str(tmp_path / "c")}))) as client:
        assert client.get("/readyz").status_code == 200


WORKER = """
import sys
from fastapi.testclient import TestClient
from pixmatcher.server import ServerSettings, create_app
from pixmatcher.server._metrics import ENCODES_RUNNING, count_query

with TestClient(create_app(ServerSettings({"mine": sys.argv[1]}))) as client:
    for _ in range(int(sys.argv[2])):
        client.get("/healthz")
    count_query("image", "visual")
    ENCODES_RUNNING.inc()
    print("ready", flush=True)
    sys.stdin.readline()
    print(client.get("/metrics").text, flush=True)
"""

SERVICE = """
import subprocess, sys
from pathlib import Path
from pixmatcher.server._metrics_folder import forget_worker, share_metrics

assert "prometheus_client" not in sys.modules
share_metrics(Path(sys.argv[1]))

def start(count):
    command = [sys.executable, "-c", sys.argv[3], sys.argv[2], count]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

workers = [start("3"), start("4")]
for worker in workers:
    assert worker.stdout.readline() == "ready\\n"
workers[1].kill()
workers[1].communicate()
forget_worker(workers[1].pid)
print(workers[0].communicate("go\\n")[0])
"""


@pytest.mark.slow
def test_several_workers_count_together(stored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "counts"
    folder.mkdir()
    (folder / "counter_1.db").write_bytes(b"of an earlier run")
    command = [sys.executable, "-c", SERVICE, str(folder), str(stored), WORKER]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert outcome.returncode == 0, outcome.stderr
    found = values(outcome.stdout.strip())
    assert found[requests_of("/healthz", 200)] == 7, "of both workers, the killed one too"
    assert found['pixmatcher_queries_total{kind="image",space="visual"}'] == 2
    assert found["pixmatcher_encodes_running{}"] == 1, "of the worker that lives"
    assert found["pixmatcher_workers{}"] == 1
    assert found["process_resident_memory_bytes{}"] > 1e6
    assert found['pixmatcher_items{collection="mine"}'] == 3
