"""Sharing, with a stand-in for Ngrok's agent that has the same local API; no tunnel is opened."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from app_process import PATIENCE, answers, free_port, wait_until
from small_collections import PHOTOS

from pixmatcher.web import _route_guard
from pixmatcher.web.share import PasswordCheck, new_password

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest.importorskip("pyngrok")

URL = "https://stand-in.ngrok-free.app"
"""The public address that the stand-in reports."""


def environment(folder: Path, token: str | None) -> dict[str, str]:
    """Return an environment with the stand-in as `ngrok` on the path, and an empty home."""
    agent = folder / "bin" / "ngrok"
    agent.parent.mkdir(parents=True)
    agent.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("stand_in_ngrok.py")} "$@"\n')
    agent.chmod(0o755)
    (folder / "home").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NGROK", "XDG"))}
    path = f"{agent.parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "HOME": str(folder / "home")} | ({} if token is None else {"NGROK_AUTHTOKEN": token})


def command(photos: Path, port: int) -> list[str]:
    start = [sys.executable, "-m", "pixmatcher", "app", "-c", str(photos), "--no-browser", "--share"]
    return [*start, "--port", str(port)]


def refused(photos: Path, folder: Path, token: str | None, **more: str) -> str:
    """Run the app with --share, which must fail, and return its message of one sentence."""
    seconds = 2 if token == "offline" else 60  # the others end by themselves
    quick = "import sys\nfrom pixmatcher import cli\nfrom pixmatcher.web import share\n"
    quick += f"share._STARTUP_SECONDS = {seconds}\n"
    arguments = command(photos, free_port())[3:]
    done = subprocess.run(
        [sys.executable, "-c", f"{quick}sys.argv[0] = 'pixmatcher'\ncli.main()", *arguments],
        env=environment(folder, token) | more,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "Sharing needs a token of Ngrok"),
        ("bad", "Ngrok refuses the token (authentication failed"),
        ("offline", "Ngrok cannot be reached (failed to dial"),
        ("dies-at-once", "Ngrok's agent opened no tunnel ("),
        ("dies-when-asked", "Ngrok's agent opened no tunnel ("),
    ],
)
def test_a_missing_token_network_or_agent_is_reported_in_one_sentence(
    collections: dict[str, Path], tmp_path: Path, token: str | None, said: str
) -> None:
    assert said in refused(collections["photos"], tmp_path, token)


def test_a_failed_download_of_the_agent_is_reported_in_one_sentence(
    collections: dict[str, Path], tmp_path: Path
) -> None:
    nowhere = {"https_proxy": f"http://127.0.0.1:{free_port()}", "PATH": str(tmp_path)}
    assert "could not be downloaded" in refused(collections["photos"], tmp_path, "good", **nowhere)


def test_an_agent_that_dies_later_ends_the_app(collections: dict[str, Path], tmp_path: Path) -> None:
    assert "The tunnel has closed" in refused(collections["photos"], tmp_path, "dies-later")


def test_nothing_is_shared_without_a_collection(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pixmatcher", "app", "--share", "--no-browser", "--port", str(free_port())],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "Error: There is no collection here to share: name one with -c.\n"


@pytest.mark.slow
def test_a_shared_app_asks_for_its_password_and_indexes_nothing(
    collections: dict[str, Path], tmp_path: Path, browser: Browser
) -> None:
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command(collections["photos"], port),
            env=environment(tmp_path, "good"),
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"), process)
            wait_until(lambda: "password" in (tmp_path / "log").read_text(), process)
            output = (tmp_path / "log").read_text()
            assert URL in output
            password = next(line.split()[1] for line in output.splitlines() if line.startswith("password"))
            assert [_handshake(port, origin) for origin in (URL, "https://evil.example")] == [101, 403]
            _look_without_password(f"http://127.0.0.1:{port}")
            _enter(browser, f"http://127.0.0.1:{port}", password)
        finally:
            process.terminate()
            process.wait(60)


def _handshake(port: int, origin: str) -> int:
    """Return the status of the answer to a WebSocket handshake with this origin."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        lines = [
            "GET /_stcore/stream HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Origin: {origin}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.recv(100).split()[1])


def _status(url: str, method: str = "GET") -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, data=None), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _look_without_password(url: str) -> None:
    for path in ("", "text", "_stcore/health", "_stcore/host-config"):
        assert _status(f"{url}/{path}") == 200, path
    closed = ("metrics", "metrics?families=x", "script-health-check", "agent", "upload_file/a/b", "upload_file", "")
    for path in closed:
        assert _status(f"{url}/_stcore/{path}") == 404, path
    assert _status(f"{url}/_stcore/upload_file/{'0' * 8}/b", "PUT") == 404
    assert _status(f"{url}/media/{'0' * 56}.jpg") == 404


def _enter(browser: Browser, url: str, password: str) -> None:
    from browser_steps import expect, settle

    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{url}/collection")
    settle(page)
    for given in ("wrong", password):
        settle(page)
        expect(page.get_by_test_id("stMetric")).to_have_count(0)
        page.get_by_label("Password", exact=True).fill(given)
        page.get_by_role("button", name="Log in").click()
        if given == "wrong":
            expect(page.get_by_text("Wrong password.")).to_be_visible()
    expect(page.get_by_test_id("stMetric").first).to_be_visible()
    expect(page.get_by_text("Indexing is turned off")).to_be_visible()
    page.get_by_role("link", name="Image search").click()
    settle(page)
    page.set_input_files("input[type=file]", PHOTOS / "coffee.jpg")
    expect(page.locator(".tile").first).to_contain_text("coffee.jpg")
    page.close()


def test_only_a_visitor_with_the_password_may_upload() -> None:
    _route_guard.admit("known")
    assert _route_guard.is_allowed("/_stcore/upload_file/known/file")
    assert _route_guard.is_allowed("/below/_stcore/health")
    for path in ("/_stcore/upload_file/other/file", "/below/_stcore/metrics", "/_stcore", "//_stcore//metrics"):
        assert not _route_guard.is_allowed(path)


def test_passwords_cannot_be_guessed() -> None:
    password = new_password()
    assert len(password) == 14
    assert password != new_password()
    check, now = PasswordCheck(password), time.monotonic()
    assert check.is_correct(f" {password} ", now) is True
    assert [check.is_correct("wrong", now) for _ in range(10)] == [False] * 10
    assert check.is_correct(password, now + 59) is None
    assert check.is_correct(password, now + 61) is True
