"""What the tests with PyTorch share: seeded random weights of the true architectures, which stand in for the published
ones, as these cannot be downloaded where the tests run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pixmatcher import encoders
from pixmatcher.encoders.models import torch_installed

sys.path.insert(0, str(Path(__file__).parents[1]))
if not torch_installed():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of models, and encoders that are loaded anew."""
    monkeypatch.setenv("PIXMATCHER_CACHE", str(tmp_path / "cache"))
    for name in ("PIXMATCHER_BACKEND", "PIXMATCHER_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIXMATCHER_OFFLINE", "1")
    encoders._load.cache_clear()
    yield tmp_path / "cache"
    encoders._load.cache_clear()


def pictures(count: int, size: int = 224, seed: int = 0) -> np.ndarray:
    """Pixels (count, size, size, 3) uint8 of coloured fields, each picture with other ones."""
    fields = np.random.default_rng(seed).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return fields.repeat(-(-size // 7), 1).repeat(-(-size // 7), 2)[:, :size, :size]


def seeded(make: Callable[[], object], size: int = 224) -> object:
    """The network that `make` builds with random weights, seeded so that images come out apart.

    With the statistics that batch norms begin with, the values of a deep network fade away.
    """
    import torch
    from torch import nn

    torch.manual_seed(3)
    network = make()
    assert isinstance(network, nn.Module)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = None  # the mean over all that is seen
    if norms:
        network.train()
        with torch.no_grad():
            for seed in range(2):
                network(torch.from_numpy(pictures(8, size, seed)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the file (.pth) of seeded random weights of a network of torchvision, with its classifier."""
    folder = tmp_path_factory.mktemp("torchvision")

    def give(architecture: str) -> Path:
        import torch
        from torchvision.models import get_model

        path = folder / f"{architecture}.pth"
        if not path.exists():
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
