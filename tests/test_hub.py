"""The hub: a server on loopback with its endpoints, and small encoders with usual inputs and outputs."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hub_models as models
from file_server import File
from hub_models import CLIP_MEAN, CLIP_STD
from hub_server import Hub, blob, serve_hub
from pixmatcher import EncoderError, FetchError, PixMatcherError, load_encoder
from pixmatcher.encoders import Runtime, unload_encoders
from pixmatcher.encoders._cache import damaged_files, model_folder
from pixmatcher.encoders.hub._api import look_up
from pixmatcher.encoders.hub.client import fetch_hub_file, pull_onnx
from pixmatcher.encoders.onnx.card import TextRecipe, is_inside, read_card
from pixmatcher.encoders.onnx.external import external_files
from pixmatcher.encoders.onnx.layout import read_layout
from pixmatcher.images import Recipe
from pixmatcher.records import Space
from support import wait_for_lock

REPO = "owner/model"
WEIGHTS = random.Random(1).randbytes(300_000)
TOKEN = "hf_" + "secret" * 5

pytestmark = pytest.mark.usefixtures("quick_downloads")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIXMATCHER_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    unload_encoders()
    return tmp_path / "cache"


def one_sentence(error: pytest.ExceptionInfo[PixMatcherError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def pull(name: str = f"hf:{REPO}", **options: Any) -> Path:
    folder = model_folder(name)
    pull_onnx(name.removeprefix("hf:").removesuffix("@int8"), folder, name=name, **options)
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


# The client


def test_the_content_of_a_repository(hub: Hub) -> None:
    hub.page = 2
    commit = hub.publish(REPO, models.clip(), cardData={"license": "mit"})
    repository = look_up(REPO)
    assert (repository.commit, repository.licence) == (commit, "mit")
    assert {path: file.bytes for path, file in repository.files.items()} == {
        path: len(content) for path, content in models.clip().items()
    }
    assert repository.files["onnx/text_model.onnx"].sha256 == hashlib.sha256(models.text(mask=True)).hexdigest()
    assert repository.files["README.md"].sha256 is None
    assert len(hub.own.requests) == 1 + 4  # pages of 7 files and a folder
    assert look_up(REPO, commit).commit == commit


def test_the_official_client_works_with_the_server_of_these_tests(hub: Hub, tmp_path: Path) -> None:
    client = pytest.importorskip("huggingface_hub")
    hub.page = 3
    files = models.clip()
    commit = hub.publish(REPO, files)
    api = client.HfApi(endpoint=hub.url, token=False)
    assert api.model_info(REPO, revision="main").sha == commit
    tree = {found.path: found for found in api.list_repo_tree(REPO, revision=commit, recursive=True)}
    assert {path for path, found in tree.items() if hasattr(found, "size")} == files.keys()
    ours = look_up(REPO).files
    assert {path: (f.bytes, f.blob, f.sha256) for path, f in ours.items()} == {
        path: (tree[path].size, tree[path].blob_id, tree[path].lfs and tree[path].lfs.sha256) for path in files
    }


@pytest.mark.parametrize(
    ("info", "licence"),
    [
        ({"cardData": {"license": "other", "license_name": "apple-ascl"}}, "apple-ascl"),
        ({"tags": ["onnx", "license:apache-2.0"]}, "apache-2.0"),
        ({"cardData": {"license": ["mit", 3]}, "tags": {}}, "unknown"),
        ({"cardData": {"license": "a\nb"}, "tags": [3]}, "unknown"),
    ],
)
def test_licences(hub: Hub, info: dict[str, object], licence: str) -> None:
    hub.publish(REPO, {}, **info)
    assert look_up(REPO).licence == licence


@pytest.mark.parametrize(
    "repo",
    ["../etc", "a/../b", "/etc/passwd", "a/b/c", "a b", "a/b?x", "a//b", "-a/b", "a/b.", "", "a\n", "ä/b", "a" * 200],
)
def test_invalid_repository_names_are_refused(hub: Hub, repo: str) -> None:
    with pytest.raises(EncoderError, match="is not the name of a repository") as caught:
        look_up(repo)
    one_sentence(caught)
    assert hub.asked() == []


@pytest.mark.parametrize("revision", ["..", "a/../b", "a b", "a?b", "#", "a\n"])
def test_invalid_revisions_are_refused(hub: Hub, revision: str) -> None:
    with pytest.raises(EncoderError, match="is not a revision") as caught:
        look_up(REPO, revision)
    one_sentence(caught)
    assert hub.asked() == []


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "The repository owner/model does not exist or is private: .* HF_TOKEN"),
        (404, "RepoNotFound", "The repository owner/model does not exist or is private"),
        (404, "RevisionNotFound", "has no revision main"),
        (403, "GatedRepo", "requires that you accept its terms: do so at .*/owner/model and set HF_TOKEN"),
        (401, "GatedRepo", "requires that you accept its terms"),
    ],
)
def test_unreadable_repositories_are_reported(hub: Hub, status: int, code: str, words: str) -> None:
    address = f"/api/models/{REPO}/revision/main"
    hub.own.files[address] = File(b"", statuses=[status], headers={"X-Error-Code": code})
    with pytest.raises(EncoderError, match=words) as caught:
        look_up(REPO)
    one_sentence(caught)
    assert len(hub.own.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_whose_list_of_files_is_public(hub: Hub, status: int) -> None:
    commit = hub.publish(REPO, {"model.safetensors": WEIGHTS}, gated="auto")
    hub.own.files[f"/{REPO}/resolve/{commit}/model.safetensors"].statuses = [status]
    with pytest.raises(EncoderError, match="requires that you accept its terms") as caught:
        fetch_hub_file(REPO, "model.safetensors", encoder="tiny")
    one_sentence(caught)


@pytest.mark.parametrize(
    ("which", "answer"),
    [
        ("revision", b"no JSON"),
        ("revision", b"[]"),
        ("revision", b"[" * 100_000),
        ("revision", b'{"sha": "../../x"}'),
        ("revision", b'{"sha": 3}'),
        ("tree", b"{}"),
        ("tree", b"[3]"),
        ("tree", b'[{"type": "file", "path": "a", "size": "3", "oid": "b"}]'),
        ("tree", b'[{"type": "file", "path": "a", "size": -3, "oid": "b"}]'),
        ("tree", b'[{"type": "file", "path": "a", "size": 3, "oid": "b", "lfs": {"oid": "short"}}]'),
        ("tree", b'[{"type": "file", "path": "a", "size": 3, "oid": "b", "lfs": []}]'),
    ],
)
def test_servers_that_are_not_a_hub_are_refused(hub: Hub, which: str, answer: bytes) -> None:
    commit = hub.publish(REPO, {})
    rest = "revision/main" if which == "revision" else f"tree/{commit}?recursive=true"
    hub.own.files[f"/api/models/{REPO}/{rest}"].body = answer
    with pytest.raises(EncoderError, match="does not answer as the hub does: check HF_ENDPOINT") as caught:
        look_up(REPO)
    one_sentence(caught)


@pytest.mark.parametrize("path", ["../x.onnx", "/etc/passwd", "a/../../x", "a//b", ".", "", "a\\..\\b", "a\0b", "a/"])
def test_file_names_that_leave_the_folder_are_refused(hub: Hub, path: str) -> None:
    assert not is_inside(path)
    hub.publish(REPO, {})
    hub.list(REPO, [{"type": "file", "path": path, "size": 3, "oid": "b"}])
    with pytest.raises(EncoderError, match=r"names a file .* which is refused") as caught:
        look_up(REPO)
    one_sentence(caught)


def test_an_endless_list_of_files_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixmatcher.encoders.hub._api._MAX_PAGES", 3)
    commit = hub.publish(REPO, {})
    address = f"/api/models/{REPO}/tree/{commit}?recursive=true"
    hub.own.files[address].headers["Link"] = f'<{hub.url}{address}>; rel="next"'
    with pytest.raises(EncoderError, match="more than 3,000 files") as caught:
        look_up(REPO)
    one_sentence(caught)


# Single files


def fetch(**options: Any) -> Path:
    return fetch_hub_file(REPO, "open_clip_model.safetensors", encoder="open_clip:tiny", **options)


def test_a_file_is_downloaded_once_and_kept_at_its_commit(hub: Hub, cache: Path) -> None:
    commit = hub.publish(REPO, {"open_clip_model.safetensors": WEIGHTS, "config.json": b"{}"})
    reports: list[tuple[str, int, int | None]] = []
    path = fetch(progress=lambda p: reports.append((p.stage, p.done, p.total)))
    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(cache / "weights")
    assert reports[-1] == ("open_clip_model.safetensors", len(WEIGHTS), len(WEIGHTS))
    assert f"/{REPO}/resolve/{commit}/open_clip_model.safetensors" in hub.asked()
    hub.own.requests.clear()
    hub.publish(REPO, {"open_clip_model.safetensors": WEIGHTS[::-1]})
    assert fetch() == fetch(offline=True) == path
    assert hub.own.requests == []
    assert len(listing(cache / "weights")) == 2
    with pytest.raises(EncoderError, match=r"has no file other\.safetensors") as caught:
        fetch_hub_file(REPO, "other.safetensors", encoder="tiny")
    one_sentence(caught)


@pytest.mark.parametrize("path", ["open_clip_model.safetensors", "config.json"])
def test_wrong_bytes_are_refused_and_not_kept(hub: Hub, cache: Path, path: str) -> None:
    commit = hub.publish(REPO, {path: WEIGHTS})
    file = hub.long(WEIGHTS) if path.endswith("s") else hub.own.files[f"/{REPO}/resolve/{commit}/{path}"]
    file.body = WEIGHTS[:-1] + b"?"
    with pytest.raises(FetchError, match="has a wrong hash and was deleted") as caught:
        fetch_hub_file(REPO, path, encoder="tiny")
    one_sentence(caught)
    file.body = WEIGHTS[:-1]
    with pytest.raises(FetchError, match="299,999 bytes instead of 300,000"):
        fetch_hub_file(REPO, path, encoder="tiny")
    assert [name for name in listing(cache) if not name.endswith(".json")] == []
    file.body = WEIGHTS
    assert fetch_hub_file(REPO, path, encoder="tiny").read_bytes() == WEIGHTS


@pytest.mark.parametrize("how", ["cut", "changed", "unknown"])
def test_damaged_files_of_the_cache_are_not_used(hub: Hub, how: str) -> None:
    hub.publish(REPO, {"open_clip_model.safetensors": WEIGHTS})
    path = fetch()
    if how == "unknown":
        path.with_name(f"{path.name}.json").write_text('{"commit": 3}')
    else:
        path.write_bytes(WEIGHTS[:-1] if how == "cut" else b"?" + WEIGHTS[1:])
    with pytest.raises(EncoderError, match="was damaged and has been deleted") as caught:
        fetch(offline=True)
    one_sentence(caught)
    assert fetch().read_bytes() == WEIGHTS


def test_without_a_network_three_remedies_are_named(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = f"copy {cache} from a machine that has it, name a file with --weights FILE, or use the bundled encoder lite."
    with pytest.raises(EncoderError, match="weights of the encoder open_clip:tiny cannot be downloaded") as caught:
        fetch(offline=True)
    assert one_sentence(caught).endswith(ways)
    with pytest.raises(EncoderError, match="The encoder hf:owner/model cannot be downloaded") as caught:
        pull(offline=True)
    text = one_sentence(caught)
    assert f"copy {model_folder(f'hf:{REPO}')} from" in text
    assert "--encoder onnx:FOLDER" in text
    assert "encoder lite" in text
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE"):
        load_encoder(f"hf:{REPO}")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.asked() == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FetchError, match="cannot be downloaded") as nothing:
        fetch()
    assert one_sentence(nothing).endswith(ways)
    with pytest.raises(FetchError, match="cannot be downloaded") as nothing:
        pull()
    assert "onnx:FOLDER" in one_sentence(nothing)
    assert listing(cache) == []


# The token


def test_the_token_is_sent_to_the_hub_only(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    hub.publish(REPO, {"open_clip_model.safetensors": WEIGHTS})
    hub.long(WEIGHTS).cuts = [100_000]
    fetch()
    assert {request.authorization for request in hub.own.requests} == {f"Bearer {TOKEN}"}
    assert [request.authorization for request in hub.store.requests] == [None, None]
    assert not [path for path in cache.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_redirect_back_to_the_hub_does_not_get_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    address = f"/api/models/{REPO}/revision/main"
    hub.publish(REPO, {})
    hub.own.files["/renamed"] = hub.own.files[address]
    hub.own.files[address] = File(b"", redirect="/renamed")
    assert look_up(REPO).files == {}
    assert {request.authorization for request in hub.own.requests} == {f"Bearer {TOKEN}"}
    hub.own.files[address] = File(b"", redirect=hub.url.replace("127.0.0.1", "localhost") + "/renamed")
    hub.own.requests.clear()
    look_up(REPO)
    assert [request.authorization for request in hub.own.requests] == [f"Bearer {TOKEN}", None, f"Bearer {TOKEN}"]


def test_sources_of_the_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish(REPO, {})

    def sent() -> str | None:
        hub.own.requests.clear()
        look_up(REPO)
        return hub.own.requests[0].authorization

    assert sent() is None
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(f"{TOKEN}\n")
    assert sent() == f"Bearer {TOKEN}"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert sent() is None
    monkeypatch.setenv("HF_TOKEN", "other")
    assert sent() == "Bearer other"


@pytest.mark.parametrize("token", ["two words", "a\r\nHost: b", "caf\u00e9", "x" * 2000])
def test_an_invalid_token_is_neither_sent_nor_shown(hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(EncoderError, match="does not contain a token") as caught:
        look_up(REPO)
    assert token not in one_sentence(caught)
    assert hub.asked() == []


def test_no_message_shows_the_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = hub.publish(REPO, {"open_clip_model.safetensors": WEIGHTS})
    for statuses in ([401], [403], [404], [500] * 10):
        hub.own.files[f"/{REPO}/resolve/{commit}/open_clip_model.safetensors"].statuses = statuses
        with pytest.raises(PixMatcherError) as caught:
            fetch()
        assert TOKEN not in one_sentence(caught)


# Encoders


def test_clip(hub: Hub, cache: Path) -> None:
    commit = hub.publish(REPO, models.clip(), cardData={"license": "mit"})
    encoder = load_encoder(f"hf:{REPO}")
    assert encoder.spaces == (Space("clip", models.DIMENSION, text=True),)
    assert encoder.recipe == Recipe(16, 1.0, "bicubic", tuple(CLIP_MEAN), tuple(CLIP_STD), "shortest")
    texts = {"a photo of a cat": "<start> a photo of a cat <end>", "Dog": "<start> dog <end>"}
    models.check(encoder, models.colours(CLIP_MEAN, CLIP_STD), texts)
    card = read_card(model_folder(f"hf:{REPO}"))
    assert (card.name, card.licence, card.precision) == (f"hf:{REPO}", "mit", "fp32")
    assert card.source == f"{hub.url}/{REPO}/tree/{commit}"
    assert card.text == TextRecipe("tokenizer.json", 12, 2)
    assert card.textual is not None
    assert card.textual.mask == "attention_mask"
    kept = {"card.json", *models.clip()} - {"README.md"}
    assert listing(cache) == sorted(f"models/hf%3Aowner%2Fmodel/{name}" for name in kept)
    unload_encoders()
    hub.own.requests.clear()
    assert load_encoder(f"hf:{REPO}", Runtime(offline=True)).fingerprint == encoder.fingerprint
    assert hub.own.requests == []


def test_siglip(hub: Hub) -> None:
    hub.publish(REPO, models.siglip())
    encoder = load_encoder(f"hf:{REPO}")
    assert encoder.recipe == Recipe(16, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash")
    filled = "<start> a cat <end>" + " <pad>" * 60
    models.check(encoder, models.colours([0.5] * 3, [0.5] * 3), {"a cat": filled})
    assert encoder.spaces == (Space("clip", models.DIMENSION, text=True),)


def test_mobileclip(hub: Hub) -> None:
    hub.publish(REPO, models.mobileclip())
    encoder = load_encoder(f"hf:{REPO}")
    assert encoder.recipe == Recipe(16, 1.0, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "shortest")
    models.check(encoder, models.colours([0.0] * 3, [1.0] * 3), {"a cat": "<start> a cat <end> <pad> <pad> <pad>"})


def test_dinov2(hub: Hub) -> None:
    hub.publish(REPO, models.dinov2())
    encoder = load_encoder(f"hf:{REPO}")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    assert encoder.recipe == Recipe(16, 0.8, "bicubic", tuple(mean), tuple(std), "shortest")
    assert encoder.spaces == (Space("visual", models.DIMENSION),)
    first = (models.some_pixels()[:, : models.PATCH, : models.PATCH].astype(np.float64) / 255 - mean) / std
    models.check(encoder, models.unit(np.einsum("nyxc,dcyx->nd", first, models.PATCHES)))
    assert encoder.encode_texts(["a cat"]) == {}


def test_the_int8_files_of_a_repository(hub: Hub) -> None:
    files = models.clip()
    other = np.random.default_rng(9).normal(size=models.PIXELS.shape).astype(np.float32)
    quantised = models.vision().replace(models.PIXELS.tobytes(), other.tobytes())
    for ending in ("_quantized", "_int8"):
        more = {f"onnx/vision_model{ending}.onnx": quantised, f"onnx/text_model{ending}.onnx": models.text()}
        hub.publish(REPO + ending, {**files, **more})
        encoder = load_encoder(f"hf:{REPO}{ending}@int8")
        card = read_card(model_folder(f"hf:{REPO}{ending}@int8"))
        assert (card.precision, card.visual.file) == ("int8", f"onnx/vision_model{ending}.onnx")
        assert encoder.fingerprint != load_encoder(f"hf:{REPO}{ending}").fingerprint
        assert {path for path in card.files if path.endswith(".onnx")} == more.keys()
    hub.publish(REPO, files)
    with pytest.raises(EncoderError, match=r"has no int8 ONNX files \(it has onnx/text_model\.onnx, ") as caught:
        load_encoder(f"hf:{REPO}@int8")
    one_sentence(caught)


def test_files_in_the_top_folder_of_a_repository(hub: Hub) -> None:
    hub.publish(REPO, {path.removeprefix("onnx/"): content for path, content in models.clip().items()})
    models.check(load_encoder(f"hf:{REPO}"), models.colours(CLIP_MEAN, CLIP_STD), {"cat": "<start> cat <end>"})


@pytest.mark.parametrize("name", ["vision_model.onnx_data", "weights/of vision.bin"])
def test_weights_in_a_separate_file(hub: Hub, name: str) -> None:
    outer, inner = models.outside(models.vision(), name)
    hub.publish(REPO, {**models.clip(vision_model=outer), f"onnx/{name}": inner, "onnx/other.onnx_data": b"x"})
    encoder = load_encoder(f"hf:{REPO}")
    models.check(encoder, models.colours(CLIP_MEAN, CLIP_STD))
    folder = model_folder(f"hf:{REPO}")
    assert f"onnx/{name}" in read_card(folder).files
    assert "onnx/other.onnx_data" not in listing(folder)
    assert external_files(folder / "onnx" / "vision_model.onnx") == {name}
    assert external_files(folder / "onnx" / "text_model.onnx") == set()
    inner = inner[:-4] + b"\0\0\0\0"
    hub.publish(REPO, {**models.clip(vision_model=outer), f"onnx/{name}": inner})
    pull()
    assert read_card(folder).fingerprint != encoder.fingerprint


@pytest.mark.parametrize("name", ["../tokenizer.json", "/etc/passwd", "a/../../b", "", "x" * 5000])
def test_weights_outside_the_folder_are_refused(hub: Hub, cache: Path, tmp_path: Path, name: str) -> None:
    outer, _ = models.outside(models.vision(), name)
    files = models.clip(vision_model=outer)
    hub.publish(REPO, files)
    with pytest.raises(EncoderError, match=r"its weights are in .*, outside its folder") as caught:
        load_encoder(f"hf:{REPO}")
    one_sentence(caught)
    assert listing(cache) == []
    with pytest.raises(EncoderError, match=r"its weights are in .*, outside its folder") as caught:
        read_layout(models.write(tmp_path / "model", files))
    one_sentence(caught)


def test_weights_that_are_missing(hub: Hub, tmp_path: Path) -> None:
    outer, _ = models.outside(models.vision(), "vision_model.onnx_data")
    files = models.clip(vision_model=outer)
    hub.publish(REPO, files)
    with pytest.raises(EncoderError, match=r"lacks its file onnx/vision_model\.onnx_data") as caught:
        load_encoder(f"hf:{REPO}")
    one_sentence(caught)
    with pytest.raises(EncoderError, match=r"has its weights in vision_model\.onnx_data, which is missing") as caught:
        read_layout(models.write(tmp_path / "model", files))
    one_sentence(caught)


def test_a_pulled_encoder_is_updated(hub: Hub) -> None:
    hub.publish(REPO, models.clip())
    folder = pull()
    before = read_card(folder).fingerprint
    inode = folder.stat().st_ino
    hub.store.requests.clear()
    pull()
    assert hub.store.requests == []
    assert folder.stat().st_ino == inode
    (folder / "tokenizer.json").write_bytes(b"?" * len(models.tokenizer()))
    pull()
    assert read_card(folder).fingerprint == before
    assert damaged_files(read_card(folder), folder) == []
    hub.publish(REPO, models.siglip())
    pull()
    assert read_card(folder).fingerprint != before
    assert listing(folder.parent) == sorted(f"{folder.name}/{name}" for name in ("card.json", *models.siglip()))


def test_a_revision_can_be_chosen(hub: Hub) -> None:
    commit = hub.publish(REPO, models.clip())
    hub.publish(REPO, models.dinov2())
    assert load_encoder(f"hf:{REPO}@{commit}").spaces[0].text
    assert not load_encoder(f"hf:{REPO}").spaces[0].text
    with pytest.raises(EncoderError, match=r"does not exist or is private|has no revision"):
        load_encoder(f"hf:{REPO}@v9")


PULL = """
import sys
from pathlib import Path
from pixmatcher.encoders.hub.client import pull_onnx
from pixmatcher.encoders._cache import model_folder
print("started", flush=True)
pull_onnx(sys.argv[1], model_folder("hf:" + sys.argv[1]), name="hf:" + sys.argv[1])
print("pulled")
"""


def start() -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", PULL, REPO], text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def large_model() -> tuple[dict[str, bytes], bytes]:
    """Return a model for images only whose weights take long to download, and these weights."""
    outer, inner = models.outside(models.patches(), "model.onnx_data")
    inner += WEIGHTS
    return {**models.dinov2(model=outer), "onnx/model.onnx_data": inner}, inner


def test_a_killed_pull_continues(hub: Hub, cache: Path) -> None:
    files, inner = large_model()
    hub.publish(REPO, files)
    hub.long(inner).hold_after = 120_000
    place = f"/lfs/{hashlib.sha256(inner).hexdigest()}"
    part = cache / "models" / ".hf%3Aowner%2Fmodel.making" / "onnx" / "model.onnx_data.part"
    with start() as process:
        hub.store.wait_for(place, 120_000)
        while not part.exists() or part.stat().st_size < 120_000:
            assert process.poll() is None
        process.kill()
    hub.long(inner).hold_after = None
    hub.own.requests.clear()
    hub.store.requests.clear()
    folder = pull()
    assert [(request.path, request.range) for request in hub.store.requests] == [(place, "bytes=120000-")]
    assert damaged_files(read_card(folder), folder) == []
    assert listing(cache / "models") == sorted(f"{folder.name}/{name}" for name in ("card.json", *files))


def test_a_killed_pull_continues_with_another_commit(hub: Hub, cache: Path) -> None:
    files, inner = large_model()
    hub.publish(REPO, {**files, "config.json": b"{}"})
    hub.long(inner).hold_after = 120_000
    with start() as process:
        hub.store.wait_for(f"/lfs/{hashlib.sha256(inner).hexdigest()}", 120_000)
        process.kill()
    hub.publish(REPO, models.dinov2())
    folder = pull()
    assert listing(cache / "models") == sorted(f"{folder.name}/{name}" for name in ("card.json", *models.dinov2()))


def test_two_processes_pull_once(hub: Hub) -> None:
    files, inner = large_model()
    hub.publish(REPO, files)
    hub.long(inner).hold_after = 120_000
    place = f"/lfs/{hashlib.sha256(inner).hexdigest()}"
    with start() as first:
        hub.store.wait_for(place, 120_000)
        with start() as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "started\n"
            wait_for_lock(second)
            hub.long(inner).held.set()
            ends = [first.communicate(timeout=60)[0].split()[-1], second.communicate(timeout=60)[0].strip()]
    assert ends == ["pulled", "pulled"]
    assert len([request for request in hub.store.requests if request.path == place]) == 1


def test_unusable_encoders_are_not_kept(hub: Hub, cache: Path) -> None:
    for files, words in (
        ({"README.md": b""}, "has no ONNX files of an encoder in the usual layout .it has no ONNX files"),
        ({"onnx/decoder_model.onnx": b"x"}, r"it has onnx/decoder_model\.onnx"),
        ({"onnx/model.onnx": b"x"}, r"has ONNX files but no preprocessor_config\.json"),
        ({**models.clip(), "tokenizer.json": None}, r"has ONNX files but no tokenizer\.json"),
        (models.clip(config=b" " * (2 << 20)), r"The file config\.json of the repository owner/model is too long"),
        (models.clip(vision_model=b"\x0f"), r"vision_model\.onnx of the repository owner/model cannot be used"),
        (
            models.clip(vision_model=models.vision("logits")),
            "returns last_hidden_state, logits instead of|no output that can be compared",
        ),
    ):
        hub.publish(REPO, {path: content for path, content in files.items() if content is not None})
        with pytest.raises(EncoderError, match=words) as caught:
            pull()
        assert str(cache) not in one_sentence(caught)
        assert listing(cache) == []


def test_the_hash_of_git(tmp_path: Path) -> None:
    from pixmatcher.encoders.hub._api import _git_blob_hash

    (tmp_path / "file").write_bytes(b"what is up, doc?")  # the example of the book Pro Git
    assert _git_blob_hash(tmp_path / "file") == blob(b"what is up, doc?") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"


def test_cards_are_plain_json(hub: Hub) -> None:
    hub.publish(REPO, models.clip())
    card = json.loads((pull() / "card.json").read_text())
    assert card["notes"] == {"commit": hub.commits[REPO]}
