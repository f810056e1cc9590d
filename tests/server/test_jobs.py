"""Jobs: which sources clients may add, what is stored, how jobs stop, and what survives the death of a process."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from job_service import ENDED, Service, is_job_process, kill_process, running_service, wait_until

from pixmatcher._progress import Progress
from pixmatcher.collection import Collection
from pixmatcher.indexing import index
from pixmatcher.server import ServerSettings, create_app
from pixmatcher.server import _jobs as jobs_module
from pixmatcher.server._jobs import MOST_CRASHES, MOST_WAITING, MOST_WAITING_OF_CLIENT, JobRecords
from pixmatcher.server._problems import Problem, ProblemError
from pixmatcher.server._routes.jobs import _MOST_LISTENERS
from pixmatcher.server._source_check import check_new_source
from pixmatcher.server.tokens import add_token
from support import fill_up, paint, paint_many

KILLS = int(os.environ.get("PIXMATCHER_KILLS", "5"))
"""How often a process is killed in the test of kills."""

SERVED = {"c": "/c"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five images; `tmp_path / "c"` is its collection."""
    folder = tmp_path / "photos"
    paint_many(folder, 5)
    index(folder, tmp_path / "c")
    return folder


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    paint_many(folder / "more", 3, first=100)
    return folder


@pytest.fixture
def client(photos: Path, allowed: Path, tmp_path: Path) -> Iterator[TestClient]:
    settings = ServerSettings({"c": str(tmp_path / "c")}, state_folder=tmp_path / "state", source_folders=(allowed,))
    with TestClient(create_app(settings)) as opened:
        yield opened


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, Path]]:
    """A service whose records no test changes, and the folder in which clients may index `allowed`."""
    place = tmp_path_factory.mktemp("refusing")
    paint_many(place / "photos", 2)
    index(place / "photos", place / "c")
    outside, allowed = place / "outside", place / "allowed"
    for folder in (outside / "below", allowed / "more", allowed / "folder-of-shards"):
        folder.mkdir(parents=True)
    (outside / "a.tar").touch()
    (allowed / "link").symlink_to(outside)
    (allowed / "shard.tar").symlink_to(outside / "a.tar")
    (allowed / "folder-of-shards" / "one.tar").symlink_to(outside / "a.tar")
    (allowed / "list.csv").write_text("url\nhttps://example.org/a.jpg\n")
    settings = ServerSettings({"c": str(place / "c")}, state_folder=place / "state", source_folders=(allowed,))
    with TestClient(create_app(settings)) as opened:
        yield opened, place


def ended(client: TestClient, job_id: str) -> dict[str, Any]:
    wait_until(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] in ENDED)
    found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return found


def uris(collection: Path) -> list[str]:
    with Collection.open(collection) as opened:
        return sorted(item.uri for item in opened.items())


def files(*folders: Path) -> list[str]:
    return sorted(str(path) for folder in folders for path in folder.rglob("*.png"))


def add(records: JobRecords, kind: str = "index", client: str = "") -> str:
    return records.add("c", "/c", kind, {}, client).id  # type: ignore[arg-type]


# ---- What clients may ask for ----


def test_a_new_source_is_indexed_listed_and_forgotten(
    client: TestClient, photos: Path, allowed: Path, tmp_path: Path
) -> None:
    source = str(allowed / "more")
    response = client.post("/v1/collections/c/sources", json={"sources": [source], "exclude": ["*.tmp"]})
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["collection"], job["kind"], job["request"]["sources"]) == ("c", "index", [source])
    done = ended(client, job["id"])
    assert (done["state"], done["error"]) == ("done", None)
    assert (done["report"]["added"], done["report"]["total"], done["report"]["failed"]) == (3, 8, 0)
    assert done["created"] <= done["started"] <= done["ended"]
    assert uris(tmp_path / "c") == files(photos, allowed)
    listed = client.get("/v1/collections/c/sources").json()["sources"]
    assert [each["source"] for each in listed] == [str(photos), source]
    assert listed[1]["exclude"] == ["*.tmp"]
    response = client.delete("/v1/collections/c/sources", params={"source": source})
    assert response.status_code == 202
    assert ended(client, response.json()["id"])["report"] == {"removed": 3, "total": 5}
    assert uris(tmp_path / "c") == files(photos)
    found = client.get("/v1/jobs").json()["jobs"]
    assert [each["kind"] for each in found] == ["forget", "index"]


@pytest.mark.parametrize(
    "source",
    [
        "/etc",
        "/",
        "photos",
        "~/Pictures",
        "{allowed}/../outside",
        "{allowed}/link",
        "{allowed}/link/below",
        "{allowed}x",
        "file:///etc",
        "file://other/photos",
        "folder:/etc",
        "folder:relative",
        "tiny-imagenet:/etc?split=val",
        "tiny-imagenet:{allowed}/../outside?split=val",
        "webdataset:/etc/*.tar",
        "webdataset:{allowed}/link*/a.tar",
        "webdataset:{allowed}/{link,more}/a.tar",
        "webdataset:{allowed}/shard.tar",
        "webdataset:{allowed}/folder-of-shards",
        "urls:{allowed}/list.csv",
        "urls:/etc/passwd",
        "open-images:{allowed}/more",
        "arrays:{allowed}/embeddings.npy",
        "unknown:{allowed}",
        "https://example.org/a.jpg",
        "{allowed}\0",
    ],
)
def test_sources_outside_the_allowed_folders_are_refused(refusing: tuple[TestClient, Path], source: str) -> None:
    client, place = refusing
    given = source.replace("{allowed}", str(place / "allowed"))
    response = client.post("/v1/collections/c/sources", json={"sources": [given]})
    assert response.status_code in (403, 422)
    assert response.json()["reason"] in ("source not allowed", "source not valid")
    assert response.headers["content-type"] == "application/problem+json"
    assert str(place) not in response.text
    assert client.get("/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("photos", "photos"),
        ("./photos", "./photos"),
        ("~/Pictures", "~/Pictures"),
        ("folder:photos", "photos"),
        ("webdataset:a/*.tar", "a/*.tar"),
        ("urls:list.csv", "list.csv"),
    ],
)
def test_a_relative_path_gets_a_sentence_of_its_own(refusing: tuple[TestClient, Path], source: str, path: str) -> None:
    response = refusing[0].post("/v1/collections/c/sources", json={"sources": [source]})
    assert response.status_code == 422
    assert (
        response.json()["detail"] == f"The path {path!r} is relative: give the full path on the machine of the service."
    )


def test_sources_inside_the_allowed_folders_are_accepted(allowed: Path, tmp_path: Path) -> None:
    (allowed / "odd?name=1").mkdir()
    (allowed / "inner").symlink_to(allowed / "more")
    (allowed / "a.tar").touch()
    alias = tmp_path / "alias"
    alias.symlink_to(allowed)
    for spec in (
        f"{allowed}",
        f"{allowed}/",
        f"{allowed}/inner",
        f"{allowed}/not-yet",
        f"{alias}/more",
        f"file://{allowed}/more",
        f"folder:{allowed}/odd?name=1",
        f"tiny-imagenet:{allowed}/tiny?split=val",
        f"webdataset:{allowed}/{{a,b}}.tar",
        f"webdataset:{allowed}/*.tar",
    ):
        check_new_source(spec, [allowed], False)
        with pytest.raises(ProblemError):
            check_new_source(spec, [], False)
        with pytest.raises(ProblemError):
            check_new_source(spec, [allowed / "more" / "below"], False)
    check_new_source(f"urls:{allowed}/list.csv?base=https://example.org/a/b/", [alias], True)
    with pytest.raises(ProblemError):
        check_new_source("urls:/etc/list.csv", [allowed], True)


@pytest.mark.slow
def test_a_source_that_became_a_link_is_refused_by_the_job(
    client: TestClient, photos: Path, allowed: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    paint_many(outside, 2, first=500)
    with Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()
        first = client.post("/v1/collections/c/sources", json={}).json()["id"]
        second = client.post("/v1/collections/c/sources", json={"sources": [str(allowed / "more")]}).json()["id"]
        (allowed / "more").rename(allowed / "before")
        (allowed / "more").symlink_to(outside)
    assert ended(client, first)["state"] == "done"
    failed = ended(client, second)
    assert (failed["state"], failed["error"]["status"]) == ("failed", 403)
    assert failed["error"]["reason"] == "source not allowed"
    assert uris(tmp_path / "c") == files(photos)


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/v1/collections/x/sources", {"json": {}}, 404),
        ("POST", "/v1/collections/c/sources", {"json": {"sources": []}}, 422),
        ("POST", "/v1/collections/c/sources", {"json": {"sources": ["x" * 5000]}}, 422),
        ("POST", "/v1/collections/c/sources", {"json": {"source": "x"}}, 422),
        ("POST", "/v1/collections/c/sources", {"content": "{"}, 422),
        ("GET", "/v1/collections/x/sources", {}, 404),
        ("DELETE", "/v1/collections/c/sources", {}, 422),
        ("DELETE", "/v1/collections/c/sources", {"params": {"source": "/etc"}}, 404),
        ("POST", "/v1/collections/c/watch", {"json": {"every": 0}}, 422),
        ("POST", "/v1/collections/c/watch", {"content": '{"every": NaN}'}, 422),
        ("GET", "/v1/jobs/" + "0" * 32, {}, 404),
        ("GET", "/v1/jobs/../../etc/passwd", {}, 404),
        ("GET", "/v1/jobs/1", {}, 422),
        ("DELETE", "/v1/jobs/" + "0" * 32, {}, 404),
        ("GET", "/v1/jobs/" + "0" * 32 + "/events", {}, 404),
    ],
)
def test_wrong_calls_get_a_problem(
    refusing: tuple[TestClient, Path], method: str, path: str, options: dict[str, Any], status: int
) -> None:
    response = refusing[0].request(method, path, **options)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]


def test_a_job_that_fails_says_why(client: TestClient, allowed: Path, tmp_path: Path) -> None:
    job_id = client.post("/v1/collections/c/sources", json={"sources": [str(allowed / "missing")]}).json()["id"]
    failed = ended(client, job_id)
    assert failed["state"] == "failed"
    assert failed["error"]["reason"] == "source not valid"
    assert "does not exist" in failed["error"]["detail"]
    assert client.get(f"/v1/jobs/{job_id}/events").text.count("event: end") == 1


# ---- Order and stopping ----


@pytest.mark.slow
def test_jobs_of_a_collection_run_one_after_the_other_and_can_be_stopped(
    client: TestClient, photos: Path, tmp_path: Path
) -> None:
    paint(photos / "added.png", 50)
    with Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()  # as another process that writes: the job waits
        first, second, third = (client.post("/v1/collections/c/sources", json={}).json()["id"] for _ in range(3))
        wait_until(lambda: (client.get(f"/v1/jobs/{first}").json()["progress"] or {}).get("stage", "") != "")
        assert "Waiting for another process" in client.get(f"/v1/jobs/{first}").json()["progress"]["stage"]
        assert client.get(f"/v1/jobs/{second}").json()["state"] == "waiting"
        assert client.delete(f"/v1/jobs/{second}").json()["state"] == "stopped"
        assert client.delete(f"/v1/jobs/{first}").status_code == 200
        assert ended(client, first)["state"] == "stopped"
        wait_until(lambda: client.get(f"/v1/jobs/{third}").json()["state"] == "running")
    done = ended(client, third)
    assert (done["state"], done["report"]["added"]) == ("done", 1)
    assert client.delete(f"/v1/jobs/{third}").json()["state"] == "done"
    assert client.get(f"/v1/jobs/{second}").json()["started"] is None


@pytest.mark.slow
def test_a_collection_is_watched_beside_other_jobs(client: TestClient, photos: Path, tmp_path: Path) -> None:
    response = client.post("/v1/collections/c/watch", json={"every": 3600})
    assert response.status_code == 202
    job_id = response.json()["id"]
    assert client.post("/v1/collections/c/watch").json()["id"] == job_id

    def report() -> dict[str, Any]:
        return client.get(f"/v1/jobs/{job_id}").json()["report"] or {"runs": 0}

    wait_until(lambda: report()["runs"] == 1)
    paint(photos / "added.png", 50)
    wait_until(lambda: uris(tmp_path / "c") == files(photos))
    wait_until(lambda: report()["runs"] >= 2)
    assert ended(client, client.post("/v1/collections/c/sources", json={}).json()["id"])["state"] == "done"
    assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "running"
    client.delete(f"/v1/jobs/{job_id}")
    assert ended(client, job_id)["state"] == "stopped"


# ---- Records ----


def test_too_many_waiting_jobs_are_refused(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    for number in range(MOST_WAITING):
        add(records, client=f"token {number}")
    with pytest.raises(ProblemError, match=f"^{MOST_WAITING} jobs wait already: ") as refused:
        add(records, client="token new")
    assert (refused.value.status, refused.value.reason) == (429, "too many jobs")
    assert int(refused.value.headers["Retry-After"]) > 0
    records.request_stop(records.all(SERVED)[0].job.id)
    add(records, client="token new")


def test_one_client_does_not_fill_the_queue(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    for _ in range(MOST_WAITING_OF_CLIENT):
        add(records, client="token a")
    with pytest.raises(ProblemError, match="jobs of yours wait already: ") as refused:
        add(records, client="token a")
    assert (refused.value.status, refused.value.reason) == (429, "too many jobs")
    add(records, client="token b")
    attempt = records.begin(records.all(SERVED)[-1].job.id)  # a job that runs does not wait
    assert attempt is not None
    add(records, client="token a")


def test_tokens_and_addresses_are_clients(photos: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    made = {name: {"Authorization": f"Bearer {add_token(tokens, name, 'write')}"} for name in ("a", "b")}
    route = "/v1/collections/c/sources"
    for token_file in (tokens, None):
        state = tmp_path / f"state-{token_file is None}"
        settings = ServerSettings({"c": str(tmp_path / "c")}, token_file=token_file, state_folder=state)
        client = TestClient(create_app(settings))  # not entered, so that no job is started
        statuses = [client.post(route, json={}, headers=made["a"]).status_code for _ in range(17)]
        assert statuses == [202] * 16 + [429]
        statuses = [client.post(route, json={}, headers=made["b"]).status_code]
        assert statuses == ([429] if token_file is None else [202])


def test_records_of_an_older_version_get_the_new_column(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database:
        database.executescript(jobs_module._SCHEMA + "PRAGMA user_version = 1;")
        database.execute(
            "INSERT INTO jobs (id, collection, reference, kind, request, created) VALUES "
            "('a', 'c', '/c', 'index', '{}', '2026-01-31T12:00:00.000+00:00')"
        )
        database.commit()
    records = JobRecords(tmp_path)
    add(records)
    assert len(records.all(SERVED)) == 2


def test_only_the_newest_attempt_changes_a_record(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    job_id = add(records)
    first = records.begin(job_id)
    assert first is not None
    assert records.begin(job_id) is None
    records.note_crash(job_id, first, counts=True)
    second = records.begin(job_id)
    assert second is not None
    records.set_progress(job_id, first, Progress("Old", 1, 2, "images"))
    records.end(job_id, first, "done", {"total": 1})
    found = records.find(job_id, SERVED)
    assert found is not None
    assert (found.job.state, found.job.progress, found.job.report) == ("running", None, None)
    assert records.stop_requested(job_id, first)
    assert not records.stop_requested(job_id, second)
    records.end(job_id, second, "done", {"total": 2})
    found = records.find(job_id, SERVED)
    assert found is not None
    assert found.job.report == {"total": 2}


def test_a_job_that_crashes_again_and_again_fails(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    job_id = add(records)
    for _ in range(5):  # killed with the service, which is not its fault
        attempt = records.begin(job_id)
        assert attempt is not None
        records.note_crash(job_id, attempt, counts=False)
    for _ in range(MOST_CRASHES):
        attempt = records.begin(job_id)
        assert attempt is not None
        records.note_crash(job_id, attempt, counts=True)
    found = records.find(job_id, SERVED)
    assert found is not None
    assert found.job.state == "failed"
    assert isinstance(found.job.error, Problem)
    assert found.job.error.reason == "job crashed"


def test_a_job_whose_process_dies_while_it_stops_is_stopped(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    job_id = add(records)
    attempt = records.begin(job_id)
    assert attempt is not None
    records.request_stop(job_id)
    records.note_crash(job_id, attempt, counts=True)
    found = records.find(job_id, SERVED)
    assert found is not None
    assert found.job.state == "stopped"


def test_jobs_of_another_service_are_not_shown(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    job_id = add(records)
    assert records.find(job_id, {"c": "/other"}) is None
    assert records.all({}) == records.unfinished({"other": "/c"}) == []
    assert len(records.unfinished(SERVED)) == 1


def test_old_jobs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_KEPT_JOBS", 3)
    records = JobRecords(tmp_path)
    kept = add(records)
    for _ in range(6):
        records.request_stop(add(records))
    add(records)
    left = records.all(SERVED)
    assert [record.job.state for record in left].count("stopped") == 3
    assert left[-1].job.id == kept


def test_two_processes_may_create_the_records(tmp_path: Path) -> None:
    def add_four(client: str) -> None:
        for _ in range(4):
            add(JobRecords(tmp_path), client=client)

    threads = [threading.Thread(target=add_four, args=(f"token {number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = JobRecords(tmp_path).all(SERVED)
    assert len({record.job.id for record in found}) == len(found) == 24


# ---- Disks ----


def test_a_damaged_table_of_jobs_is_one_problem(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "jobs.sqlite").write_bytes(b"no database" * 1000)
    for response in (client.get("/v1/jobs"), client.post("/v1/collections/c/sources", json={})):
        assert response.status_code == 503
        assert response.json()["reason"] == "jobs not available"
        assert str(tmp_path) not in response.text
    assert client.get("/healthz").status_code == 200
    assert "pixmatcher_requests_total" in client.get("/metrics").text
    assert client.get("/v1/collections/c/sources").status_code == 200


def test_a_state_folder_that_cannot_be_created_is_one_problem(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = ServerSettings({"c": str(tmp_path / "c")}, state_folder=tmp_path / "file" / "state")
    with TestClient(create_app(settings)) as client:
        assert client.get("/v1/jobs").json() == {"jobs": []}
        response = client.post("/v1/collections/c/sources", json={})
        assert (response.status_code, response.json()["reason"]) == (503, "jobs not available")
        assert client.get("/healthz").status_code == 200


def test_a_full_disk_of_records_is_one_problem(photos: Path, tmp_path: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("this machine allows no mounts")
    settings = ServerSettings({"c": str(tmp_path / "c")}, state_folder=small_disk / "state")
    with TestClient(create_app(settings)) as client:
        filler = fill_up(small_disk)
        response = client.post("/v1/collections/c/sources", json={})
        assert (response.status_code, response.json()["reason"]) == (507, "disk full or failing")
        assert client.get("/healthz").status_code == 200
        filler.unlink()
        job_id = client.post("/v1/collections/c/sources", json={}).json()["id"]
        assert ended(client, job_id)["state"] == "done"
        fill_up(small_disk)
        response = client.post("/v1/collections/c/sources", json={})
        assert (response.status_code, response.json()["reason"]) == (507, "disk full or failing")
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "done"
        assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [job_id]
        assert 'pixmatcher_jobs{state="done"} 1' in client.get("/metrics").text


def test_a_full_disk_of_the_collection_is_one_problem(photos: Path, tmp_path: Path, small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("this machine allows no mounts")
    collection = small_disk / "c"
    index(photos, collection)
    paint_many(photos / "new", 3)
    settings = ServerSettings({"c": str(collection)}, state_folder=tmp_path / "state")
    with TestClient(create_app(settings)) as client:
        filler = fill_up(small_disk)
        job = client.post("/v1/collections/c/sources", json={}).json()
        error = ended(client, job["id"])["error"]
        assert error["status"] == 507
        assert error["detail"].startswith("The disk of the collection is full (")
        assert client.post("/v1/collections/c/search", json={"want": [{"id": 1}]}).status_code == 200
        filler.unlink()
        job = client.post("/v1/collections/c/sources", json={}).json()
        assert ended(client, job["id"])["report"]["added"] == 3


# ---- Processes ----


@pytest.fixture
def service(photos: Path, allowed: Path, tmp_path: Path) -> Iterator[Service]:
    with running_service(Service(tmp_path / "state", [allowed], tmp_path / "log", c=tmp_path / "c")) as started:
        yield started


@pytest.mark.slow
def test_events_show_the_progress_and_end(service: Service, photos: Path, tmp_path: Path) -> None:
    paint(photos / "added.png", 50)
    with Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()
        job_id = service.index()
        with service.client.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = read_events(response.iter_lines())
            name, last, job = next(events)
            assert name == "progress"
            while job["progress"] is None:
                name, last, job = next(events)
            assert "Waiting" in job["progress"]["stage"]
        # The client has left. It continues from where it was.
        writer.close()
        found = [*stream(service, job_id, last)]
    assert found[-1][0] == "end"
    assert found[-1][2]["report"]["added"] == 1
    assert found[0][1] > last
    again = service.client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": str(found[-1][1])})
    assert again.status_code == 204


def stream(service: Service, job_id: str, last: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    headers = {"Last-Event-ID": str(last)}
    with service.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        yield from read_events(response.iter_lines())


def read_events(lines: Iterator[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield the name, the id and the data of each event."""
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        if line:
            fields[name if colon else line] = value
        else:
            if "data" in fields:
                yield fields["event"], int(fields["id"]), json.loads(fields["data"])
            fields = {}


@pytest.mark.slow
def test_listeners_are_few_and_are_forgotten_when_they_leave(service: Service) -> None:
    job_id = service.client.post("/v1/collections/c/watch", json={"every": 3600}).json()["id"]
    address = f"{service.client.base_url}/v1/jobs/{job_id}/events"
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=60, trust_env=False, limits=limits) as listener, ExitStack() as stack:
        for _ in range(_MOST_LISTENERS):
            response = stack.enter_context(listener.stream("GET", address))
            assert response.status_code == 200
            lines = response.iter_lines()  # kept, as the stream ends when it is deleted
            stack.callback(lines.close)
            next(lines)
        refused = service.client.get(address)
        assert (refused.status_code, refused.json()["reason"]) == (429, "too many listeners")
        assert int(refused.headers["retry-after"]) > 0
        assert service.job(job_id)["id"] == job_id

    def accepted() -> bool:
        with service.client.stream("GET", address) as response:
            return response.status_code == 200

    wait_until(accepted)


@pytest.mark.slow
def test_jobs_are_taken_up_again_after_a_stop_in_order(service: Service, photos: Path, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()
        running, waiting = service.index(), service.index()
        watching = service.client.post("/v1/collections/c/watch", json={"every": 3600}).json()["id"]
        service.wait_for(running, "running")
        wait_until(lambda: service.process_of(running) is not None)
        pid = service.process_of(running)
        assert service.stop() in (0, -signal.SIGTERM)
        assert pid is not None
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
        service.start()
        assert service.job(running)["state"] in ("waiting", "running")
    paint(photos / "added.png", 50)
    for job_id in (running, waiting):
        done = service.wait_for(job_id)
        assert (done["state"], done["error"]) == ("done", None)
    wait_until(lambda: uris(tmp_path / "c") == files(photos))
    paint(photos / "second.png", 51)
    wait_until(lambda: uris(tmp_path / "c") == files(photos))
    assert service.job(watching)["state"] == "running"


@pytest.mark.slow
def test_a_job_process_that_dies_again_and_again_is_given_up(service: Service, tmp_path: Path) -> None:
    with Collection.open(tmp_path / "c") as writer:
        writer.begin_writing()
        job_id = service.index()
        killed = set[int]()
        while len(killed) < MOST_CRASHES:
            wait_until(lambda: service.process_of(job_id) not in (None, *killed))
            pid = service.process_of(job_id)
            assert pid is not None
            assert kill_process(pid)
            killed.add(pid)
        failed = service.wait_for(job_id)
        assert (failed["state"], failed["error"]["reason"]) == ("failed", "job crashed")
        assert str(MOST_CRASHES) in failed["error"]["detail"]


def processes(service: Service) -> list[int]:
    """Return the ids of the processes that jobs have or had."""
    jobs = service.client.get("/v1/jobs").json()["jobs"]
    return [pid for job in jobs if (pid := service.process_of(job["id"])) is not None]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, so that no other process is killed")
@pytest.mark.timeout(3600)
def test_kills_at_any_instant_lose_nothing(photos: Path, allowed: Path, tmp_path: Path) -> None:
    """Job processes and the service are killed while images are added, changed and removed."""
    folder, number = allowed / "more", 1000
    service = Service(tmp_path / "state", [allowed], tmp_path / "log", c=tmp_path / "c")
    killed = {"job": 0, "service": 0, "both": 0}
    with running_service(service):
        service.index(sources=[str(folder)])
        watching = service.client.post("/v1/collections/c/watch", json={"every": 2}).json()["id"]
        while sum(killed.values()) < KILLS:
            paint_many(folder / f"{number}", random.randrange(1, 30), first=number)
            number += 100
            if random.random() < 0.3:
                (doomed := random.choice([*folder.rglob("*.png")])).unlink()
                assert not doomed.exists()
            asked = service.client.post("/v1/collections/c/sources", json={})
            assert asked.status_code in (202, 429)  # more jobs may come than end
            what = random.choice(["job", "job", "service", "both"])
            if what != "service":
                wait_until(lambda: any(map(is_job_process, processes(service))))
            time.sleep(random.random() * 1.5)
            victims = processes(service)
            hit = False
            if what in ("service", "both"):
                service.kill()
                hit = True
            if what in ("job", "both"):
                hit = sum(map(kill_process, victims)) > 0 or hit
            killed[what] += hit
            (tmp_path / "killed.json").write_text(json.dumps(killed))
            if what != "job":
                service.start()
        for job in service.client.get("/v1/jobs").json()["jobs"]:
            if job["kind"] == "index":
                ended_job = service.wait_for(job["id"])
                crashed = ended_job["state"] == "failed" and ended_job["error"]["reason"] == "job crashed"
                assert ended_job["state"] == "done" or crashed, ended_job
        service.client.delete(f"/v1/jobs/{watching}")
        service.wait_for(watching)
        last = service.wait_for(service.index())
        assert (last["state"], last["report"]["failed"]) == ("done", 0)
    assert "Traceback" not in service.log()
    assert uris(tmp_path / "c") == files(photos, allowed)
    index([photos, folder], tmp_path / "fresh")
    with Collection.open(tmp_path / "c") as collection, Collection.open(tmp_path / "fresh") as fresh:
        assert collection.verify() == []
        expected = {item.uri: item.content_hash for item in fresh.items()}
        assert {item.uri: item.content_hash for item in collection.items()} == expected
        ids = [int(item_id) for item_id in collection.ids()]
        uri_of = {item_id: item.uri for item_id, item in collection.items_by_id(ids).items()}
        fresh_ids = {item.uri: item.id for item in fresh.items()}
        for space in collection.spaces:
            vectors = collection.embeddings(ids, space)
            again = fresh.embeddings([fresh_ids[uri_of[item_id]] for item_id in ids], space)
            np.testing.assert_array_equal(vectors, again)
            for item_id, vector in zip(ids, vectors, strict=True):
                hits = collection.search(vector, space=space, k=3)
                same = collection.embeddings([hit.item.id for hit in hits], space)
                assert any(np.array_equal(each, vector) for each in same), item_id


def test_the_folder_of_records_is_private(client: TestClient, tmp_path: Path) -> None:
    client.post("/v1/collections/c/sources", json={"sources": ["/etc"]})
    JobRecords(tmp_path / "state").request_stop("none")
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
