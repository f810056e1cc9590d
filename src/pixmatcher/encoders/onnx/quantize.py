"""Make encoders in int8, which are smaller, and faster on processors that multiply integers faster.

Convolutions, and the operators between them, use scales that were found with calibration images (static quantisation).
Matrix products compute the scale of their input in each call (dynamic quantisation), since a few values of transformers
are far larger than all others. If int8 changes the embeddings too much, the most sensitive layers stay in fp32. The
agreement with fp32 is measured on images that were not used for the calibration.
"""

from __future__ import annotations

import logging
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

    from ._graph import Activation

logger = logging.getLogger("pixmatcher.encoders")

LEAST_AGREEMENT = 0.97
"""The least mean cosine with fp32 of an int8 network."""
GOOD_AGREEMENT = 0.99
"""Below this mean cosine, versions with the most sensitive layers in fp32 are tried too; also if the centred
embeddings, which show the differences between images, agree by less than `LEAST_AGREEMENT`."""
LEAST_IMAGES = 20
MOST_CALIBRATING = 128
"""The most images for the calibration; more change little."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""The shares of the layers that are tried in fp32, the most sensitive first."""
SENSITIVITY_IMAGES = 16
"""Number of images for measuring the sensitivity of each layer."""
SAMPLES = 1024
"""Number of values that are kept of each activation and image."""
CUTS = tuple(n / 20 for n in range(20, 5, -1))
"""Shares of the observed range that are tried as the range of a tensor: values outside are clipped, others finer."""
ROUNDS = 9
"""Repetitions of each measurement of speed."""
EQUAL_SPEED = 1.1
"""Networks within this factor of the least time count as equally fast: the most exact one is kept."""


@dataclass(frozen=True)
class Agreement:
    """Cosines of embeddings in int8 with those in fp32."""

    mean: float
    percentile_5: float
    centred: float
    """The mean cosine after the mean of each set was subtracted, which shows the differences between images."""

    @property
    def good(self) -> bool:
        """Whether the int8 version is close enough to fp32 to be preferred by its speed."""
        return self.mean >= GOOD_AGREEMENT and self.centred >= LEAST_AGREEMENT

    @classmethod
    def of(cls, reference: Floats, found: Floats) -> Agreement:
        """Compare embeddings (N, D) in fp32 and in int8."""
        each = cosines(reference, found)
        centred = centred_cosines(reference, found)
        return cls(float(each.mean()), float(np.percentile(each, 5)), float(centred.mean()))


@dataclass(frozen=True)
class _Candidate:
    """An image network in int8, measured."""

    folder: Path
    fp32_layers: int
    """Number of layers that stay in fp32 though they could be in int8."""
    agreement: Agreement
    seconds: float
    """Time for an image on one core."""
    seconds_fp32: float


def quantize_model(source: Path, target: Path, pixels: npt.NDArray[np.uint8], *, name: str | None = None) -> Card:
    """Make an int8 version of the fp32 encoder in the folder `source`, in the folder `target`. PyTorch is not needed.

    `pixels` uint8 (N, size, size, 3) are images resized by the encoder's recipe, at least 20, of the kind that will be
    indexed; 250 are enough. One half is for the calibration, the other half for measuring. Among the versions whose
    embeddings agree with fp32 by a mean cosine of at least 0.97, if possible also after subtracting the mean, the
    fastest is kept. The notes of the card state the agreement, and the speed of both on one core. The encoder is called
    `name`, by default the name of the fp32 encoder with @int8 at its end.

    Raises `EncoderError` if no version agrees well enough, if `source` is not an encoder in fp32, if there are too few
    images, or the library `onnx` is missing; `StorageError` if the disk is full.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise EncoderError(f"Making an encoder in int8 needs the library onnx: run `{INSTALL}`.") from error
    card = read_model(source)
    if card.precision != "fp32":
        raise EncoderError(f"The encoder {card.name} is in {card.precision} already: name one in fp32.")
    if len(pixels) < LEAST_IMAGES:
        raise EncoderError(
            f"int8 needs {LEAST_IMAGES} or more images for the calibration, not {len(pixels)}: name more."
        )
    with making_folder(target) as folder:
        with tempfile.TemporaryDirectory(dir=folder) as work:
            best = _best_visual(card, source, Path(work), pixels)
            for file in best.folder.iterdir():
                file.rename(folder / file.name)
            notes = _notes(best)
            textual = card.textual
            if textual is not None and card.text is not None:
                shutil.copyfile(source / card.text.tokenizer, folder / card.text.tokenizer)
                notes |= _make_textual(card, source, folder, Path(work))
                textual = replace(textual, file=TEXTUAL)
        files = store_files(folder, sorted(path.name for path in folder.iterdir()))
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
        write_card(small, folder)
    return small


def _best_visual(card: Card, source: Path, work: Path, pixels: npt.NDArray[np.uint8]) -> _Candidate:
    """Return the fastest image network in int8 that agrees with fp32. Raises `EncoderError` if none does."""
    from ._graph import layers

    held_out = np.arange(len(pixels)) % 2 == 0
    calibrating = pixels[~held_out][:MOST_CALIBRATING]
    network = _simplified(source / card.visual.file, work)
    activations = _calibrate(network, OnnxEncoder(card, source), work, calibrating)
    all_layers = layers(network, activations)
    bench = _Bench(card, source, work, network, activations, pixels[held_out])
    if not all_layers:
        raise EncoderError(f"The image network of {card.name} has no layers that int8 makes faster: use it in fp32.")
    tried = [bench.measure(all_layers)]
    if not tried[0].agreement.good:
        by_sensitivity = bench.by_sensitivity(all_layers, calibrating[:SENSITIVITY_IMAGES])
        for share in SHARES:
            in_fp32 = set(by_sensitivity[: max(1, round(share * len(all_layers)))])
            tried.append(bench.measure([name for name in all_layers if name not in in_fp32]))
            if tried[-1].agreement.good:
                break
    good = [candidate for candidate in tried if candidate.agreement.mean >= LEAST_AGREEMENT]
    if not good:
        best = max(candidate.agreement.mean for candidate in tried)
        raise EncoderError(
            f"{card.name} in int8 agrees with fp32 by a mean cosine of {best:.3f} at most, less than "
            f"{LEAST_AGREEMENT}: use it in fp32."
        )
    good = [candidate for candidate in good if candidate.agreement.centred >= LEAST_AGREEMENT] or good
    fastest = min(candidate.seconds for candidate in good)
    near = [candidate for candidate in good if candidate.seconds <= EQUAL_SPEED * fastest]
    return max(near, key=lambda candidate: candidate.agreement.mean)


class _Bench:
    """Makes int8 versions of an fp32 network, and compares them with it."""

    def __init__(
        self,
        card: Card,
        source: Path,
        work: Path,
        network: onnx.ModelProto,
        activations: dict[str, Activation],
        pixels: npt.NDArray[np.uint8],
    ) -> None:
        self._card, self._work, self._network, self._pixels = card, work, network, pixels
        self._activations = activations
        self._fp32 = OnnxEncoder(card, source)
        self._reference = _embed(self._fp32, pixels)
        self._measured = 0

    def measure(self, chosen: Sequence[str]) -> _Candidate:
        """Measure the network with the `chosen` layers in int8."""
        self._measured += 1
        folder = self._work / f"{self._measured}"
        encoder = self._make_version(chosen, folder)
        agreement = Agreement.of(self._reference, _embed(encoder, self._pixels))
        seconds: list[list[float]] = [[], []]
        batch = self._pixels[: encoder.batch_size]
        for _ in range(ROUNDS):
            for times, each in zip(seconds, (encoder, self._fp32), strict=True):
                # The time of this thread, which does not include what other processes do.
                started = time.thread_time()
                each.encode_images(batch)
                times.append((time.thread_time() - started) / len(batch))
        candidate = _Candidate(folder, self._fp32_layers(chosen), agreement, *map(statistics.median, seconds))
        logger.info(
            "int8 with %d layers in fp32: mean cosine %.5f, %.4f s an image (fp32: %.4f s)",
            candidate.fp32_layers,
            agreement.mean,
            candidate.seconds,
            candidate.seconds_fp32,
        )
        return candidate

    def by_sensitivity(self, names: Sequence[str], pixels: npt.NDArray[np.uint8]) -> list[str]:
        """Return the layers sorted by how much each alone in int8 changes the embeddings, the worst first."""
        reference, folder = _embed(self._fp32, pixels), self._work / "alone"
        agreement = {
            name: cosines(reference, _embed(self._make_version([name], folder), pixels)).mean() for name in names
        }
        return sorted(names, key=lambda name: float(agreement[name]))

    def _fp32_layers(self, chosen: Sequence[str]) -> int:
        from ._graph import layers

        return len(layers(self._network, self._activations)) - len(chosen)

    def _make_version(self, chosen: Sequence[str], folder: Path) -> OnnxEncoder:
        """Write the network with the `chosen` layers in int8, and open it."""
        from ._integers import to_integers

        folder.mkdir(exist_ok=True)
        save_graph(to_integers(self._network, self._activations, chosen), folder / VISUAL)
        return OnnxEncoder(replace(self._card, visual=replace(self._card.visual, file=VISUAL)), folder)


def _make_textual(card: Card, source: Path, folder: Path, work: Path) -> dict[str, str | float]:
    """Write the text network to `folder`, in int8 if it agrees with fp32, otherwise in fp32. Return notes."""
    from ._graph import layers
    from ._integers import to_integers

    assert card.textual is not None
    network = _simplified(source / card.textual.file, work)
    save_graph(to_integers(network, {}, layers(network, {})), folder / TEXTUAL)
    made = OnnxEncoder(replace(card, textual=replace(card.textual, file=TEXTUAL)), folder)
    space = card.space.name
    agreement = Agreement.of(OnnxEncoder(card, source).encode_texts(TEXTS)[space], made.encode_texts(TEXTS)[space])
    if agreement.mean >= LEAST_AGREEMENT:
        return {"text_agreement": round(agreement.mean, 5), "text_agreement_centred": round(agreement.centred, 5)}
    save_graph(network, folder / TEXTUAL)
    return {"text": f"fp32, since it agrees only by {agreement.mean:.3f} in int8"}


def _notes(best: _Candidate) -> dict[str, str | float]:
    """Return the notes of the card about the chosen version."""
    return {
        "agreement": round(best.agreement.mean, 5),
        "agreement_5th_percentile": round(best.agreement.percentile_5, 5),
        "agreement_centred": round(best.agreement.centred, 5),
        "layers_in_fp32": best.fp32_layers,
        "images_per_second": round(1 / best.seconds, 1),
        "images_per_second_fp32": round(1 / best.seconds_fp32, 1),
    }


def _embed(encoder: OnnxEncoder, pixels: npt.NDArray[np.uint8]) -> Floats:
    """Return the embeddings (N, D) of pixels by an encoder of one space."""
    batches = range(0, len(pixels), encoder.batch_size)
    parts = [encoder.encode_images(pixels[start : start + encoder.batch_size]) for start in batches]
    return np.concatenate([part[encoder.spaces[0].name] for part in parts])


def _simplified(path: Path, work: Path) -> onnx.ModelProto:
    """Return a network as ONNX Runtime simplifies it: constants are computed, batch norms are merged."""
    import onnx
    import onnxruntime

    from ._graph import name_nodes

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(work / "simplified.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "simplified.onnx.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(work / "simplified.onnx")
    name_nodes(model)
    return model


def _calibrate(
    model: onnx.ModelProto, encoder: OnnxEncoder, work: Path, pixels: npt.NDArray[np.uint8]
) -> dict[str, Activation]:
    """Return the observed activations of a network for some images, by tensor name."""
    import onnx
    from onnx import helper

    from ._graph import Activation, observed_tensors

    names = sorted(observed_tensors(model))
    if not names:
        return {}
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    known = {end.name for end in observed.graph.output}
    observed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    save_graph(observed, work / "observed.onnx")
    session = open_network(work / "observed.onnx")
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
    """Return the range in which 256 values represent `samples` with the least mean square error.

    It is at most the mean of the images' `extremes` (images, 2), since a few images have far larger values.
    """
    low, high = min(float(extremes[:, 0].mean()), 0.0), max(float(extremes[:, 1].mean()), 0.0)

    def error(cut: float) -> float:
        scale = max(cut * (high - low) / 255, float(np.finfo(np.float32).tiny))
        zero = round(-cut * low / scale)
        rounded = (np.clip(np.rint(samples / scale) + zero, 0, 255) - zero) * scale
        return float(np.square(rounded - samples).mean())

    cut = min(CUTS, key=error)
    return cut * low, cut * high
