"""Fixtures for the tests with PyTorch: an empty cache, and weights, see `seeds`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pixmatcher import encoders
from pixmatcher.encoders._names import torch_installed

if TYPE_CHECKING:
    from pixmatcher.encoders.torch.models import TorchModel

if not torch_installed():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of models; encoders are loaded again."""
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    for name in ("PIXMATCHER_BACKEND", "PIXMATCHER_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIXMATCHER_OFFLINE", "1")
    encoders.unload_encoders()
    yield tmp_path / "cache"
    encoders.unload_encoders()


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the file (.pth) of seeded random weights of a network of torchvision, with its classifier."""
    folder = tmp_path_factory.mktemp("torchvision")

    def give(architecture: str) -> Path:
        import torch
        from torchvision.models import get_model

        path = folder / f"{architecture}.pth"
        if not path.exists():
            from seeds import seeded

            network = seeded(lambda: get_model(architecture, weights=None))
            torch.save(network.state_dict(), path)  # type: ignore[attr-defined]
        return path

    return give


@pytest.fixture(scope="session")
def clip_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file (.safetensors) of seeded random weights of CLIP ViT-B/32."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    network = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    path = tmp_path_factory.mktemp("clip") / "ViT-B-32.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def clip_model(clip_weights: Path) -> TorchModel:
    """The networks of `clip-vit-b-32` with the weights of `clip_weights`."""
    from pixmatcher.encoders.torch.models import open_torch_model

    return open_torch_model("clip-vit-b-32", weights=clip_weights)
