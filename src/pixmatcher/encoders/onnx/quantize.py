"""Encoders in int8: smaller, and faster where the processor multiplies integers faster.

Convolutions, and what lies between them, are computed on grids that calibration images decide (static). Matrix
products take the grid of what they are given from itself each time (dynamic), since a few values of transformers are
far larger than all others. Where that harms too much, the most sensitive layers stay in fp32. How far the embeddings
agree with those in fp32 is measured on images that had no part in the calibration.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import EncoderError
from .._folders import making_folder
from .._names import INSTALL, INT8
from .card import Card, fingerprint_of, store_files, write_card
from .encoder import OnnxEncoder
from .graphs import TEXTS, TEXTUAL, VISUAL, centred_cosines, cosines, save_graph
from .layout import read_model
from .networks import Floats, open_network

if TYPE_CHECKING:
    import onnx

    from ._integers import Activation

LEAST_AGREEMENT = 0.97
"""Mean cosine with fp32 that is asked of an int8 network."""
GOOD_AGREEMENT = 0.99
"""Below this, leaving the most sensitive layers in fp32 is tried as well; so it is where what tells images apart, the
centred embeddings, agrees by less than `LEAST_AGREEMENT`."""
LEAST_IMAGES = 20
MOST_WATCHED = 128
"""Images that calibrate, at most; more change little."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Of the layers, how many are left in fp32, the most sensitive first."""
JUDGING_IMAGES = 16
"""By so many images each layer is judged alone."""
SAMPLES = 1024
"""Values that are kept of each activation and image."""
CUTS = tuple(n / 20 for n in range(20, 5, -1))
"""Parts of the range seen that are tried as the range of a grid: what lies outside is cut off, the rest is finer."""
ROUNDS = 9
"""Repeats of each measurement of speed."""
EQUAL_SPEED = 1.1
"""Among networks within so many times the least time, the one that agrees most is kept."""


@dataclass(frozen=True)
class Agreement:
    """Cosines of embeddings in int8 with those in fp32."""

    mean: float
    percentile_5: float
    centred: float
    """The mean where from each set its own mean was subtracted: of what tells images apart."""

    @property
    def good(self) -> bool:
        return self.mean >= GOOD_AGREEMENT and self.centred >= LEAST_AGREEMENT

    @classmethod
    def of(cls, reference: Floats, found: Floats) -> Agreement:
        each = cosines(reference, found)
        centred = centred_cosines(reference, found)
        return cls(float(each.mean()), float(np.percentile(each, 5)), float(centred.mean()))


@dataclass(frozen=True)
class _Candidate:
    """An image network in int8, measured."""

    folder: Path
    left: int
    """Layers in fp32, of those that could be in int8."""
    agreement: Agreement
    seconds: float
    """For an image, on one core."""
    seconds_fp32: float


def quantize_model(source: Path, target: Path, pixels: npt.NDArray[np.uint8], *, name: str | None = None) -> Card:
    """Make an int8 encoder in the folder `target` of the one in fp32 in `source`; PyTorch is not needed.

    `pixels` uint8 (N, size, size, 3) are images sized by the encoder's recipe, 20 or more, of the kind that it will
    see; 250 are plenty. One half calibrates. Of the forms whose embeddings of the other half agree with those in fp32
    by a mean cosine of at least 0.97, if possible also without the mean of each set, the fastest is kept. The card's
    notes tell how far they agree, and the speed of both on one core. The encoder is called `name`, by default as the
    one in fp32 with @int8 at its end.

    Raises `EncoderError` if there is no such form, if `source` is no encoder in fp32, if there are too few images, or
    the library `onnx` is missing; `StorageError` if the disk is full.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EncoderError(f"Making an encoder in int8 needs the library onnx: run `{INSTALL}`.") from error
    card = read_model(source)
    if card.precision != "fp32":
        raise EncoderError(f"The encoder {card.name} is in {card.precision} already: name one in fp32.")
    if len(pixels) < LEAST_IMAGES:
        raise EncoderError(f"int8 is calibrated by {LEAST_IMAGES} images or more, not {len(pixels)}: name more images.")
    with making_folder(target) as half:
        with tempfile.TemporaryDirectory(dir=half) as work:
            best = _best_visual(card, source, Path(work), pixels)
            for made in best.folder.iterdir():
                made.rename(half / made.name)
            notes = _notes(best)
            textual = card.textual
            if textual is not None and card.text is not None:
                shutil.copyfile(source / card.text.tokenizer, half / card.text.tokenizer)
                notes |= _make_textual(card, source, half, Path(work))
                textual = replace(textual, file=TEXTUAL)
        files = store_files(half, sorted(path.name for path in half.iterdir()))
        visual, hashes = replace(card.visual, file=VISUAL), {name: file.sha256 for name, file in files.items()}
        small = replace(
            card,
            name=name or card.name + INT8,
            fingerprint=fingerprint_of(hashes, card.recipe, visual, textual, card.text),
            visual=visual,
            textual=textual,
            precision="int8",
            files=files,
            notes=notes,
        )
        write_card(small, half)
    return small


def _best_visual(card: Card, source: Path, work: Path, pixels: npt.NDArray[np.uint8]) -> _Candidate:
    """Return the image network in int8 that is fastest among those that agree; raises `EncoderError` if none does."""
    from ._integers import layers

    held = np.arange(len(pixels)) % 2 == 0
    watched = pixels[~held][:MOST_WATCHED]
    network = _clean(source / card.visual.file, work)
    seen = _calibrate(network, OnnxEncoder(card, source), work, watched)
    all_layers = layers(network, seen)
    bench = _Bench(card, source, work, network, seen, pixels[held])
    if not all_layers:
        raise EncoderError(f"The image network of {card.name} has no layers that int8 is for: use it in fp32.")
    tried = [bench.measure(all_layers)]
    if not tried[0].agreement.good:
        judged = bench.harm(all_layers, watched[:JUDGING_IMAGES])
        for share in SHARES:
            left = set(judged[: max(1, round(share * len(all_layers)))])
            tried.append(bench.measure([name for name in all_layers if name not in left]))
            if tried[-1].agreement.good:
                break
    fit = [candidate for candidate in tried if candidate.agreement.mean >= LEAST_AGREEMENT]
    if not fit:
        nearest = max(candidate.agreement.mean for candidate in tried)
        raise EncoderError(
            f"{card.name} in int8 agrees with fp32 by a mean cosine of {nearest:.3f} at most, and {LEAST_AGREEMENT} is "
            "asked: use it in fp32."
        )
    fit = [candidate for candidate in fit if candidate.agreement.centred >= LEAST_AGREEMENT] or fit
    fastest = min(candidate.seconds for candidate in fit)
    near = [candidate for candidate in fit if candidate.seconds <= EQUAL_SPEED * fastest]
    return max(near, key=lambda candidate: candidate.agreement.mean)


class _Bench:
    """Makes int8 networks of one in fp32, and measures them beside it."""

    def __init__(
        self,
        card: Card,
        source: Path,
        work: Path,
        network: onnx.ModelProto,
        seen: dict[str, Activation],
        pixels: npt.NDArray[np.uint8],
    ) -> None:
        self._card, self._work, self._network, self._seen, self._pixels = card, work, network, seen, pixels
        self._fp32 = OnnxEncoder(card, source)
        self._reference = _embed(self._fp32, pixels)
        self._measured = 0

    def measure(self, chosen: Sequence[str]) -> _Candidate:
        """Measure the network with the `chosen` layers in int8."""
        self._measured += 1
        folder = self._work / f"{self._measured}"
        encoder = self._make(chosen, folder)
        agreement = Agreement.of(self._reference, _embed(encoder, self._pixels))
        seconds: list[list[float]] = [[], []]
        batch = self._pixels[: encoder.batch_size]
        for _ in range(ROUNDS):
            for times, each in zip(seconds, (encoder, self._fp32), strict=True):
                # The time that this thread computes: whatever else the machine does meanwhile does not count.
                started = time.thread_time()
                each.encode_images(batch)
                times.append((time.thread_time() - started) / len(batch))
        return _Candidate(folder, self._left(chosen), agreement, *map(statistics.median, seconds))

    def harm(self, names: Sequence[str], pixels: npt.NDArray[np.uint8]) -> list[str]:
        """The layers by how far the embeddings turn where they alone are in int8, the worst first."""
        reference, folder = _embed(self._fp32, pixels), self._work / "alone"
        agreement = {name: cosines(reference, _embed(self._make([name], folder), pixels)).mean() for name in names}
        return sorted(names, key=lambda name: float(agreement[name]))

    def _left(self, chosen: Sequence[str]) -> int:
        from ._integers import layers

        return len(layers(self._network, self._seen)) - len(chosen)

    def _make(self, chosen: Sequence[str], folder: Path) -> OnnxEncoder:
        from ._integers import to_integers

        folder.mkdir(exist_ok=True)
        save_graph(to_integers(self._network, self._seen, chosen), folder / VISUAL)
        return OnnxEncoder(replace(self._card, visual=replace(self._card.visual, file=VISUAL)), folder)


def _make_textual(card: Card, source: Path, folder: Path, work: Path) -> dict[str, str | float]:
    """Write the text network to `folder`: in int8 if it agrees with fp32, otherwise as it is. Returns notes."""
    from ._integers import layers, to_integers

    assert card.textual is not None
    network = _clean(source / card.textual.file, work)
    save_graph(to_integers(network, {}, layers(network, {})), folder / TEXTUAL)
    made = OnnxEncoder(replace(card, textual=replace(card.textual, file=TEXTUAL)), folder)
    space = card.space.name
    agreement = Agreement.of(OnnxEncoder(card, source).encode_texts(TEXTS)[space], made.encode_texts(TEXTS)[space])
    if agreement.mean >= LEAST_AGREEMENT:
        return {"text_agreement": round(agreement.mean, 5), "text_agreement_centred": round(agreement.centred, 5)}
    save_graph(network, folder / TEXTUAL)
    return {"text": f"fp32, since it agrees only by {agreement.mean:.3f} in int8"}


def _notes(best: _Candidate) -> dict[str, str | float]:
    return {
        "agreement": round(best.agreement.mean, 5),
        "agreement_5th_percentile": round(best.agreement.percentile_5, 5),
        "agreement_centred": round(best.agreement.centred, 5),
        "layers_in_fp32": best.left,
        "images_per_second": round(1 / best.seconds, 1),
        "images_per_second_fp32": round(1 / best.seconds_fp32, 1),
    }


def _embed(encoder: OnnxEncoder, pixels: npt.NDArray[np.uint8]) -> Floats:
    batches = range(0, len(pixels), encoder.batch_size)
    parts = [encoder.encode_images(pixels[start : start + encoder.batch_size]) for start in batches]
    return np.concatenate([part[encoder.spaces[0].name] for part in parts])


def _clean(path: Path, work: Path) -> onnx.ModelProto:
    """Read a network as ONNX Runtime simplifies it, whatever made it: constants computed, batch norms merged."""
    import onnx
    import onnxruntime

    from ._integers import name_nodes

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(work / "clean.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "clean.onnx.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(work / "clean.onnx")
    name_nodes(model)
    return model


def _calibrate(
    model: onnx.ModelProto, encoder: OnnxEncoder, work: Path, pixels: npt.NDArray[np.uint8]
) -> dict[str, Activation]:
    """Watch the activations of a network while it sees images."""
    import onnx
    from onnx import helper

    from ._integers import Activation, watched

    names = sorted(watched(model))
    if not names:
        return {}
    talking = onnx.ModelProto()
    talking.CopyFrom(model)
    known = {end.name for end in talking.graph.output}
    talking.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    save_graph(talking, work / "talking.onnx")
    session = open_network(work / "talking.onnx")
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {}
    extremes: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    samples: dict[str, list[Floats]] = {name: [] for name in names}
    means: dict[str, list[Floats]] = {name: [] for name in names}
    for number in range(len(pixels)):
        given = {encoder.card.visual.input: encoder.prepare(pixels[number : number + 1])}
        for name, values in zip(names, session.run(names, given), strict=True):
            if values.dtype == np.float32 and values.ndim == 4:
                shapes[name] = values.shape
                means[name].append(values.mean(axis=(0, 2, 3)))
                extremes[name].append((float(values.min()), float(values.max())))
                samples[name].append(values.ravel()[random.integers(0, values.size, SAMPLES)])
    return {
        name: Activation(
            shape, *_range(np.array(extremes[name]), np.concatenate(samples[name])), np.mean(means[name], axis=0)
        )
        for name, shape in shapes.items()
    }


def _range(extremes: npt.NDArray[np.float64], samples: Floats) -> tuple[float, float]:
    """The range in which 256 values render `samples` with the least mean square error.

    It is at most that of the mean of the images' `extremes` (images, 2), since few images have far greater values.
    """
    low, high = min(float(extremes[:, 0].mean()), 0.0), max(float(extremes[:, 1].mean()), 0.0)

    def error(cut: float) -> float:
        scale = max(cut * (high - low) / 255, float(np.finfo(np.float32).tiny))
        zero = round(-cut * low / scale)
        rendered = (np.clip(np.rint(samples / scale) + zero, 0, 255) - zero) * scale
        return float(np.square(rendered - samples).mean())

    cut = min(CUTS, key=error)
    return cut * low, cut * high
