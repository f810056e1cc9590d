"""The device that runs the image network of an encoder: the one that is requested, or the fastest one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from .._device_choice import DeviceChoice
from ._measurement_cache import Measurement, read_measurement, save_measurement
from ._measuring import ImageSide, fastest, measure_devices
from .networks import DeviceError, Lazy, quiet_runtime
from .providers import GPUS, devices_to_compare, has_provider, may_have_devices

logger = logging.getLogger("pixmatcher.encoders")

S = TypeVar("S", bound=ImageSide)


class DeviceNetwork(Generic[S]):
    """The image network of an encoder, which is loaded once, when it is first needed or a device is chosen.

    With the device `auto`, `choose_device` measures, and later processes use what it found. Without a measurement the
    CPU is used, so that a single query does not wait for one.
    """

    def __init__(
        self, fingerprint: str, device: str, load: Callable[[str], S], *, batch: int, size: int, name: str
    ) -> None:
        """`load` loads the network on a device; it raises `DeviceError` if that does not start."""
        self._fingerprint, self._requested, self._load, self._name = fingerprint, device, load, name
        self._batch, self._size = batch, size
        self._network = Lazy(self._open)
        self._measured: Measurement | None = None
        self._not_started = ""

    def __bool__(self) -> bool:
        return bool(self._network)

    @property
    def choice(self) -> DeviceChoice:
        """The device on which the network runs or would run, and why. Nothing is loaded or measured for it."""
        if self._not_started:
            return DeviceChoice("cpu", "only one", detail=self._not_started)
        requested = self._requested
        if requested == "cpu" or has_provider(requested):
            return DeviceChoice(requested, "requested")
        if requested != "auto":
            return DeviceChoice("cpu", "only one", detail=f"the installed ONNX Runtime has no {requested}")
        only_one = DeviceChoice("cpu", "only one", detail="the installed ONNX Runtime has nothing else")
        if not may_have_devices():
            return only_one
        measured = self._measured or read_measurement(self._fingerprint)
        device = "cpu" if measured is None else fastest(measured)
        # ONNX Runtime's packages overwrite each other, so its devices may change where the installed packages do not.
        if measured is None or not (device == "cpu" or has_provider(device)):
            if not devices_to_compare():
                return only_one
            detail = "other devices are measured when many images are indexed"
            return DeviceChoice("cpu", "not measured", detail=detail, final=False)
        return DeviceChoice(device, "measured", measured.images_per_second, measured.rejected, final=measured.complete)

    @property
    def gpu(self) -> str:
        """The device if it is a GPU that Ray knows, otherwise ""."""
        device = self.choice.device
        return device if device in GPUS else ""

    def choose_device(self) -> None:
        """Measure the devices of this machine, unless one was requested, there is only one, or it was done before.

        Raises `EncoderError` if the network cannot be loaded on the CPU.
        """
        if self._network or self.choice.final:
            return
        if devices := devices_to_compare():
            logger.info("Measuring %s on the CPU and with %s, once", self._name, ", ".join(devices))
            with quiet_runtime():  # a device that does not start is no error here
                self._measured = measure_devices(self._load, devices, self._batch, self._size)
            save_measurement(self._fingerprint, self._measured)
            logger.info("The image network of %s runs on %s", self._name, self.choice)

    def get(self) -> S:
        """Return the loaded network; load it first if no thread has done so."""
        return self._network.get()

    def _open(self) -> S:
        device = self.choice.device
        try:
            return self._load(device)
        except DeviceError as error:
            self._not_started = f"{device} could not start: {error}"
            logger.warning("%s runs on the CPU, as %s", self._name, self._not_started)
            return self._load("cpu")
