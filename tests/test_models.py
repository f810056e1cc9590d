"""Models by the command line: folders as encoders, refused exports, cards that were changed by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixmatcher import Collection, EncoderError, encoders, index, load_encoder
from pixmatcher.encoders import Runtime, full_name
from pixmatcher.encoders._cache import link_model, model_folder
from pixmatcher.encoders.manage import export_model
from pixmatcher.encoders.onnx.card import read_card
from pixmatcher.indexing.calibration import calibrate_on
from support import cli, paint_many
from test_quantize import SIZE, mobile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of models."""
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    encoders.unload_encoders()
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a small encoder and its card."""
    folder = tmp_path / "small"
    folder.mkdir()
    mobile(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    paint_many(tmp_path / "photos", 24)
    return tmp_path / "photos"


def change(folder: Path, *keys: str, to: object) -> None:
    """Change one value of a card."""
    card = json.loads((folder / "card.json").read_text())
    inner: Any = card
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / "card.json").write_text(json.dumps(card))


def test_a_folder_can_have_a_name_like_an_int8_export(small: Path, photos: Path) -> None:
    folder = small.rename(small.with_name("sm äll@int8"))
    assert full_name(f"onnx:{folder}") == f"onnx:{folder}"
    index(photos, encoders=[f"onnx:{folder}"])
    with Collection.open(photos) as collection:
        assert [encoder.name for encoder in collection.encoders] == [f"onnx:{folder}"]
    done = cli("models", "info", f"onnx:{folder}", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout


def test_an_int8_export_of_a_folder_is_a_folder(small: Path, photos: Path, tmp_path: Path) -> None:
    name, to = f"onnx:{small}", tmp_path / "in int8"
    with pytest.raises(EncoderError, match=r"^Name the folder for the int8 version of .* with --to\.$"):
        export_model(name, int8=True, calibration=calibrate_on(str(photos)))
    with pytest.raises(EncoderError, match="contains the encoder small: choose another folder"):
        export_model(name, small, int8=True, calibration=calibrate_on(str(photos)))
    folder, card = export_model(name, to, int8=True, calibration=calibrate_on(str(photos)))
    assert (folder, card.name, card.precision) == (to, f"onnx:{to}", "int8")
    assert read_card(small).precision == "fp32"
    assert load_encoder(card.name).fingerprint == card.fingerprint
    export_model(name, to, int8=True, calibration=calibrate_on(str(photos)))  # in its own place


def test_an_export_does_not_touch_other_encoders(small: Path, photos: Path) -> None:
    change(small, "name", to="mobilenet_v3_small")
    link_model("mobilenet_v3_small", small)
    for folder in (small, model_folder("mobilenet_v3_small")):
        with pytest.raises(EncoderError, match="contains the encoder mobilenet_v3_small: choose another folder"):
            export_model("mobilenet_v3_small", folder, int8=True, calibration=calibrate_on(str(photos)))
    assert read_card(model_folder("mobilenet_v3_small")).precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pull", "lite"], "lite is bundled with pixmatcher"),
        (["export", "lite"], "lite is bundled with pixmatcher"),
        (["export", "mobilenet_v3_small", "--calibrate", "."], "add --int8, or leave out --calibrate"),
        (["export", "hf:some/model", "--weights", "weights.pth"], "leave out --weights"),
        (["export", "onnx:.", "--int8", "--calibrate", ".", "--weights", "weights.pth"], "leave out --weights"),
    ],
)
def test_options_without_effect_are_refused(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = cli("models", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["name"], None),
        (["licence"], 5),
        (["notes"], "text"),
        (["precision"], True),
        (["space", "name"], ["visual"]),
        (["space", "text"], "yes"),
        (["space", "dimension"], 64.0),
        (["recipe", "size"], True),
        (["recipe", "size"], 10**9),
        (["recipe", "interpolation"], "nearest"),
        (["recipe", "resize"], None),
        (["recipe", "mean"], ["a", "b", "c"]),
        (["recipe", "mean"], [float("nan"), 0, 0]),
        (["recipe", "std"], [1, 1]),
        (["recipe", "std"], [1, 0, 1]),
        (["visual", "output"], ["embeddings"]),
        (["visual", "pooling"], "most"),
    ],
)
def test_a_card_with_a_wrong_value_is_refused(small: Path, keys: list[str], value: object) -> None:
    change(small, *keys, to=value)
    with pytest.raises(EncoderError, match=r"card\.json is damaged \(wrong .*\): export or pull"):
        read_card(small)


@pytest.mark.parametrize(("keys", "value"), [(["recipe", "size"], SIZE + 1), (["visual", "output"], "other")])
def test_a_card_that_does_not_fit_its_network(small: Path, keys: list[str], value: object) -> None:
    change(small, *keys, to=value)
    encoder = load_encoder(f"onnx:{small}")
    size = encoder.recipe.size
    with pytest.raises(EncoderError, match=r"visual\.onnx cannot process its input"):
        encoder.encode_images(np.zeros((1, size, size, 3), np.uint8))


def test_an_int8_version_is_not_used_as_the_fp32_encoder(small: Path, photos: Path) -> None:
    change(small, "name", to="mobilenet_v3_small@int8")
    link_model("mobilenet_v3_small@int8", small)
    with pytest.raises(EncoderError, match=r"in int8 only: use the name mobilenet_v3_small@int8\.$"):
        index(photos, encoders=["mobilenet_v3_small"], runtime=Runtime(backend="onnx"))
    for _ in range(2):  # made, then refreshed by the same call
        index(photos, encoders=["mobilenet_v3_small@int8"], runtime=Runtime(backend="onnx"))


@pytest.mark.parametrize(
    "use",
    [
        "pixmatcher.load_encoder('mobilenet_v3_large')",
        "pixmatcher.FeatureExtractor()",
        "pixmatcher.encoders.manage.export_model('mobilenet_v3_large')",
    ],
)
def test_a_broken_pytorch_is_reported_in_one_sentence(use: str, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no libcudart')")
    code = (
        "import pixmatcher.encoders.manage\n"
        f"try:\n    {use}\nexcept pixmatcher.EncoderError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "needs torch: run `pip install 'pixmatcher[torch]'`. (no libcudart)" in done.stdout, done.stderr
