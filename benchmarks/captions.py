"""Measure how well an encoder finds photographs by captions that people wrote, for each kind of sentence.

    python benchmarks/captions.py FOLDER [--captions FILE] [--encoder NAME] [--images FILE] [--limit N]
                                  [--collection PATH] [--json FILE] [--compare FILE]

FOLDER has images and captions.csv with the columns image and caption, or tags.json, which maps each image to a list of
tags. The images that the file names are searched with each caption: recall@k is the share of the captions whose image
is among the first k, the median rank is that of their images. Images are resampled for the 95 % intervals (percentile
bootstrap), because the captions of one image depend on each other.

Everyday queries are judged by the captions: an image is right if at least two of its captions (one, if it has only one
or two, or tags) mention each group of words of the query. Of the right images that the first 12 hits can hold, the
share that they do hold is reported; queries are resampled for its interval. Tags are used for these queries only.

Before and after a change: run the old version with --json, and the new one with --compare on the same captions. The
interval of a difference is that of pairs: both versions are measured on the same resampled images.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from caption_words import EVERYDAY, KINDS, is_right, kinds_of

from pixmatcher import Collection, Entry, PixMatcherError, QueryError, Unusable, __version__, index
from pixmatcher._cores import usable_cores
from pixmatcher.evaluation import best_columns, bootstrap_interval
from pixmatcher.evaluation._encoding import encode_texts
from pixmatcher.evaluation._scores import ranks_of
from pixmatcher.searching import text_encoder
from pixmatcher.sources.folder import FolderSource

FIRST = 12
"""Hits of an everyday query that are judged: as many as a search returns by default."""
DEPTHS = (1, 5, 10)
FIGURES = [*(f"recall@{depth}" for depth in DEPTHS), "median rank"]
RULES = "Kinds of captions; one can be of several (word lists: benchmarks/caption_words.py):\n" + "\n".join(
    f"  {kind:<8} {rule}" for kind, rule in KINDS.items()
)
RUNS = ("now", "before", "difference")
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = dict[str, list[str]]
"""The captions of each image; of an image with tags, one text with all tags."""


@dataclass(frozen=True)
class Run:
    """What a version found: the rank of the image of each caption, and the first hits of each everyday query.

    `captions` are pairs of an image and a caption, sorted; `images` are the names of all images that were searched.
    """

    about: dict[str, Any]
    images: list[str]
    captions: list[tuple[str, str]]
    ranks: list[int]
    hits: dict[str, list[str]]


class ChosenImages(FolderSource):
    """Those images of a folder that are in a list of paths."""

    def __init__(self, folder: Path, chosen: set[str]) -> None:
        super().__init__(str(folder))
        self.chosen = chosen

    def scan(self) -> Iterator[Entry | Unusable]:
        return (entry for entry in super().scan() if entry.uri in self.chosen)


def read_texts(path: Path) -> tuple[Texts, bool]:
    """Return the texts of each image, in the order of the file, and whether they are captions, not tags."""
    try:
        if path.suffix == ".json":
            tags = json.loads(path.read_text(encoding="utf-8"))
            return {image: [", ".join(words)] for image, words in tags.items()}, False
        texts: Texts = {}
        with open(path, encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                if image := row["image"].strip():
                    texts.setdefault(image, []).extend(filter(None, [row["caption"].strip()]))
        return texts, True
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        what = "needs the columns image and caption, or a JSON object of images and their tags"
        raise QueryError(f"{path} cannot be used ({type(error).__name__}: {error}); it {what}.") from error


def choose(texts: Texts, images: Path | None, limit: int | None) -> Texts:
    """Return the texts of the images that a file lists, one a line, or of `limit` images at even distances."""
    names = list(texts)
    if images:
        try:
            names = list(dict.fromkeys(images.read_text(encoding="utf-8").split("\n")))
        except (OSError, ValueError) as error:
            raise QueryError(f"{images} cannot be read ({error}): give a text file of names in UTF-8.") from error
        names = [name.strip() for name in names if name.strip()]
        if unknown := [name for name in names if name not in texts]:
            raise QueryError(f"{len(unknown)} images of {images} have no captions, such as {unknown[0]}: remove them.")
    if limit and limit < len(names):
        names = [names[number * len(names) // limit] for number in range(limit)]
    return {name: texts[name] for name in names}


def find_collection(folder: Path, names: Sequence[str], place: Path, encoder: str | None) -> Path:
    """Return the folder of a collection that exists at `place`, or of a new one with the images."""
    if found := Collection.locate(place):
        return found
    source = ChosenImages(folder, {str(folder / name) for name in names})
    report = index(source, place, encoders=[encoder or "lite"], thumbnails=False)
    print(f"indexed {report.added:,} images in {report.seconds:.1f} s")
    return report.collection


def search_all(collection: Collection, folder: Path, texts: Texts, ranked: bool, encoder: str | None) -> Run:
    """Rank the images for each caption, if wanted, and find the first hits of the everyday queries."""
    used = [record.name for record in collection.encoders]
    if encoder and encoder not in used:
        raise QueryError(
            f"The collection was made with {', '.join(used)}, not with {encoder}: give another collection."
        )
    names = {str(folder / name): name for name in texts}
    items = [item for item in collection.items() if item.uri in names]
    if not items:
        raise QueryError(f"The collection has no image of the captions: give captions of images in {folder}.")
    first: dict[str, int] = {}  # a copy of an image counts as the image
    for column, item in enumerate(items):
        first.setdefault(item.content_hash, column)
    columns = {names[item.uri]: first[item.content_hash] for item in items}
    ids = np.array([item.id for item in items], np.int64)
    captions = sorted((name, caption) for name in columns for caption in texts[name]) if ranked else []
    model, space = text_encoder(collection.encoders)
    with ThreadPoolExecutor(usable_cores()) as executor:
        vectors = encode_texts([*(caption for _, caption in captions), *EVERYDAY], model, space, executor)
    right = np.array([columns[name] for name, _ in captions], np.int64)
    ranks = ranks_of(collection, space, ids, vectors[: len(captions)], right)
    scores = vectors[len(captions) :] @ collection.embeddings(ids.tolist(), space.name).T
    hits = [[names[items[column].uri] for column in row] for row in best_columns(scores, FIRST).tolist()]
    fingerprint = next(record.fingerprint for record in collection.encoders if space in record.spaces)
    about = {"pixmatcher": __version__, "encoder": model.name, "fingerprint": fingerprint, "space": space.name}
    return Run(about, sorted(columns), captions, ranks.tolist(), dict(zip(EVERYDAY, hits, strict=True)))


def with_difference(rows: Sequence[Floats]) -> Floats:
    """Return the figures of one run, or those of two runs and the difference of the first to the second."""
    return np.concatenate([*rows, rows[0] - rows[1]] if len(rows) == 2 else rows)


def with_intervals(values: Floats, statistic: Any, names: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each figure and each of RUNS the value and the ends of its interval."""
    low, high = bootstrap_interval(values, statistic)
    numbers = np.stack([statistic(values), low, high], axis=1).reshape(-1, len(names), 3).round(4).tolist()
    return {
        name: {
            run: dict(zip(("value", "low", "high"), run_numbers[place], strict=True))
            for run, run_numbers in zip(RUNS, numbers, strict=False)
        }
        for place, name in enumerate(names)
    }


def measure_ranks(images: Sequence[str], runs: Sequence[Ints]) -> dict[str, Any]:
    """Return FIGURES, given the image of each caption and its rank in each run. Images are resampled."""
    different, places = np.unique(images, return_inverse=True)
    orders = [np.argsort(ranks) for ranks in runs]
    sorted_runs = [(ranks[order], places[order]) for ranks, order in zip(runs, orders, strict=True)]

    def statistic(drawn: Floats) -> Floats:
        times = np.bincount(drawn[:, 0].astype(np.int64), minlength=len(different))
        rows = []
        for ranks, of_image in sorted_runs:
            repeated = np.repeat(ranks, times[of_image])
            found = np.searchsorted(repeated, DEPTHS, side="right")
            rows.append(np.array([*(found / len(repeated)), np.median(repeated)]))
        return with_difference(rows)

    every = np.arange(len(different), dtype=np.float64)[:, None]
    return {"captions": len(images), "images": len(different), **with_intervals(every, statistic, FIGURES)}


def measure_kinds(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the figures of all captions and of each kind of sentence."""
    captions = runs[0].captions
    kinds = [kinds_of(caption) for _, caption in captions]
    ranks = [np.array(run.ranks, np.int64) for run in runs]
    figures = {}
    for kind in ("all", *KINDS):
        chosen = [number for number, found in enumerate(kinds) if kind == "all" or kind in found]
        if chosen:
            figures[kind] = measure_ranks([captions[number][0] for number in chosen], [run[chosen] for run in ranks])
    return figures


def measure_everyday(texts: Mapping[str, Sequence[str]], runs: Sequence[Run]) -> dict[str, Any]:
    """Return for each everyday query how many images are right and how many of them are hits; and the whole share."""
    queries, rows = {}, []
    for query, groups in EVERYDAY.items():
        right = {image for image, captions in texts.items() if is_right(captions, groups)}
        found = [len(right.intersection(run.hits[query])) for run in runs]
        queries[query] = {"right": len(right), **dict(zip(RUNS, found, strict=False))}
        if right:
            rows.append([min(FIRST, len(right)), *found])

    def statistic(drawn: Floats) -> Floats:
        sums = drawn.sum(axis=0)
        return with_difference([sums[[column]] / sums[0] for column in range(1, len(sums))])

    share = with_intervals(np.array(rows, np.float64), statistic, ["share"])["share"] if rows else None
    return {"queries": queries, "queries_with_right_images": len(rows), "share": share}


def show(value: Mapping[str, float], name: str = "", run: str = "now") -> str:
    form = ("+" if run == "difference" else "") + (".1f" if name == "median rank" else ".3f")
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def print_report(about: Sequence[Mapping[str, Any]], kinds: Mapping[str, Any], everyday: Mapping[str, Any]) -> None:
    for run, versions in zip(RUNS, about, strict=False):
        print(f"{run}: " + ", ".join(f"{name} {value}" for name, value in versions.items()))
    if kinds:
        print(f"\n{RULES}")
        paired = "before" in kinds["all"][FIGURES[0]]
        tables = [[(name, run) for run in ("before", "now", "difference")] for name in FIGURES]
        for table in tables if paired else [[(name, "now") for name in FIGURES]]:
            heads = [f"{name} {run}" if paired else name for name, run in table]
            print(f"\n{'kind':<9}{'captions':>9}{'images':>8}   " + "".join(f"{head:<28}" for head in heads))
            for kind, found in kinds.items():
                cells = "".join(f"{show(found[name][run], name, run):<28}" for name, run in table)
                print(f"{kind:<9}{found['captions']:>9,}{found['images']:>8,}   {cells}")
    runs = [run for run in ("before", "now") if run in everyday["queries"][next(iter(EVERYDAY))]]
    print(f"\n{'everyday query':<28}{'right':>6}" + "".join(f"{run + f' in {FIRST}':>14}" for run in runs))
    for query, found in everyday["queries"].items():
        print(f"{query:<28}{found['right']:>6,}" + "".join(f"{found[run]:>14}" for run in runs))
    print(f"{everyday['queries_with_right_images']} queries have right images; share found of those that fit:")
    for run, value in (everyday["share"] or {}).items():
        print(f"  {run:<10} {show(value, run=run)}")


def load_run(path: Path, now: Run) -> Run:
    """Return a run that --json saved. Raises `QueryError` if it cannot be compared with `now`."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        captions = [(image, caption) for image, caption, _ in saved["ranks"]]
        ranks = [rank for _, _, rank in saved["ranks"]]
        run = Run(saved["about"], saved["images"], captions, ranks, saved["hits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QueryError(f"{path} is not a run that --json saved: {error!r}.") from error
    if (run.images, run.captions, set(run.hits)) != (now.images, now.captions, set(now.hits)):
        raise QueryError(f"{path} is of other images, captions or queries: run both versions with the same arguments.")
    return run


def measure(arguments: argparse.Namespace) -> None:
    folder = Path(os.path.abspath(arguments.folder))
    csv_file, tags = folder / "captions.csv", folder / "tags.json"
    path = arguments.captions or (tags if tags.exists() and not csv_file.exists() else csv_file)
    texts, ranked = read_texts(path)
    texts = choose(texts, arguments.images, arguments.limit)
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.collection or Path(temporary) / "collection"
        with Collection.open(find_collection(folder, list(texts), place, arguments.encoder)) as collection:
            run = search_all(collection, folder, texts, ranked, arguments.encoder)
    if missing := len(texts) - len(run.images):
        print(f"{missing:,} images are not in the collection: they are missing, or cannot be decoded")
    runs = [run, load_run(arguments.compare, run)] if arguments.compare else [run]
    kinds = measure_kinds(runs) if run.captions else {}
    everyday = measure_everyday({image: texts[image] for image in run.images}, runs)
    print_report([one.about for one in runs], kinds, everyday)
    if arguments.json:
        ranks = [[image, caption, rank] for (image, caption), rank in zip(run.captions, run.ranks, strict=True)]
        figures = {"about": run.about, "kinds": kinds, "everyday": everyday}
        saved = {**figures, "images": run.images, "ranks": ranks, "hits": run.hits}
        try:
            arguments.json.write_text(json.dumps(saved, indent=1, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise QueryError(f"{arguments.json} cannot be written ({error}): name another file.") from error


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=RULES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a folder of images with captions.csv or tags.json")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="another csv file of captions, or json of tags")
    parser.add_argument("--encoder", metavar="NAME", help="the name of an encoder, by default lite")
    parser.add_argument("--images", type=Path, metavar="FILE", help="use only the images of this list, one a line")
    parser.add_argument("--limit", type=positive, metavar="N", help="use only N images, at even distances in the list")
    parser.add_argument(
        "--collection", type=Path, metavar="PATH", help="search this collection of FOLDER; made if it does not exist"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all figures, and the rank of each caption")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="compare with a run that --json saved")
    try:
        measure(parser.parse_args())
    except PixMatcherError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
