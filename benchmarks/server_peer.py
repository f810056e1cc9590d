"""The backend of clip-retrieval beside the service, on the same vectors; `benchmarks/server.py --only peer` runs it.

Both get a query as a vector, so no model is used. clip-retrieval loads one at its start all the same; it gets a network
with random weights, which is the only thing that stands in. Its index is the one that its own autofaiss chooses.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from http_load import Load, json_post, run_load

from pixmatcher import Collection, load_encoder

QUERIES = 1000
CLIENTS = (1, 8, 32)

PREPARE = """
import sys
from pathlib import Path
import numpy as np, pandas
from autofaiss import build_index
folder = Path(sys.argv[1])
index, _ = build_index(
    np.load(folder / "vectors.npy"), str(folder / "image.index"), str(folder / "infos.json"), metric_type="ip",
    max_index_memory_usage="4G", current_memory_available="8G", verbose=40,
)
print(type(index).__name__, index.ntotal)
(folder / "metadata").mkdir()
pandas.read_json(folder / "items.json").to_parquet(folder / "metadata" / "metadata_0.parquet")
"""

SERVE = """
import sys
import all_clip, open_clip
def load_clip(*_, **__):
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    return model, preprocess, open_clip.get_tokenizer("ViT-B-32")
all_clip.load_clip = load_clip
from clip_retrieval.clip_back import clip_back
clip_back(
    indices_paths=sys.argv[1], port=int(sys.argv[2]), enable_mclip_option=False, use_jit=False,
    provide_aesthetic_embeddings=False,
)
"""


def measure_peer(collection: Path, python: Path, workers: Sequence[int], rounds: int, seconds: float) -> None:
    """Print the queries a second of both services for some numbers of clients, in alternating rounds."""
    from server import NAME, RESULTS, SEARCH, TEXTS, running_service

    space = "semantic"
    with Collection.open(collection) as opened:
        items = list(opened.items())
        vectors = opened.embeddings([item.id for item in items], space)
        described = [{"image_path": item.uri, "caption": item.label or ""} for item in items]
    encoder = load_encoder("lite")
    queries = np.concatenate([encoder.encode_texts([next(TEXTS)])[space] for _ in range(QUERIES)])
    ours, theirs = [], []
    for query in queries:
        numbers = [round(float(each), 6) for each in query]
        ours.append(json_post(SEARCH, {"vector": numbers, "space": space, "k": RESULTS}))
        more = {"modality": "image", "num_images": RESULTS, "num_result_ids": RESULTS, "indice_name": NAME}
        theirs.append(json_post("/knn-service", {"embedding_input": numbers} | more))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "vectors.npy", vectors.astype(np.float32))
        (folder / "items.json").write_text(json.dumps(described))
        made = subprocess.run([python, "-c", PREPARE, folder], check=True, stdout=subprocess.PIPE, text=True).stdout
        (folder / "indices.json").write_text(json.dumps({NAME: str(folder)}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with (folder / "log").open("w") as log:
            command = [python, "-c", SERVE, folder / "indices.json", str(port)]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(port, process, folder / "log")
            same = _agreement(port, theirs[:50], described, queries[:50], vectors)
            print(
                f"peer: clip-retrieval has made {made.split()[-2]}; {100 * same:.0f} % of its results "
                "are those of an exact search"
            )
            for count in workers:
                with running_service(collection, "--workers", str(count)) as service:
                    for clients in CLIENTS:
                        run_load(service.port, ours * 20, 3, clients=clients)
                        run_load(port, theirs * 20, 3, clients=clients)
                        rounds_of_both = [
                            (
                                run_load(service.port, ours * 100, seconds, clients=clients),
                                run_load(port, theirs * 100, seconds, clients=clients),
                            )
                            for _ in range(rounds)
                        ]
                        _report(count, clients, rounds_of_both)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _report(workers: int, clients: int, both: Sequence[tuple[Load, Load]]) -> None:
    from server import spread

    ratios = [first.rate / second.rate for first, second in both]
    first, second = ([load.rate for load in side] for side in zip(*both, strict=True))
    statuses = [dict(sum((load.statuses for load in side[1:]), side[0].statuses)) for side in zip(*both, strict=True)]
    print(
        f"peer: {workers} worker(s), {clients} clients: {spread(first)} vectors/s, clip-retrieval {spread(second)}: "
        f"{statistics.median(ratios):.1f} times ({min(ratios):.1f} to {max(ratios):.1f}; target: 10); statuses "
        f"{statuses[0]}, {statuses[1]}"
    )


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            pass
        if process.poll() is not None:
            sys.exit(f"clip-retrieval stopped during its start: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    sys.exit("clip-retrieval did not start within two minutes")


def _agreement(
    port: int, requests: Sequence[bytes], described: Sequence[dict[str, str]], queries: np.ndarray, vectors: np.ndarray
) -> float:
    """Return the share of the nearest items that are in the results of clip-retrieval."""
    shares = []
    for request, query in zip(requests, queries, strict=True):
        body = request.partition(b"\r\n\r\n")[2]
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/knn-service", body, {"content-type": "application/json"})
        with urllib.request.urlopen(ask, timeout=60) as answer:
            found = {os.fspath(each["image_path"]) for each in json.loads(answer.read())}
        best = np.argsort(-(vectors.astype(np.float32) @ query))[: len(found)]
        shares.append(len(found & {described[each]["image_path"] for each in best}) / max(1, len(found)))
    return float(np.mean(shares))
