"""Models of encoders on this machine: list them, download them, export them to ONNX, show the details of one."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .._progress import Progress
from .._user_folders import expanded
from ..errors import EncoderError
from ..records import EncoderRecord
from ._cache import (
    CachedModel,
    cached_models,
    check_cache_writable,
    damaged_files,
    link_model,
    model_folder,
    torch_missing_message,
)
from ._names import INT8, KNOWN, TORCH_KINDS, reference_of, torch_installed
from ._registry import DEFAULT_ENCODER, describe_device, describe_encoder, full_name, plugin_encoder_names
from ._runtime import Runtime
from .onnx.card import Card, read_card
from .onnx.layout import read_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..images import Recipe

logger = logging.getLogger("pixmatcher.encoders")

Calibration = Callable[["Recipe"], "npt.NDArray[np.uint8]"]
"""Returns images for the calibration of int8, resized by a recipe: (N, size, size, 3) uint8. See
`indexing.calibration`."""


PLUGIN = "encoder of another package"


@dataclass(frozen=True)
class ModelState:
    """An encoder, and whether it is on this machine."""

    name: str
    about: str
    spaces: str
    """The spaces and their dimensions, such as "visual 960"."""
    state: str
    """The state of the encoder on this machine, such as "bundled" or "exported, int8"."""
    licence: str
    megabytes: float | None = None
    """The size of the files on this machine, or of the weights that would be downloaded."""


def list_models() -> list[ModelState]:
    """Return the encoders that have a short name, those in the cache, and those of other packages, not loaded."""
    lite = describe_encoder(DEFAULT_ENCODER)
    states = [
        ModelState(lite.name, "EfficientNet-Lite2 and all-MiniLM-L6-v2", _spaces(lite), "bundled", "Apache-2.0", 34)
    ]
    stored = {model.name: model for model in cached_models()}
    for name, known in KNOWN.items():
        if name in stored:
            states.append(_state_of(stored.pop(name)))
        else:
            state = "to be downloaded" if torch_installed() or known.onnx_repo else "needs the extra torch"
            space = f"{known.space.name} {known.space.dimension}"
            states.append(ModelState(name, known.about, space, state, known.licence, known.megabytes))
    states += [_state_of(model) for model in stored.values()]
    return states + [ModelState(name, PLUGIN, "", "installed", "") for name in plugin_encoder_names()]


def _state_of(model: CachedModel) -> ModelState:
    megabytes = model.bytes / 1e6
    if model.card is None:
        return ModelState(model.name, model.problem, "", "damaged", "", megabytes)
    card = model.card
    about = KNOWN[model.name].about if model.name in KNOWN else card.source
    space = f"{card.space.name} {card.space.dimension}"
    return ModelState(model.name, about, space, f"ready, {card.precision}", card.licence, megabytes)


def _spaces(record: EncoderRecord) -> str:
    """Return the spaces of an encoder as a text."""
    return ", ".join(f"{space.name} {space.dimension}" for space in record.spaces)


def pull_model(name: str, *, weights: Path | None = None, runtime: Runtime | None = None) -> Path:
    """Download an encoder and prepare it for ONNX Runtime in the cache. Return its folder.

    An encoder of PyTorch is exported to ONNX; `weights` is a file that is used instead of a download. If PyTorch is not
    installed, the ONNX files of the hub are downloaded, if a repository with them is known. An intact encoder in the
    cache is not changed, unless the hub has a newer one.

    Raises `EncoderError` if the encoder is unknown or cannot be prepared, and as `download`.
    """
    runtime = runtime or Runtime()
    _check_is_model(name)
    kind, rest = reference_of(name)
    if kind == "onnx":
        raise EncoderError(f"{name} is a folder of this machine and needs no download: use it as it is.")
    known = KNOWN.get(name.removesuffix(INT8))
    repo = rest if kind == "hf" else known.onnx_repo if known is not None else None
    folder = model_folder(name)
    from_hub = kind == "hf" or (repo is not None and weights is None and not torch_installed())
    if weights is None and (runtime.offline or not from_hub) and is_intact(folder):
        return folder
    check_cache_writable()
    if from_hub:
        if weights is not None:
            raise EncoderError(f"{name} consists of ONNX files: put them into a folder and name it as onnx:FOLDER.")
        from .hub.client import pull_onnx

        assert repo is not None
        pull_onnx(repo, folder, name=name, offline=runtime.offline, progress=runtime.progress)
        return folder
    return export_model(name, weights=weights, runtime=runtime)[0]


def _check_is_model(name: str) -> None:
    if name == DEFAULT_ENCODER:
        raise EncoderError(f"{name} is bundled with pixmatcher: use it as it is.")
    if name in plugin_encoder_names():
        raise EncoderError(f"{name} is an encoder of another package: use it as it is.")


def is_intact(folder: Path) -> bool:
    """Return whether a folder contains a model whose files all have the right hash."""
    try:
        return not damaged_files(read_card(folder), folder)
    except EncoderError:
        return False


def export_model(
    name: str,
    to: Path | None = None,
    *,
    int8: bool = False,
    calibration: Calibration | None = None,
    weights: Path | None = None,
    runtime: Runtime | None = None,
) -> tuple[Path, Card]:
    """Export an encoder of PyTorch to a folder of ONNX files, by default in the cache. Return the folder and its card.

    From then on `--encoder NAME` finds it, also in a folder outside the cache. With `int8` the networks compute in 8
    bits, calibrated with the images that `calibration` returns; that encoder is called NAME@int8, or onnx:TO if it was
    made from a folder.

    Raises `EncoderError` if the export fails, the embeddings differ too much from the original, or the folder contains
    another encoder; `SourceError` if the calibration images cannot be read.
    """
    runtime = runtime or Runtime()
    _check_is_model(name)
    if name.endswith(INT8):
        raise EncoderError(f"Name the encoder without {INT8} and add --int8: {name.removesuffix(INT8)} --int8.")
    kind, rest = reference_of(name)
    if int8 and calibration is None:
        raise EncoderError("int8 must be calibrated with images like yours: name a source of images with --calibrate.")
    if calibration is not None and not int8:
        raise EncoderError("Only an encoder in 8 bits is calibrated: add --int8, or leave out --calibrate.")
    if weights is not None and kind not in TORCH_KINDS:
        raise EncoderError(f"{name} consists of ONNX files, which contain their weights: leave out --weights.")
    target_name = name + INT8 if int8 else name
    if kind == "onnx" and int8:
        if to is None:
            raise EncoderError(f"Name the folder for the int8 version of {name} with --to.")
        full, target_name = expanded(rest), full_name(f"onnx:{to}")
    else:
        full = model_folder(name)
    target = to if to is not None else model_folder(target_name)
    if to is not None:
        _check_same_encoder(to, target_name)
    else:
        check_cache_writable()
    with tempfile.TemporaryDirectory(prefix="pixmatcher-") as temporary:
        if not int8:
            card = _export_fp32(name, target, weights, runtime)
        else:
            from .onnx.quantize import quantize_model

            if kind in TORCH_KINDS and (weights is not None or not full.is_dir()):
                full = Path(temporary) / "fp32"
                _export_fp32(name, full, weights, runtime)
            elif kind == "hf":
                full = pull_model(name, runtime=runtime)
            recipe = read_model(full).recipe
            assert calibration is not None
            pixels = calibration(recipe)
            if runtime.progress is not None:
                runtime.progress(Progress(f"Quantising {name}", 0, None, "steps"))
            card = quantize_model(full, target, pixels, name=target_name)
            logger.info("Made %s in %s with %d images", target_name, target, len(pixels))
    if to is not None and kind != "onnx":
        link_model(target_name, to)
    return target, card


def _check_same_encoder(folder: Path, name: str) -> None:
    """Raise `EncoderError` if a folder contains an encoder of another name."""
    try:
        existing = read_card(folder).name
    except EncoderError:  # no encoder, or a damaged one
        return
    if existing != name:
        raise EncoderError(f"{folder} contains the encoder {existing}: choose another folder, or delete it.")


def _export_fp32(name: str, target: Path, weights: Path | None, runtime: Runtime) -> Card:
    kind, rest = reference_of(name)
    if kind == "hf":
        from .hub.client import pull_onnx

        return pull_onnx(rest, target, name=name, offline=runtime.offline, progress=runtime.progress)
    if kind not in TORCH_KINDS:
        raise EncoderError(f"{name} consists of ONNX files already and needs no export: use it as it is.")
    if not torch_installed():
        raise EncoderError(torch_missing_message(name))
    from .torch.models import import_library, open_torch_model

    import_library("torch", f"The encoder {name}")
    from .torch.export import export_model

    model = open_torch_model(name, weights=weights, offline=runtime.offline, progress=runtime.progress)
    if runtime.progress is not None:
        runtime.progress(Progress(f"Exporting {name}", 0, None, "steps"))
    return export_model(model, target)


def _device(name: str) -> list[tuple[str, str]]:
    choice = describe_device(name)
    return [] if choice is None else [("runs on", str(choice))]


def model_details(name: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the properties of an encoder on this machine, and a sentence for each damaged file.

    Raises `EncoderError` if it is not on this machine.
    """
    bundled = name == DEFAULT_ENCODER
    if bundled or name in plugin_encoder_names():
        record = describe_encoder(name)
        return [
            ("name", name),
            ("fingerprint", record.fingerprint),
            ("spaces", _spaces(record)),
            ("state", "bundled" if bundled else PLUGIN),
            *_device(name),
        ], []
    kind, rest = reference_of(name)
    folder = expanded(rest) if kind == "onnx" else model_folder(name)
    if kind != "onnx" and not folder.is_dir():
        raise EncoderError(f"{name} is not on this machine: run `pixmatcher models pull {name}`.")
    card = read_model(folder)
    recipe = card.recipe
    details = [
        ("name", card.name),
        ("folder", str(folder.resolve())),
        ("fingerprint", card.fingerprint),
        (
            "space",
            f"{card.space.name}, {card.space.dimension} values, {'text and image' if card.space.text else 'image'}",
        ),
        ("precision", card.precision),
        *_device(name),
        ("images", f"{recipe.size} pixels, crop {recipe.crop:.3g}, {recipe.resize}, {recipe.interpolation}"),
        ("mean", ", ".join(f"{value:.4g}" for value in recipe.mean)),
        ("std", ", ".join(f"{value:.4g}" for value in recipe.std)),
        ("licence", card.licence),
        ("source", card.source),
        *((key, str(value)) for key, value in (card.notes or {}).items()),
        *((file, f"{stored.bytes / 1e6:.1f} MB, sha256 {stored.sha256}") for file, stored in card.files.items()),
    ]
    damaged = damaged_files(card, folder)
    return details, [f"{file} is damaged: export or pull {name} again." for file in damaged]
