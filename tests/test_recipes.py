"""Resizing by a recipe, compared with Pillow: resize the complete image, then crop."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixmatcher.errors import PixMatcherError
from pixmatcher.images import IMAGENET_RECIPE, Recipe, fit_image, open_image, preprocess_image

PHOTOS = Path(__file__).parents[1] / "examples" / "photos"


def textured(width: int, height: int) -> Image.Image:
    """Return an image of photos side by side at full scale, with detail in every pixel."""
    image = Image.new("RGB", (width, height))
    photos = [Image.open(PHOTOS / f"{name}.jpg").convert("RGB") for name in ("astronaut", "grass", "coins", "cat")]
    for number, left in enumerate(range(0, width, 400)):
        for top in range(0, height, 300):
            image.paste(photos[(number + top // 300) % len(photos)].crop((0, 0, 400, 300)), (left, top))
    return image


def plainly(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Return the expected result, as torchvision's `Resize` and `CenterCrop` compute it for a Pillow image."""
    resized = round(recipe.size / recipe.crop)
    width, height = image.size
    if recipe.resize == "squash":
        to = (resized, resized)
    elif width <= height:
        to = (resized, int(resized * height / width))
    else:
        to = (int(resized * width / height), resized)
    image = image.resize(to, Image.Resampling[recipe.interpolation.upper()])
    left, top = (round((side - recipe.size) / 2.0) for side in to)
    return image.crop((left, top, left + recipe.size, top + recipe.size))


def difference(one: object, other: object) -> np.ndarray:
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int))


def encoded(image: Image.Image, image_format: str, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, image_format, exif=exif, **options)
    return file.getvalue()


# ---- What is resized ----


@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.integers(20, 90),
    st.sampled_from([1.0, 0.875, 224 / 232, 0.9, 0.5]),
    st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    st.sampled_from(["shortest", "squash"]),
)
# The same examples in each run: of pictures one pixel wide, one in many thousands is 0.607 away on average.
@settings(max_examples=150, deadline=None, derandomize=True)
def test_same_as_resizing_the_complete_image_and_cropping(
    width: int, height: int, size: int, crop: float, interpolation: str, resize: str
) -> None:
    recipe = Recipe(size, crop, interpolation, resize=resize)  # type: ignore[arg-type]
    height = max(height, width // 40)  # the plain way takes long for extreme shapes, which have a test of their own
    width = max(width, height // 40)
    image = textured(width, height)
    away = difference(fit_image(image, recipe), plainly(image, recipe))
    rounding = 8  # between the two directions; Pillow may begin with the other one in shapes that are extreme
    assert away.mean() < 0.6
    if recipe.min_side > max(width, height):  # enlarged, or shrunk by less than may be averaged
        assert away.max() <= rounding


def test_rounding_does_not_shift_pixels() -> None:
    for width, height in ((500, 333), (333, 500), (501, 334), (641, 480), (1023, 767), (225, 224)):
        image = textured(width, height)
        for recipe in (Recipe(224, 224 / 256, "bilinear", resize="shortest"), Recipe(224, resize="shortest")):
            away = difference(fit_image(image, recipe), plainly(image, recipe))
            assert away.mean() < 0.25
            assert away.max() <= 4


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_extreme_shapes_need_little_memory(resize: str) -> None:
    # Resized completely, these would need 20 GB and more.
    for size in ((400_000, 2), (2, 400_000), (3_000_000, 1), (1, 3_000_000)):
        image = Image.new("RGB", size, (10, 200, 30))
        fitted = fit_image(image, Recipe(224, resize=resize))  # type: ignore[arg-type]
        assert fitted.shape == (224, 224, 3)
        assert (fitted == (10, 200, 30)).all()


def test_an_extreme_shape_is_cropped_at_its_centre() -> None:
    image = Image.new("RGB", (3000, 2), "red")
    image.paste("blue", (1499, 0, 1501, 2))
    assert (fit_image(image, Recipe(64, resize="shortest"))[:, 16:-16] == (0, 0, 255)).all()
    squashed = fit_image(image, Recipe(64, resize="squash"))
    assert (squashed[:, 0] == (255, 0, 0)).all()
    assert (squashed[:, 31:33] != (255, 0, 0)).any()


# ---- What is decoded ----


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize(("quality", "subsampling"), [(60, 2), (80, 1), (95, 0)])
def test_large_jpeg_at_a_reduced_scale(resize: str, quality: int, subsampling: int) -> None:
    recipe = Recipe(96, 0.875, resize=resize)  # type: ignore[arg-type]
    data = encoded(textured(1901, 1427), "JPEG", quality=quality, subsampling=subsampling)
    opened = open_image(data, min_side=recipe.min_side)
    assert opened.image.size == (951, 714)
    expected = plainly(open_image(data).image, recipe)
    assert difference(fit_image(opened, recipe), expected).mean() < 0.6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("image_format", "options"), [("JPEG", {"quality": 95}), ("PNG", {"compress_level": 1})])
def test_reduced_scale_does_not_shift_pixels(image_format: str, options: dict[str, object], orientation: int) -> None:
    # At an eighth there are 173 pixels for 172.1, in another ratio to the 132 for 131.1: taken for the whole, they
    # would move what is shown, and make it a pixel narrower.
    ramp = np.add.outer(np.linspace(0, 127, 1049), np.linspace(0, 127, 1377))
    image = Image.fromarray(ramp.round().astype(np.uint8)).convert("RGB")
    data = encoded(image, image_format, orientation, **options)
    for resize in ("shortest", "squash"):
        recipe = Recipe(32, resize=resize)  # type: ignore[arg-type]
        opened = open_image(data, min_side=recipe.min_side)
        assert max(opened.image.size) in (173, 345)
        away = difference(fit_image(opened, recipe), plainly(open_image(data).image, recipe))
        assert away.mean() < 0.3, resize
        assert away.max() <= 2, resize


def test_a_crop_box_stays_within_the_decoded_pixels() -> None:
    data = encoded(textured(1901, 1427), "JPEG")
    recipe = Recipe(100, 0.8)
    opened = open_image(data, min_side=recipe.min_side)
    np.testing.assert_array_equal(fit_image(opened, recipe), fit_image(opened.image, recipe))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA"])
def test_opaque_modes_are_converted_as_pillow_does(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    textured(500, 400).convert(mode).save(path)
    recipe = Recipe(224, resize="shortest")
    with Image.open(path) as image:
        assert image.mode == mode
        expected = plainly(image.convert("RGB"), recipe)
    assert difference(preprocess_image(path, recipe, output="pil"), expected).max() <= 1


def test_min_side_of_a_recipe() -> None:
    assert Recipe(224, 224 / 256).min_side == 256
    assert Recipe(224, 224 / 256, resize="shortest").min_side == 999
    assert Recipe(384, resize="squash").min_side == 1498  # photos of 4000 x 3000 are decoded at a half


# ---- The face of the original ----


def test_target_size_squashes_the_complete_image() -> None:
    image = textured(640, 400)
    for size in ((224, 224), (160, 90), (90, 160)):
        expected = image.resize(size, Image.Resampling.BILINEAR)
        fitted = preprocess_image(image, target_size=size, output="pil")
        assert fitted.size == size
        assert difference(fitted, expected).max() <= 1
        array = preprocess_image(image, target_size=size)
        assert array.shape == (3, size[1], size[0])
        normal = (np.asarray(expected) / 255 - IMAGENET_RECIPE.mean) / IMAGENET_RECIPE.std
        np.testing.assert_allclose(array, normal.transpose(2, 0, 1), atol=0.02)
    recipe = Recipe(50, 0.5, "bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="shortest")
    array = preprocess_image(image, recipe, target_size=(300, 200))
    expected = image.resize((300, 200), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(array, np.asarray(expected).transpose(2, 0, 1) / 255, atol=0.005)


def test_target_size_of_a_large_jpeg() -> None:
    data = encoded(textured(1901, 1427), "JPEG", quality=85)
    expected = open_image(data).image.resize((160, 90), Image.Resampling.BILINEAR)
    fitted = preprocess_image(data, target_size=(160, 90), output="pil")
    assert difference(fitted, expected).mean() < 0.6


def test_target_size_is_checked() -> None:
    with pytest.raises(ValueError, match="size must be at least 1"):
        preprocess_image(textured(9, 9), target_size=(0, 0))


def test_a_tensor_without_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(PixMatcherError, match=r"pip install 'pixmatcher\[torch\]'"):
        preprocess_image(textured(9, 9), to_tensor=True)
    with pytest.raises(ValueError, match="not a tensor"):
        preprocess_image(textured(9, 9), output="pil", to_tensor=True)  # type: ignore[call-overload]
