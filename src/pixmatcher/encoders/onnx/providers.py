"""The execution providers of ONNX Runtime: what runs a network instead of the CPU, under the names of `--device`."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

from ..._cores import usable_cores
from ...errors import EncoderError

CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime on macOS"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "directml": ("DmlExecutionProvider", "onnxruntime-directml"),
}
"""Name of a device -> the provider, and the package that has it."""
ONNX_ONLY = frozenset(PROVIDERS) - {"cuda"}
"""The devices that PyTorch does not have."""
GPUS = frozenset({"cuda", "tensorrt"})
"""The devices that are GPUs as Ray counts them."""
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_NOT_COMPARED = frozenset({"tensorrt"})
"""TensorRT builds an engine when it loads a network, which takes minutes: it must be named."""


def provider_of(device: str) -> str:
    """Return the provider for a device; the CPU for `auto`, `cpu` and the devices that only PyTorch has.

    Raises `EncoderError` if the installed ONNX Runtime does not have the provider.
    """
    if device not in PROVIDERS:
        return CPU
    provider, package = PROVIDERS[device]
    if provider not in _available_providers():
        raise EncoderError(
            f"The installed ONNX Runtime cannot use {device}: install {package} in place of onnxruntime, or choose "
            "another device."
        )
    return provider


def _available_providers() -> list[str]:
    try:
        import onnxruntime

        available: list[str] = onnxruntime.get_available_providers()
    except (ImportError, AttributeError) as error:
        # Its packages share a folder: to uninstall one of two leaves parts of the other.
        (package, *_) = [*reversed(installed_packages()), "onnxruntime"]
        raise EncoderError(
            f"The installed ONNX Runtime is incomplete: run `pip install --force-reinstall --no-deps {package}`."
        ) from error
    return available


def has_provider(device: str) -> bool:
    """Return whether the installed ONNX Runtime has the provider for a device other than the CPU."""
    try:
        return provider_of(device) != CPU
    except EncoderError:
        return False


def provider_options(provider: str) -> dict[str, str]:
    """Return the options with which a provider is started."""
    if provider == PROVIDERS["openvino"][0]:
        # One thread for each caller, as on the CPU: with its own number of threads, OpenVINO takes 1.25 times the
        # processor time for batches of several callers.
        return dict.fromkeys(("num_of_threads", "num_streams"), str(usable_cores()))
    return {}


@functools.cache
def installed_packages() -> dict[str, str]:
    """Return the installed packages of ONNX Runtime, name -> version. ONNX Runtime itself is not imported."""
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or not spec.origin:
        return {}
    # `importlib.metadata` says the same, but takes 20 ms to import.
    found = {}
    for path in Path(spec.origin).parents[1].glob("onnxruntime*.dist-info"):
        name, _, version = path.stem.replace("_", "-").rpartition("-")
        if name in _PACKAGES:
            found[name] = version
    return found


def may_have_devices() -> bool:
    """Return whether the installed packages may run networks on anything but the CPU; nothing is imported."""
    return sys.platform == "darwin" or bool(installed_packages().keys() - {"onnxruntime"})


def devices_to_compare() -> list[str]:
    """Return the devices of the installed ONNX Runtime that `auto` compares with the CPU."""
    if not may_have_devices():
        return []
    return [device for device in PROVIDERS if device not in _NOT_COMPARED and has_provider(device)]
