"""Captioned photographs to fit and judge `semantic` with: where they come from, what is held out, and their texts.

The zip file has two folders: `flickr8k/` with photographs and `captions.csv` (image, caption), of Flickr8k (Hodosh,
Young and Hockenmaier: "Framing image description as a ranking task", 2013); and `coco/` with photographs and
`tags.json` (image -> names of the objects in it), of MS COCO (Lin et al., 2014). Nothing of them is shipped.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from caption_words import with_article
from PIL import Image

from pixmatcher.encoders.lite import RECIPE

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "captioned-photos.zip"
BLOCK, FOLDS, HELD_OUT_FOLD = 50, 7, 3
"""The photographs, in the order of their numbers, are divided into blocks; each seventh block is held out. Photographs
of one series have neighbouring numbers, so that they are on the same side. The file names do not say who took them."""

SENTENCES_OF_A_PHOTO = 8
SYNONYMS = {
    "person": ("person", "man", "woman", "people", "someone", "boy", "girl", "child", "guy", "lady"),
    "dining table": ("table", "dining table"),
    "couch": ("couch", "sofa"),
    "tv": ("tv", "television", "screen"),
    "potted plant": ("plant", "potted plant"),
    "sports ball": ("ball", "sports ball"),
    "cell phone": ("phone", "cell phone", "smartphone"),
    "motorcycle": ("motorcycle", "motorbike"),
    "airplane": ("airplane", "plane"),
    "bicycle": ("bicycle", "bike"),
    "cow": ("cow", "cattle"),
    "donut": ("donut", "doughnut"),
    "laptop": ("laptop", "computer"),
    "refrigerator": ("refrigerator", "fridge"),
    "wine glass": ("wine glass", "glass of wine", "glass"),
    "tennis racket": ("tennis racket", "racket"),
    "baseball bat": ("baseball bat", "bat"),
    "traffic light": ("traffic light", "stop light"),
    "boat": ("boat", "ship"),
    "cup": ("cup", "mug", "glass"),
    "handbag": ("handbag", "bag", "purse"),
    "teddy bear": ("teddy bear", "stuffed animal"),
}
"""Other names of the tags of COCO, as people write them. A tag does not say whether a person is a man or a woman."""
OPENINGS = ("", "", "a photo of ", "there is ", "a picture of ", "a view of ")
JOINTS = (" and ", " with ", " next to ", " near ")


@dataclass(frozen=True)
class Photos:
    """Photographs as JPEG files, the texts of each one, and which of them are held out (N,) bool."""

    names: list[str]
    images: list[bytes]
    texts: list[list[str]]
    held_out: npt.NDArray[np.bool_]


def read_captioned(data: Path) -> Photos:
    """Return the photographs of Flickr8k with their captions, in the order of their numbers."""
    with zipfile.ZipFile(data) as files:
        captions: dict[str, list[str]] = {}
        for row in csv.DictReader(io.StringIO(files.read("flickr8k/captions.csv").decode())):
            captions.setdefault(row["image"], []).append(row["caption"])
        names = sorted(captions, key=lambda name: int(name.split("_")[0]))
        images = [files.read(f"flickr8k/{name}") for name in names]
    return Photos(names, images, [captions[name] for name in names], _held_out(len(names)))


def read_tagged(data: Path) -> tuple[Photos, list[list[str]]]:
    """Return the photographs of COCO that have tags, with sentences made from them, and the tags of each one."""
    with zipfile.ZipFile(data) as files:
        tags: dict[str, list[str]] = json.loads(files.read("coco/tags.json"))
        present = {PurePosixPath(name).name for name in files.namelist() if name.startswith("coco/")}
        names = sorted(name for name, found in tags.items() if found and name in present)
        images = [files.read(f"coco/{name}") for name in names]
    rng = np.random.default_rng(0)
    texts = [[_sentence(tags[name], rng) for _ in range(SENTENCES_OF_A_PHOTO)] for name in names]
    return Photos(names, images, texts, _held_out(len(names))), [tags[name] for name in names]


def _held_out(count: int) -> npt.NDArray[np.bool_]:
    held_out: npt.NDArray[np.bool_] = np.arange(count) // BLOCK % FOLDS == HELD_OUT_FOLD
    return held_out


def _sentence(tags: Sequence[str], rng: np.random.Generator) -> str:
    """Return a sentence with some or all of the tags of a photograph, such as "a dog, a bench and a car"."""
    chosen = [tags[number] for number in rng.permutation(len(tags))]
    if rng.random() < 0.5:
        chosen = chosen[: int(rng.integers(1, len(tags) + 1))]
    named = [with_article(str(rng.choice(SYNONYMS.get(tag, (tag,))))) for tag in chosen]
    together = named[0] if len(named) == 1 else ", ".join(named[:-1]) + str(rng.choice(JOINTS)) + named[-1]
    return str(rng.choice(OPENINGS)) + together


def cropped(jpeg: bytes, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a random part of an image (260, 260, 3): 45 to 100 % of its area, perhaps mirrored, a little brighter."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    side = min(image.size)
    area, ratio = rng.uniform(0.45, 1.0), float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
    width, height = (
        min(whole, side * (area * part) ** 0.5) for whole, part in zip(image.size, (ratio, 1 / ratio), strict=True)
    )
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    image = image.resize((RECIPE.size, RECIPE.size), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    contrast, brightness = rng.uniform(0.85, 1.15, 2)
    return np.clip((pixels.astype(np.float32) - 127) * contrast + 127 * brightness, 0, 255).astype(np.uint8)
