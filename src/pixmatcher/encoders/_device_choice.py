"""On which device the image network of an encoder runs, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["requested", "only one", "measured", "not measured", "not available", "PyTorch"]


@dataclass(frozen=True)
class DeviceChoice:
    """The device of an encoder, and why it was chosen."""

    device: str
    """Its name, as `--device` takes it; "" if the encoder cannot run."""
    reason: Reason
    """`requested` by the caller; the `only one` that is here; `measured` as the fastest; `not measured` yet, so the
    CPU is used; `not available`, though requested; `PyTorch` chooses it."""
    images_per_second: Mapping[str, float] = field(default_factory=dict)
    """What was measured, by device."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """The devices that cannot be used, and why."""
    detail: str = ""
    """More about the reason, for people."""
    final: bool = True
    """Whether it stays so when many images are indexed. If not, the devices are measured then."""

    def as_json(self) -> dict[str, Any]:
        """Return the choice as a JSON object."""
        return {
            "device": self.device or None,
            "reason": self.reason,
            "images_per_second": {device: round(pace, 1) for device, pace in self.images_per_second.items()},
            "rejected": dict(self.rejected),
            "detail": self.detail,
        }

    def __str__(self) -> str:
        if self.reason == "measured":
            paces = ", ".join(f"{device} {pace:,.0f}" for device, pace in self.images_per_second.items())
            rejected = "".join(f"; not {device}: {why}" for device, why in self.rejected.items())
            return f"{self.device} (measured in images a second: {paces}{rejected})"
        if self.reason == "not available":
            return self.detail
        return f"{self.device} ({self.detail or self.reason})"
