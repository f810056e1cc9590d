"""Compare the recall that a trained index finds with the one that was asked for, on queries that it never saw.

    python benchmarks/index_targets.py [--target 0.95 0.99] [--size 100000]

Two sets of images: the train images of the Tiny ImageNet mini set with its val images as queries, and photographs, of
which 10,000 are in the index and the others are queries. With SIZE 0 the rows are the images themselves; otherwise they
are made from these as in benchmarks/index.py. Captions of the photographs are the texts; they are compared in the space
`semantic`. The index is told nothing but its rows.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import zipfile
from pathlib import Path

import index as rows_of
import numpy as np
from index import DEFAULT_DATA, K, true_nearest, write_rows

from pixmatcher import index
from pixmatcher.encoders.lite import LiteEncoder
from pixmatcher.vector_index import IndexTarget
from pixmatcher.vector_index.trained import TrainedIndex
from pixmatcher.vector_index.vectors import Float32, Rows, VectorFile

PHOTOS = DEFAULT_DATA.with_name("captioned-photos.zip")
INDEXED_PHOTOS = 10_000
QUERIES = 1000
SPACES = ("visual", "semantic")


def embeddings(folder: Path) -> dict[str, Float32]:
    """Return the embeddings (N, D) of a collection in each space."""
    found = {}
    for rows_of.SPACE in SPACES:
        found[rows_of.SPACE] = rows_of.embeddings(folder)
    return found


def image_sets(data: Path, photos: Path, folder: Path) -> dict[str, tuple[dict[str, Float32], dict[str, Float32]]]:
    """Return the images and the queries of each set, in each space."""
    for split in ("train", "val"):
        index(f"tiny-imagenet:{data}?split={split}", folder / split)
    with zipfile.ZipFile(photos) as archive:
        archive.extractall(folder / "images")
    index(folder / "images", folder / "photos")
    all_photos = embeddings(folder / "photos")
    order = np.random.default_rng(5).permutation(len(all_photos[SPACES[0]]))
    parts = [{space: rows[part] for space, rows in all_photos.items()} for part in np.split(order, [INDEXED_PHOTOS])]
    return {
        "Tiny ImageNet": (embeddings(folder / "train"), embeddings(folder / "val")),
        "photographs": (parts[0], parts[1]),
    }


def caption_vectors(folder: Path) -> Float32:
    """Return the embeddings (Q, D) of captions, one in each 30."""
    (path,) = (folder / "images").rglob("captions.csv")
    with path.open(encoding="utf-8", newline="") as file:
        captions = [row[-1] for row in csv.reader(file)][1::30][:QUERIES]
    return LiteEncoder().encode_texts(captions)["semantic"].astype(np.float32)


def recall(trained: TrainedIndex, queries: Float32, truth: Rows) -> float:
    """Return the recall@10 of the queries (Q, D)."""
    found = [trained.search(query, K)[1] for query in queries]
    return float(np.mean([len(np.intersect1d(*each)) / K for each in zip(found, truth, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, nargs="+", default=[0.95, 0.99])
    parser.add_argument("--size", type=int, nargs="+", default=[0, 100_000])
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="captioned-photos.zip")
    parser.add_argument("--folder", type=Path, help="folder that keeps the collections for the next run")
    arguments = parser.parse_args()
    print(f"| rows | space | queries | {' | '.join(f'target {target}' for target in arguments.target)} |")
    print(f"| --- | --- | --- |{' --- |' * len(arguments.target)}")
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        sets = image_sets(arguments.data, arguments.photos, folder)
        texts = caption_vectors(folder)
        for images_name, (images, new_images) in sets.items():
            for size in arguments.size:
                for space in SPACES:
                    count = size or len(images[space])
                    if size:
                        vectors = write_rows(folder, images[space], size)
                    else:
                        vectors = VectorFile(folder / "vectors.f16", images[space].shape[1])
                        vectors.write(0, images[space].astype("<f2"))
                    trained = TrainedIndex.train(vectors, np.arange(count), IndexTarget(), text=space == "semantic")
                    queries = {"images": new_images[space][:QUERIES].astype(np.float32)}
                    if space == "semantic":
                        queries["captions"] = texts
                    truths = {kind: true_nearest(vectors, count, each) for kind, each in queries.items()}
                    found: dict[str, list[str]] = {kind: [] for kind in queries}
                    for target in arguments.target:
                        trained.calibrate(IndexTarget(target), text=space == "semantic")
                        for kind, each in queries.items():
                            found[kind].append(f"{recall(trained, each, truths[kind]):.3f}")
                    for kind, cells in found.items():
                        made = "made from" if size else "of"
                        print(
                            f"| {count:,} {made} {images_name} | {space} | {kind} | {' | '.join(cells)} |", flush=True
                        )


if __name__ == "__main__":
    main()
