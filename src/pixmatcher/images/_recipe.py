"""How an encoder wants its images: size, crop, interpolation, and the mean and standard deviation to normalise with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SPARE = 3.9
"""`shortest` and `squash` leave at least so many pixels a side for each pixel that they make, for one exact resize.

What is more may be averaged or scaled in other ways before. With 4, photos of 12 megapixels would be decoded at full
scale for 384 pixels. With 3, the differences from the reference are twice as large, and above 1/255 where there is much
fine detail.
"""


@dataclass(frozen=True)
class Recipe:
    """How an encoder wants its images: resize, centre crop, normalise. Part of the encoder's fingerprint."""

    size: int
    """Side of the square that the encoder takes, in pixels."""
    crop: float = 1.0
    """Share of the short side that the centre crop keeps, above 0 and up to 1."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, of values in [0, 1]; subtracted."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue, of values in [0, 1]; divided by."""
    resize: Literal["box", "shortest", "squash"] = "box"
    """`box` crops exactly the centre. `shortest` does as torchvision and open_clip do: the short side is resized to
    `size / crop`, rounded, and the centre of whole pixels is cropped. `squash` resizes both sides to that, whatever
    their ratio."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, not {self.crop}")

    @property
    def min_side(self) -> int:
        """The short side in pixels that an image needs for the same result as at full scale; see `open_image`.

        `box` only needs an image that is not enlarged. `shortest` and `squash` follow a reference. Their results differ
        from it by less than 1/255 a pixel on average, because the JPEG decoder, which scales in another way, leaves a
        few times the pixels that they need.
        """
        return math.ceil(self.size / self.crop) if self.resize == "box" else math.ceil(SPARE * self.resized_side)

    @property
    def resized_side(self) -> int:
        """The side in pixels to which `shortest` and `squash` resize before they crop."""
        return round(self.size / self.crop)


IMAGENET_RECIPE = Recipe(size=224, interpolation="bilinear")
"""The default of `preprocess_image`: 224 pixels, bilinear, the mean and standard deviation of ImageNet."""
