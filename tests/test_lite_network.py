"""The image network of `lite` in C against ONNX Runtime, which runs the same file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from pixmatcher.encoders.lite import FILES, OUTPUTS, LiteEncoder, _network
from pixmatcher.encoders.lite._onnx_file import read_onnx
from pixmatcher.encoders.onnx.networks import open_network
from pixmatcher.errors import EncoderError
from pixmatcher.images import fit_image, open_image
from support import build_with_sanitizers

NETWORK = FILES / "visual.onnx"
PHOTOS = sorted((Path(__file__).parents[1] / "examples" / "photos").glob("*.jpg"))

Pixels = npt.NDArray[np.uint8]


INSTRUCTIONS = [_network.AVX512, _network.AVX_VNNI, _network.AVX2]
FLAGS = {
    _network.AVX512: {"avx512f", "avx512bw", "avx512_vnni"},
    _network.AVX_VNNI: {"avx2", "fma", "avx_vnni"},
    _network.AVX2: {"avx2", "fma"},
}


def flags_here() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def usable(instructions: _network.Instructions, folder: Path) -> _network.Instructions:
    """Return instructions that this processor has; skip the test if it has none like them."""
    if FLAGS[instructions] <= flags_here() and instructions.library.exists():
        return instructions
    if instructions is _network.AVX_VNNI and FLAGS[_network.AVX512] | {"avx512vl"} <= flags_here():
        # The same code with the other encoding of the same instructions.
        library = folder / "evex.so"
        source = instructions.library.with_suffix(".c")
        flags = ["-DEVEX", "-std=gnu11", "-O2", "-shared", "-fPIC"]
        if shutil.which("gcc"):
            subprocess.run(["gcc", *flags, "-o", library, source, "-lm"], check=True)
            return replace(instructions, library=library)
    pytest.skip(f"needs a processor with {instructions.name} and the compiled library")


@pytest.fixture(scope="module", params=INSTRUCTIONS, ids=[each.name for each in INSTRUCTIONS])
def instructions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> _network.Instructions:
    return usable(request.param, tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def network(instructions: _network.Instructions) -> _network.ImageNetwork:
    return _network.ImageNetwork(NETWORK, instructions)


@pytest.fixture(scope="module")
def pixels() -> Pixels:
    """Photos, noise, and images of one colour, for which most results are clipped."""
    recipe = LiteEncoder.recipe
    photos = [fit_image(open_image(path, min_side=recipe.min_side).image, recipe) for path in PHOTOS[:12]]
    noise = np.random.default_rng(0).integers(0, 256, (3, 260, 260, 3), dtype=np.uint8)
    plain = [np.full((260, 260, 3), value, np.uint8) for value in (0, 127, 255)]
    ramp = np.broadcast_to(np.linspace(0, 255, 260)[:, None, None], (260, 260, 3)).astype(np.uint8)
    return np.stack([*photos, *noise, *plain, ramp])


@pytest.fixture(scope="module")
def expected(pixels: Pixels) -> tuple[npt.NDArray[np.float32], ...]:
    return tuple(open_network(NETWORK).run(OUTPUTS, {"pixels": pixels}))


def test_the_outputs_are_those_of_onnx_runtime(
    network: _network.ImageNetwork, pixels: Pixels, expected: tuple[npt.NDArray[np.float32], ...]
) -> None:
    # All integers are equal. Only sums of floats are rounded in another order.
    for found, wanted in zip(network.run(pixels), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3)


def test_an_image_does_not_depend_on_the_others(network: _network.ImageNetwork, pixels: Pixels) -> None:
    together = network.run(pixels)
    alone = [network.run(pixels[i : i + 1]) for i in range(len(pixels))]
    for number, output in enumerate(together):
        assert np.array_equal(output, np.concatenate([each[number] for each in alone]))
    assert [len(output) for output in network.run(pixels[:0])] == [0, 0, 0]


def test_threads_share_a_network(network: _network.ImageNetwork, pixels: Pixels) -> None:
    some = pixels[10:14]
    expected = network.run(some)
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(network.run, [some] * 8):
            assert all(map(np.array_equal, outputs, expected))


def test_pixels_may_be_a_view(network: _network.ImageNetwork, pixels: Pixels) -> None:
    mirrored = pixels[:2, :, ::-1]
    assert all(map(np.array_equal, network.run(mirrored), network.run(np.ascontiguousarray(mirrored))))
    with pytest.raises(ValueError, match="instead of"):
        network.run(pixels[:, :100])


def test_embeddings_are_those_of_onnx_runtime(
    instructions: _network.Instructions, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = []
    for used in (instructions, None):
        monkeypatch.setattr(_network, "fastest_instructions", lambda used=used: used)
        embeddings.append(LiteEncoder().encode_images(pixels))
    for space in ("visual", "semantic"):
        own, other = (each[space] / np.linalg.norm(each[space], axis=1, keepdims=True) for each in embeddings)
        assert (own * other).sum(axis=1).min() > 0.99999


def test_a_damaged_file_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions = usable(_network.AVX2, tmp_path)
    for name in ("card.json", "heads.onnx"):
        (tmp_path / name).write_bytes((FILES / name).read_bytes())
    content = NETWORK.read_bytes()
    monkeypatch.setattr(_network, "fastest_instructions", lambda: instructions)
    for damaged in (b"", content[: len(content) // 2], bytes(len(content)), b"\xff" * 1000):
        (tmp_path / "visual.onnx").write_bytes(damaged)
        with pytest.raises(EncoderError, match="install pixmatcher again"):
            LiteEncoder(tmp_path).load_images()


def test_the_fastest_instructions_of_this_processor_are_chosen() -> None:
    if "amx_int8" in flags_here() or not all(each.library.exists() for each in INSTRUCTIONS):
        pytest.skip("ONNX Runtime is used with AMX, and without the compiled libraries")
    suitable = [each for each in INSTRUCTIONS if FLAGS[each] <= flags_here()]
    if suitable == [_network.AVX2] and "avx512f" in flags_here():
        suitable = []  # ONNX Runtime uses AVX-512
    assert _network.fastest_instructions() is next(iter(suitable), None)


def test_without_the_libraries_onnx_runtime_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = [replace(each, library=tmp_path / each.library.name) for each in INSTRUCTIONS]
    monkeypatch.setattr(_network, "ALL", missing)
    assert _network.fastest_instructions() is None
    assert LiteEncoder().encode_images(np.zeros((1, 260, 260, 3), np.uint8))["visual"].shape == (1, 384)


def test_the_file_is_read_as_the_library_onnx_reads_it() -> None:
    nodes, constants = read_onnx(NETWORK.read_bytes())
    graph = onnx.load(NETWORK).graph
    assert [(node.operator, node.inputs, node.outputs) for node in nodes] == [
        (node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node
    ]
    assert len(constants) == len(graph.initializer)
    for tensor in graph.initializer:
        expected = onnx.numpy_helper.to_array(tensor)
        assert constants[tensor.name].dtype == expected.dtype
        np.testing.assert_array_equal(constants[tensor.name], expected)


SANITIZED = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from pixmatcher.encoders.lite import FILES, _network
instructions = replace(getattr(_network, sys.argv[1]), library=Path(sys.argv[2]))
pixels = np.random.default_rng(0).integers(0, 256, (2, 260, 260, 3), dtype=np.uint8)
print([output.shape for output in _network.ImageNetwork(FILES / "visual.onnx", instructions).run(pixels)])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("name", ["AVX512", "AVX_VNNI", "AVX2"])
def test_the_code_stays_within_its_memory(tmp_path: Path, name: str) -> None:
    """The same code, built so that it stops at the first byte out of bounds and the first undefined result."""
    library, instructions = tmp_path / "sanitized.so", getattr(_network, name)
    flags = ["-O1", "-shared", "-fPIC"]
    if usable(instructions, tmp_path).library != instructions.library:
        flags.append("-DEVEX")
    build_with_sanitizers(library, instructions.library.with_suffix(".c"), flags=flags)
    preloaded = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {"LD_PRELOAD": preloaded.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-c", SANITIZED, name, library]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stdout) == (0, "[(2, 1280), (2, 1000), (2, 1024)]\n"), ran.stderr[-3000:]
