"""Measure the images per second of the encoders with each backend and precision, and of the original loop in PyTorch.

The original loop opens an image with Pillow, resizes it to 224 x 224, normalises it to a tensor, and embeds batches of
32; for CLIP it uses the transform of open_clip. All ways run alternately, in the same number of rounds, after the
networks are loaded. The images are files of Tiny ImageNet.

The weights are random with a fixed seed, which does not change the speed; with other weights, other layers may stay in
fp32 in the int8 networks.

    python benchmarks/encoders.py [--only mobilenet_v3_large|mobilenet_v3_small|clip-vit-b-32|lite ...]
                                  [--count 2000] [--rounds 3] [--data tiny-imagenet-mini.zip] [--keep FOLDER]

CLIP and its loop get one eighth of the images. It takes half an hour on two cores, most of it for CLIP.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from speed import spread

from pixmatcher import index, load_encoder, open_image
from pixmatcher.encoders import Encoder, Runtime
from pixmatcher.encoders._cache import model_folder
from pixmatcher.encoders.onnx.quantize import quantize_model
from pixmatcher.encoders.torch.encoder import TorchEncoder
from pixmatcher.encoders.torch.export import export_model
from pixmatcher.encoders.torch.models import import_weights, open_torch_model
from pixmatcher.images import fit_image

ROOT = Path(__file__).parents[1]
LARGE, SMALL, CLIP, LITE = "mobilenet_v3_large", "mobilenet_v3_small", "clip-vit-b-32", "lite"
TARGETS = {LARGE: 4.0, CLIP: 2.0}
"""How many times as fast as the original loop ONNX Runtime should be, end to end."""
LOOP = "original loop"
BATCH = 32
CALIBRATION = 128
DECODED = 256
"""Number of images to time the network alone."""
GPU_BATCH, GPU_ROUNDS = 512, 20

Pixels = npt.NDArray[np.uint8]


@dataclass
class Row:
    """A way to embed images, and its measured images per second."""

    encoder: str
    backend: str
    precision: str
    files: list[Path]
    end_to_end: Callable[[list[Path]], object]
    """Embed the images of these files."""
    network_only: Callable[[], int]
    """Embed some decoded images; return how many."""
    rates: list[float] = field(default_factory=list)
    network_rates: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Run one round."""
        started = time.perf_counter()
        count = self.network_only()
        self.network_rates.append(count / (time.perf_counter() - started))
        started = time.perf_counter()
        self.end_to_end(self.files)
        self.rates.append(len(self.files) / (time.perf_counter() - started))


def unpack(archive: Path, folder: Path, count: int) -> tuple[list[Path], list[Path]]:
    """Write validation images of Tiny ImageNet, and some training images for calibration, to folders; return both."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if name.endswith(".JPEG")]
        train = [name for name in names if "/train/" in name]
        parts = {
            "val": [name for name in names if "/val/images/" in name][:count],
            "train": train[:: len(train) // CALIBRATION][:CALIBRATION],
        }
        for part, chosen in parts.items():
            (folder / part).mkdir()
            for name in chosen:
                (folder / part / Path(name).name).write_bytes(file.read(name))
    val, train_files = (sorted((folder / part).iterdir()) for part in parts)
    return val, train_files


def decoded(files: list[Path], encoder: Encoder) -> Pixels:
    """Return the pixels (N, S, S, 3) of files as the encoder gets them."""
    opened = (open_image(path, min_side=encoder.recipe.min_side) for path in files)
    return np.stack([fit_image(image.image, encoder.recipe) for image in opened])


def make_weights(name: str, folder: Path) -> Path:
    """Write random weights for an encoder to a file; those of MobileNetV3 give different images different features."""
    torch.manual_seed(0)
    path = folder / f"{name}.pth"
    if name == CLIP:
        import open_clip

        network: Any = open_clip.create_model("ViT-B-32-quickgelu")
    else:
        from torchvision.models import get_model

        network = get_model(name, weights=None)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # so that the statistics are those of all images
        patches = torch.nn.functional.interpolate(torch.randn(BATCH, 3, 7, 7), size=224)
        with torch.no_grad():
            network.train()(patches)
    torch.save(network.state_dict(), path)
    return path


def prepare(name: str, folder: Path, calibration: list[Path]) -> None:
    """Store the PyTorch weights and the exports of an encoder in the cache."""
    import_weights(name, make_weights(name, folder))
    model = open_torch_model(name)
    if not model_folder(name).is_dir():
        export_model(model, model_folder(name))
    target = model_folder(f"{name}@int8")
    if not target.is_dir():
        encoder = load_encoder(name, Runtime(backend="onnx"))
        quantize_model(model_folder(name), target, decoded(calibration, encoder))


def ours(name: str, backend: str, precision: str, files: list[Path], folder: Path) -> Row:
    """Return an encoder of PixMatcher; end to end is `pixmatcher.index` of a folder into a new collection."""
    full = f"{name}@int8" if precision == "int8" and name != LITE else name
    runtime = Runtime(backend=backend, device="cpu")
    encoder = load_encoder(full, runtime)
    pixels = decoded(files[:DECODED], encoder)
    batches = [pixels[start : start + encoder.batch_size] for start in range(0, len(pixels), encoder.batch_size)]

    def network_only() -> int:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(encoder.encode_images, batches))
        return len(pixels)

    def end_to_end(chosen: list[Path]) -> None:
        collection = folder / "collection"
        shutil.rmtree(collection, ignore_errors=True)
        report = index([chosen[0].parent], collection, encoders=[full], runtime=runtime)
        assert report.added == len(chosen)

    return Row(name, backend, precision, files, end_to_end, network_only)


def original(name: str, files: list[Path]) -> Row:
    """Return the original loop in PyTorch."""
    from torchvision import transforms

    transform: Any
    if name == CLIP:
        import open_clip

        network, _, transform = open_clip.create_model_and_transforms("ViT-B-32-quickgelu")
        network = network.eval()
        embed = network.encode_image
    else:
        from torchvision.models import get_model

        network = get_model(name, weights=None).eval()
        embed = torch.nn.Sequential(network.features, network.avgpool, torch.nn.Flatten())
        transform = transforms.Compose(
            [
                transforms.Resize((224, 224)),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )
    ready = torch.randn(BATCH, 3, 224, 224)

    def end_to_end(chosen: list[Path]) -> None:
        with torch.no_grad():
            for start in range(0, len(chosen), BATCH):
                images = [transform(Image.open(path).convert("RGB")) for path in chosen[start : start + BATCH]]
                embed(torch.stack(images)).numpy()

    def network_only() -> int:
        with torch.no_grad():
            embed(ready)
        return BATCH

    return Row(name, LOOP, "fp32", files, end_to_end, network_only)


def rows_of(name: str, files: list[Path], folder: Path) -> list[Row]:
    """Return all ways to embed images with an encoder."""
    if name == LITE:
        return [ours(LITE, "onnx", "int8", files, folder)]
    forms = (("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))
    return [original(name, files), *(ours(name, backend, precision, files, folder) for backend, precision in forms)]


def gpu_rate(files: list[Path]) -> str:
    """Return the images per second of MobileNetV3-Large on a GPU in half precision, from decoded batches, as text."""
    if not torch.cuda.is_available():
        return "not measured (no GPU)"
    encoder = TorchEncoder(open_torch_model(LARGE), torch.device("cuda"))
    pixels = np.resize(decoded(files[:DECODED], encoder), (GPU_BATCH, 224, 224, 3))
    encoder.encode_images(pixels)
    rates = []
    for _ in range(GPU_ROUNDS):
        started = time.perf_counter()
        encoder.encode_images(pixels)
        rates.append(GPU_BATCH / (time.perf_counter() - started))
    median, low, high = statistics.median(rates), min(rates), max(rates)
    return f"{median:,.0f} ({low:,.0f} to {high:,.0f}) on {torch.cuda.get_device_name()}, target 5,000"


def table_of(rows: list[Row]) -> Table:
    """Return the measured speeds as a table."""
    table = Table(title="Images per second: median of the rounds (range)")
    for title in ("encoder", "backend", "precision", "images"):
        table.add_column(title, justify="right" if title == "images" else "left")
    for title in ("network alone", "end to end", "times the loop", "target"):
        table.add_column(title, justify="right")
    loops = {row.encoder: statistics.median(row.rates) for row in rows if row.backend == LOOP}
    for row in rows:
        median, loop = statistics.median(row.rates), loops.get(row.encoder, loops.get(LARGE))
        target = TARGETS.get(row.encoder) if row.backend == "onnx" else None
        table.add_row(
            row.encoder,
            row.backend,
            row.precision,
            str(len(row.files)),
            spread(row.network_rates),
            spread(row.rates),
            "" if loop is None else f"{median / loop:.1f}",
            "" if target is None else f"{target:.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = (LARGE, SMALL, CLIP, LITE)
    parser.add_argument("--only", choices=names, nargs="+", default=names)
    parser.add_argument("--count", type=int, default=2000, help="images; CLIP gets one eighth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--keep", type=Path, help="folder that keeps the exports for the next run")
    arguments = parser.parse_args()
    console = Console(width=140)
    os.environ["PIXMATCHER_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["PIXMATCHER_CACHE"] = str(arguments.keep or folder / "cache")
        _, calibration = unpack(arguments.data, folder, 0)
        rows: list[Row] = []
        for name in arguments.only:
            place = folder / name
            place.mkdir()
            count = max(BATCH, arguments.count // 8) if name == CLIP else arguments.count
            files, _ = unpack(arguments.data, place, count)
            if name != LITE:
                prepare(name, place, calibration)
            own = rows_of(name, files, place)
            for row in own:  # to load and warm up the networks
                row.network_only()
            for number in range(arguments.rounds):
                for row in own:
                    console.print(f"[dim]{name}, round {number + 1}: {row.backend} {row.precision}")
                    row.measure()
            rows += own
        console.print(table_of(rows))
        console.print(f"{LARGE} on a GPU in half precision, from decoded batches: {gpu_rate(calibration)}")
        console.print(f"{os.cpu_count()} cores; torch {torch.__version__}; random weights")


if __name__ == "__main__":
    main()
