"""Images of a source that calibrate a quantised encoder."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from ..errors import EncoderError, PixMatcherError
from ..images import fit_image, open_image
from ..sources import Entry, open_source
from .reading import read_entry, work_batches

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..encoders.manage import Calibration
    from ..images import Recipe

CALIBRATION_IMAGES = 400
"""The number of images to use: one half calibrates, the other half is compared."""


def calibrate_on(spec: str) -> Calibration:
    """Return a function that gives `encoders.manage.export_model` images of the source `spec`."""
    return partial(read_pixels, spec)


def read_pixels(spec: str, recipe: Recipe, most: int = CALIBRATION_IMAGES) -> npt.NDArray[np.uint8]:
    """Read up to `most` images of a source, evenly chosen: (N, size, size, 3) uint8, preprocessed by `recipe`.

    Raises `SourceError` if the source cannot be read, `EncoderError` if fewer than 20 of its images can be read.
    """
    import numpy as np

    from ..encoders.onnx.quantize import LEAST_IMAGES

    source = open_source(spec)
    entries = [entry for entry in source.scan() if isinstance(entry, Entry)]
    chosen = entries[:: max(1, len(entries) // most)][:most]
    pixels = []
    with closing(work_batches(source, chosen, 16)) as batches:
        for batch in batches:
            for item in batch:
                try:
                    with read_entry(source, item) as read:
                        opened = open_image(read.data, min_side=recipe.min_side, rotation=item.entry.rotation)
                except PixMatcherError:
                    continue
                pixels.append(fit_image(opened, recipe))
    if len(pixels) < LEAST_IMAGES:
        raise EncoderError(
            f"{spec} has {len(pixels)} images that can be read, too few to calibrate: name a source with "
            f"{LEAST_IMAGES} or more."
        )
    return np.stack(pixels)
