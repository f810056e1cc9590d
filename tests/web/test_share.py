"""Sharing, with a stand-in for Ngrok's agent that speaks the same local API: no real tunnel is opened here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shelf import answers, free_port, wait_until

from pixmatcher.web.share import Gate, new_password

pytest.importorskip("pyngrok")

URL = "https://stand-in.ngrok-free.app"
"""Where the stand-in says that the tunnel begins."""


def environment(folder: Path, token: str | None) -> dict[str, str]:
    """With the stand-in as `ngrok` on the path, and a home without anything."""
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


@pytest.mark.parametrize(("token", "said"), [(None, "needs a token"), ("bad", "authentication failed")])
def test_without_a_token_that_holds_it_is_one_sentence(
    shelves: dict[str, Path], tmp_path: Path, token: str | None, said: str
) -> None:
    done = subprocess.run(
        command(shelves["photos"], free_port()),
        env=environment(tmp_path, token),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_shared_app_asks_for_its_password_and_indexes_nothing(shelves: dict[str, Path], tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            command(shelves["photos"], port), env=environment(tmp_path, "good"), stdout=log, stderr=log, cwd=tmp_path
        )
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}"))
            log.seek(0)
            told = log.read()
            assert URL in told
            password = next(line.split()[1] for line in told.splitlines() if line.startswith("password"))
            assert [_handshake(port, origin) for origin in (URL, "https://evil.example")] == [101, 403]
            _enter(f"http://127.0.0.1:{port}", password)
        finally:
            process.terminate()
            process.wait(30)


def _handshake(port: int, origin: str) -> int:
    """The status of the answer to the WebSocket that a page of this origin asks for."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
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


def _enter(url: str, password: str) -> None:
    from test_browser import CHROMIUM, expect, settle, sync_playwright

    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.goto(f"{url}/collection")
        settle(page)
        for given in ("wrong", password):
            expect(page.get_by_test_id("stMetric")).to_have_count(0)
            page.get_by_label("Password", exact=True).fill(given)
            page.get_by_role("button", name="Enter").click()
            if given == "wrong":
                expect(page.get_by_text("This is not the password.")).to_be_visible()
        expect(page.get_by_test_id("stMetric").first).to_be_visible()
        expect(page.get_by_text("Indexing is turned off")).to_be_visible()


def test_passwords_cannot_be_tried_out() -> None:
    password = new_password()
    assert len(password) == 14
    assert password != new_password()
    gate, now = Gate(password), time.monotonic()
    assert gate.opens(f" {password} ", now) is True
    assert [gate.opens("wrong", now) for _ in range(10)] == [False] * 10
    assert gate.opens(password, now + 59) is None
    assert gate.opens(password, now + 61) is True
