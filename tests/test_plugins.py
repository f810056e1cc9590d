"""Encoders of the caller: as objects, registered in a process, or declared by an installed package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import invalidate_caches
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import Collection, EncoderError, Query, classify, encoders, evaluate, index, search
from pixmatcher.encoders import check_encoder, load_encoder, load_recorded, register_encoder, unregister_encoder
from pixmatcher.searching import SearchOptions, search_batch
from support import TinyEncoder, cli, paint, paint_many


class OwnEncoder(TinyEncoder):
    """An encoder that is not registered."""

    name = "own"
    fingerprint = "own-1"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for label in ("a", "b"):
        for seed in range(3):
            paint(tmp_path / "photos" / label / f"{seed}.png", seed + 10 * (label == "b"))
    return tmp_path / "photos"


# ---- Objects ----


def test_an_encoder_object_needs_no_registration(tmp_path: Path) -> None:
    own = OwnEncoder()
    root = tmp_path / "tiny-imagenet-200"
    for label in ("n1", "n2"):
        for seed in range(3):
            paint(root / "train" / label / "images" / f"{label}_{seed}.JPEG", seed + 10 * (label == "n2"), kind="JPEG")
    (root / "wnids.txt").write_text("n1\nn2\n")
    (root / "words.txt").write_text("n1\tfirst\nn2\tsecond\n")
    spec = f"tiny-imagenet:{root}?split=train"
    assert index(spec, tmp_path / "c", encoders=[own]).added == own.encoded == 6
    image = root / "train" / "n2" / "images" / "n2_1.JPEG"
    with Collection.open(tmp_path / "c") as collection:
        assert [record.name for record in collection.encoders] == ["own"]
        found = search(collection, Query(image=image), k=1, encoders=[own])
        assert found.hits[0].score == pytest.approx(1, abs=1e-2)
        assert classify(collection, Query(image=image), k=1, encoders=[own]).categories[0].label == "n2"
        assert evaluate(collection, spec, k=2, encoders=[own]).images is not None
        (answer,) = search_batch(collection, ["a text"], encoders=[own])
        assert answer["space"] == "semantic"
        with pytest.raises(EncoderError, match=r"made with the encoder own\. Unknown encoder 'own'"):
            search(collection, "a text")
    paint(root / "train" / "n1" / "images" / "n1_9.JPEG", 30, kind="JPEG")
    assert index(spec, tmp_path / "c", encoders=[own]).added == 1
    with pytest.raises(EncoderError, match="Unknown encoder 'own'"):
        index(spec, tmp_path / "c")


def test_objects_and_names_in_one_collection(tiny: TinyEncoder, photos: Path) -> None:
    own = OwnEncoder()
    index(photos, encoders=["tiny", own])
    assert tiny.encoded == own.encoded == 6
    with Collection.open(photos) as collection:
        assert [*collection.spaces] == ["visual", "semantic", "visual-2", "semantic-2"]
        assert search(collection, "a text", SearchOptions(space="semantic-2"), encoders=[own]).space == "semantic-2"


def test_an_object_of_another_version_is_refused(photos: Path) -> None:
    class Newer(OwnEncoder):
        fingerprint = "own-2"

    index(photos, encoders=[OwnEncoder()])
    with (
        Collection.open(photos) as collection,
        pytest.raises(EncoderError, match="made with another version of the encoder own"),
    ):
        search(collection, "a text", encoders=[Newer()])


def test_invalid_encoders_are_refused_before_anything_is_written(photos: Path) -> None:
    class Half:
        name = "half"

    for wrong, words in (
        (Half(), "Half is not an encoder: it lacks fingerprint, spaces, recipe, batch_size, load_images, "),
        (OwnEncoder, "OwnEncoder is a class: give an encoder, which is an object of it."),
        (None, "NoneType is not an encoder"),
    ):
        with pytest.raises(EncoderError, match=words):
            index(photos, encoders=[wrong])  # type: ignore[list-item]
        with pytest.raises(EncoderError, match=words):
            check_encoder(wrong)
    assert not (photos / ".pixmatcher").exists()


# ---- Registered ----


@pytest.fixture
def registered() -> Iterator[Callable[[str, Callable[[], object]], None]]:
    names = []

    def register(name: str, factory: Callable[[], object]) -> None:
        register_encoder(name, factory)  # type: ignore[arg-type]
        names.append(name)

    yield register
    for name in names:
        unregister_encoder(name)


def test_a_registered_encoder_is_created_once(registered: Callable[..., None]) -> None:
    made = []

    def factory() -> OwnEncoder:
        made.append(OwnEncoder())
        return made[-1]

    registered("own", factory)
    assert made == []
    assert load_encoder("own") is load_encoder("own") is made[0]
    registered("own", OwnEncoder)
    assert load_encoder("own") is not made[0]
    assert "own" in encoders.plugin_encoder_names()
    with pytest.raises(EncoderError, match="clip-vit-b-32, own, or torchvision:NAME"):
        load_encoder("nothing")
    unregister_encoder("own")
    with pytest.raises(EncoderError, match="Unknown encoder 'own'"):
        load_encoder("own")


@pytest.mark.parametrize("name", ["lite", "mobilenet_v3_large", "clip-vit-b-32@int8", "onnx:folder", "a:b", ""])
def test_built_in_names_and_references_cannot_be_registered(name: str) -> None:
    with pytest.raises(EncoderError, match="cannot be registered as"):
        register_encoder(name, OwnEncoder)


def test_errors_of_a_factory_are_one_sentence(registered: Callable[..., None]) -> None:
    def fails() -> OwnEncoder:
        raise RuntimeError("no model file")

    for factory, words in (
        (fails, r"own cannot be loaded \(RuntimeError: no model file\)"),
        (TinyEncoder, "registered as 'own' has the name 'tiny'"),
        (dict, "dict is not an encoder: it lacks name"),
    ):
        registered("own", factory)
        with pytest.raises(EncoderError, match=words):
            load_encoder("own")


# ---- Declared by a package ----

MODULE = """
import numpy as np
from pixmatcher.images import Recipe
from pixmatcher.records import Space


class Brightness:
    name, fingerprint, batch_size = "brightness", "brightness-1", 8
    spaces, recipe = (Space("brightness", 16),), Recipe(16)

    def load_images(self):
        pass

    def encode_images(self, pixels):
        rows = pixels.mean(axis=(2, 3)).astype(np.float32) + 1
        return {"brightness": rows / np.linalg.norm(rows, axis=1, keepdims=True)}

    def encode_texts(self, texts):
        return {}
"""


def install(folder: Path, package: str, points: str, module: str = MODULE) -> None:
    """Write a package as an installer does: a module and its metadata."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(module)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[pixmatcher.encoders]\n{points}\n")
    invalidate_caches()  # the folder may have been listed a moment ago


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where packages are installed during the test, in this process and in others."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(encoders.__file__).parents[2]}")
    encoders.unload_encoders()
    yield folder
    encoders.unload_encoders()
    for name in ("bright", "broken", "second"):
        sys.modules.pop(name, None)


def test_an_encoder_of_a_package_is_found_by_its_name(site: Path, photos: Path) -> None:
    install(site, "bright", "brightness = bright:Brightness")
    assert "bright" not in sys.modules
    done = cli("index", photos, "--encoder", "brightness")
    assert done.returncode == 0, done.stderr
    found = cli("search", photos / "b" / "2.png", "-c", photos, "-k", "1")
    assert str(photos / "b" / "2.png") in found.stdout, found.stderr
    assert "brightness" in cli("models", "list").stdout
    assert "brightness-1" in cli("models", "info", "brightness").stdout
    with Collection.open(photos) as collection:
        assert load_recorded(collection.encoders)[0].fingerprint == "brightness-1"
    wrong = cli("models", "pull", "brightness")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "brightness" in wrong.stderr
    assert "another package" in wrong.stderr


def test_a_package_cannot_hide_a_built_in_name(site: Path) -> None:
    install(site, "bright", "lite = bright:Brightness\nmobilenet_v3_large = bright:Brightness\na:b = bright:Brightness")
    assert encoders.plugin_encoder_names() == []
    assert load_encoder("lite").fingerprint != "brightness-1"
    with pytest.raises(EncoderError, match="Unknown encoder 'a:b'"):
        load_encoder("a:b")
    assert encoders.describe_encoder("mobilenet_v3_large").spaces[0].dimension == 960


@pytest.mark.parametrize(
    ("points", "module", "words"),
    [
        ("bad = broken:Brightness", "import nowhere", r"ModuleNotFoundError: No module named 'nowhere'"),
        ("bad = broken:Missing", MODULE, "broken:Missing cannot be imported"),
        ("bad = broken:Brightness", "def", "SyntaxError"),
        ("bad = broken:Brightness", "Brightness = 5", "neither a class nor a function"),
        ("bad = broken:Brightness", MODULE, "registered as 'bad' has the name 'brightness'"),
    ],
)
def test_a_broken_package_is_reported_in_one_sentence(site: Path, points: str, module: str, words: str) -> None:
    install(site, "broken", points, module)
    with pytest.raises(EncoderError, match=words) as caught:
        load_encoder("bad")
    assert "\n" not in str(caught.value)
    if "has the name" not in words:
        assert "The package broken declares 'bad' in pixmatcher.encoders" in str(caught.value)
    assert load_encoder("lite").name == "lite"
    listed = cli("models", "list")
    assert listed.returncode == 0, listed.stderr


def test_two_packages_with_one_name_are_both_named(site: Path) -> None:
    install(site, "bright", "brightness = bright:Brightness")
    install(site, "second", "brightness = second:Brightness")
    with pytest.raises(EncoderError, match="packages bright and second both declare 'brightness'"):
        load_encoder("brightness")


def test_built_in_names_do_not_search_the_packages(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pixmatcher.encoders import load_encoder\nload_encoder('lite')\n"
        "assert 'importlib.metadata' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_many_images_are_encoded_by_an_object(tmp_path: Path) -> None:
    own = OwnEncoder()
    paths = paint_many(tmp_path / "many", 40)
    index(tmp_path / "many", encoders=[own], workers=4)
    with Collection.open(tmp_path / "many") as collection:
        ids = {item.uri: item.id for item in collection.items()}
        (vector,) = collection.embeddings([ids[str(paths[7])]], "visual")
        found = search(collection, Query(image=paths[7]), k=1, encoders=[own]).hits[0]
        assert found.item.uri == str(paths[7])
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-2)


def test_the_log_says_which_encoder_was_opened(
    registered: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    registered("own", OwnEncoder)
    with caplog.at_level("INFO", logger="pixmatcher.encoders"):
        load_encoder("own")
    (record,) = [record for record in caplog.records if record.name == "pixmatcher.encoders"]
    assert record.getMessage().startswith("Encoder own opened in ")
    assert record.getMessage().endswith("fingerprint own-1")


def test_the_log_of_a_search_has_no_password(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="pixmatcher")
    index(photos, encoders=[OwnEncoder()])
    image = (photos / "a" / "0.png").read_bytes()
    with Collection.open(photos) as collection:
        search(collection, Query(image=image, image_name="https://me:hunter2@host/0.png"), encoders=[OwnEncoder()])
    assert "https://host/0.png" in caplog.text
    assert "hunter2" not in caplog.text
