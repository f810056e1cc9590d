"""Measure how good encoders are on Tiny ImageNet: image to image, and class name to image.

    python benchmarks/quality.py [tiny-imagenet-mini.zip] [--encoder NAME ...]

Image to image: each image of the `val` part is a query, and the images of the `train` part are searched. Text to image:
the first name of each class is a query, and the images of the `val` part are searched. A hit is right if it has the
label of the query. The metrics and their 95 % intervals are those of `pixmatcher evaluate`, see
docs/explanations/evaluation.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pixmatcher import Collection, evaluate, index
from pixmatcher.evaluation import QueryMetrics
from pixmatcher.sources import open_source

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
K = 10
TARGETS = {"images": 0.38, "class names": 0.51}
"""Required precision@10 on the mini set."""
LITE0_BASELINE = 0.254
"""precision@10 of raw features of EfficientNet-Lite0 with Euclidean distance, measured earlier: see
docs/explanations/lite.md."""


def print_metrics(encoder: str, queries: str, found: QueryMetrics | None) -> None:
    if found is None:
        print(f"{encoder}, {queries}: no text queries")
        return
    print(f"{encoder}, {found.queries:,} {queries}, space {found.space} (precision@{K} required: {TARGETS[queries]})")
    for name, metric in found.metrics.items():
        print(f"  {name:<14}{metric.value:.4f}   {metric.low:.4f} to {metric.high:.4f}")


def measure(encoder: str, data: Path, folder: Path) -> None:
    """Index both parts with an encoder and print the metrics."""
    queries = open_source(f"tiny-imagenet:{data}?split=val")
    reports = [
        index(f"tiny-imagenet:{data}", folder / "train", encoders=[encoder]),
        index(queries, folder / "val", encoders=[encoder]),
    ]
    with Collection.open(folder / "train") as train:
        print_metrics(encoder, "images", evaluate(train, queries, k=K).images)
    with Collection.open(folder / "val") as val:
        print_metrics(encoder, "class names", evaluate(val, queries, k=K).texts)
    count, seconds = sum(report.total for report in reports), sum(report.seconds for report in reports)
    print(f"  indexed {count:,} images at {count / seconds:.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--encoder", metavar="NAME", nargs="+", default=["lite"], help="names of encoders")
    arguments = parser.parse_args()
    for encoder in arguments.encoder:
        with tempfile.TemporaryDirectory() as folder:
            measure(encoder, arguments.data, Path(folder))
    earlier = "(measured earlier: docs/explanations/lite.md)"
    print(f"raw EfficientNet-Lite0 features, L2, images: precision@10 {LITE0_BASELINE} {earlier}")


if __name__ == "__main__":
    main()
