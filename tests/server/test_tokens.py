"""Tokens: the file, the commands that manage it, and what the service lets those with a token do."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from pixmatcher import PixMatcherError, StorageError
from pixmatcher.server import ServerSettings, create_app
from pixmatcher.server import _tokens as server_tokens
from pixmatcher.server._problems import ProblemError
from pixmatcher.server._tokens import reads, writes
from pixmatcher.server.tokens import Token, add_token, find_token, read_tokens, remove_token
from support import cli, fill_up


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.txt"


def client_of(file: Path | None, folder: Path | None = None) -> TestClient:
    """Return a client of an application with a route of each scope; its state is in a folder, or beside the file."""
    folder = folder or (None if file is None else file.parent / "state")
    app: FastAPI = create_app(ServerSettings({}, token_file=file, state_folder=folder))
    asked: list[str] = []
    app.state.asked = asked

    @app.get("/v1/read", dependencies=[Depends(reads)])
    def read() -> str:
        return "read"

    @app.post("/v1/write", dependencies=[Depends(writes)])
    def write(value: dict[str, int]) -> str:
        asked.append("write")
        return "written"

    @app.get("/v1/forgotten")
    def forgotten() -> str:
        return "a route whose author forgot the scope"

    return TestClient(app)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# The file and the commands.


def test_a_token_is_kept_as_a_hash(file: Path) -> None:
    token = add_token(file, "website", "read")
    assert token.startswith("pxm_")
    assert len(token) > 40
    assert file.read_text() == f"website read sha256:{hashlib.sha256(token.encode()).hexdigest()}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert find_token(read_tokens(file), token) == read_tokens(file)[0]
    assert find_token(read_tokens(file), token + "x") is None
    assert find_token(read_tokens(file), "") is None


def test_each_token_is_compared_in_constant_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens are compared, as a whole, also after the right one was found."""
    first, *_ = (add_token(file, name, "read") for name in ("a", "b", "c"))
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("pixmatcher.server.tokens.hmac.compare_digest", compare)
    for secret in (first, "wrong"):
        compared.clear()
        find_token(read_tokens(file), secret)
        assert compared == [(64, 64)] * 3


def test_comments_and_other_tokens_stay(file: Path) -> None:
    file.write_text("# who may\n\n")
    for name in ("a", "b", "c"):
        add_token(file, name, "write", days=1.5)
    remove_token(file, "b")
    assert file.read_text().startswith("# who may\n\na write sha256:")
    assert [token.name for token in read_tokens(file)] == ["a", "c"]
    assert read_tokens(file)[0].until is not None
    with pytest.raises(PixMatcherError, match="no token b"):
        remove_token(file, "b")
    with pytest.raises(PixMatcherError, match="has a token a already"):
        add_token(file, "a", "read")
    for name in ("", "two words", "a\nb write sha256:0", "#x", "x" * 65):
        with pytest.raises(PixMatcherError, match="cannot be the name"):
            add_token(file, name, "read")
    kept = file.read_text()
    for days in (0, -1, float("nan"), float("inf")):
        with pytest.raises(PixMatcherError, match="cannot be valid for"):
            add_token(file, "late", "read", days=days)
    assert file.read_text() == kept


def test_commands_at_once_undo_nothing_of_each_other(file: Path) -> None:
    names = [f"t{number}" for number in range(40)]
    add_token(file, "former", "write")
    with ThreadPoolExecutor(8) as pool:
        removed = pool.submit(remove_token, file, "former")
        secrets = dict(zip(names, pool.map(lambda name: add_token(file, name, "read"), names), strict=True))
        removed.result()
    tokens = read_tokens(file)
    assert sorted(token.name for token in tokens) == sorted(names)
    assert all(find_token(tokens, secret) for secret in secrets.values())
    assert [*file.parent.iterdir()] == [file]


def test_a_full_disk_keeps_the_tokens(small_disk: Path | None) -> None:
    if small_disk is None:
        pytest.skip("no small file system can be mounted here")
    file = small_disk / "tokens.txt"
    for name in ("first", "second"):
        add_token(file, name, "read")
    kept = file.read_bytes()
    fill_up(small_disk)
    with pytest.raises(StorageError, match="make room"):
        add_token(file, "third", "write")
    with pytest.raises(StorageError, match="make room"):
        remove_token(file, "first")
    assert file.read_bytes() == kept
    assert not file.with_name("tokens.txt.new").exists()


@pytest.mark.parametrize(
    "line",
    [
        "a read",
        "a admin sha256:" + "0" * 64,
        "a read sha256:" + "0" * 63,
        "a read sha1:" + "0" * 64,
        "a read sha256:" + "0" * 64 + " until:tomorrow",
        "a read sha256:" + "0" * 64 + " x y",
        "\x00",
    ],
)
def test_a_damaged_file_is_refused(file: Path, line: str) -> None:
    file.write_text(f"# fine\n{line}\n")
    with pytest.raises(PixMatcherError, match="Line 2 of the token file"):
        read_tokens(file)
    with pytest.raises(PixMatcherError, match="Line 2"):
        create_app(ServerSettings({}, token_file=file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(PixMatcherError, match="cannot be read"):
        read_tokens(file)


def test_the_commands(file: Path) -> None:
    place = ("--file", str(file))
    added = cli("tokens", "add", "website", "--scope", "read", *place)
    token = added.stdout.strip()
    assert find_token(read_tokens(file), token)
    assert cli("tokens", "add", "robot", "--scope", "write", "--days", "30", *place).returncode == 0
    listed = cli("tokens", "list", *place).stdout
    assert "website  read" in listed
    assert "write, until 20" in listed
    assert token not in listed
    assert cli("tokens", "remove", "website", *place).returncode == 0
    assert [each.name for each in read_tokens(file)] == ["robot"]
    for wrong in (("add", "x", "--scope", "admin"), ("remove", "nobody"), ("add", "robot", "--scope", "read")):
        done = cli("tokens", *wrong, *place)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


# The service.


def test_without_a_token_only_what_is_open_answers(file: Path) -> None:
    add_token(file, "website", "read")
    with client_of(file) as client:
        for path in ("/healthz", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/read", "/v1/forgotten", "/v1/nothing", "/metrics", "/", "//docs", "/docs/", "/healthz/x"):
            answer = client.get(f"http://testserver{path}")
            assert answer.status_code == 401, path
            assert answer.json()["reason"] == "token missing"
            assert answer.headers["www-authenticate"] == 'Bearer realm="PixMatcher"'


def test_two_tokens_in_one_request_are_refused(file: Path) -> None:
    read, write = add_token(file, "website", "read"), add_token(file, "boss", "write")
    with client_of(file) as client:
        headers = [("Authorization", f"Bearer {read}"), ("Authorization", f"Bearer {write}")]
        assert client.get("/v1/read", headers=headers).status_code == 400
        assert client.get("/v1/read", headers=headers[:1]).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic cHhtXzE6eA==", "pxm_abc", "Bearer\tx", "Token pxm_abc"]
)
def test_what_is_no_token_is_missing(file: Path, header: str) -> None:
    add_token(file, "website", "read")
    with client_of(file) as client:
        answer = client.get("/v1/read", headers={"Authorization": header})
        assert (answer.status_code, answer.json()["reason"]) == (401, "token missing")


def test_wrong_tokens_are_refused(file: Path) -> None:
    token = add_token(file, "website", "read")
    digest = read_tokens(file)[0].sha256
    with client_of(file) as client:
        for wrong in (token[:-1], token + "x", token.upper(), "x", digest, f"sha256:{digest}", "website", token * 100):
            answer = client.get("/v1/read", headers=bearer(wrong))
            assert (answer.status_code, answer.json()["reason"]) == (401, "token not valid")
            assert 'error="invalid_token"' in answer.headers["www-authenticate"]
            assert wrong not in answer.text
        assert client.get(f"/v1/read?access_token={token}").status_code == 401
        assert client.get("/v1/read", headers={"Authorization": f"bearer  {token} "}).status_code == 200


def test_an_expired_token_is_refused(file: Path) -> None:
    now = datetime.now(timezone.utc).replace(microsecond=0)
    lines = []
    for name, until in (("old", now - timedelta(seconds=1)), ("new", now + timedelta(days=1))):
        lines.append(Token(name, "read", hashlib.sha256(name.encode()).hexdigest(), until).line())
    file.write_text("\n".join(lines))
    with client_of(file) as client:
        answer = client.get("/v1/read", headers=bearer("old"))
        assert (answer.status_code, answer.json()["reason"]) == (401, "token expired")
        assert client.get("/v1/read", headers=bearer("new")).status_code == 200


def test_scopes(file: Path) -> None:
    read, write = add_token(file, "website", "read"), add_token(file, "robot", "write")
    with client_of(file) as client:
        for token in (read, write):
            assert client.get("/v1/read", headers=bearer(token)).status_code == 200
        answer = client.post("/v1/write", headers=bearer(read), json={"a": 1})
        assert (answer.status_code, answer.json()["reason"]) == (403, "scope missing")
        assert 'error="insufficient_scope", scope="write"' in answer.headers["www-authenticate"]
        assert client.app.state.asked == []  # type: ignore[attr-defined]
        assert client.post("/v1/write", headers=bearer(write), json={"a": 1}).status_code == 200
        operations = client.get("/openapi.json").json()["paths"]
        assert operations["/v1/write"]["post"]["security"] == [{"HTTPBearer": []}]
        assert "security" not in operations["/healthz"]["get"]


def test_without_a_token_file_everything_is_allowed(tmp_path: Path) -> None:
    with client_of(None, tmp_path) as client:
        assert client.get("/v1/read").status_code == 200
        assert client.post("/v1/write", json={"a": 1}).status_code == 200
        assert client.post("/v1/write", json={"a": 1}, headers=bearer("any")).status_code == 200


def test_changes_of_the_file_hold_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_tokens, "_CHECK_SECONDS", 0.0)
    first = add_token(file, "first", "read")
    with client_of(file) as client, caplog.at_level(logging.ERROR, "pixmatcher.server"):
        assert client.get("/v1/read", headers=bearer(first)).status_code == 200
        second = add_token(file, "second", "read")
        assert client.get("/v1/read", headers=bearer(second)).status_code == 200
        remove_token(file, "first")
        assert client.get("/v1/read", headers=bearer(first)).status_code == 401
        good = file.read_text()
        for damage in ("website read", None):
            if damage is None:
                file.unlink()
            else:
                file.write_text(damage)
            for _ in range(3):
                assert client.get("/v1/read", headers=bearer(second)).status_code == 200
        assert len(caplog.records) == 2  # one for each damage
        assert all("stay valid" in record.getMessage() for record in caplog.records)
        assert not [record for record in caplog.records if second in record.getMessage()]
        file.write_text("# nobody\n" + good.replace("second", "third"))
        assert client.get("/v1/read", headers=bearer(second)).status_code == 200
        file.write_text("# nobody\n")
        assert client.get("/v1/read", headers=bearer(second)).status_code == 401


def test_a_change_that_could_not_be_read_is_read_later(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_tokens, "_CHECK_SECONDS", 0.0)
    removed = add_token(file, "removed", "read")
    tokens = server_tokens.TokenFile(file)
    headers = {b"authorization": f"Bearer {removed}".encode()}
    remove_token(file, "removed")
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))  # no file can be opened
    try:
        assert tokens.authenticate(headers).name == "removed"
        assert tokens.authenticate(headers).name == "removed"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(caplog.records) == 1
    with pytest.raises(ProblemError, match="not valid"):
        tokens.authenticate(headers)
