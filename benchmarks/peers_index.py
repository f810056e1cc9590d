"""Compare the index of PixMatcher with ScaNN, SVS, VSAG, NGT, rabitqlib, turbovec, hnswlib, usearch and FAISS.

    python benchmarks/peers_index.py --peers PYTHON [--size 100000 1000000] [--budget 1200]

PYTHON is the interpreter of an environment with benchmarks/requirements-peers.txt. Rows and queries are those of
benchmarks/index.py. Each index is built on two cores and searched on one core, one query after the other, in processes
of its own (benchmarks/one_index.py). The queries per second at a recall are interpolated between the two nearest
settings. The output is Markdown tables and the plot `docs/images/peers-SIZE.png`. A build that adds rows in blocks is
stopped after BUDGET seconds. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from index import DEFAULT_DATA, K, prepare, true_nearest, write_rows
from one_index import DIMENSION, INDEXES, RECALL_TARGETS

from pixmatcher._cores import usable_cores

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WORKER = Path(__file__).with_name("one_index.py")


def run(python: str, cores: int, *arguments: str) -> dict[str, Any]:
    """Return the JSON output of one_index.py, run on so many cores."""
    allowed = sorted(os.sched_getaffinity(0))[-cores:]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "OPENBLAS_NUM_THREADS": str(cores)}
    command = ["taskset", "--cpu-list", ",".join(map(str, allowed)), python, str(WORKER), *arguments]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def front(points: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return recall and queries per second of the settings that no other setting beats in both, by recall."""
    best: list[tuple[float, float]] = []
    for recall, rate in sorted(((p["recall"], statistics.median(p["rates"])) for p in points), reverse=True):
        if not best or rate > best[-1][1]:
            best.append((recall, rate))
    return best[::-1]


def rate_at(points: list[dict[str, Any]], recall: float) -> float | None:
    """Return the queries per second at a recall; None if no setting reaches it."""
    recalls, rates = zip(*front(points), strict=True)
    return None if recalls[-1] < recall else float(np.exp(np.interp(recall, recalls, np.log(rates))))


def measure(name: str, python: str, folder: Path, budget: float) -> dict[str, Any]:
    """Build and search an index in processes of its own; return what they measured."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    result = run(python, min(2, usable_cores()), "build", name, str(folder), str(budget))
    if result["bytes"]:
        result |= run(python, 1, "search", name, str(folder))
    print(f"  {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def print_tables(count: int, results: dict[str, dict[str, Any]]) -> None:
    at = [f"at {recall:.2f}" for recall in RECALL_TARGETS]
    titles = ["", *at, "build", "CPU time", "private memory", "mapped", "file", "first query after"]
    print(f"\n{count:,} x {DIMENSION}: queries per second at a recall@{K}; bytes for each row\n")
    print(f"| {' | '.join(titles)} |\n| {' | '.join('---' for _ in titles)} |")
    for name, result in results.items():
        if not result["bytes"]:
            done = f"stopped after {result['seconds']:.0f} s, with {result['rows'] / count:.0%} of the rows"
            cells = [*[""] * len(RECALL_TARGETS), done, f"{result['cpu']:.0f} s", "", "", "", ""]
        else:
            rates = [rate_at(result["points"], recall) for recall in RECALL_TARGETS]
            sizes = [f"{result[part] / count:,.0f}" for part in ("own", "mapped", "bytes")]
            cells = ["not reached" if rate is None else f"{rate:,.0f}" for rate in rates]
            cells += [f"{result['seconds']:.1f} s", f"{result['cpu']:.1f} s", *sizes, f"{result['opened']:.2f} s"]
        print(f"| {name} {result['version']} | {' | '.join(cells)} |")
    print("\nThe operating points that PixMatcher chooses without these queries:")
    for name, result in results.items():
        for point in result.get("points", []):
            if isinstance(point["setting"], dict) and "target" in point["setting"]:
                target, rates = point["setting"]["target"], point["rates"]
                speed = f"{statistics.median(rates):,.0f} queries/s ({min(rates):,.0f} to {max(rates):,.0f})"
                print(f"- {name}, target {target:.2f}: recall@{K} {point['recall']:.3f}, {speed}")
    spreads = [
        (max(point["rates"]) - min(point["rates"])) / statistics.median(point["rates"])
        for result in results.values()
        for point in result.get("points", [])
    ]
    print(
        f"\nSpread of the rounds of a setting: median {np.median(spreads):.0%}, maximum {max(spreads):.0%}.", flush=True
    )


def draw(count: int, results: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for n, (name, result) in enumerate(results.items()):
        if result["bytes"]:
            recalls, rates = zip(*front(result["points"]), strict=True)
            style = "-" if n < 10 else "--"  # there are ten colours
            axes.plot(recalls, rates, style, marker="o", markersize=4, label=name)
    axes.set(yscale="log", xlim=(0.8, 1.005), xlabel=f"recall@{K}", ylabel="queries per second, one core")
    axes.set_title(f"{count:,} rows of {DIMENSION} values")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="the Python interpreter of their environment")
    parser.add_argument("--size", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", choices=INDEXES, nargs="+", default=list(INDEXES))
    parser.add_argument("--budget", type=float, default=1200, help="maximum seconds for a build, if it can be stopped")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--collection", type=Path, help="a collection of its train part, if there is one")
    parser.add_argument("--folder", type=Path, help="folder for temporary files: about 7 KB for each row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        images, queries = prepare(arguments.data, arguments.collection, folder)
        queries = queries[:1000]
        np.save(folder / "queries.npy", queries)
        for count in arguments.size:
            vectors = write_rows(folder, images, count)
            np.save(folder / "truth.npy", true_nearest(vectors, count, queries))
            results = {}
            for each in arguments.only:
                python = sys.executable if each.startswith("PixMatcher") else arguments.peers
                results[each] = measure(each, python, folder, arguments.budget)
            print_tables(count, results)
            draw(count, results, IMAGES / f"peers-{count}.png")


if __name__ == "__main__":
    main()
