"""Networks exported to ONNX: they compute what PyTorch does, run without it, and are refused otherwise.

The weights are seeded random ones of the true architectures, since the published ones cannot be downloaded here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seeds import pictures
from torch import nn

from pixmatcher import load_encoder
from pixmatcher.encoders import Runtime
from pixmatcher.encoders._cache import model_folder
from pixmatcher.encoders.onnx.card import read_card
from pixmatcher.encoders.onnx.encoder import OnnxEncoder
from pixmatcher.encoders.onnx.graphs import TEXTS, cosines
from pixmatcher.encoders.onnx.quantize import quantize_model
from pixmatcher.encoders.torch.encoder import TorchEncoder
from pixmatcher.encoders.torch.export import export_model
from pixmatcher.encoders.torch.models import TorchModel, import_weights, open_torch_model
from pixmatcher.errors import EncoderError
from pixmatcher.images import fit_image, open_image

WeightsOf = Callable[[str], Path]
PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
LARGE, SMALL, CLIP = "mobilenet_v3_large", "mobilenet_v3_small", "clip-vit-b-32"


def photos(model: TorchModel) -> np.ndarray:
    """Five photos and five pictures, preprocessed for the model."""
    fitted = [fit_image(open_image(path).image, model.recipe) for path in PHOTOS[:5]]
    return np.concatenate([np.stack(fitted), pictures(5, model.recipe.size)])


def visual_of(encoder: OnnxEncoder | TorchEncoder, pixels: np.ndarray) -> np.ndarray:
    (vectors,) = encoder.encode_images(pixels).values()
    return vectors


@pytest.fixture(scope="module")
def clip_folder(clip_model: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP ViT-B/32 exported."""
    folder = tmp_path_factory.mktemp("exported") / "clip"
    export_model(clip_model, folder)
    return folder


def check_images(model: TorchModel, folder: Path) -> None:
    reference = TorchEncoder(model, torch.device("cpu"))
    exported, pixels = OnnxEncoder(read_card(folder), folder), photos(model)
    expected = visual_of(reference, pixels)
    for batch in (1, 5):
        parts = [visual_of(exported, pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
        assert cosines(np.concatenate(parts), expected).min() >= 0.9999
    assert exported.fingerprint == reference.fingerprint


@pytest.fixture(scope="module")
def small_model(weights_of: WeightsOf) -> TorchModel:
    return open_torch_model(SMALL, weights=weights_of(SMALL))


@pytest.fixture(scope="module")
def small_folder(small_model: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV3-Small exported."""
    folder = tmp_path_factory.mktemp("exported") / "small"
    export_model(small_model, folder)
    return folder


def test_mobilenet_embeds_images_as_pytorch_does(
    small_model: TorchModel, small_folder: Path, weights_of: WeightsOf, tmp_path: Path
) -> None:
    check_images(small_model, small_folder)
    model = open_torch_model(LARGE, weights=weights_of(LARGE))
    card = export_model(model, tmp_path / LARGE)
    assert (card.name, card.space, card.recipe, card.precision) == (LARGE, model.space, model.recipe, "fp32")
    assert (card.licence, card.textual) == ("BSD-3-Clause", None)
    assert sorted(path.name for path in (tmp_path / LARGE).iterdir()) == ["card.json", "visual.onnx"]
    check_images(model, tmp_path / LARGE)


def test_clip_embeds_images_and_texts_as_pytorch_does(clip_model: TorchModel, clip_folder: Path) -> None:
    check_images(clip_model, clip_folder)
    exported = OnnxEncoder(read_card(clip_folder), clip_folder)
    reference = TorchEncoder(clip_model, torch.device("cpu"))
    texts = [*TEXTS, "word " * 100, "<end_of_text> a cat", "  a   CAT "]
    expected, found = (encoder.encode_texts(texts)["clip"] for encoder in (reference, exported))
    assert cosines(found, expected).min() >= 0.9999
    assert cosines(found[:1], found[1 : len(TEXTS)]).max() < 0.95, "not all texts have one embedding"


def test_a_folder_runs_without_pytorch(clip_folder: Path, clip_model: TorchModel, tmp_path: Path) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "picture.png")
    script = """
import json, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript"):
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
import numpy as np
from pixmatcher import load_encoder, open_image
from pixmatcher.images import fit_image
encoder = load_encoder(f"onnx:{sys.argv[1]}")
pixels = fit_image(open_image(sys.argv[2]).image, encoder.recipe)[None]
image, text = encoder.encode_images(pixels)["clip"][0], encoder.encode_texts(["a cat"])["clip"][0]
print(json.dumps([image.tolist(), text.tolist()]))
"""
    command = [sys.executable, "-c", script, str(clip_folder), str(tmp_path / "picture.png")]
    image, text = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    reference = TorchEncoder(clip_model, torch.device("cpu"))
    assert np.dot(image, visual_of(reference, pictures(1))[0]) >= 0.9999
    assert np.dot(text, reference.encode_texts(["a cat"])["clip"][0]) >= 0.9999


def test_an_exported_encoder_is_used_by_its_name(small_folder: Path) -> None:
    shutil.copytree(small_folder, model_folder(SMALL))
    assert isinstance(load_encoder(SMALL), OnnxEncoder)
    assert isinstance(load_encoder(SMALL, Runtime(backend="onnx")), OnnxEncoder)


def test_weights_are_not_imported_if_an_export_has_other_weights(
    small_folder: Path, weights_of: WeightsOf, tmp_path: Path
) -> None:
    shutil.copytree(small_folder, model_folder(SMALL))
    import_weights(SMALL, weights_of(SMALL))  # those that were exported
    others = torch.load(weights_of(SMALL), weights_only=True)
    others["features.0.0.weight"] *= 2
    torch.save(others, tmp_path / "others.pth")
    with pytest.raises(
        EncoderError, match="with other weights, which would still be used: run `pixmatcher models export"
    ):
        import_weights(SMALL, tmp_path / "others.pth")
    assert load_encoder(SMALL).fingerprint == open_torch_model(SMALL).fingerprint


class _Odd(nn.Module):
    """A network that computes something else when it is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixels.flip(2) if torch.compiler.is_exporting() else pixels)


class _Branching(nn.Module):
    """A network with a branch that depends on its values, which a graph cannot contain."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)) if pixels.sum().item() > 0 else pixels.amax((2, 3))


def test_a_wrong_export_is_refused_and_the_old_one_stays(
    small_model: TorchModel, small_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(small_folder, tmp_path / "exported")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    odd = replace(small_model, visual=_Odd(small_model.visual).eval())
    with pytest.raises(EncoderError, match=r"^mobilenet_v3_small exported to ONNX does not embed an image as PyTorch"):
        export_model(odd, folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_networks_that_cannot_be_exported_are_reported_in_one_sentence(small_model: TorchModel, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="cannot be exported to ONNX") as caught:
        export_model(replace(small_model, visual=_Branching()), tmp_path / "exported")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_int8_agrees_on_images_held_out(small_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = quantize_model(small_folder, tmp_path / "int8", pictures(40))
    with capsys.disabled():
        sys.stdout.write(f"\n{card.name}, random weights: {card.notes}\n")
    assert card.notes is not None
    assert float(card.notes["agreement"]) >= 0.97
    encoders = [OnnxEncoder(read_card(folder), folder) for folder in (small_folder, tmp_path / "int8")]
    one, other = (visual_of(encoder, pictures(20, seed=9)) for encoder in encoders)
    assert cosines(one, other).mean() >= 0.95
    assert encoders[0].fingerprint != encoders[1].fingerprint


def test_clip_in_int8_is_a_third_as_large_and_agrees(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = quantize_model(clip_folder, tmp_path / "int8", pictures(20))
    with capsys.disabled():
        sys.stdout.write(f"\n{card.name}, random weights: {card.notes}\n")
    assert card.notes is not None
    assert float(card.notes["agreement"]) >= 0.97
    assert float(card.notes["text_agreement"]) >= 0.97
    sizes = [
        sum(file.bytes for file in read_card(folder).files.values()) for folder in (clip_folder, tmp_path / "int8")
    ]
    assert sizes[1] < sizes[0] / 3
    small = OnnxEncoder(read_card(tmp_path / "int8"), tmp_path / "int8")
    full = OnnxEncoder(read_card(clip_folder), clip_folder)
    assert cosines(visual_of(small, pictures(3, seed=7)), visual_of(full, pictures(3, seed=7))).min() >= 0.97
    texts = ["a cat", "two dogs on a beach"]
    assert cosines(small.encode_texts(texts)["clip"], full.encode_texts(texts)["clip"]).min() >= 0.97
