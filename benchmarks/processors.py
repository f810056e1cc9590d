"""Compare what can run the image network of `lite` on this processor: one core, in turns, in one process.

    python benchmarks/processors.py [--rounds 15] [--data tiny-imagenet-mini.zip]

Each turn takes the time of the processor that this process used, so other work on the machine changes little. The
figures are medians, and lowest to highest. OpenVINO is compared if the package `openvino` is installed. With `--data`,
images of Tiny ImageNet are embedded by each, and their embeddings are compared with those of ONNX Runtime.

ONNX Runtime asks the processor what it can do, and has no option to hide it. To compare its paths for AVX2 on a
processor with VNNI, run this in a virtual machine that masks the flags (QEMU: `-cpu host,-avx512f,-avx-vnni`; not
tried).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from speed import unpack_small_images

from pixmatcher.encoders.lite import FILES, OUTPUTS, LiteEncoder
from pixmatcher.encoders.lite._network import ALL, AVX2, AVX512, AVX_VNNI, ImageNetwork, fastest_instructions
from pixmatcher.images import fit_image, open_image

NETWORK = FILES / "visual.onnx"
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
NEEDED = {AVX512: {"avx512_vnni"}, AVX_VNNI: {"avx_vnni"}, AVX2: {"avx2", "fma"}}
BATCH = LiteEncoder.batch_size

Run = Callable[[Any], Any]


def flags() -> set[str]:
    """Return what the processor has, as Linux names it."""
    file = Path("/proc/cpuinfo")
    return set(file.read_text().split()) if file.exists() else set()


def session(**options: str) -> Run:
    """Return the network in ONNX Runtime with options of a session."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    for name, value in options.items():
        settings.add_session_config_entry(f"session.{name}", value)
    opened = onnxruntime.InferenceSession(str(NETWORK), settings, providers=["CPUExecutionProvider"])
    return lambda pixels: opened.run(OUTPUTS, {"pixels": pixels})


def openvino() -> Run:
    """Return the network in OpenVINO, for batches of `BATCH` images."""
    from openvino import Core

    core = Core()
    model = core.read_model(str(NETWORK))
    model.reshape({model.inputs[0].any_name: [BATCH, 260, 260, 3]})
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1})
    request = compiled.create_infer_request()

    def run(pixels: Any) -> Any:
        found = request.infer([pixels])
        return [found[name] for name in OUTPUTS]

    return run


def candidates() -> dict[str, Run]:
    """Return what runs here, by name."""
    made: dict[str, Run] = {
        "ONNX Runtime": session(),
        "ONNX Runtime, x64quantprecision": session(x64quantprecision="1"),
        "ONNX Runtime, no prepacking": session(disable_prepacking="1"),
    }
    try:
        made["OpenVINO"] = openvino()
    except ImportError:
        print("OpenVINO is not installed.")
    for instructions in ALL:
        if instructions.library.exists() and NEEDED[instructions] <= flags():
            made[f"PixMatcher, {instructions.name}"] = ImageNetwork(NETWORK, instructions).run
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--data", type=Path, help="tiny-imagenet-mini.zip")
    parser.add_argument("--images", type=int, default=400, help="images of --data that are embedded")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{platform.processor() or platform.machine()}: {', '.join(name for name in FLAGS if name in flags())}")
    used = fastest_instructions()
    print(f"PixMatcher uses {f'its own code, {used.name},' if used else 'ONNX Runtime'} here.")
    runs = candidates()
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 260, 260, 3), dtype=np.uint8)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.rounds + 1):
        for name, run in runs.items():
            # OpenVINO has a thread of its own; the others compute on this one.
            began = time.process_time()
            run(pixels)
            if number:  # the first one reserves memory
                spent[name].append((time.process_time() - began) / BATCH * 1000)
    first = statistics.median(spent["ONNX Runtime"])
    for name, times in spent.items():
        middle = statistics.median(times)
        print(
            f"{name:32} {middle:6.2f} ms an image ({min(times):.2f} to {max(times):.2f}), "
            f"{1000 / middle:5.1f} a second, {first / middle:.2f} times"
        )
    if arguments.data:
        with tempfile.TemporaryDirectory() as folder:
            unpack_small_images(arguments.data, Path(folder), arguments.images)
            compare(runs, sorted(Path(folder).iterdir()))


def compare(runs: dict[str, Run], files: list[Path]) -> None:
    """Print how near the embeddings of each are to those of ONNX Runtime."""
    encoder = LiteEncoder()
    lowest: dict[tuple[str, str], float] = {}
    for start in range(0, len(files) - BATCH + 1, BATCH):
        opened = (open_image(file, min_side=260).image for file in files[start : start + BATCH])
        pixels = np.stack([fit_image(image, encoder.recipe) for image in opened])
        expected = encoder.embed_outputs(runs["ONNX Runtime"](pixels))
        for name, run in runs.items():
            for space, found in encoder.embed_outputs(run(pixels)).items():
                lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected[space], axis=1)
                cosine = float(((found * expected[space]).sum(axis=1) / lengths).min())
                lowest[name, space] = min(lowest.get((name, space), 1.0), cosine)
    for (name, space), cosine in lowest.items():
        print(f"{name:32} {space:8} lowest cosine with ONNX Runtime among {len(files)} images: {cosine:.6f}")


if __name__ == "__main__":
    main()
