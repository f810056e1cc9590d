"""Our encoders and their reference libraries compared, on the same seeded random weights of the real architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from seeds import pictures, seeded
from torch import nn
from torchvision import models

from pixmatcher.encoders.onnx.networks import unit
from pixmatcher.encoders.torch.encoder import TorchEncoder
from pixmatcher.encoders.torch.models import TorchModel, import_weights, open_torch_model
from pixmatcher.images import Recipe, fit_image, normalize_pixels, open_image

WeightsOf = Callable[[str], Path]
CPU = torch.device("cpu")
TEXTS = ["a cat asleep", "zwei Äpfel &amp; ein Ei", "", "words " * 200, "\N{GRINNING FACE}"]


def as_reference(pixels: np.ndarray, recipe: Recipe) -> torch.Tensor:
    return torch.from_numpy(normalize_pixels(pixels, recipe))


def assert_near(ours: np.ndarray, reference: np.ndarray) -> None:
    """Check that values are equal within 1e-5 of the largest value, or of 1, and that the reference rows differ."""
    assert np.abs(reference - reference.mean(0)).max() > 1e-2
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * max(1, np.abs(reference).max()))


def pooled_by_torchvision(architecture: str, file: Path, pixels: torch.Tensor) -> np.ndarray:
    """Return the input of the layer at which the network of torchvision is cut."""
    network = models.get_model(architecture, weights=None).eval()
    network.load_state_dict(torch.load(file, weights_only=True))
    cut = network.classifier if architecture.startswith("mobilenet_v3") else None
    cut = cut or [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    cut.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network(pixels)
    return seen[0].numpy()


@pytest.mark.parametrize(
    ("name", "architecture", "dimension"),
    [
        ("mobilenet_v3_large", "mobilenet_v3_large", 960),
        ("mobilenet_v3_small", "mobilenet_v3_small", 576),
        ("torchvision:mobilenet_v3_large/IMAGENET1K_V2", "mobilenet_v3_large", 960),
        ("torchvision:resnet18", "resnet18", 512),
        ("torchvision:convnext_tiny", "convnext_tiny", 768),
        ("torchvision:vit_b_32", "vit_b_32", 768),
    ],
)
def test_torchvision(name: str, architecture: str, dimension: int, weights_of: WeightsOf) -> None:
    file = weights_of(architecture)
    model = open_torch_model(name, weights=file)
    pixels = pictures(2, model.recipe.size)
    reference = pooled_by_torchvision(architecture, file, as_reference(pixels, model.recipe))
    assert reference.shape == (2, dimension)
    assert model.space.dimension == dimension
    with torch.inference_mode():
        assert_near(model.visual(as_reference(pixels, model.recipe)).numpy(), reference)
    # What the encoder changes to be faster is within the same bound.
    assert_near(TorchEncoder(model, CPU).encode_images(pixels)["visual"], unit(reference))


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050.lamb_in1k"])
def test_timm(architecture: str, tmp_path: Path) -> None:
    whole = seeded(lambda: timm.create_model(architecture))
    torch.save({"model": whole.state_dict()}, tmp_path / "weights.pth")  # type: ignore[attr-defined]
    model = open_torch_model(f"timm:{architecture}", weights=tmp_path / "weights.pth")
    pixels = as_reference(pictures(2, model.recipe.size), model.recipe)
    reference = timm.create_model(architecture, num_classes=0).eval()
    missing, _ = reference.load_state_dict(whole.state_dict(), strict=False)  # type: ignore[attr-defined]
    assert not missing
    with torch.inference_mode():
        assert_near(model.visual(pixels).numpy(), reference(pixels).numpy())
    config = timm.data.resolve_model_data_config(reference)
    assert (3, model.recipe.size, model.recipe.size) == config["input_size"]
    assert (model.recipe.interpolation, model.recipe.mean) == (config["interpolation"], config["mean"])
    assert model.licence == "apache-2.0"


def clip_by_open_clip(architecture: str, file: Path) -> nn.Module:
    network = open_clip.CLIP(**open_clip.get_model_config(architecture)).eval()
    open_clip.load_checkpoint(network, str(file))
    return network


@pytest.mark.parametrize("architecture", ["ViT-B-32-quickgelu", "ViT-B-32"])
def test_open_clip(architecture: str, clip_model: TorchModel, clip_weights: Path) -> None:
    reference = clip_by_open_clip(architecture, clip_weights)
    model = clip_model
    if architecture == "ViT-B-32":
        model = open_torch_model("open_clip:ViT-B-32/laion2b_s34b_b79k", weights=clip_weights)
        assert model.licence == "not stated by open_clip"
        # Of the same weights, but another activation.
        assert model.fingerprint != clip_model.fingerprint
    assert model.textual is not None
    assert model.tokenize is not None
    pixels = pictures(2)
    ids = open_clip.get_tokenizer(architecture)(TEXTS)
    with torch.inference_mode():
        images = reference.encode_image(as_reference(pixels, model.recipe)).numpy()
        texts = reference.encode_text(ids).numpy()
        assert_near(model.visual(as_reference(pixels, model.recipe)).numpy(), images)
        assert torch.equal(model.tokenize(TEXTS), ids)
        assert_near(model.textual(ids).numpy(), texts)
    encoder = TorchEncoder(model, CPU)
    assert_near(encoder.encode_images(pixels)["clip"], unit(images))
    together = encoder.encode_texts(TEXTS)["clip"]
    assert_near(together, unit(texts))
    alone = np.concatenate([encoder.encode_texts([text])["clip"] for text in TEXTS[:2]])
    assert np.array_equal(together[:2], alone)


def test_clip_is_the_same_under_both_names_of_open_clip(clip_model: TorchModel, clip_weights: Path) -> None:
    other = open_torch_model("open_clip:ViT-B-32/openai", weights=clip_weights)
    assert other.fingerprint == clip_model.fingerprint
    assert other.recipe == clip_model.recipe
    assert (other.licence, clip_model.licence) == ("MIT", "MIT")
    assert clip_model.text is not None
    assert (clip_model.text.context_length, clip_model.text.pad_id, clip_model.text.cleaning) == (77, 0, "clip")


def test_from_file_to_vector(tmp_path: Path, weights_of: WeightsOf) -> None:
    """Images of several shapes, compared with the usual loop with torchvision."""
    weights = models.MobileNet_V3_Large_Weights.IMAGENET1K_V1
    file = weights_of("mobilenet_v3_large")
    import_weights("mobilenet_v3_large", file)
    encoder = TorchEncoder(open_torch_model("mobilenet_v3_large"), CPU)
    paths = []
    for number, shape in enumerate([(300, 300), (64, 64), (640, 200), (231, 500)]):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pictures(1, 700, number)[0]).resize(shape).save(paths[-1])
    preset = weights.transforms()
    batch = torch.stack([preset(Image.open(path).convert("RGB")) for path in paths])
    reference = unit(pooled_by_torchvision("mobilenet_v3_large", file, batch))
    opened = [open_image(path, min_side=encoder.recipe.min_side) for path in paths]
    fitted = np.stack([fit_image(image, encoder.recipe) for image in opened])
    assert np.abs(normalize_pixels(fitted, encoder.recipe) - batch.numpy()).mean() < 0.1 / 255
    vectors = encoder.encode_images(fitted)["visual"]
    assert (vectors * reference).sum(1).min() > 0.9999
    assert_near(vectors[:3], reference[:3])  # of these, no value is rounded in the other way
