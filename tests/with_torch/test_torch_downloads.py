"""The URLs of weights in the libraries, and encoders that download them from a server on loopback."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save
from seeds import pictures, seeded
from torchvision import models

from file_server import File, serve_files
from hub_server import serve_hub
from pixmatcher import EncoderError, FetchError, load_encoder
from pixmatcher.encoders import Runtime
from pixmatcher.encoders.torch import models as torch_models
from pixmatcher.encoders.torch.models import Origin, open_torch_model

WeightsOf = Callable[[str], Path]
ONLINE = Runtime(offline=False)

pytestmark = pytest.mark.usefixtures("quick_downloads")


def origin(name: str) -> Origin:
    return torch_models._plan(name).origin


def test_weights_come_from_where_the_libraries_have_them() -> None:
    v1, v2 = (models.MobileNet_V3_Large_Weights[tag].url for tag in ("IMAGENET1K_V1", "IMAGENET1K_V2"))
    assert origin("mobilenet_v3_large") == origin("torchvision:mobilenet_v3_large/IMAGENET1K_V1") == Origin(url=v1)
    assert origin("torchvision:mobilenet_v3_large") == Origin(url=v2)
    resnet = timm.get_pretrained_cfg("resnet18")
    assert origin("timm:resnet18").repo == resnet.hf_hub_id == "timm/resnet18.a1_in1k"
    assert origin("timm:resnet18").files == ("model.safetensors", "pytorch_model.bin")
    hub = open_clip.get_pretrained_cfg("ViT-B-32-quickgelu", "openai")["hf_hub"]
    assert f"{origin('clip-vit-b-32').repo}/" == hub
    assert origin("clip-vit-b-32").files == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert origin("open_clip:ViTamin-S/datacomp1b").files == ("pytorch_model.bin", "model.safetensors")[::-1]


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_an_encoder_of_timm_from_the_hub(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, repo = "timm:mobilenetv3_small_050", "timm/mobilenetv3_small_050.lamb_in1k"
    tensors = seeded(lambda: timm.create_model("mobilenetv3_small_050")).state_dict()  # type: ignore[attr-defined]
    old = io.BytesIO()
    torch.save(tensors, old)
    reports: list[str] = []
    with serve_hub() as hub:
        hub.publish(repo, {file: save(tensors) if file.endswith("safetensors") else old.getvalue(), "README.md": b"-"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(EncoderError, match=r"downloads are forbidden.*--weights FILE.*bundled encoder lite"):
            load_encoder(name)
        assert not hub.asked()
        online = Runtime(offline=False, progress=lambda progress: reports.append(progress.stage))
        vectors = load_encoder(name, online).encode_images(pictures(2))["visual"]
    assert file in reports[0]
    assert vectors.shape == (2, 1024)
    # From the cache, without the hub.
    model = open_torch_model(name, offline=True)
    assert model.source == f"{repo} of the hub"


def test_wrong_bytes_for_torchvision_are_refused(
    cache: Path, weights_of: WeightsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its URLs contain the hash of the published weights; random weights have another one."""
    url = models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url
    with serve_files() as server:
        server.files[f"/{url.partition('://')[2]}"] = File(weights_of("mobilenet_v3_small").read_bytes())
        monkeypatch.setenv("PIXMATCHER_MIRROR", server.url)
        with pytest.raises(FetchError, match="a wrong hash"):
            load_encoder("mobilenet_v3_small", ONLINE)
    assert not [path for path in cache.rglob("*.pth") if path.is_file()]


def test_a_download_that_does_not_fit_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub() as hub:
        hub.publish("timm/resnet18.a1_in1k", {"model.safetensors": save({"a": torch.zeros(3)})})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(
            EncoderError, match=r"does not contain the weights of timm:resnet18: the tensor .* is missing"
        ):
            load_encoder("timm:resnet18", ONLINE)
    assert not [path for path in cache.rglob("*.safetensors") if path.is_file()]
