"""Compute what a collection of many images takes, from measured costs of an image, a row and a query.

    python benchmarks/scale.py [--images 100e6 5e9] [--lite-rate 55] [--core-hour 0.045] ...

It prints the tables of docs/scale.md. Nothing is measured here: each cost is an option, whose default is a measured or
a published figure that docs/scale.md names. Put in your own rates and prices.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Costs:
    """The measured costs, for `lite`: 384 values in `visual`, 768 in `semantic`."""

    lite_rate: float = 180
    """Small images that one core with VNNI decodes and encodes a second; with AVX2 about 55."""
    clip_rate: float = 312
    """Images a second of CLIP ViT-L/14 on one A100 (published by LAION)."""
    image_bytes: float = 40e3
    """Bytes of an image that is downloaded, at most 384 pixels on the longer side (240 TB for 5.85 billion images)."""
    node_downloads: float = 1000
    """Images a second that one node of 16 cores downloads (published by img2dataset)."""
    row_bytes: float = 2 * (384 + 768)
    """Bytes of the float16 rows of an image in both spaces."""
    index_bytes: float = 110 + 144
    """Bytes of memory of the trained indexes of an image in both spaces."""
    catalog_bytes: float = 455
    """Bytes of an item in the catalog."""
    merge_rate: float = 2800
    """Rows a second of processor time that one process merges from shards; 1,000,000 rows with the index."""
    milvus_rate: float = 2600
    """Rows a second that one process writes to Milvus; measured with a server on the same busy cores."""
    build_seconds: float = 255
    """Seconds in which two cores build an index of 10,000,000 rows of 384 values."""
    query_ms: float = 1.4
    """Milliseconds of one core for a query among 10,000,000 rows of 384 values."""


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars; about what large clouds ask on demand."""

    core_hour: float = 0.045
    gpu_hour: float = 4.0
    gigabyte_of_memory_hour: float = 0.006
    gigabyte_of_disk_month: float = 0.08


NODE_CORES = 16


def time_of(seconds: float) -> str:
    """Return a duration in a unit that fits."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {name}"
    return f"{seconds:,.3g} s"


def size_of(count: float) -> str:
    """Return a number of bytes in a unit that fits."""
    for size, name in ((1e12, "TB"), (1e9, "GB")):
        if count >= size:
            return f"{count / size:,.3g} {name}"
    return f"{count / 1e6:,.3g} MB"


def report(images: float, costs: Costs, prices: Prices) -> list[tuple[str, str]]:
    """Return what a number of images takes, as pairs of a name and a text."""
    core_hours = images / costs.lite_rate / 3600
    gpu_hours = images / costs.clip_rate / 3600
    node_rate = min(costs.node_downloads, NODE_CORES * costs.lite_rate)
    node_hours = images / node_rate / 3600
    # A row is compared with the centres of all lists, of which there are as many as the square root of the rows.
    build = costs.build_seconds * (images / 10e6) ** 1.5 * (1 + 768 / 384)
    memory = images * costs.index_bytes
    disk = images * (costs.row_bytes + costs.index_bytes + costs.catalog_bytes)
    query = costs.query_ms * math.sqrt(images / 10e6)
    return [
        ("encode with `lite`, from a disk", f"{core_hours:,.0f} core hours, ${core_hours * prices.core_hour:,.0f}"),
        ("encode with CLIP ViT-L/14", f"{gpu_hours:,.0f} hours of an A100, ${gpu_hours * prices.gpu_hour:,.0f}"),
        ("download the images", size_of(images * costs.image_bytes)),
        (
            f"download and encode with `lite`, 10 nodes of {NODE_CORES} cores",
            f"{time_of(node_hours * 360)}, ${node_hours * NODE_CORES * prices.core_hour:,.0f}; "
            f"{node_rate / costs.lite_rate:.0f} of {NODE_CORES} cores are busy",
        ),
        (
            "rows, indexes and catalog on disk",
            f"{size_of(disk)}, ${disk / 1e9 * prices.gigabyte_of_disk_month:,.0f} a month",
        ),
        (
            "memory of the indexes",
            f"{size_of(memory)}, ${memory / 1e9 * prices.gigabyte_of_memory_hour * 730:,.0f} a month",
        ),
        ("build both indexes on two cores", time_of(build)),
        ("one query, one core, one index of `visual`", f"{query:.1f} ms"),
        ("merge shards in one process", time_of(images / costs.merge_rate)),
        ("write to Milvus, 32 processes", time_of(images / costs.milvus_rate / 32)),
    ]


def main() -> None:
    """Print the table of each number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=float, nargs="+", default=[100e6, 5e9])
    for field in (*fields(Costs), *fields(Prices)):
        parser.add_argument("--" + field.name.replace("_", "-"), type=float, default=field.default)
    given = vars(parser.parse_args())
    costs, prices = (kind(**{f.name: given[f.name] for f in fields(kind)}) for kind in (Costs, Prices))
    for images in given["images"]:
        print(f"\n{images:,.0f} images\n")
        for name, text in report(images, costs, prices):
            print(f"| {name} | {text} |")


if __name__ == "__main__":
    main()
