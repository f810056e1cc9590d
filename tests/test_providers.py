"""The devices of ONNX Runtime: which exist, what is said about others, and what happens if one does not start."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pixmatcher.encoders import Runtime, load_encoder
from pixmatcher.encoders.onnx.card import Card, Network, store_files, write_card
from pixmatcher.encoders.onnx.providers import PROVIDERS, provider_of
from pixmatcher.errors import EncoderError
from pixmatcher.images import Recipe
from pixmatcher.records import Space

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
