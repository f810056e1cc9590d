"""Encoders turn images, and some of them also texts, into embeddings of one or more spaces.

An encoder is any object with the members of `Encoder`. It is found by its name, see `load_encoder`. Encoders of other
packages are found by entry points, or passed as objects. The networks run on ONNX Runtime (`onnx/`, `lite/`) or on
PyTorch (`torch/`); `hub/` downloads them.

May import `images` and `net`.
"""

from ..records import EncoderRecord, Space
from ._device_choice import DeviceChoice
from ._protocol import (
    Encoder,
    calibrations_of,
    check_encoder,
    choose_devices,
    device_of,
    must_choose_device,
    reads_text,
    text_language,
)
from ._registry import (
    DEFAULT_ENCODER,
    describe_device,
    describe_encoder,
    describe_saved,
    full_name,
    load_encoder,
    load_encoders,
    load_recorded,
    plugin_encoder_names,
    recorded_calibrations,
    register_encoder,
    unload_encoders,
    unregister_encoder,
)
from ._runtime import Runtime, with_encoders

__all__ = [
    "DEFAULT_ENCODER",
    "DeviceChoice",
    "Encoder",
    "EncoderRecord",
    "Runtime",
    "Space",
    "calibrations_of",
    "check_encoder",
    "choose_devices",
    "describe_device",
    "describe_encoder",
    "describe_saved",
    "device_of",
    "full_name",
    "load_encoder",
    "load_encoders",
    "load_recorded",
    "must_choose_device",
    "plugin_encoder_names",
    "reads_text",
    "recorded_calibrations",
    "register_encoder",
    "text_language",
    "unload_encoders",
    "unregister_encoder",
    "with_encoders",
]
