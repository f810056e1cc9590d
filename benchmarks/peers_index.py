"""The index of PixMatcher beside hnswlib, usearch, and the HNSW and the flat scan of faiss.

    python benchmarks/peers_index.py --peers PYTHON [--size 100000 1000000] [--budget 1200]

PYTHON is that of an environment with benchmarks/requirements-peers.txt. Rows and queries are as in benchmarks/index.py.
Each index is built on two cores and then asked on one, one query after another, by processes of its own
(benchmarks/one_index.py). Queries a second at a recall are read off the line between the two settings measured that
have a little less and a little more. Prints tables in Markdown and draws `peers-SIZE.png`. A build that takes longer
than the budget, in seconds, is given up. For Linux.
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
from index import DEFAULT_DATA, K, nearest, prepare, write_rows
from one_index import AIMS, DIMENSION, INDEXES

from pixmatcher._cores import usable_cores

DOCS = Path(__file__).parents[1] / "docs"
WORKER = Path(__file__).with_name("one_index.py")


def run(python: str, cores: int, *arguments: str) -> dict[str, Any]:
    """What a worker tells that has so many cores."""
    allowed = sorted(os.sched_getaffinity(0))[-cores:]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "OPENBLAS_NUM_THREADS": str(cores)}
    command = ["taskset", "--cpu-list", ",".join(map(str, allowed)), python, str(WORKER), *arguments]
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    result: dict[str, Any] = json.loads(told.splitlines()[-1])
    return result


def front(points: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Recall and queries a second of the settings that no other beats in both, by recall."""
    best: list[tuple[float, float]] = []
    for recall, rate in sorted(((p["recall"], statistics.median(p["rates"])) for p in points), reverse=True):
        if not best or rate > best[-1][1]:
            best.append((recall, rate))
    return best[::-1]


def rate_at(points: list[dict[str, Any]], recall: float) -> float | None:
    """Queries a second at a recall; None where no setting has it."""
    recalls, rates = zip(*front(points), strict=True)
    return None if recalls[-1] < recall else float(np.exp(np.interp(recall, recalls, np.log(rates))))


def measure(name: str, python: str, folder: Path, budget: float) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    told = run(python, min(2, usable_cores()), "build", name, str(folder), str(budget))
    if told["bytes"]:
        told |= run(python, 1, "ask", name, str(folder))
    print(f"  {json.dumps(told)}", file=sys.stderr, flush=True)
    return told


def print_tables(count: int, results: dict[str, dict[str, Any]]) -> None:
    at = [f"at {recall:.2f}" for recall in AIMS]
    titles = ["", *at, "built in", "processor", "own memory a row", "mapped", "file", "opened in"]
    print(f"\n{count:,} x {DIMENSION}: queries a second at a recall@{K}; bytes a row\n")
    print(f"| {' | '.join(titles)} |\n| {' | '.join('---' for _ in titles)} |")
    for name, told in results.items():
        if not told["bytes"]:
            done = f"given up after {told['seconds']:.0f} s, with {told['rows'] / count:.0%} of the rows"
            cells = [*[""] * len(AIMS), done, f"{told['cpu']:.0f} s", "", "", "", ""]
        else:
            rates = [rate_at(told["points"], recall) for recall in AIMS]
            sizes = [f"{told[part] / count:,.0f}" for part in ("own", "mapped", "bytes")]
            cells = ["not reached" if rate is None else f"{rate:,.0f}" for rate in rates]
            cells += [f"{told['seconds']:.1f} s", f"{told['cpu']:.1f} s", *sizes, f"{told['opened']:.2f} s"]
        print(f"| {name} {told['version']} | {' | '.join(cells)} |")
    print("\nWhat PixMatcher chooses by itself, knowing nothing of these queries:")
    for name, told in results.items():
        for point in told.get("points", []):
            if isinstance(point["setting"], dict) and "aim" in point["setting"]:
                aim, rates = point["setting"]["aim"], point["rates"]
                spread = f"{statistics.median(rates):,.0f} queries a second ({min(rates):,.0f} to {max(rates):,.0f})"
                print(f"- {name}, told {aim:.2f}: recall@{K} {point['recall']:.3f}, {spread}")
    spreads = [
        (max(point["rates"]) - min(point["rates"])) / statistics.median(point["rates"])
        for told in results.values()
        for point in told.get("points", [])
    ]
    print(f"\nSpread of the rounds of a setting: median {np.median(spreads):.0%}, most {max(spreads):.0%}.", flush=True)


def draw(count: int, results: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, told in results.items():
        if told["bytes"]:
            recalls, rates = zip(*front(told["points"]), strict=True)
            axes.plot(recalls, rates, marker="o", markersize=4, label=name)
    axes.set(yscale="log", xlim=(0.8, 1.005), xlabel=f"recall@{K}", ylabel="queries a second, one core")
    axes.set_title(f"{count:,} rows of {DIMENSION} values")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="the Python of their environment")
    parser.add_argument("--size", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", choices=INDEXES, nargs="+", default=list(INDEXES))
    parser.add_argument("--budget", type=float, default=1200, help="seconds that a build may take")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="tiny-imagenet-mini.zip")
    parser.add_argument("--collection", type=Path, help="its train part, where that is indexed already")
    parser.add_argument("--folder", type=Path, help="where rows and indexes go for a while: some 7 KB a row")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        images, queries = prepare(arguments.data, arguments.collection, folder)
        queries = queries[:1000]
        np.save(folder / "queries.npy", queries)
        for count in arguments.size:
            vectors = write_rows(folder, images, count)
            np.save(folder / "truth.npy", nearest(vectors, count, queries))
            results = {}
            for each in arguments.only:
                python = sys.executable if each.startswith("PixMatcher") else arguments.peers
                results[each] = measure(each, python, folder, arguments.budget)
            print_tables(count, results)
            draw(count, results, DOCS / f"peers-{count}.png")


if __name__ == "__main__":
    main()
