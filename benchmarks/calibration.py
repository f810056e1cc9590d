"""Calibrate the scores of an encoder, and measure how reliable the probabilities are.

    python benchmarks/calibration.py [tiny-imagenet-mini.zip] [--photos FOLDER] [--encoder NAME] [--plot FILE]

Three sets of queries, a hit is right if it shows what the query names:

- class names: the first name of each class of Tiny ImageNet searches its `val` part;
- tags: "a dog" and so on search photos with tags (`FOLDER/*.jpg`, and `FOLDER/tags.json`: file name -> names of all
  objects in it); tags of fewer than 20 photos are left out;
- images: each image of the `val` part searches images of the `train` part, 25 of each class.

The classes and tags are divided into halves. Each half is calibrated, and the other half is measured with that: the
first 12 hits of each query count, every query the same, both sets of texts the same. The numbers for `card.json` come
from both halves together; where scores say nothing about right and wrong, there are none.

The limit below which nothing is like the query (`WEAK_BELOW`) is measured too, in random collections of 100 images and
in all images: how many queries have a best hit below it if this hit is right, if something right is there, and if
nothing right is there. In all images, what is right is left out for the last one. Texts that mean nothing are searched
too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from caption_words import with_article

from pixmatcher import Collection, Encoder, index, load_encoder
from pixmatcher._plots import save_figure
from pixmatcher.evaluation import best_columns
from pixmatcher.evaluation.calibration import Reliability, draw_reliability, fit_calibration, reliability
from pixmatcher.records import WEAK_BELOW, Calibration
from pixmatcher.searching.options import DEFAULT_RESULTS
from pixmatcher.sources import Entry, Unusable, open_source

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
TRAIN_IMAGES = 25
"""Images of each class that image queries search."""
MIN_PHOTOS = 20
NONSENSE = (
    "asdkjh qwe zzx", "lorem ipsum dolor", "xyzzy", "aaaa", "qwertz", "the meaning of life", "hello", "foo bar",
    "null", "quarterly report", "tax return form", "blablabla", "thx", "1234", "the the the", "why not",
)  # fmt: skip
LIMITS = sorted({0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, WEAK_BELOW})
SMALL, SMALL_COUNT = 100, 20
"""The size and the number of the random collections."""

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


class Part:
    """A part of Tiny ImageNet, with at most `count` images of each class."""

    remote: bool = False
    thumbnails: bool = False
    folder: str | None = None

    def __init__(self, data: Path, split: str, count: int) -> None:
        self._source = open_source(f"tiny-imagenet:{data}?split={split}")
        self._count = count
        self.spec, self.open, self.label_names = self._source.spec, self._source.open, self._source.label_names

    def scan(self) -> Iterator[Entry | Unusable]:
        taken: dict[str | None, int] = {}
        for entry in self._source.scan():
            label = entry.label if isinstance(entry, Entry) else None
            taken[label] = taken.get(label, 0) + 1
            if taken[label] <= self._count:
                yield entry


@dataclass(frozen=True)
class Queries:
    """Scores (Q, N) of queries against items, whether each item is right (Q, N), and what each query asks for."""

    scores: Floats
    right: Bools
    asked: list[str]

    def first_hits(self, chosen: Bools) -> tuple[Floats, Bools]:
        """Return the scores of the first 12 hits of the chosen queries (Q) and whether they are right, both flat."""
        columns = best_columns(self.scores[chosen], DEFAULT_RESULTS)
        return (
            np.take_along_axis(self.scores[chosen], columns, 1).ravel(),
            np.take_along_axis(self.right[chosen], columns, 1).ravel(),
        )

    def half(self, number: int) -> Bools:
        """Return which queries are in half 0 or 1; all queries for the same thing are in the same half."""
        return np.array([zlib.crc32(text.encode()) % 2 == number for text in self.asked])


def fit(sets: Mapping[str, Queries], half: int | None) -> Calibration:
    """Calibrate the first hits of a half of the queries, or of all; every set counts the same."""
    parts = [each.first_hits(each.half(half) if half is not None else each.half(0) | True) for each in sets.values()]
    weights = np.concatenate([np.full(len(scores), 1 / len(scores)) for scores, _ in parts])
    return fit_calibration(*(np.concatenate(column) for column in zip(*parts, strict=True)), weights)


def measure(sets: Mapping[str, Queries]) -> dict[str, Reliability]:
    """Measure the probabilities of each half with the calibration of the other one, for each set of queries."""
    fitted = [fit(sets, 0), fit(sets, 1)]
    measured = {}
    for name, each in sets.items():
        parts = [each.first_hits(each.half(half)) for half in (0, 1)]
        probabilities = [fitted[1 - half].probability(parts[half][0]) for half in (0, 1)]
        measured[name] = reliability(np.concatenate(probabilities), np.concatenate([right for _, right in parts]))
    return measured


def vectors_of(collection: Collection, space: str) -> tuple[Floats, list[str], list[str]]:
    """Return the embeddings (N, D) of all items, their labels and their file names."""
    items = list(collection.items())
    vectors = collection.embeddings([item.id for item in items], space)
    return vectors, [item.label or "" for item in items], [Path(item.uri).name for item in items]


def class_names(val: Collection, encoder: Encoder, space: str) -> Queries:
    vectors, labels, _ = vectors_of(val, space)
    names = {label: name.partition(",")[0] for label, name in sorted(val.label_names().items())}
    texts = encoder.encode_texts(list(names.values()))[space]
    return Queries(texts @ vectors.T, np.array([*names])[:, None] == np.array(labels), [*names])


def tags(photos: Collection, tags_of: Mapping[str, list[str]], encoder: Encoder, space: str) -> Queries:
    vectors, _, files = vectors_of(photos, space)
    known = sorted({tag for found in tags_of.values() for tag in found})
    right = np.array([[tag in tags_of.get(file, ()) for file in files] for tag in known])
    used = right.sum(axis=1) >= MIN_PHOTOS
    chosen = [tag for tag, kept in zip(known, used, strict=True) if kept]
    return Queries(encoder.encode_texts([with_article(tag) for tag in chosen])[space] @ vectors.T, right[used], chosen)


def images(train: Collection, val: Collection, space: str) -> Queries:
    vectors, labels, _ = vectors_of(train, space)
    queries, asked, _ = vectors_of(val, space)
    return Queries(queries @ vectors.T, np.array(asked)[:, None] == np.array(labels), asked)


def print_limits(fitted: Calibration, sets: Mapping[str, Queries], nonsense: Floats | None) -> None:
    """Print for limits of the probability how many queries have a best hit below it."""
    print(f"    {'best hit below':<46}" + "".join(f"{limit:7.2f}" for limit in LIMITS))
    for name, each in sets.items():
        print_small(name, fitted, each)
        best, right = best_hits(each.scores, each.right)
        print_below(f"{name}, best hit is right", fitted, best[right])
        print_below(f"{name}, something right is there", fitted, best)
        print_below(f"{name}, nothing right is there", fitted, np.where(each.right, -np.inf, each.scores).max(axis=1))
    if nonsense is not None:
        print_below("nonsense", fitted, nonsense.max(axis=1))


def print_small(name: str, fitted: Calibration, queries: Queries) -> None:
    """Print the same for random collections, in which some queries have nothing right."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(SMALL_COUNT):
        items = rng.choice(queries.scores.shape[1], SMALL, replace=False)
        found.append(
            (*best_hits(queries.scores[:, items], queries.right[:, items]), queries.right[:, items].any(axis=1))
        )
    best, right, there = (np.concatenate(column) for column in zip(*found, strict=True))
    print_below(f"{name}, {SMALL} images, best hit is right", fitted, best[right])
    print_below(f"{name}, {SMALL} images, something right is there", fitted, best[there])
    print_below(f"{name}, {SMALL} images, nothing right is there", fitted, best[~there])


def best_hits(scores: Floats, right: Bools) -> tuple[Floats, Bools]:
    """Return the score (Q,) of the best hit of each query, and whether it is right (Q,)."""
    best = scores.argmax(axis=1)[:, None]
    return np.take_along_axis(scores, best, 1)[:, 0], np.take_along_axis(right, best, 1)[:, 0]


def print_below(what: str, fitted: Calibration, best: Floats) -> None:
    probabilities = fitted.probability(best)
    print(f"      {what:<44}" + "".join(f"{(probabilities < limit).mean():7.1%}" for limit in LIMITS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--photos", type=Path, help="a folder of photos with tags.json")
    parser.add_argument("--encoder", metavar="NAME", default="lite")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save a plot of the reliability")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the collections here, and use those there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, arguments.keep or Path(folder))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    encoder = load_encoder(arguments.encoder)
    index(Part(arguments.data, "val", 10_000), folder / "val", encoders=[encoder])
    index(Part(arguments.data, "train", TRAIN_IMAGES), folder / "train", encoders=[encoder])
    if arguments.photos:
        index(arguments.photos, folder / "photos", encoders=[encoder])
    card: dict[str, dict[str, list[float]]] = {}
    plotted = {}
    with Collection.open(folder / "val") as val, Collection.open(folder / "train") as train:
        for space in encoder.spaces:
            kinds: dict[str, dict[str, Queries]] = {}
            if space.text:
                kinds["text"] = {"class names": class_names(val, encoder, space.name)}
                if arguments.photos:
                    tags_of = json.loads((arguments.photos / "tags.json").read_text())
                    with Collection.open(folder / "photos") as photos:
                        kinds["text"]["tags"] = tags(photos, tags_of, encoder, space.name)
            kinds["image"] = {"images": images(train, val, space.name)}
            for kind, sets in kinds.items():
                fitted = fit(sets, None)
                measured = measure(sets)
                if all(each.skill > 0.05 for each in measured.values()):
                    card.setdefault(space.name, {})[kind] = [round(fitted.slope, 4), round(fitted.intercept, 4)]
                print(f"{space.name}, {kind}: slope {fitted.slope:.3f}, intercept {fitted.intercept:.3f}")
                for name, each in measured.items():
                    print(f"  {name}, {len(sets[name].asked):,} queries, the other half calibrated:")
                    print(
                        f"    ECE {each.error:.3f}, Brier {each.brier:.3f} (without scores {each.brier_of_mean:.3f}), "
                        f"right {each.right:.3f}"
                    )
                    for bin in each.bins:
                        print(f"    {bin.share:6.1%} of hits: probability {bin.probability:.3f}, right {bin.right:.3f}")
                    if kind in card.get(space.name, {}):
                        plotted[f"{space.name}: {name}"] = each
                nonsense = None
                if kind == "text":
                    items, _, _ = vectors_of(val, space.name)
                    nonsense = encoder.encode_texts(NONSENSE)[space.name] @ items.T
                print_limits(fitted, sets, nonsense)
    print(f'"calibration": {json.dumps(card)}')
    if arguments.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 5), layout="constrained")
        draw_reliability(figure.subplots(), plotted)
        save_figure(figure, arguments.plot)


if __name__ == "__main__":
    main()
