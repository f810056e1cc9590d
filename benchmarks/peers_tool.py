"""The whole of PixMatcher beside rclip: indexing, and a text query of a cold process. Only speed.

    python benchmarks/peers_tool.py --rclip PYTHON --torch PYTHON [--only small|large ...] [--repeats 3]

The Pythons are those of an environment with benchmarks/requirements-peers.txt and of one with `pixmatcher[torch]`. The
latter makes what rclip would download: ViT-B-32-256 of open_clip as ONNX in fp32, with random weights, which are as
fast as any. The hits of rclip therefore say nothing here.

rclip indexes as part of a query, so indexing is timed with one query for both. The images are 2,000 of Tiny ImageNet,
and 100 JPEGs of 12 megapixels. The tools take turns. The original's loop is in benchmarks/encoders.py.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from speed import ROOT, make_large_photos, pixmatcher, run_measured, spread, unpack_small_images

TEXT = "a cat"

EXPORT = """
import shutil, sys
from pathlib import Path
import onnx, open_clip, torch
folder = Path(sys.argv[1])
(folder / "tokenizer").mkdir()
(folder / "ViT-B-32-256-datacomp_s34b_b86k").mkdir()
shutil.copy(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"), folder / "tokenizer")
torch.manual_seed(0)
network = open_clip.create_model("ViT-B-32-256").eval()
network.forward = network.encode_image
for name, example in (("visual", torch.rand(2, 3, 256, 256)), ("textual", torch.ones(2, 77, dtype=torch.int64))):
    if name == "textual":
        network.forward = network.encode_text
    path = folder / "ViT-B-32-256-datacomp_s34b_b86k" / f"{name}.onnx"
    with torch.no_grad():
        program = torch.onnx.export(
            network, (example,), dynamo=True, opset_version=18, input_names=["input"], output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
        )
    program.save(path)
"""


def rclip(python: str, data: Path, images: Path, *options: str) -> list[str]:
    command = ["env", "-C", str(images), f"RCLIP_DATADIR={data}", python, "-m", "rclip", TEXT, *options]
    return [*command, "--filepath-only"]


def found(command: list[str]) -> str:
    """What a query prints, which must be something."""
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True).stdout
    assert told.strip()
    return told


def compare(title: str, images: Path, python: str, data: Path, folder: Path, repeats: int) -> None:
    """Print the seconds of indexing, the memory and the time of a cold query of both."""
    count = len(list(images.iterdir()))
    collection = folder / "collection"
    ask = pixmatcher("search", TEXT, "--json", "-c", collection)
    indexed: dict[str, list[float]] = {"rclip": [], "PixMatcher": []}
    queries: dict[str, list[float]] = {"rclip": [], "PixMatcher": []}
    peaks = {"rclip": 0.0, "PixMatcher": 0.0}
    for _ in range(repeats):
        for path in data.glob("db.sqlite3*"):
            path.unlink()
        shutil.rmtree(collection, ignore_errors=True)
        seconds, peak = run_measured(rclip(python, data, images, "--top", str(count + 1)))
        indexed["rclip"].append(seconds)
        peaks["rclip"] = max(peaks["rclip"], peak)
        seconds, peak = run_measured(pixmatcher("index", images, "-c", collection))
        indexed["PixMatcher"].append(seconds + run_measured(ask)[0])
        peaks["PixMatcher"] = max(peaks["PixMatcher"], peak)
        for _ in range(5):
            queries["rclip"].append(run_measured(rclip(python, data, images, "--no-indexing"))[0])
            queries["PixMatcher"].append(run_measured(ask)[0])
    assert len(found(rclip(python, data, images, "--no-indexing", "--top", str(count + 1))).splitlines()) == count
    assert found(ask)
    print(f"\n{title}: median of {repeats} rounds (least to most)\n")
    print("| | indexed and asked once | cold text query | memory at most |\n| --- | --- | --- | --- |")
    for name in indexed:
        waits = [1000 * seconds for seconds in queries[name]]
        print(f"| {name} | {spread(indexed[name])} s | {spread(waits)} ms | {peaks[name]:.0f} MB |")
    faster, quicker = (
        statistics.median(times["rclip"]) / statistics.median(times["PixMatcher"]) for times in (indexed, queries)
    )
    print(f"\nPixMatcher indexes {faster:.1f} times as fast, and answers {quicker:.1f} times as fast.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rclip", required=True, help="the Python of its environment")
    parser.add_argument("--torch", required=True, help="the Python of an environment with open_clip and onnxscript")
    parser.add_argument("--only", choices=("small", "large"), nargs="+", default=("small", "large"))
    parser.add_argument("--count", type=int, default=2000, help="of the small images")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large, data = folder / "small", folder / "large", folder / "rclip"
        for path in (small, large, data):
            path.mkdir()
        subprocess.run([arguments.torch, "-c", EXPORT, str(data)], stdout=subprocess.DEVNULL, check=True)
        if "small" in arguments.only:
            unpack_small_images(arguments.data, small, arguments.count)
            title = f"{arguments.count:,} images of 64 x 64"
            compare(title, small, arguments.rclip, data, folder, arguments.repeats)
        if "large" in arguments.only:
            megabytes = make_large_photos(large, 100, 6)
            title = f"100 JPEGs of 12 megapixels, {megabytes:.1f} MB each"
            compare(title, large, arguments.rclip, data, folder, arguments.repeats)


if __name__ == "__main__":
    main()
