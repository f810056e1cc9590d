"""Two functions for single queries: features of an image by MobileNetV3-Large, the vector of a text by CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EncoderError
from ...images import IMAGENET_RECIPE, ImageSource, open_image

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

VISUAL = "mobilenet_v3_large"
CLIP = "clip-vit-b-32"


class FeatureExtractor:
    """MobileNetV3-Large of torchvision (IMAGENET1K_V1) up to its pooled features, in float32.

    `device` is `cpu`, `cuda`, `cuda:1` or `mps`; by default the first available one of cuda, mps and cpu. `target_size`
    is the height and width, in pixels, that images are resized to. `weights` is a file with the weights; without it
    they are downloaded once. Raises `EncoderError` if PyTorch, the device or the right file is missing, `FetchError` or
    `StorageError` if the weights cannot be downloaded.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        target_size: tuple[int, int] = (224, 224),
        *,
        weights: Path | None = None,
    ) -> None:
        from .._names import INSTALL, torch_installed

        if not torch_installed():
            raise EncoderError(f"FeatureExtractor needs PyTorch: run `{INSTALL}`, or use load_encoder().")
        from .._runtime import Runtime
        from .models import import_library, open_torch_model

        import_library("torch", "FeatureExtractor")
        from .encoder import choose_device, prepare

        runtime = Runtime()
        self.device = choose_device(runtime.device if device is None else str(device))
        self.target_size = target_size
        self._network: Any = prepare(
            open_torch_model(VISUAL, weights=weights, offline=runtime.offline).visual, self.device
        )

    def extract_features(
        self, image: ImageSource | torch.Tensor, from_preprocessed: bool = False
    ) -> npt.NDArray[np.float32]:
        """Return the features (960,) float32 of an image, not scaled to length 1.

        `image` is anything that `open_image` takes, such as a path or a PIL image. It is resized without a crop. With
        `from_preprocessed` it is a tensor (3, H, W) or (1, 3, H, W), normalised as `preprocess_image` does.

        Raises `InvalidImageError` if the image cannot be used, `ValueError` for a tensor of another shape.
        """
        import numpy as np
        import torch

        from .encoder import normalise

        if from_preprocessed:
            pixels = torch.as_tensor(image, dtype=torch.float32, device=self.device)
            pixels = pixels[None] if pixels.ndim == 3 else pixels
            if pixels.ndim != 4 or tuple(pixels.shape[:2]) != (1, 3):
                raise ValueError(f"a preprocessed image must be (3, H, W) or (1, 3, H, W), not {tuple(pixels.shape)}")
        else:
            from PIL.Image import Resampling

            height, width = self.target_size
            # As Resize(target_size) of torchvision does with a PIL image.
            resized = open_image(image).image.resize((width, height), Resampling.BILINEAR)
            pixels = normalise(torch.from_numpy(np.array(resized))[None].to(self.device), IMAGENET_RECIPE)
        with torch.inference_mode():
            features: npt.NDArray[np.float32] = self._network(pixels)[0].float().cpu().numpy()
        return features


def text_to_vector(text: str) -> npt.NDArray[np.float32]:
    """Return the vector (512,) float32 of a text by CLIP ViT-B/32 of OpenAI, of length 1.

    Raises `EncoderError`, `FetchError` or `StorageError` if the encoder `clip-vit-b-32` cannot be loaded, `QueryError`
    if the text is not valid Unicode.
    """
    from .._registry import load_encoder

    encoder = load_encoder(CLIP)
    vector: npt.NDArray[np.float32] = encoder.encode_texts([text])[encoder.spaces[0].name][0]
    return vector
