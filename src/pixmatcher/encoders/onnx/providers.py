"""The execution providers of ONNX Runtime: what runs a network instead of the CPU, under the names of `--device`."""

from __future__ import annotations

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


def provider_of(device: str) -> str:
    """Return the provider for a device; the CPU for `auto`, `cpu` and the devices that only PyTorch has.

    Raises `EncoderError` if the installed ONNX Runtime does not have the provider.
    """
    if device not in PROVIDERS:
        return CPU
    import onnxruntime

    provider, package = PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise EncoderError(
            f"The installed ONNX Runtime cannot use {device}: install {package} in place of onnxruntime, or choose "
            "another device."
        )
    return provider


def has_provider(device: str) -> bool:
    """Return whether the installed ONNX Runtime has the provider for a device other than the CPU."""
    try:
        return provider_of(device) != CPU
    except EncoderError:
        return False
