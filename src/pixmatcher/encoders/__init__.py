"""Encoders turn images, and where they can texts, into embeddings of one or more spaces.

May import `images` and `net`.
"""

from ..records import EncoderRecord, Space
from .protocol import Encoder
from .registry import DEFAULT_ENCODER, describe_encoder, full_name, load_encoder, load_encoders, load_recorded
from .runtime import Runtime

__all__ = [
    "DEFAULT_ENCODER",
    "Encoder",
    "EncoderRecord",
    "Runtime",
    "Space",
    "describe_encoder",
    "full_name",
    "load_encoder",
    "load_encoders",
    "load_recorded",
]
