"""The input of the networks, compared with the transforms of torchvision and open_clip for the same pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.models import MobileNet_V3_Large_Weights, MobileNet_V3_Small_Weights

from pixmatcher.images import Recipe, open_image, preprocess_image

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))

IMAGENET = Recipe(224, 224 / 256, "bilinear", resize="shortest")
IMAGENET_V2 = Recipe(224, 224 / 232, "bilinear", resize="shortest")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = Recipe(224, interpolation="bicubic", mean=CLIP_MEAN, std=CLIP_STD, resize="shortest")
SIGLIP = Recipe(256, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, resize="squash")  # type: ignore[arg-type]

Transform = Callable[[Image.Image], torch.Tensor]


def picture(number: int, size: tuple[int, int]) -> Image.Image:
    """A photo enlarged to `size`, with the noise of a sensor."""
    with Image.open(PHOTOS[number % len(PHOTOS)]) as photo:
        image = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(number).integers(-8, 9, (size[1], size[0], 1), np.int16)
    return Image.fromarray(np.clip(noise + np.asarray(image), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.fixture(scope="module")
def opaque() -> dict[str, bytes]:
    """38 pictures of all shapes, from a pixel to 12 megapixels, and of all opaque modes."""
    files: dict[str, bytes] = {}
    large = [((4000, 3000), 85, 2), ((3024, 4032), 92, 0), ((4032, 3024), 75, 2), ((2047, 1365), 60, 1)]
    large += [((1921, 1081), 80, 2), ((5001, 1001), 90, 2), ((1201, 1601), 95, 0)]
    for number, (size, quality, subsampling) in enumerate(large):
        name = f"{size} quality {quality} subsampling {subsampling}"
        files[name] = encoded(picture(number, size), "JPEG", quality=quality, subsampling=subsampling)
    files["progressive"] = encoded(picture(7, (2501, 1999)), "JPEG", progressive=True)
    files["grey JPEG"] = encoded(picture(8, (1999, 2501)).convert("L"), "JPEG")
    files["CMYK JPEG"] = encoded(picture(9, (2101, 1701)).convert("CMYK"), "JPEG")
    shapes = [(1, 1), (3, 200), (200, 3), (64, 64), (224, 224), (256, 256), (225, 224), (640, 480), (481, 641)]
    shapes += [(1000, 100), (100, 1000), (333, 500), (2600, 2000)]
    for number, size in enumerate(shapes):
        files[f"{size} PNG"] = encoded(picture(number, size), "PNG", compress_level=1)
    for number, mode in enumerate(("1", "L", "P", "RGB", "RGBA")):
        for size in ((500, 375), (150, 260)):
            files[f"{mode} {size}"] = encoded(picture(number, size).convert(mode), "PNG", compress_level=1)
    for image_format in ("WEBP", "BMP", "TIFF", "GIF", "PPM"):
        files[image_format] = encoded(picture(11, (700, 500)), image_format)
    return files


@pytest.fixture(scope="module")
def others() -> dict[str, bytes]:
    """12 pictures that Pillow alone does not convert correctly."""
    rgba = picture(3, (500, 400)).convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize((500, 400)))
    grey = (np.asarray(picture(5, (400, 300)).convert("L")).astype(np.uint16) << 8) + 128
    files = {
        "RGBA": encoded(rgba, "PNG"),
        "LA": encoded(rgba.convert("LA"), "PNG"),
        "P with transparency": encoded(rgba.quantize(64), "PNG"),
        "I;16": encoded(Image.fromarray(grey), "PNG"),
        "F": encoded(Image.fromarray(grey.astype(np.float32) / 65535), "TIFF"),
    }
    for orientation in range(2, 9):
        image = picture(orientation, (2049 + orientation, 1537))
        files[f"orientation {orientation}"] = encoded(image, "JPEG", exif=turned(orientation))
    return files


@pytest.fixture(scope="module")
def clip_transform() -> Transform:
    torch.manual_seed(0)
    _, _, transform = open_clip.create_model_and_transforms("ViT-B-32")
    made: Transform = transform
    return made


def compare(recipe: Recipe, transform: Transform, opaque: dict[str, bytes], others: dict[str, bytes]) -> None:
    """Print and check the differences, of values in [0, 1]."""
    differences = {}
    for name, data in (opaque | others).items():
        image = Image.open(io.BytesIO(data)).convert("RGB") if name in opaque else open_image(data).image
        expected = transform(image).numpy()
        got = preprocess_image(data, recipe)
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        differences[name] = np.abs(got - expected) * np.array(recipe.std)[:, None, None]
    assert len(differences) == 50
    means = {name: float(away.mean()) for name, away in differences.items()}
    worst = max(means, key=means.__getitem__)
    greatest = max(float(away.max()) for away in differences.values())
    print(  # noqa: T201 -- shown by pytest -s
        f"50 pictures, in steps of 1/255: mean {255 * np.mean(list(means.values())):.3f}, "
        f"worst mean {255 * means[worst]:.3f} ({worst}), greatest of a pixel {255 * greatest:.0f}"
    )
    assert means[worst] < 0.5 / 255, worst


@pytest.mark.parametrize(
    ("weights", "recipe"),
    [
        (MobileNet_V3_Large_Weights.IMAGENET1K_V1, IMAGENET),
        (MobileNet_V3_Large_Weights.IMAGENET1K_V2, IMAGENET_V2),
        (MobileNet_V3_Small_Weights.IMAGENET1K_V1, IMAGENET),
    ],
    ids=str,
)
def test_torchvision(
    weights: MobileNet_V3_Large_Weights, recipe: Recipe, opaque: dict[str, bytes], others: dict[str, bytes]
) -> None:
    compare(recipe, weights.transforms(), opaque, others)


def test_open_clip(clip_transform: Transform, opaque: dict[str, bytes], others: dict[str, bytes]) -> None:
    compare(CLIP, clip_transform, opaque, others)


def test_open_clip_squash(opaque: dict[str, bytes], others: dict[str, bytes]) -> None:
    transform = open_clip.image_transform(256, False, mean=SIGLIP.mean, std=SIGLIP.std, resize_mode="squash")
    compare(SIGLIP, transform, opaque, others)


def test_a_tensor() -> None:
    array = preprocess_image(PHOTOS[0], CLIP)
    tensor = preprocess_image(PHOTOS[0], CLIP, to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (3, 224, 224))
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tuple(preprocess_image(PHOTOS[0], target_size=(160, 90), to_tensor=True).shape) == (3, 90, 160)
