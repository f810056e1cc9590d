"""Seeded random weights of the true architectures, which stand in for the published ones, as these cannot be downloaded
where the tests run; and pictures that networks can distinguish.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def pictures(count: int, size: int = 224, seed: int = 0) -> np.ndarray:
    """Return pixels (count, size, size, 3) uint8 of coloured fields, different in each picture."""
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
            network(torch.from_numpy(pictures(8, size)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return network.eval().requires_grad_(False)
