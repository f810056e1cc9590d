"""Measure the quality of `lite` from the raw outputs of its network, which tools compute once and use many times.

benchmarks/quality.py measures the complete search.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pixmatcher.encoders.lite import LiteEncoder, Outputs
from pixmatcher.evaluation import best_columns, precision_at
from pixmatcher.images import Recipe, fit_image, open_image

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.str_]

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
ROOT = "tiny-imagenet-200/"
NEAREST = 10


class TinyImageNet:
    """A zip file in the layout of Tiny ImageNet."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self.wnids = self._text("wnids.txt").split()
        self._words = dict(line.split("\t") for line in self._text("words.txt").splitlines())

    def _text(self, name: str) -> str:
        return self._zip.read(ROOT + name).decode()

    def class_names(self) -> list[str]:
        """Return the first name of each class, in the order of `wnids`."""
        return [self._words[wnid].split(",")[0] for wnid in self.wnids]

    def part(self, name: str) -> tuple[list[bytes], Labels]:
        """Return the JPEG files of the part `train` or `val`, sorted by name, and the class of each."""
        files = sorted(f for f in self._zip.namelist() if f.startswith(f"{ROOT}{name}/") and f.endswith(".JPEG"))
        if name == "train":
            labels = [file.split("/")[2] for file in files]
        else:
            lines = self._text("val/val_annotations.txt").splitlines()
            by_name = dict(line.split("\t")[:2] for line in lines)
            labels = [by_name[Path(file).name] for file in files]
        return [self._zip.read(file) for file in files], np.array(labels)


def prepare(images: Sequence[bytes], recipe: Recipe) -> npt.NDArray[np.uint8]:
    """Decode images and resize them by `recipe`: (N, size, size, 3) uint8."""
    return np.stack([fit_image(open_image(image, min_side=recipe.min_side).image, recipe) for image in images])


def precision(scores: Floats, of_queries: Labels, of_items: Labels) -> float:
    """Return the mean precision@10 of `scores` (queries, items); higher scores are nearer."""
    relevance = of_items[best_columns(scores, NEAREST)] == of_queries[:, None]
    return float(precision_at(relevance, NEAREST).mean())


@dataclass(frozen=True)
class Quality:
    """Mean precision@10 of each way to search."""

    visual: float
    raw_features: float
    semantic: float


def measure(
    encoder: LiteEncoder,
    data: TinyImageNet,
    train: Outputs,
    val: Outputs,
    labels: tuple[Labels, Labels],
) -> Quality:
    """Return the quality, given the raw outputs of the network for both parts and their labels (train, val)."""
    items, queries = encoder.embed_outputs(train), encoder.embed_outputs(val)
    features, query_features = train[0], val[0]
    # Squared distances without the square of the query, which is the same for all items.
    distances = (features**2).sum(1) - 2 * query_features @ features.T
    names = encoder.encode_texts(data.class_names())["semantic"]
    return Quality(
        visual=precision(queries["visual"] @ items["visual"].T, labels[1], labels[0]),
        raw_features=precision(-distances, labels[1], labels[0]),
        semantic=precision(names @ queries["semantic"].T, np.array(data.wnids), labels[1]),
    )
