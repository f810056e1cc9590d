"""What was measured of the devices of this machine, one file for each encoder in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..._files import replacing
from ..._version import __version__
from ...errors import PixMatcherError
from .._cache import cache_folder
from .providers import PROVIDERS, installed_packages

logger = logging.getLogger("pixmatcher.encoders")


@dataclass(frozen=True)
class Measurement:
    """The images a second of each device that can run an encoder, and why the others cannot."""

    images_per_second: Mapping[str, float]
    rejected: Mapping[str, str]
    complete: bool = True
    """Whether no device failed. One that did may be repaired: the next run that indexes measures again."""


def read_measurement(fingerprint: str) -> Measurement | None:
    """Return what was measured of an encoder on this machine with the installed ONNX Runtime; None if nothing was."""
    try:
        stored = json.loads(_file_of(fingerprint).read_bytes())
        paces, rejected = stored["images_per_second"], stored["rejected"]
        if stored["key"] != _key(fingerprint) or not paces["cpu"] > 0:
            raise ValueError("another key")
        if not {"cpu", *PROVIDERS}.issuperset(paces) or not all(map(math.isfinite, paces.values())):
            raise ValueError("unknown devices or paces")
        return Measurement(
            {str(device): float(pace) for device, pace in paces.items()},
            {str(device): str(why) for device, why in rejected.items()},
            stored["complete"] is True,
        )
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file may hold anything
        logger.info("The measurement of the devices cannot be read (%s)", error)
        return None


def save_measurement(fingerprint: str, measured: Measurement) -> None:
    """Store what was measured. Where that is impossible, it is logged, and the next run measures again."""
    values = {"key": _key(fingerprint), **asdict(measured)}
    try:
        path = _file_of(fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(values, indent=1).encode())
    except (OSError, PixMatcherError) as error:
        logger.warning("The measurement of the devices cannot be stored, so the next run measures again (%s)", error)


def _file_of(fingerprint: str) -> Path:
    key = json.dumps(_key(fingerprint), sort_keys=True).encode()
    return cache_folder() / "devices" / f"{hashlib.sha256(key).hexdigest()[:32]}.json"


def _key(fingerprint: str) -> dict[str, Any]:
    """Return what decides which device is fastest."""
    return {"encoder": fingerprint, "pixmatcher": __version__, "onnxruntime": installed_packages(), **_machine()}


@functools.cache
def _machine() -> dict[str, Any]:
    """Return what can be known of the processor and of NVIDIA's GPUs without asking a library."""
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        gpus += [line.partition(":")[2].strip() for line in _lines(path) if line.startswith("Model:")]
    kinds = ("model name", "flags", "Features")
    processor: dict[str, str] = {}
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() in kinds:
            processor.setdefault(name.strip(), value.strip())
    name = processor.get("model name") or platform.processor() or platform.machine()
    digest = hashlib.sha256("\n".join(processor.values()).encode()).hexdigest()[:8]
    return {"processor": f"{name} {digest}", "cores": os.cpu_count(), "gpus": gpus}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
