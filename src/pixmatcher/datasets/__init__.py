"""Public data sets to index: Tiny ImageNet, and the lists of Open Images. `examples` are the photos of the demo.

A note in the folder says what it holds. A second call with the same arguments finds it complete, and a call with other
arguments does not mix two data sets.

May import every package of the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .._progress import ProgressCallback
from ..errors import QueryError
from ._open_images import get_open_images
from ._tiny_imagenet import get_tiny_imagenet

__all__ = ["DATASETS", "Dataset", "get_dataset", "get_open_images", "get_tiny_imagenet"]


@dataclass(frozen=True)
class Dataset:
    """A data set that can be downloaded by its name."""

    name: str
    description: str
    terms: str
    size: str
    example: str


DATASETS = (
    Dataset(
        "tiny-imagenet",
        "Tiny ImageNet: 110,000 labelled images of 64 x 64 pixels in 200 classes, and 10,000 without labels",
        "for non-commercial research and education, as ImageNet (https://image-net.org/download)",
        "248 MB, and 0.5 GB of disk unpacked",
        "pixmatcher datasets get tiny-imagenet",
    ),
    Dataset(
        "open-images",
        "Open Images V7: lists of photos on the web, with labels, authors and licences; the photos are not downloaded",
        "lists: CC BY 4.0, Google; photos: listed as CC BY 2.0, to be verified for each",
        "validation 44 MB (41,620 images), test 139 MB (125,436), train 3.4 GB (1,743,042)",
        "pixmatcher datasets get open-images --split validation --limit 1000",
    ),
)


def get_dataset(
    name: str,
    folder: Path | None = None,
    *,
    url: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    unpack: bool | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Download a data set into `folder`, by default a folder with its name, and return the path to index.

    Raises `QueryError` for an unknown name or an option that the data set does not have, and as `get_tiny_imagenet` or
    `get_open_images`.
    """
    options = {"--split": split, "--limit": limit, "--no-unpack": unpack}
    not_of_it = {"tiny-imagenet": ("--split", "--limit"), "open-images": ("--no-unpack",)}.get(name)
    if not_of_it is None:
        raise QueryError(f"Unknown data set {name!r}: choose one of {', '.join(d.name for d in DATASETS)}.")
    for option in not_of_it:
        if options[option] is not None:
            raise QueryError(f"{name} has no option {option}: leave it out.")
    place = folder or Path(name)
    if name == "tiny-imagenet":
        return get_tiny_imagenet(place, url=url, unpack=unpack is not False, progress=progress)
    return get_open_images(place, split or "validation", limit, base_url=url, progress=progress)
