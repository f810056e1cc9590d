"""Without PyTorch, each feature that needs it says how to install it; everything else works."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pixmatcher
from pixmatcher import FeatureExtractor, load_encoder, text_to_vector
from pixmatcher.encoders import Runtime
from pixmatcher.encoders._names import INSTALL, torch_installed
from pixmatcher.encoders.torch.models import import_weights, open_torch_model
from pixmatcher.errors import EncoderError

pytestmark = pytest.mark.skipif(torch_installed(), reason="PyTorch is installed here")


@pytest.mark.parametrize(
    "use",
    [
        lambda: load_encoder("mobilenet_v3_large"),
        lambda: load_encoder("clip-vit-b-32"),
        lambda: load_encoder("torchvision:resnet18"),
        lambda: load_encoder("timm:resnet18"),
        lambda: load_encoder("open_clip:ViT-B-32/openai"),
        lambda: load_encoder("mobilenet_v3_small", Runtime(backend="torch")),
        lambda: load_encoder("mobilenet_v3_small", Runtime(device="cuda")),
        FeatureExtractor,
        lambda: text_to_vector("a cat"),
        lambda: open_torch_model("mobilenet_v3_large"),
        lambda: import_weights("mobilenet_v3_large", Path("weights.pth")),
    ],
)
def test_each_feature_says_how_to_install_it(
    use: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path))
    with pytest.raises(EncoderError) as caught:
        use()
    assert INSTALL in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_the_names_exist_without_pytorch() -> None:
    assert {"FeatureExtractor", "text_to_vector"} <= set(pixmatcher.__all__)


def test_a_folder_called_torch_is_not_pytorch(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    code = "from pixmatcher import FeatureExtractor\nFeatureExtractor()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert INSTALL in done.stderr.splitlines()[-1]
