"""The files in `deploy/` fit the command line, and nginx with its example serves what the service serves."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import trustme

from conftest import cli, paint
from test_docs import check_command

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
NAME = "pictures.example.org"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The tool that runs the steps of the Dockerfile without a container engine."""
    specification = importlib.util.spec_from_file_location("check_image", ROOT / "tools" / "check_image.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["check_image"] = module  # its dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def image(tool: ModuleType) -> list[tuple[str, str]]:
    """The instructions of the Dockerfile."""
    found: list[tuple[str, str]] = tool.instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    return found


def only(image: list[tuple[str, str]], name: str) -> str:
    (found,) = [rest for instruction, rest in image if instruction == name]
    return found


def test_the_command_of_the_image_exists(image: list[tuple[str, str]]) -> None:
    words = json.loads(only(image, "ENTRYPOINT")) + json.loads(only(image, "CMD"))
    assert words[:2] == ["pixmatcher", "serve"]
    check_command(words)


def test_the_image_runs_as_a_user_without_rights_and_checks_its_health(image: list[tuple[str, str]]) -> None:
    names = [name for name, _ in image]
    assert not only(image, "USER").startswith(("0", "root"))
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    health = only(image, "HEALTHCHECK")
    program, option, code = json.loads(health[health.index("CMD") + 3 :])
    assert (program, option) == ("python3", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f":{only(image, 'EXPOSE')}/healthz" in code


def test_what_the_image_copies_and_installs_exists(image: list[tuple[str, str]]) -> None:
    for rest in (rest for name, rest in image if name == "COPY" and not rest.startswith("--from")):
        for origin in rest.split()[:-1]:
            assert (ROOT / origin).exists(), origin
    extras = re.search(r"pixmatcher\[([\w,]+)\]", " ".join(rest for _, rest in image))
    assert extras is not None
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE), extra


def test_the_compose_file_serves_the_image_with_few_rights(image: list[tuple[str, str]]) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    parsed = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service = parsed["services"]["pixmatcher"]
    check_command(["pixmatcher", *service["command"]])
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") and port.endswith(only(image, "EXPOSE")) for port in service["ports"])
    places = {
        volume.rpartition(":ro")[0].rpartition(":")[2] or volume.rpartition(":")[2]: volume
        for volume in service["volumes"]
    }
    assert set(places) == {"/data", "/pictures"}
    assert places["/pictures"].endswith(":ro")
    for secret in service["secrets"]:
        assert secret in parsed["secrets"]
        assert f"/run/secrets/{secret}" in service["command"]


def unit() -> configparser.RawConfigParser:
    """The unit of systemd. Of a setting that is there several times, the last one is returned."""
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / "pixmatcher.service").read_text(encoding="utf-8").replace("\\\n", " "))
    return parser


def test_the_command_of_the_unit_exists_and_uses_only_its_own_folder() -> None:
    words = shlex.split(unit()["Service"]["ExecStart"])
    assert os.path.isabs(words[0])
    check_command([os.path.basename(words[0]), *words[1:]])
    folder = f"/var/lib/{unit()['Service']['StateDirectory']}"
    assert all(word.startswith(folder) for word in words[1:] if word.startswith("/"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "pixmatcher.service").read_text(encoding="utf-8")
    program = shlex.split(unit()["Service"]["ExecStart"])[0]
    copy = tmp_path / "pixmatcher.service"
    copy.write_text(text.replace(program, sys.executable), encoding="utf-8")
    found = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    if "Failed to initialize manager" in found.stderr:
        pytest.skip("systemd cannot check units here")
    assert found.returncode == 0, found.stderr
    assert "pixmatcher.service:" not in found.stderr, found.stderr


@pytest.mark.skipif(shutil.which("caddy") is None, reason="Caddy is not installed")
def test_caddy_accepts_its_example() -> None:
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(DEPLOY / "Caddyfile")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


# nginx, in front of the true service


@contextlib.contextmanager
def process(command: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload]
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(60)
        finally:
            started.kill()
            started.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def behind_nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of nginx with its example in front of the service, and the folder whose images are in `photos`."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    for seed in range(5):
        paint(folder / "photos" / f"{seed}.png", seed)
    assert cli("index", folder / "photos", "-c", folder / "c").returncode == 0
    token = cli("tokens", "add", "test", "--scope", "write", "--file", folder / "tokens").stdout.strip()
    port, service_port = free_port(), free_port()

    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    certificate.private_key_pem.write_to_path(folder / "privkey.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "fullchain.pem")
    example = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    for before, after in (
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        ("127.0.0.1:8600", f"127.0.0.1:{service_port}"),
        (f"/etc/letsencrypt/live/{NAME}", str(folder)),
    ):
        assert before in example
        example = example.replace(before, after)
    (folder / "pixmatcher.conf").write_text(example, encoding="utf-8")
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; pid {folder}/pid;"
        f"error_log {folder}/error.log; events {{}}"
        f"http {{ access_log off; {places} include {folder}/pixmatcher.conf; }}",
        encoding="utf-8",
    )
    service = [sys.executable, "-m", "pixmatcher", "serve", "-c", f"photos={folder / 'c'}", "--port", str(service_port)]
    service += ["--token-file", str(folder / "tokens"), "--allowed-host", NAME, "--sources", str(folder / "photos")]
    service += ["--state", str(folder / "state")]
    proxy = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with process(service, stdout=subprocess.PIPE) as serving, process(proxy) as proxying:
        assert serving.stdout is not None
        assert any(line.startswith("Stop with") for line in serving.stdout), serving.poll()
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}/pixmatcher",
            headers={"Authorization": f"Bearer {token}", "Host": NAME},
            verify=context,
            trust_env=False,
            timeout=60,
        ) as client:
            wait_for_answer(client, proxying)
            yield client, folder / "photos"
        serving.stdout.close()


EXTENSIONS = {"sni_hostname": NAME}


def wait_for_answer(client: httpx.Client, proxying: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            if client.get("/healthz", extensions=EXTENSIONS).status_code == 200:
                return
        except httpx.ConnectError:
            assert proxying.poll() is None, "nginx has ended"
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_searches_and_uploads_pass_nginx(behind_nginx: tuple[httpx.Client, Path]) -> None:
    client, photos = behind_nginx
    by_text = client.post("/v1/collections/photos/search", json={"text": "a cat", "k": 2}, extensions=EXTENSIONS)
    assert by_text.status_code == 200, by_text.text
    assert len(by_text.json()["hits"]) == 2
    upload = {"image": ("3.png", (photos / "3.png").read_bytes(), "image/png")}
    by_image = client.post("/v1/collections/photos/search", files=upload, extensions=EXTENSIONS)
    assert by_image.status_code == 200, by_image.text
    assert by_image.json()["hits"][0]["uri"] == str(photos / "3.png")


@pytest.mark.slow
def test_nginx_passes_on_refusals_and_has_its_own_limit_of_bodies(behind_nginx: tuple[httpx.Client, Path]) -> None:
    client, _ = behind_nginx
    unknown = client.get("/v1/collections", headers={"Authorization": "Bearer wrong"}, extensions=EXTENSIONS)
    assert unknown.status_code == 401
    assert unknown.json()["reason"] == "token not valid"
    large = client.post("/v1/collections/photos/search", content=b"x" * (33 << 20), extensions=EXTENSIONS)
    assert large.status_code == 413
    assert (
        client.get(str(client.base_url).replace("/pixmatcher", "/v1/collections"), extensions=EXTENSIONS).status_code
        == 404
    )


@pytest.mark.slow
def test_a_job_has_its_place_under_the_prefix_and_its_events_arrive_while_it_runs(
    behind_nginx: tuple[httpx.Client, Path],
) -> None:
    client, photos = behind_nginx
    paint(photos / "new.png", 99)
    # A job that watches has no end of its own: what arrives has not waited for the end of the answer.
    started = client.post("/v1/collections/photos/watch", json={"every": 1}, extensions=EXTENSIONS)
    assert started.status_code == 202, started.text
    place = started.headers["location"]
    url = httpx.URL(place).path
    assert url == f"/pixmatcher/v1/jobs/{started.json()['id']}"
    url = str(client.base_url.join(url))
    with client.stream("GET", f"{url}/events", extensions=EXTENSIONS) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        lines = events.iter_lines()
        assert any(line.startswith("data:") for line in lines)
        assert client.get(url, extensions=EXTENSIONS).json()["state"] in ("waiting", "running")
        assert client.delete(url, extensions=EXTENSIONS).status_code == 200
        assert any(line == "event: end" for line in lines)
