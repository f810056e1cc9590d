"""How good every encoder at hand is on Tiny ImageNet: image to image, and class name to image.

    python benchmarks/quality.py [tiny-imagenet-mini.zip] [--encoder NAME ...]

Image to image: each image of the `val` part against the images of the `train` part. Text to image: the first name of
each class against the images of the `val` part. Right is what has the same label. It is what `pixmatcher evaluate`
gives, with its 95 % intervals; docs/explanations/evaluation.md tells what the figures mean.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pixmatcher import Collection, evaluate, index
from pixmatcher.encoders import encoder_names
from pixmatcher.evaluation import Figures
from pixmatcher.sources import open_source

DEFAULT_DATA = Path(__file__).parents[2] / "shared" / "data" / "tiny-imagenet-mini.zip"
K = 10
ASKED = {"images": 0.38, "class names": 0.51}
"""Of precision@10, on the mini set."""
LITE0_BASELINE = 0.254
"""Raw features of EfficientNet-Lite0, by Euclidean distance: an older figure, see docs/explanations/lite.md."""


def print_figures(encoder: str, queries: str, figures: Figures | None) -> None:
    if figures is None:
        print(f"{encoder}, {queries}: it knows no texts")
        return
    print(f"{encoder}, {figures.queries:,} {queries}, space {figures.space} (precision@{K} asked: {ASKED[queries]})")
    for name, figure in figures.figures.items():
        print(f"  {name:<14}{figure.value:.4f}   {figure.low:.4f} to {figure.high:.4f}")


def measure(encoder: str, data: Path, folder: Path) -> None:
    """Index both parts with an encoder and print what they reach."""
    queries = open_source(f"tiny-imagenet:{data}?split=val")
    reports = [
        index(f"tiny-imagenet:{data}", folder / "train", encoders=[encoder]),
        index(queries, folder / "val", encoders=[encoder]),
    ]
    with Collection.open(folder / "train") as train:
        print_figures(encoder, "images", evaluate(train, queries, k=K).images)
    with Collection.open(folder / "val") as val:
        print_figures(encoder, "class names", evaluate(val, queries, k=K).texts)
    count, seconds = sum(report.total for report in reports), sum(report.seconds for report in reports)
    print(f"  indexed {count:,} images at {count / seconds:.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--encoder", choices=encoder_names(), nargs="+", default=encoder_names())
    arguments = parser.parse_args()
    for encoder in arguments.encoder:
        with tempfile.TemporaryDirectory() as folder:
            measure(encoder, arguments.data, Path(folder))
    older = "(an older figure: docs/explanations/lite.md)"
    print(f"raw EfficientNet-Lite0 features, L2, images: precision@10 {LITE0_BASELINE} {older}")


if __name__ == "__main__":
    main()
