"""The tests that need PyTorch. True weights are not at hand: seeded random ones of the true architectures stand in."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]
