"""Transparent images are laid over a ground on which they can be seen."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from pixmatcher.images import _colour, open_image

Colour = tuple[int, int, int]
WHITE, DARK = (255, 255, 255), (96, 96, 96)


def logo(colour: Colour, alpha: int = 255) -> Image.Image:
    """Return a ring and a bar of one colour; the rest is transparent, and white as many programs write it."""
    image = Image.new("RGBA", (120, 90), (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 60, 60), outline=(*colour, alpha), width=8)
    draw.rectangle((70, 30, 110, 45), fill=(*colour, alpha))
    return image


def photo() -> Image.Image:
    y, x = np.mgrid[0:90, 0:120]
    planes = [150 + 90 * np.sin(x / 17 + 2 * k) * np.cos(y / 13 - k) for k in range(3)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).convert("RGBA")


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def ground_of(source: object) -> Colour:
    """Return the colour of the transparent corner of an image."""
    pixel = open_image(source).image.getpixel((0, 0))  # type: ignore[arg-type]
    assert isinstance(pixel, tuple)
    return pixel  # type: ignore[return-value]


def over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


@pytest.mark.parametrize(
    "colour", [(255, 255, 255), (240, 240, 240), (255, 255, 200), (255, 255, 0), (255, 240, 245), (230, 255, 255)]
)
@pytest.mark.parametrize("alpha", [255, 140])
def test_light_pictures_get_a_dark_ground(colour: Colour, alpha: int) -> None:
    opened = open_image(encoded(logo(colour, alpha))).image
    assert opened.getpixel((0, 0)) == DARK
    expected = (np.array(colour) * alpha + np.array(DARK) * (255 - alpha)) / 255
    assert np.abs(np.array(opened.getpixel((90, 37))) - expected).max() <= 1


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 0, 0), (0, 200, 0), (255, 140, 0), (90, 90, 255), (180, 180, 180)])
def test_other_pictures_keep_white_bit_for_bit(colour: Colour) -> None:
    image = logo(colour)
    assert open_image(encoded(image)).image.tobytes() == over_white(image).tobytes()


def test_parts_decide_by_how_much_of_them_is_lost() -> None:
    sign_and_letters = logo((255, 255, 255))
    ImageDraw.Draw(sign_and_letters).rectangle((25, 25, 45, 45), fill=(200, 30, 30, 255))
    assert ground_of(encoded(sign_and_letters)) == DARK
    outlined = logo((255, 255, 255))
    draw = ImageDraw.Draw(outlined)
    draw.ellipse((8, 8, 62, 62), outline=(0, 0, 0, 255), width=3)
    draw.ellipse((17, 17, 53, 53), outline=(0, 0, 0, 255), width=3)
    draw.rectangle((70, 30, 110, 45), fill=(255, 255, 255, 255), outline=(0, 0, 0, 255), width=3)
    assert ground_of(encoded(outlined)) == WHITE
    half = logo((255, 255, 255))
    half.paste((20, 40, 160, 255), (5, 65, 115, 85))
    assert ground_of(encoded(half)) == WHITE


def test_soft_shadow_does_not_hide_that_the_picture_is_white() -> None:
    white = logo((255, 255, 255))
    shadow = Image.new("RGBA", white.size)
    shadow.putalpha(white.getchannel("A").filter(ImageFilter.GaussianBlur(3)).point(lambda a: a // 3))
    assert ground_of(encoded(Image.alpha_composite(shadow, white))) == DARK
    black = logo((0, 0, 0))
    assert ground_of(encoded(Image.alpha_composite(shadow, black))) == WHITE
    assert ground_of(encoded(shadow)) == WHITE  # a shadow alone
    for alpha in (5, 15, 25, 40):  # a watermark, faint on any ground
        assert ground_of(encoded(logo((0, 0, 0), alpha))) == WHITE
        assert ground_of(encoded(logo((255, 255, 255), alpha))) == DARK


def test_photos_keep_white() -> None:
    bordered = photo()
    bordered.paste((0, 0, 0, 0), (0, 0, 120, 1))
    bordered.paste((0, 0, 0, 0), (0, 0, 1, 90))
    round_one = photo()
    mask = Image.new("L", round_one.size)
    ImageDraw.Draw(mask).ellipse((0, 0, 119, 89), fill=255)
    round_one.putalpha(mask)
    page = Image.new("RGBA", (120, 90), (255, 255, 255, 255))  # white paper with a few words
    ImageDraw.Draw(page).rectangle((20, 40, 60, 50), fill=(0, 0, 0, 255))
    ImageDraw.Draw(page).rectangle((0, 0, 3, 3), fill=(0, 0, 0, 0))
    bright = Image.eval(photo(), lambda v: min(255, v + 130))  # overexposed, in a round frame
    bright.putalpha(mask)
    for image in (bordered, round_one, page, bright):
        assert open_image(encoded(image)).image.tobytes() == over_white(image).tobytes()


def test_nothing_visible_is_white() -> None:
    for colour in ((0, 0, 0, 0), (255, 255, 255, 0)):
        assert ground_of(encoded(Image.new("RGBA", (9, 9), colour))) == WHITE
    opaque = Image.new("RGBA", (9, 9), (250, 250, 250, 255))
    assert ground_of(encoded(opaque)) == (250, 250, 250)


def rgb_of_16_bits(rgba: Image.Image, colour: int) -> bytes:
    """Return a PNG of 16 bits a channel, which Pillow cannot write: the logo in grey, one colour transparent."""
    key = (0x1234, 0x5678, 0x9ABC)
    values = np.where(np.asarray(rgba.getchannel("A"))[..., None] > 0, colour * 257, key).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    data = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", *rgba.size, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": struct.pack(">3H", *key), b"IDAT": zlib.compress(rows), b"IEND": b""}
    for kind, content in chunks.items():
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


def sources(colour: int) -> dict[str, object]:
    """Return the same grey logo with every kind of transparency."""
    rgba = logo((colour, colour, colour))
    grey = rgba.convert("LA")
    key = Image.new("L", rgba.size, 7)
    key.paste(colour, mask=rgba.getchannel("A"))
    colour_key = key.convert("RGB")
    palette = Image.new("P", rgba.size, 3)
    palette.putpalette([0, 0, 0, 9, 9, 9, colour, colour, colour, 255, 255, 255])
    palette.paste(2, mask=rgba.getchannel("A"))
    transparent_entry = palette.copy()
    transparent_entry.info["transparency"] = 3
    deep = Image.fromarray(np.where(np.asarray(rgba.getchannel("A")) > 0, colour * 257, 1234).astype(np.uint16))
    return {
        "PNG of RGBA": encoded(rgba),
        "PNG of LA": encoded(grey),
        "PNG of a key in L": encoded(key, transparency=7),
        "PNG of a key in RGB": encoded(colour_key, transparency=(7, 7, 7)),
        "PNG of a palette": encoded(palette, transparency=3),
        "PNG of a palette of alphas": encoded(palette, transparency=bytes([255, 255, 255, 0])),
        "PNG of a key in 16 bits": encoded(deep, transparency=1234),
        "PNG of a key in RGB of 16 bits": rgb_of_16_bits(rgba, colour),
        "GIF": encoded(palette, "GIF", transparency=3),
        "animated GIF": encoded(
            palette, "GIF", transparency=3, save_all=True, append_images=[Image.new("P", rgba.size, 1)], disposal=2
        ),
        "WebP": encoded(rgba, "WEBP", lossless=True, exact=True),
        "animated WebP": encoded(
            rgba, "WEBP", lossless=True, exact=True, save_all=True, append_images=[Image.new("RGBA", rgba.size, "red")]
        ),
        "TIFF": encoded(rgba, "TIFF"),
        "JPEG 2000": encoded(rgba, "JPEG2000"),
        "AVIF": encoded(rgba, "AVIF", quality=100),
        "RGBa": rgba.convert("RGBa"),
        "La": grey.convert("La"),
        "PA": transparent_entry.convert("PA"),
        "array": np.asarray(rgba),
    }


@pytest.mark.parametrize("name", sources(0))
def test_every_kind_of_transparency(name: str) -> None:
    for colour, ground in ((255, DARK), (0, WHITE)):
        opened = open_image(sources(colour)[name]).image  # type: ignore[arg-type]
        pixels = [np.array(opened.getpixel(point)) for point in ((1, 1), (35, 35), (90, 37))]
        for pixel, expected in zip(pixels, (ground, ground, (colour,) * 3), strict=True):
            assert np.abs(pixel - expected).max() <= 2, (colour, pixels)


@pytest.mark.parametrize("min_side", [None, 10])
def test_strips_and_scales_have_the_same_ground(monkeypatch: pytest.MonkeyPatch, min_side: int | None) -> None:
    image = Image.new("RGBA", (200, 300), (0, 0, 0, 0))  # black above, much white below: other strips, other answers
    image.paste((0, 0, 0, 255), (20, 10, 60, 20))
    image.paste((255, 255, 255, 255), (20, 100, 180, 280))
    whole = open_image(image, min_side=min_side).image
    assert whole.getpixel((0, 0)) == DARK
    monkeypatch.setattr(_colour, "_STRIP_PIXELS", 2000)
    assert open_image(image, min_side=min_side).image.tobytes() == whole.tobytes()


def test_large_images_of_thin_lines() -> None:
    image = Image.new("RGBA", (3000, 2000), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for y in range(100, 1900, 57):
        draw.line((50, y, 2950, y + 30), fill=(255, 255, 255, 255), width=2)
    assert ground_of(image) == DARK
