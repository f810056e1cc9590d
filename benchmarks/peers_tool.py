"""Compare the speed of PixMatcher with rclip and the original loop: indexing, and queries in a new process.

    python benchmarks/peers_tool.py --rclip PYTHON --torch PYTHON [--only small|large ...] [--repeats 3]

The first PYTHON is that of an environment with benchmarks/requirements-peers.txt, the second that of an environment
with `pixmatcher[torch]`. The second runs the original loop (benchmarks/original_loop.py), and creates the model that
rclip would download: ViT-B-32-256 of open_clip as ONNX in fp32. These weights are random, which does not change the
speed, so only the hits of PixMatcher are meaningful.

rclip indexes during a query, so the time of indexing includes one query for all tools. The images are 2,000 of Tiny
ImageNet, and 100 JPEGs of 12 megapixels. The tools run alternately.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from speed import ROOT, make_large_photos, pixmatcher, run_measured, spread, unpack_small_images

TEXT = "a cat"
QUERIES = 3
"""Queries of each kind in a round."""
LOOP, OURS = "the original loop", "PixMatcher"

EXPORT = """
import shutil, sys
from pathlib import Path
import onnx, open_clip, torch
folder = Path(sys.argv[1])
(folder / "tokenizer").mkdir()
(folder / "ViT-B-32-256-datacomp_s34b_b86k").mkdir()
for name in ("LICENSE", "OPENAI-CLIP-MIT.txt", "README.md", "THIRD_PARTY_NOTICES.md"):
    (folder / name).touch()  # rclip 4 downloads its models if one of these is missing
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


@dataclass
class Tool:
    """How to reset a tool, index and query with it, and its measured seconds and peak memory in MB."""

    reset: Callable[[], None]
    index: list[list[str]]
    queries: dict[str, list[str]]
    index_seconds: list[float] = field(default_factory=list)
    query_seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: float = 0

    def measure(self) -> None:
        """Run one round: index all images, then query."""
        self.reset()
        seconds = 0.0
        for command in self.index:
            took, peak = run_measured(command)
            seconds, self.peak = seconds + took, max(self.peak, peak)
        self.index_seconds.append(seconds)
        for kind, command in self.queries.items():
            self.query_seconds.setdefault(kind, []).extend(run_measured(command)[0] for _ in range(QUERIES))


def tools_for(arguments: argparse.Namespace, images: Path, folder: Path) -> dict[str, Tool]:
    chosen, collection = str(min(images.iterdir())), folder / "collection"
    count = len(list(images.iterdir()))
    rclip_data, original_data = folder / "rclip", folder / "original"
    loop = [arguments.torch, str(Path(__file__).with_name("original_loop.py"))]

    def rclip(query: str, *options: str) -> list[str]:
        command = ["env", "-C", str(images), f"RCLIP_DATADIR={rclip_data}", arguments.rclip, "-m", "rclip", query]
        return [*command, "--filepath-only", *options]

    def reset_rclip() -> None:
        for path in rclip_data.glob("db.sqlite3*"):
            path.unlink()

    def query_ours(query: str) -> list[str]:
        return pixmatcher("search", query, "--json", "-c", collection)

    def reset_original() -> None:
        for path in original_data.glob("*.npy"):
            path.unlink()

    return {
        "rclip": Tool(
            reset_rclip,
            [rclip(TEXT, "--top", str(count + 1))],
            {"text": rclip(TEXT, "--no-indexing"), "image": rclip(chosen, "--no-indexing")},
        ),
        LOOP: Tool(
            reset_original,
            [[*loop, "index", str(original_data), str(images)], [*loop, "image", str(original_data), chosen]],
            {kind: [*loop, kind, str(original_data), query] for kind, query in (("text", TEXT), ("image", chosen))},
        ),
        OURS: Tool(
            lambda: shutil.rmtree(collection, ignore_errors=True),
            [pixmatcher("index", images, "-c", collection), query_ours(TEXT)],
            {"text": query_ours(TEXT), "image": query_ours(chosen)},
        ),
    }


def compare(title: str, chosen: dict[str, Tool], repeats: int) -> None:
    for _ in range(repeats):
        for tool in chosen.values():
            tool.measure()
    for name, tool in chosen.items():
        for command in tool.queries.values():
            output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
            assert output.strip(), f"{name} finds nothing"
    print(f"\n{title}: median of {repeats} rounds (range)\n")
    print("| | indexing and one query | cold text query | cold image query | peak memory |")
    print("| --- | --- | --- | --- | --- |")
    for name, tool in chosen.items():
        waits = [spread([1000 * seconds for seconds in tool.query_seconds[kind]]) for kind in ("text", "image")]
        print(f"| {name} | {spread(tool.index_seconds)} s | {' ms | '.join(waits)} ms | {tool.peak:.0f} MB |")
    print()
    for name, tool in chosen.items():
        if name != OURS:
            ours = chosen[OURS]
            indexes = statistics.median(tool.index_seconds) / statistics.median(ours.index_seconds)
            text, image = (
                statistics.median(tool.query_seconds[kind]) / statistics.median(ours.query_seconds[kind])
                for kind in ("text", "image")
            )
            print(f"PixMatcher indexes {indexes:.1f} times as fast as {name}, ", end="")
            print(f"answers a text {text:.1f} times and an image {image:.1f} times as fast.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rclip", required=True, help="the Python interpreter of its environment")
    parser.add_argument(
        "--torch", required=True, help="the Python interpreter of an environment with open_clip and onnxscript"
    )
    parser.add_argument("--only", choices=("small", "large"), nargs="+", default=("small", "large"))
    parser.add_argument("--count", type=int, default=2000, help="number of small images")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tiny-imagenet-mini.zip")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = folder / "small", folder / "large"
        for path in (small, large, folder / "rclip", folder / "original"):
            path.mkdir()
        loop = str(Path(__file__).with_name("original_loop.py"))
        for command in (["-c", EXPORT, str(folder / "rclip")], [loop, "weights", str(folder / "original")]):
            subprocess.run([arguments.torch, *command], stdout=subprocess.DEVNULL, check=True)
        if "small" in arguments.only:
            unpack_small_images(arguments.data, small, arguments.count)
            title = f"{arguments.count:,} images of 64 x 64"
            compare(title, tools_for(arguments, small, folder), arguments.repeats)
        if "large" in arguments.only:
            megabytes = make_large_photos(large, 100, 6)
            title = f"100 JPEGs of 12 megapixels, {megabytes:.1f} MB each"
            compare(title, tools_for(arguments, large, folder), arguments.repeats)


if __name__ == "__main__":
    main()
