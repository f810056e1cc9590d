"""The devices of ONNX Runtime: which exist, what is reported about others, and how `auto` chooses one.

Where only the CPU exists, it stands for another device under the name of `openvino`. With onnxruntime-openvino in place
of onnxruntime, the tests run OpenVINO.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pixmatcher import index
from pixmatcher.encoders import Runtime, describe_device, load_encoder, unload_encoders
from pixmatcher.encoders._protocol import device_choice_of
from pixmatcher.encoders.lite import LiteEncoder
from pixmatcher.encoders.manage import model_details
from pixmatcher.encoders.onnx import _measurement_cache, _measuring, devices, providers
from pixmatcher.encoders.onnx._measurement_cache import Measurement, read_measurement, save_measurement
from pixmatcher.encoders.onnx._measuring import (
    MIN_COSINE,
    example_images,
    fastest,
    least_cosine,
    measure_devices,
)
from pixmatcher.encoders.onnx.card import Card, Network, store_files, write_card
from pixmatcher.encoders.onnx.networks import DeviceError, open_network
from pixmatcher.encoders.onnx.providers import CPU, PROVIDERS, may_have_devices, provider_of
from pixmatcher.errors import EncoderError
from pixmatcher.images import Recipe
from pixmatcher.records import Space
from support import cli, paint_many

MISSING = [name for name, (provider, _) in PROVIDERS.items() if provider not in onnxruntime.get_available_providers()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder whose embedding is the mean colour."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["colour"], axes=[1, 2], keepdims=0),
    ]
    ends = [
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["n", 3])],
    ]
    model = helper.make_model(helper.make_graph(nodes, "colour", *ends), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    made = tmp_path / "colour"
    made.mkdir()
    onnx.save(model, made / "visual.onnx")
    card = Card(
        name="colour",
        fingerprint="colour-1",
        space=Space("visual", 3),
        recipe=Recipe(8),
        visual=Network("visual.onnx", "pixels", "colour"),
        precision="fp32",
        licence="MIT",
        source="a test",
        files=store_files(made, ["visual.onnx"]),
    )
    write_card(card, made)
    return made


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the cache, which does not exist yet; measuring takes less long than usual."""
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_measuring, "_TURN_SECONDS", 0.01)
    unload_encoders()
    yield tmp_path / "cache"
    unload_encoders()


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime have a second device, `openvino`: the real one, or else the CPU under this name."""
    monkeypatch.setattr(providers, "installed_packages", lambda: {"onnxruntime-openvino": "1"})
    if "openvino" in MISSING:
        monkeypatch.setitem(PROVIDERS, "openvino", (CPU, "onnxruntime-openvino"))
        monkeypatch.setattr(providers, "has_provider", lambda device: device == "openvino")
        monkeypatch.setattr(devices, "has_provider", lambda device: device == "openvino")


def red(encoder: object) -> np.ndarray:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[..., 0] = 200
    embedded: np.ndarray = encoder.encode_images(pixels)["visual"]  # type: ignore[attr-defined]
    return embedded


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", *(name for name in PROVIDERS if name not in MISSING)])
def test_a_device_that_exists_runs_the_encoder(device: str, folder: Path) -> None:
    encoder = load_encoder(f"onnx:{folder}", Runtime(backend="onnx", device=device))
    np.testing.assert_allclose(red(encoder), [[1, 0, 0]] * 2, atol=1e-3)


@pytest.mark.parametrize("device", MISSING)
def test_a_missing_device_is_reported_in_one_sentence(device: str, folder: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"onnx:{folder}", Runtime(device=device))
    assert PROVIDERS[device][1] in str(caught.value)
    assert str(caught.value).count(". ") == 0
    assert str(caught.value).endswith(".")


def test_the_cpu_is_used_if_a_device_does_not_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    if provider_of("cuda") in onnxruntime.capi._pybind_state.get_available_providers():
        pytest.skip("CUDA starts here")
    encoder = load_encoder(f"onnx:{folder}", Runtime(backend="onnx", device="cuda"))
    with caplog.at_level(logging.WARNING, "pixmatcher.encoders"), pytest.warns(UserWarning, match="CUDA"):
        assert red(encoder).shape == (2, 3)
    assert "runs on the CPU, as cuda could not start" in caplog.text
    choice = device_choice_of(encoder)
    assert choice is not None
    assert (choice.device, choice.reason) == ("cpu", "only one")


@pytest.mark.parametrize("device", [name for name in PROVIDERS if name not in MISSING])
def test_lite_has_the_same_embeddings_on_a_device_that_exists(device: str) -> None:
    pixels = example_images(8, 260)
    expected, found = (LiteEncoder(device=each).encode_images(pixels) for each in ("cpu", device))
    assert least_cosine(expected, found) >= MIN_COSINE


@pytest.mark.parametrize("device", [*MISSING, "gpu7"])
def test_lite_reports_a_device_that_cannot_run_it(device: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError) as caught:
        load_encoder("lite", Runtime(device=device))
    expected = PROVIDERS[device][1] if device in PROVIDERS else "choose auto, cpu, cuda"
    assert expected in str(caught.value)
    choice = describe_device("lite", Runtime(device=device))
    assert choice is not None
    assert (choice.device, str(choice)) == ("", str(caught.value))


def test_an_incomplete_onnx_runtime_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "get_available_providers")  # as after `pip uninstall` of one of two packages
    monkeypatch.setattr(providers, "installed_packages", lambda: {"onnxruntime-openvino": "1"})
    with pytest.raises(EncoderError, match="--no-deps onnxruntime-openvino`"):
        load_encoder("lite", Runtime(device="openvino"))
    choice = describe_device("lite", Runtime(device="auto"))
    assert choice is not None
    assert choice.device == "cpu"


class Mean:
    """A side whose embedding is the mean colour, times a factor for each colour, by a real session."""

    def __init__(self, folder: Path, factors: tuple[float, ...] = (1, 1, 1), space: str = "visual") -> None:
        self.session = open_network(folder / "visual.onnx", optimise=len(factors) == 3)
        self.factors, self.space = np.float32(factors), space

    def encode(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {self.space: self.session.run(["colour"], {"pixels": pixels})[0] * self.factors}


def test_a_device_that_fails_or_has_other_embeddings_is_rejected(folder: Path) -> None:
    def load(device: str) -> Mean:
        if device == "absent":
            raise DeviceError("no driver\nmore about it")
        if device == "damaged":
            open_network(folder / "card.json")
        wrong: dict[str, dict[str, Any]] = {
            "other": {"factors": (1, 1, 9)},
            "nan": {"factors": (1, np.nan, 1)},
            "renamed": {"space": "another"},
            "near": {"factors": (1, 1.0001, 1)},
        }
        return Mean(folder, **wrong.get(device, {}))

    measured = measure_devices(load, ["absent", "damaged", "other", "nan", "renamed", "near"], 2, 8)
    assert set(measured.images_per_second) == {"cpu", "near"}
    assert min(measured.images_per_second.values()) > 0
    assert measured.rejected["absent"] == "it fails (no driver)"
    assert measured.rejected["damaged"].startswith("it fails (")
    assert not measured.complete
    assert measure_devices(load, ["other"], 2, 8).complete
    assert all("embeddings differ" in measured.rejected[name] for name in ("other", "nan", "renamed"))
    with pytest.raises(DeviceError):
        measure_devices(lambda device: load("absent" if device == "cpu" else device), ["near"], 2, 8)


def test_a_device_must_be_clearly_faster_than_the_cpu() -> None:
    paces = {"cpu": 100.0, "openvino": 105.0}
    assert fastest(Measurement(paces, {})) == "cpu"
    assert fastest(Measurement(paces | {"cuda": 400.0, "coreml": 300.0}, {})) == "cuda"


def test_the_images_that_are_measured_with_are_images() -> None:
    images = example_images(3, 64)
    np.testing.assert_array_equal(images, example_images(3, 64))
    flat = images.reshape(3, -1).astype(float)
    assert np.abs(np.corrcoef(flat)[np.triu_indices(3, 1)]).max() < 0.9
    assert flat.std(axis=1).min() > 20
    rows = np.abs(np.diff(images.astype(int), axis=1)).mean()
    assert 2 < rows < 60  # neither flat nor noise


@pytest.mark.skipif(may_have_devices(), reason="this ONNX Runtime may have another device")
def test_where_only_the_cpu_exists_nothing_is_measured_or_stored(cache: Path) -> None:
    encoder = load_encoder("lite", Runtime(device="auto"))
    encoder.choose_device()  # type: ignore[attr-defined]
    assert not cache.exists()
    choice = describe_device("lite", Runtime(device="auto"))
    assert choice is not None
    assert (choice.device, choice.reason) == ("cpu", "only one")


@pytest.mark.skipif(may_have_devices() or len(MISSING) < len(PROVIDERS), reason="ONNX Runtime may have another device")
def test_a_package_that_another_one_has_overwritten_promises_no_measurement(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"onnxruntime": "2", "onnxruntime-openvino": "1"}
    monkeypatch.setattr(providers, "installed_packages", lambda: both)
    choice = describe_device("lite", Runtime(device="auto"))
    assert choice is not None
    assert (choice.reason, choice.final) == ("only one", True)


def test_indexing_many_images_measures_once_and_other_runs_use_it(
    folder: Path, cache: Path, tmp_path: Path, second_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, name = Runtime(backend="onnx", device="auto"), f"onnx:{folder}"

    def choice() -> Any:
        unload_encoders()  # as in another process
        return describe_device(name, runtime)

    assert choice().reason == "not measured"
    red(load_encoder(name, runtime))
    paint_many(tmp_path / "photos", 3)
    index(tmp_path / "photos", tmp_path / "few", encoders=[name], runtime=runtime)
    assert not cache.exists()  # neither a query nor a few images are worth it

    monkeypatch.setattr("pixmatcher.encoders._protocol._MEASURED_FROM", 3)
    unload_encoders()
    index(tmp_path / "photos", tmp_path / "many", encoders=[name], runtime=runtime)
    (stored,) = (cache / "devices").iterdir()
    written = stored.read_bytes()
    assert choice().reason == "measured"
    assert set(choice().images_per_second) == {"cpu", "openvino"}
    assert choice().as_json()["images_per_second"]["cpu"] > 0

    paint_many(tmp_path / "photos", 3, first=10)
    unload_encoders()
    index(tmp_path / "photos", tmp_path / "many", runtime=runtime)
    assert stored.read_bytes() == written

    save_measurement("colour-1", Measurement({"cpu": 10, "openvino": 50}, {"cuda": "it fails (no driver)"}))
    assert choice().device == "openvino"
    assert (
        str(choice()) == "openvino (measured in images a second: cpu 10, openvino 50; not cuda: it fails (no driver))"
    )
    np.testing.assert_allclose(red(load_encoder(name, runtime)), [[1, 0, 0]] * 2, atol=1e-3)
    assert choice().device == "openvino"
    assert choice().final
    save_measurement("colour-1", Measurement({"cpu": 10}, {"openvino": "it fails (no driver)"}, complete=False))
    unload_encoders()
    index(tmp_path / "photos", tmp_path / "again", encoders=[name], runtime=runtime)
    assert set(choice().images_per_second) == {"cpu", "openvino"}  # the driver is there now
    monkeypatch.setattr(_measurement_cache, "__version__", "99")
    assert choice().reason == "not measured"


PACES = ['{"cpu": -1}', '{"cpu": 1, "another": 2}', '{"cpu": 1, "openvino": NaN}', f'{{"cpu": 1{"0" * 400}}}']


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"images_per_second": 1}', b"\xff", b"[" * 100_000, "key", *PACES])
def test_a_damaged_measurement_is_not_used(damage: bytes | str, cache: Path) -> None:
    save_measurement("e", Measurement({"cpu": 10.0, "openvino": 50.0}, {}))
    assert read_measurement("e") == Measurement({"cpu": 10.0, "openvino": 50.0}, {})
    assert read_measurement("another") is None
    (path,) = (cache / "devices").iterdir()
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        stored = json.loads(path.read_bytes())
        stored.update({"key": {}} if damage == "key" else {"images_per_second": json.loads(damage)})
        path.write_text(json.dumps(stored))
    assert read_measurement("e") is None


def test_a_measurement_that_cannot_be_stored_is_used_all_the_same(
    folder: Path, cache: Path, second_device: None, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("not a folder")
    encoder: Any = load_encoder(f"onnx:{folder}", Runtime(backend="onnx", device="auto"))
    with caplog.at_level(logging.INFO, "pixmatcher.encoders"):
        encoder.choose_device()
    assert encoder.device_choice.reason == "measured"
    assert "cannot be stored" in caplog.text
    assert "runs on" in caplog.text


@pytest.mark.skipif("tensorrt" not in MISSING, reason="TensorRT is here")
def test_a_measured_device_that_is_there_no_more_is_not_used(folder: Path, cache: Path, second_device: None) -> None:
    save_measurement("colour-1", Measurement({"cpu": 10, "tensorrt": 50}, {}))
    encoder = load_encoder(f"onnx:{folder}", Runtime(backend="onnx", device="auto"))
    choice = device_choice_of(encoder)
    assert choice is not None
    assert (choice.device, choice.reason, choice.final) == ("cpu", "not measured", False)
    assert red(encoder).shape == (2, 3)


@pytest.mark.skipif("coreml" not in MISSING, reason="CoreML is here")
def test_the_command_line_says_where_an_encoder_runs(tmp_path: Path) -> None:
    paint_many(tmp_path / "photos", 2)
    index(tmp_path / "photos", tmp_path / "c")
    environment = os.environ | {"PIXMATCHER_DEVICE": "cpu"}
    (encoder,) = json.loads(cli("info", "-c", tmp_path / "c", "--json", env=environment).stdout)["encoders"]
    assert (encoder["runs_on"]["device"], encoder["runs_on"]["reason"]) == ("cpu", "requested")
    missing = os.environ | {"PIXMATCHER_DEVICE": "coreml"}
    assert "ONNX Runtime cannot use coreml" in cli("info", "-c", tmp_path / "c", env=missing).stdout
    assert "cpu" in dict(model_details("lite")[0])["runs on"]
    done = cli("search", "a cat", "-c", tmp_path / "c", "--device", "coreml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert "install onnxruntime on macOS" in done.stderr
    assert len(done.stderr.splitlines()) == 1
